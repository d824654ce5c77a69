"""Hold a quantized model against its float model, node by node."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.artifact import Artifact
from qcompiler.calibration.padding import Padding
from qcompiler.diagnostics import Code, QcError
from qcompiler.pipeline.contract import Feed
from qcompiler.runtime.inputs import input_specs
from qcompiler.runtime.observe import observe
from qcompiler.runtime.session import open_session, run
from qcompiler.runtime.settings import SessionSettings
from qcompiler.runtime.trial_feeds import runnable_feed
from qcompiler.verify.beside import check_inputs
from qcompiler.verify.layer_shares import Shares
from qcompiler.verify.layer_views import Pair, open_both, pairs_of, views_of

__all__ = ["LayerComparison", "LayerRow", "compare_layers"]

_PLAIN = SessionSettings("disable")
_TAP_BYTES = 256 << 20  # of tapped values of one feed at a time, both models together
# A jump: the error's power grows fourfold from what a node reads to what it gives, and it matters.
_JUMP_DB = 6.0
_GOOD_DB = 30.0
_BEST_DB = 40.0  # about what rounding to 8 bits leaves: errors below it are none to grow from


@dataclasses.dataclass(frozen=True, slots=True)
class LayerRow:
    """One node.

    Attributes:
        node: Name in the float model (in the planned form, for artifacts).
        op: Operator.
        sqnr_db: Signal to quantization noise of its output, decibels; infinite when equal.
        cosine: Cosine of its output with the float one, over all feeds.
        jump: By how many decibels the error grew from what the node reads, relative to signal;
            counted from 40 dB where the inputs are better.
        weight_sqnr_db: With its weight rounded and a float input; None for other nodes.
        activation_sqnr_db: With its input rounded and a float weight; None for other nodes.
        weight_share: Share of the weight in the power of these two errors.
    """

    node: str
    op: str
    sqnr_db: float
    cosine: float
    jump: float
    weight_sqnr_db: float | None = None
    activation_sqnr_db: float | None = None
    weight_share: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form: None for what is infinite or unknown."""
        data = dataclasses.asdict(self)
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in data.items()
        }


