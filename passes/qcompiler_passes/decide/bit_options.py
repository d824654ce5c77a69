"""Weights whose bits may be chosen: what they may become, and what that makes of them."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.ir.edit import constant
from qcompiler.ir.walk import all_nodes
from qcompiler.numerics.nbits import stored_bytes
from qcompiler.numerics.parallel import on_all_cores
from qcompiler.numerics.qtensor import QTensor
from qcompiler.pipeline.contract import State
from qcompiler.schemes import Granularity, QSpec
from qcompiler.stages.cut import Site
from qcompiler.stages.store import WeightStore
from qcompiler.stages.walk import MEMORY
from qcompiler.targets.schema import Scheme
from qcompiler_passes.decide.rows import Rows
from qcompiler_passes.decide.ties import follow_tie
from qcompiler_passes.decide.wishes import Wish, pin, wishes_of
from qcompiler_passes.planned import product_of_table
from qcompiler_passes.weights.alone import round_alone

__all__ = ["BitLayer", "BitRounding", "bit_layers"]


@dataclasses.dataclass(frozen=True)
class BitLayer:
    """A weight and how it may be stored.

    Attributes:
        node: The MatMul that reads it.
        shape: ``[K, N]``.
        specs: By bits.
        algorithm: What will round it.
        table_bytes: By bits, what an embedding table takes that could share the numbers of this
            weight, and by these bits does not; empty where none could.
    """

    node: ir.Node
    shape: tuple[int, int]
    specs: Mapping[int, QSpec]
    algorithm: str
    table_bytes: Mapping[int, int] = dataclasses.field(default_factory=dict)

    def stored_bytes(self, bits: int) -> int:
        """What the file holds for this option: codes, scales and zero points, a table untied."""
        return stored_bytes(self.specs[bits], self.shape) + self.table_bytes.get(bits, 0)

    @property
    def size(self) -> int:
        """Elements of the weight."""
        return math.prod(self.shape)


def bit_layers(model: ir.Model, state: State) -> Iterator[BitLayer]:
    """MatMul layers that may be stored in one of the recipe's choices."""
    assert state.shapes is not None
    recipe = state.recipe
    wishes = pin(wishes_of(all_nodes(model), recipe, state.removed), state.pinned)
    rows = Rows(state.target, state.form, state.shapes, embeddings=recipe.embeddings)
    tables = {product_of_table(item): item for item in model.graph if item.op_type == "Gather"}
    for node in model.graph:
        wish = wishes[str(node.name)]
        if node.op_type != "MatMul" or Scheme.WEIGHT not in wish.schemes:
            continue
        fixed = wish.rule is not None and wish.rule.bits is not None
        choices = (wish.bits,) if fixed else recipe.bits_choices
        specs = {bits: spec for bits in choices if (spec := _spec(rows, node, wish, bits))}
        array = constant(node.inputs[1]) if specs else None
        if array is None or array.ndim != 2:
            continue
        shape = (array.shape[0], array.shape[1])
        found = BitLayer(node, shape, specs, wish.algorithm)
        if node in tables:
            found = dataclasses.replace(
                found, table_bytes=_table_bytes(rows, tables[node], found, wishes)
            )
        yield found


def _table_bytes(
    rows: Rows, table: ir.Node, layer: BitLayer, wishes: Mapping[str, Wish]
) -> dict[int, int]:
    """What the table takes besides the layer's own bytes: nothing where one buffer is both."""
    if wishes[str(table.name)].rule is not None:
        return {}  # the table has a form of its own, whatever the layer gets
    found = {}
    for bits, spec in layer.specs.items():
        product = str(layer.node.name)
        own = {**wishes, product: dataclasses.replace(wishes[product], bits=bits)}
        wish = follow_tie(table, layer.node, own)
        fits = (row for row in rows.of(table) if rows.refusal(row, table, wish) is None)
        row = next(fits, None)
        stored = None if row is None else rows.weight_spec(row, wish)
        if stored is None:
            found[bits] = 4 * layer.size
        elif dataclasses.replace(stored, axis=spec.axis) == spec:
            found[bits] = 0
        else:
            found[bits] = stored_bytes(stored, layer.shape)
    return found if 0 in found.values() else {}


