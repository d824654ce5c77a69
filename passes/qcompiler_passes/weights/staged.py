"""What passes have in common that round weights by data and keep them in a store."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Collection, Iterable, Iterator, Sequence

import onnx_ir as ir
import pydantic

from qcompiler.analysis.blocks import Block, repeated_blocks
from qcompiler.calibration.summary_file import model_digest
from qcompiler.diagnostics import Code, Diagnostic, QcError
from qcompiler.pipeline.contract import Feed, State
from qcompiler.plan import Plan, Verdict
from qcompiler.schemes import QSpec
from qcompiler.stages.cut import LayerGroup, Site

__all__ = [
    "CountedFeeds",
    "common_facts",
    "digested_feeds",
    "model_blocks",
    "site_keys",
    "staged_layers",
    "weight_spec",
]

_FEW = 8  # samples; what fewer have in common is chance


class CountedFeeds:
    """Feeds whose samples are counted as they go by.

    Attributes:
        samples: Counted so far: what stands along the first axis.
    """

    def __init__(self, feeds: Iterable[Feed]) -> None:
        """Nothing counted yet."""
        self._feeds = feeds
        self.samples = 0

    def __iter__(self) -> Iterator[Feed]:
        for feed in self._feeds:
            self.samples += max((len(array) for array in feed.values() if array.ndim), default=1)
            yield feed

    def too_few(self, algorithm: str) -> tuple[Diagnostic, ...]:
        """A diagnostic if an algorithm has learned from less than it wants."""
        if not 0 < self.samples < _FEW:
            return ()
        said = f"{algorithm} saw {self.samples} samples, wanted at least {_FEW}"
        hint = "give some dozens of samples that are like the real inputs"
        values = {"samples": self.samples, "wanted": _FEW}
        return (Diagnostic(Code.FEW_SAMPLES, "calibration", said, hint, values),)


def staged_layers(graph: ir.Graph, plan: Plan, algorithms: Collection[str]) -> list[ir.Node]:
    """Planned MatMul nodes whose weight one of the algorithms rounds, in graph order."""
    found = []
    for node in graph:
        decision = plan.nodes.get(node.name or "")
        if decision is None or decision.verdict is not Verdict.QUANTIZED:
            continue
        if decision.algorithm in algorithms and node.op_type == "MatMul":
            found.append(node)
    return found


def weight_spec(node: ir.Node, plan: Plan) -> QSpec:
    """How the plan stores a layer's weight."""
    spec = plan.nodes[node.name or ""].inputs[1]
    assert spec is not None
    return spec


def model_blocks(graph: ir.Graph) -> tuple[Block, ...]:
    """The repeated blocks; all of the model as one where nothing repeats."""
    return repeated_blocks(graph) or (Block("model", tuple(graph)),)


def digested_feeds(state: State) -> tuple[Iterable[Feed], str]:
    """The data, and its hash where a work folder needs one.

    Raises:
        QcError: QC410, there is no data.
    """
    feeds = state.feeds
    if feeds is None:
        raise QcError(
            Code.NEEDS_CALIBRATION,
            "weights.algorithm",
            "the algorithm rounds by what reaches the layers, and there is no data",
            "give calibration data, or choose rtn, k-quant or hqq",
        )
    if state.work is None:
        return feeds, ""
    if not feeds.reiterable:
        held = list(feeds)
        return held, str(feeds.digest)
    if feeds.digest is None:
        for _ in feeds:
            pass
    return feeds, str(feeds.digest)


def site_keys(
    model: ir.Model,
    groups: Sequence[LayerGroup],
    plan: Plan,
    state: State,
    data: str,
    options: pydantic.BaseModel,
) -> dict[Site, str]:
    """A hash for each site of all that determines its numbers; "" where nothing outlives a compile.

    What determines them: model, data, options, seed, the libraries that multiply, and the plan for
    this group of layers and all before it.

    Args:
        model: The model, all its constants included.
        groups: Layers in the order in which they are rounded.
        plan: How each layer stores its weight.
        state: The compile's.
        data: Hash of the calibration data.
        options: Of the algorithm.
    """
    if state.work is None:
        return {site: "" for group in groups for site in group.sites}
    chain = hashlib.sha256(common_facts(model, state, data, options).encode())
    keys = {}
    for group in groups:
        for node, site in zip(group.nodes, group.sites, strict=True):
            decision = plan.nodes[site[0]]
            chain.update(f"{site} {decision.algorithm} {weight_spec(node, plan)};".encode())
        keys.update(dict.fromkeys(group.sites, chain.hexdigest()))
    return keys


def common_facts(model: ir.Model, state: State, data: str, options: pydantic.BaseModel) -> str:
    """What numbers depend on but for the plan: model, data, options, seed, and what multiplies."""
    versions = [_version(name) for name in ("numpy", "onnxruntime", "torch")]
    said = options.model_dump(mode="json")
    recipe = state.recipe
    return json.dumps(
        [model_digest(model), data, recipe.calibration.mask, said, recipe.seed, versions]
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