@dataclasses.dataclass(frozen=True)
class LayerComparison:
    """All nodes that both models have, in graph order.

    Attributes:
        rows: One per node.
        feeds: How many feeds were compared.
        unmatched: Float nodes without a counterpart.
    """

    rows: tuple[LayerRow, ...]
    feeds: int
    unmatched: int = 0

    @property
    def first_jump(self) -> LayerRow | None:
        """The first node whose error grows by 6 dB or more, to less than 30 dB; None without."""
        bad = (row for row in self.rows if row.jump >= _JUMP_DB and row.sqnr_db < _GOOD_DB)
        return next(bad, None)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form."""
        first = self.first_jump
        return {
            "feeds": self.feeds,
            "unmatched": self.unmatched,
            "first_jump": None if first is None else first.node,
            "layers": [row.to_dict() for row in self.rows],
        }

    def report_rows(self) -> tuple[dict[str, Any], ...]:
        """Rows for :attr:`qcompiler.report.model.Report.layers`."""
        keys = ("node", "sqnr_db", "cosine", "weight_sqnr_db", "activation_sqnr_db")
        return tuple({key: row.to_dict()[key] for key in keys} for row in self.rows)


def compare_layers(
    float_model: Any,
    quantized: Artifact | Any,
    feeds: Iterable[Feed] | None = None,
    *,
    max_feeds: int | None = None,
    shares: bool = True,
    mask: str | None = None,
    threads: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> LayerComparison:
    """Compare every value that a float model and its quantized form both have.

    Both run without graph optimizations, the quantized one with its integer operators spelled as
    DequantizeLinear, float operator, QuantizeLinear. Only sums are kept; values are tapped in
    groups of up to 256 MB, and the feeds stream through once per group.

    Args:
        float_model: Anything :func:`qcompiler.qcompile` takes.
        quantized: An artifact, of an encoder-decoder one of its ``parts``, or a quantized model of
            this compiler or of another tool.
        feeds: Checked feeds, re-iterable; None generates one.
        max_feeds: Take no more than this.
        shares: Also compute how much each layer's weight and its activation contribute.
        mask: Name of the input that is 0 where the data is padding, which is left out; None is what
            an artifact's recipe says, or finds ``attention_mask`` by itself.
        threads: Intra-op threads; None is the runtime's default.
        progress: Called with what is being done.

    Raises:
        QcError: A model cannot be read or run, or the two have no node in common (QC411).
    """
    reference, other = open_both(float_model, quantized)
    quantized_graph = other.model if isinstance(other, Artifact) else other
    check_inputs(reference, quantized_graph, "compare")
    if mask is None and isinstance(other, Artifact):
        mask = other.manifest["recipe"].get("calibration", {}).get("mask")
    source: Iterable[Feed] = [runnable_feed(reference)] if feeds is None else feeds
    if max_feeds is not None or isinstance(source, Iterator):  # few, or gone after one look
        source = list(itertools.islice(source, max_feeds))
    first = next(iter(source), None)
    if first is None:
        raise QcError(Code.EMPTY_CALIBRATION, "data", "there is no feed to compare on")
    model, spelled, plan = views_of(reference, other, first)
    shapes = observe(model, first)
    pairs = pairs_of(model, spelled, plan)
    if not pairs and len(model.graph):  # a model without nodes has no rows
        raise _strangers()
    sums = [
        _Sums(pair, Shares.of(pair.node, pair.other) if shares else None)
        for pair in pairs
        if _is_known(pair, shapes)
    ]
    padding = Padding.of(reference, mask)
    count = 0
    groups = list(_groups(sums, shapes))
    for index, group in enumerate(groups):
        if progress is not None:
            progress(f"compare layers, part {index + 1} of {len(groups)}")
        limited = itertools.islice(source, max_feeds)
        count = _stream(model, spelled, group, limited, padding, threads)
    alike = [item for item in sums if item.compared]
    if sums and not alike:
        raise _strangers()
    rows = _rows(model, alike)
    return LayerComparison(tuple(rows), count, _unmatched(model, [item.pair for item in alike]))


def _strangers() -> QcError:
    return QcError(
        Code.USAGE,
        "compare",
        "the two models have no node and no value in common",
        "give the float model that was quantized",
    )


class _Sums:
    """Running sums of one pair."""

    def __init__(self, pair: Pair, shares: Shares | None) -> None:
        self.pair = pair
        self.shares = shares
        self.signal = self.noise = self.dot = self.power = 0.0
        self.compared = False  # not where the two have other shapes

    def add(self, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> None:
        if x.shape != y.shape:
            return
        self.compared = True
        a, b = x.astype(np.float64).reshape(-1), y.astype(np.float64).reshape(-1)
        finite = np.isfinite(a) & np.isfinite(b)
        if not finite.all():  # masks hold infinities, in both alike
            a, b = a[finite], b[finite]
        self.signal += float(a @ a)
        self.power += float(b @ b)
        self.dot += float(a @ b)
        difference = a - b
        self.noise += float(difference @ difference)

    @property
    def ratio(self) -> float:
        """Noise to signal."""
        if self.noise == 0.0:
            return 0.0
        return self.noise / self.signal if self.signal else math.inf

    @property
    def cosine(self) -> float:
        if self.signal == 0.0 or self.power == 0.0:
            return 1.0 if self.signal == self.power else 0.0
        return min(1.0, self.dot / math.sqrt(self.signal * self.power))


def _is_known(pair: Pair, shapes: Mapping[str, tuple[Any, Any]]) -> bool:
    found = shapes.get(str(pair.value.name))
    return found is not None and found[0].kind == "f"


def _groups(
    sums: Sequence[_Sums], shapes: Mapping[str, tuple[Any, tuple[int, ...]]]
) -> Iterator[list[_Sums]]:
    group: list[_Sums] = []
    size = 0
    for item in sums:
        names = [str(item.pair.value.name)] * 2
        if item.shares is not None:
            names.append(item.shares.input)
        own = sum(4 * math.prod(shapes[name][1]) for name in names if name in shapes)
        if group and size + own > _TAP_BYTES:
            yield group
            group, size = [], 0
        group.append(item)
        size += own
    if group:
        yield group


def _stream(
    model: ir.Model,
    spelled: ir.Model,
    group: Sequence[_Sums],
    feeds: Iterable[Feed],
    padding: Padding,
    threads: int | None,
) -> int:
    wanted = [str(item.pair.value.name) for item in group]
    inputs = [item.shares.input for item in group if item.shares is not None]
    others = [str(item.pair.other_value.name) for item in group]
    before = open_session(_tapped(model, [*wanted, *inputs]), settings=_PLAIN, threads=threads)
    after = open_session(_tapped(spelled, others), settings=_PLAIN, threads=threads)
    fed = {spec.name for spec in input_specs(model)}
    count = 0
    for feed in feeds:
        x = run(before, feed)
        y = run(after, {name: feed[name] for name in fed if name in feed}, code=Code.DOES_NOT_LOAD)
        keep = padding.keep(feed)
        for item, name, other in zip(group, wanted, others, strict=True):
            item.add(_cut(x[name], keep), _cut(y[other], keep))
            if item.shares is not None:
                source = item.shares.input
                item.shares.add(_cut(feed[source] if source in feed else x[source], keep))
        count += 1
    for item in group:
        if item.shares is not None:
            item.shares.close()
    return count


def _cut(x: npt.NDArray[Any], keep: npt.NDArray[np.bool_] | None) -> npt.NDArray[Any]:
    return x if keep is None else Padding.cut(x, keep)


def _tapped(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy that gives the named values and nothing else."""
    from qcompiler.ir.edit import remove_dead

    copy = model.clone()
    made = {output.name: output for node in copy.graph for output in node.outputs}
    copy.graph.outputs.clear()
    for name in dict.fromkeys(names):
        if name not in made:
            continue  # an input of the model: the feed has it
        value = made[name]
        if value.type is None:
            value.type = ir.TensorType(ir.DataType.FLOAT)
        copy.graph.outputs.append(value)
    remove_dead(copy)
    return copy