def _spec(rows: Rows, node: ir.Node, wish: Wish, bits: int) -> QSpec | None:
    """How the weight is stored in so many bits; None when no kernel takes it."""
    wish = dataclasses.replace(wish, bits=bits)
    for row in rows.of(node):
        if row.scheme is Scheme.WEIGHT and rows.refusal(row, node, wish) is None:
            spec = rows.weight_spec(row, wish)
            if spec is not None and spec.granularity in (Granularity.BLOCK, Granularity.CHANNEL):
                return spec
    return None


class BitRounding:
    """Layers rounded under their options, each once and without data.

    They take a byte an element: what is more than ``memory`` bytes waits in a temporary folder.
    """

    def __init__(
        self, layers: Mapping[str, BitLayer], state: State, memory: int = MEMORY // 2
    ) -> None:
        self._layers = layers
        self._state = state
        self._held: dict[tuple[str, int], QTensor] = {}
        self._room = memory
        self._store: WeightStore | None = None
        self._lock = threading.Lock()

    def of(self, name: str, bits: int) -> QTensor:
        """The layer's weight in so many bits."""
        held = self._held.get((name, bits))
        if held is not None:
            return held
        if self._store is not None and self._store.has((name, 1), str(bits)):
            return self._store.get((name, 1), str(bits))
        layer = self._layers[name]
        found = round_alone(
            self._weight(name), layer.specs[bits], layer.algorithm, self._state.recipe,
            self._state.form, where=name,
        )  # fmt: skip
        self._keep(name, bits, found)
        return found

    def error(self, node: ir.Node, bits: int) -> npt.NDArray[np.float32]:
        """Rounded less float weight, ``[K, N]``; 0 for what is no option of the layer."""
        name = str(node.name)
        weight = self._weight(name)
        if bits not in self._layers[name].specs:
            return np.zeros_like(weight)
        found = self.of(name, bits).dequantize()
        return np.subtract(found, weight, out=found)

    def trial(self, choice: Mapping[str, int]) -> Mapping[Site, QTensor]:
        """Rounded weights of layers that have a choice, made or read when asked for."""
        return _Trial(
            self, {n: bits for n, bits in choice.items() if len(self._layers[n].specs) > 1}
        )

    def prepare(self, names: Iterable[str]) -> None:
        """Round all options of these layers, on all processors."""

        def make(key: tuple[str, int]) -> None:
            self.of(*key)

        on_all_cores(make, [(x, bits) for x in names for bits in self._layers[x].specs])

    def _keep(self, name: str, bits: int, tensor: QTensor) -> None:
        with self._lock:
            self._room -= tensor.q.nbytes
            if self._room >= 0:
                self._held[name, bits] = tensor
                return
            if self._store is None:
                self._store = WeightStore()
        self._store.put((name, 1), str(bits), tensor)

    def _weight(self, name: str) -> npt.NDArray[np.float32]:
        array = constant(self._layers[name].node.inputs[1])
        assert array is not None
        return np.asarray(array, np.float32)


class _Trial(Mapping[Site, QTensor]):
    """Weights of one choice."""

    def __init__(self, rounding: BitRounding, bits: Mapping[str, int]) -> None:
        self._rounding = rounding
        self._bits = bits

    def __getitem__(self, site: Site) -> QTensor:
        return self._rounding.of(site[0], self._bits[site[0]])

    def __contains__(self, site: object) -> bool:
        return isinstance(site, tuple) and site[0] in self._bits

    def __iter__(self) -> Iterator[Site]:
        return ((name, 1) for name in self._bits)

    def __len__(self) -> int:
        return len(self._bits)