def _rows(model: ir.Model, sums: Sequence[_Sums]) -> Iterator[LayerRow]:
    by_node = {item.pair.node: item for item in sums}
    floor = 10.0 ** (-_BEST_DB / 10.0)
    errors: dict[ir.Value, float] = {}
    for node in model.graph:
        base = max((errors.get(v, 0.0) for v in node.inputs if v is not None), default=0.0)
        item = by_node.get(node)
        if item is None:
            for output in node.outputs:
                errors.setdefault(output, base)
            continue
        ratio = item.ratio
        for value in (*node.outputs, item.pair.value):
            errors[value] = ratio
        grown = _db(max(base, floor)) - _db(max(ratio, floor))
        shares = item.shares
        weight = activation = None
        if shares is not None and shares.signal:
            weight = _db(shares.weight_noise / shares.signal)
            if shares.limits != (0, 0):
                activation = _db(shares.activation_noise / shares.signal)
        yield LayerRow(
            node=str(node.name),
            op=node.op_type,
            sqnr_db=_db(ratio),
            cosine=item.cosine,
            jump=grown,
            weight_sqnr_db=weight,
            activation_sqnr_db=activation,
            weight_share=None if shares is None else shares.weight_share,
        )


def _db(ratio: float) -> float:
    """Noise to signal as signal to noise, in decibels."""
    if ratio == 0.0:
        return math.inf
    return -10.0 * math.log10(ratio) if math.isfinite(ratio) else -math.inf


def _unmatched(model: ir.Model, pairs: Sequence[Pair]) -> int:
    matched = {pair.node for pair in pairs}
    layers = ("MatMul", "Gemm", "Conv", "ConvTranspose")
    return sum(node.op_type in layers and node not in matched for node in model.graph)
