"""What can be done with each node: units of a computing node and what it may absorb."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping

import onnx_ir as ir

from qcompiler.analysis.regions import FLOAT, LOW, Mode
from qcompiler.diagnostics import Code
from qcompiler.ir.edit import constant, has_one_use, is_constant
from qcompiler.ir.walk import op_name
from qcompiler.numerics.nbits import nbits_layout
from qcompiler.schemes import QSpec
from qcompiler.targets.conditions import CONDITIONS, Context, code_of
from qcompiler.targets.cost import Shapes, shape_of
from qcompiler.targets.schema import Carry, Form, Kernel, Scheme, Unify
from qcompiler_passes.decide.prices import Prices
from qcompiler_passes.decide.rows import Refusal, Rows, is_float, reads_low
from qcompiler_passes.decide.wishes import Wish
from qcompiler_passes.planned import bias_operand

__all__ = ["Option", "Unit", "survey"]


# Refusals of rows that would fit the node.
_FITTING = (Code.NO_CALIBRATION, Code.NOT_SELECTED)

# Schemes that quantize activations when the model runs.
_AT_RUN_TIME = (Scheme.TOKEN, Scheme.DYNAMIC)


@dataclasses.dataclass(frozen=True, slots=True)
class Option:
    """One way to do a unit other than in float.

    Attributes:
        mode: In what it reads and writes.
        us: Microseconds, with the followers that it leaves in float.
        kernel: The row, or None for a carrier or unifier.
        weight: Spec of the constant operand, where the row has one.
        absorbed: How many of the followers the kernel takes in.
        unifies: The inputs share parameters with the output, and there are several.
        runtime_us: A price for quantizing the activation at run time, which it shares with the
            other readers of the value that do the same.
    """

    mode: Mode
    us: float
    kernel: Kernel | None = None
    weight: QSpec | None = None
    absorbed: int = 0
    unifies: bool = False
    runtime_us: float = 0.0


@dataclasses.dataclass(slots=True)
class Unit:
    """A node and the nodes behind it that a kernel may absorb.

    Attributes:
        head: The computing (or moving) node.
        followers: Bias Add, Relu, Clip: each the only reader of the one before.
        wish: What the recipe wants.
        float_us: All of it in float; None unknown.
        options: Ways to do it in low precision; empty leaves float.
        refusals: Why rows were not taken.
        reads: Indices of the head's inputs that are read in low precision by static options.
        forced: Float is no choice, though there is an option.
    """

    head: ir.Node
    followers: tuple[ir.Node, ...]
    wish: Wish
    float_us: float | None
    options: list[Option]
    refusals: list[Refusal]
    reads: tuple[int, ...]
    forced: bool

    @property
    def name(self) -> str:
        """Name of the head."""
        return str(self.head.name)

    @property
    def outputs(self) -> tuple[ir.Value, ...]:
        """What the whole unit writes."""
        return tuple(self.followers[-1].outputs if self.followers else self.head.outputs)

    def cheapest(self, mode: Mode) -> Option | None:
        """The cheapest option of a mode, the first of equals; None when float is as cheap."""
        found = min(
            (option for option in self.options if option.mode == mode),
            key=lambda option: option.us,
            default=None,
        )
        if found is None or mode != FLOAT or self.forced or self.float_us is None:
            return found
        return found if found.us < self.float_us else None

    def costs(self) -> dict[Mode, float]:
        """Microseconds by mode, for the cut."""
        costs = {}
        for mode in {option.mode for option in self.options} | {FLOAT}:
            option = self.cheapest(mode)
            if option is not None:
                costs[mode] = option.us
            elif mode == FLOAT and not self.forced:
                costs[mode] = self.float_us or 0.0
        return costs


def survey(
    graph: ir.Graph, rows: Rows, prices: Prices, wishes: Mapping[str, Wish], *, static: bool
) -> list[Unit]:
    """Every node of the graph in exactly one unit, in graph order.

    Args:
        graph: The main graph.
        rows: The target's kernel rows.
        prices: The target's costs.
        wishes: What the recipe wants, by node name.
        static: Whether there is data to calibrate with.
    """
    surveyor = _Surveyor(rows, prices, wishes, static)
    units: list[Unit] = []
    taken: set[ir.Node] = set()
    for node in graph:
        if node not in taken:
            unit = surveyor.unit(node)
            taken.update(unit.followers)
            units.append(unit)
    _share_runtime_quantization(units)
    return units


class _Surveyor:
    def __init__(
        self, rows: Rows, prices: Prices, wishes: Mapping[str, Wish], static: bool
    ) -> None:
        self.rows = rows
        self.prices = prices
        self.wishes = wishes
        self.static = static
        self.shapes: Shapes = rows.shapes
        self.carries = {row.op: row for row in rows.target.carries}
        self.unifies = {row.op: row for row in rows.target.unifies}

    def unit(self, node: ir.Node) -> Unit:
        """The unit that starts at ``node``."""
        wish = self.wishes[str(node.name)]
        unit = Unit(node, (), wish, None, [], [], (), False)
        usable, absorbing = [], []
        for row in self.rows.of(node):
            refusal = self.rows.refusal(row, node, wish)
            if refusal is None and row.scheme is Scheme.STATIC and not self.static:
                refusal = Refusal(
                    Code.NO_CALIBRATION, f"{row.id} wants ranges and there is no calibration data"
                )
            if refusal is None:
                usable.append(row)
            else:
                unit.refusals.append(refusal)
            # what another recipe would absorb goes with its head: it has no decision of its own
            if refusal is None or (not wish.kernel and refusal.code in _FITTING):
                absorbing.append(row)
        chains = {row.id: self._chain(node, row) for row in absorbing}
        unit.followers = max(chains.values(), key=len, default=())
        followers_us = [self._behind_us(node, item) for item in unit.followers]
        alone_us = self.prices.node(node)
        unit.float_us = None if alone_us is None else alone_us + sum(followers_us)
        for row in usable:
            absorbed = len(chains[row.id])
            left_us = sum(followers_us[absorbed:])
            result = self._kernel(unit, row, absorbed, left_us)
            if isinstance(result, Option):
                unit.options.append(result)
                unit.reads = unit.reads or reads_low(row, node)
            else:
                unit.refusals.append(result)
        self._drop_second_best(unit)
        # a target without costs wants all that it has rows for; int8 tables are for their size
        sizes = any(o.kernel is not None and o.kernel.op == "Gather" for o in unit.options)
        unit.forced = bool(unit.options) and (wish.force or not self.prices.known or sizes)
        self._add_mover(unit)
        return unit

    def _drop_second_best(self, unit: Unit) -> None:
        """Of TOKEN and DYNAMIC keep what the recipe lists first: costs do not see precision."""
        order = [scheme for scheme in unit.wish.schemes if scheme in _AT_RUN_TIME]
        have = {option.kernel.scheme for option in unit.options if option.kernel is not None}
        best = next((scheme for scheme in order if scheme in have), None)
        for option in list(unit.options):
            row = option.kernel
            if best and row is not None and row.scheme in _AT_RUN_TIME and row.scheme is not best:
                unit.options.remove(option)
                message = f"the recipe lists scheme {best.value} before {row.id}"
                unit.refusals.append(Refusal(Code.NOT_SELECTED, message))

    def _behind_us(self, head: ir.Node, follower: ir.Node) -> float:
        """What a follower adds to its head in float."""
        if head.op_type == "Conv" and follower.op_type in ("Relu", "Clip"):
            return 0.0  # runtimes fuse it: ORT's ConvActivationFusion and its NCHWc convolutions
        return self.prices.node(follower) or 0.0

    def _kernel(self, unit: Unit, row: Kernel, absorbed: int, left_us: float) -> Option | Refusal:
        node, wish = unit.head, unit.wish
        if row.output is not None and absorbed < len(unit.followers):
            left = unit.followers[absorbed]
            return Refusal(
                Code.CONDITION,
                f"{row.id} stores its result, and {left.name} ({op_name(left)}) stands behind it",
            )
        weight = self.rows.weight_spec(row, wish)
        bits = None
        if weight is not None and row.scheme is Scheme.WEIGHT and row.op == "MatMul":
            layout = nbits_layout(weight)
            bits = weight.width if isinstance(layout, str) else layout.bits
        # a reference is computed in float, whatever its conversions take
        us = self.prices.node(node) if row.reference else self.prices.kernel(row, node, bits)
        if us is None and not wish.force:
            if not self.prices.has_shape(node):
                return Refusal(Code.UNKNOWN_SHAPE, "its work is unknown: a shape is missing")
            return Refusal(Code.CONDITION, f"the target has no cost for {row.id}")
        runtime_us = 0.0
        if row.scheme is Scheme.TOKEN:
            value = node.inputs[0]
            assert value is not None, "the conditions want the weight, and so the activation"
            runtime_us = self.prices.quantize(value, "quantize-token")
        mode = (row.scheme is Scheme.STATIC, row.output is not None)
        return Option(mode, (us or 0.0) + left_us, row, weight, absorbed, False, runtime_us)

    def _add_mover(self, unit: Unit) -> None:
        """The option of a carrier or unifier, where no kernel of its own is in the way."""
        node = unit.head
        row: Carry | Unify | None = self.carries.get(op_name(node))
        unifies = row is None
        if row is None:
            row = self.unifies.get(op_name(node))
        if row is None or unit.options or not is_float(node.outputs[0], self.shapes):
            return
        refusal = self._cannot_move(unit, row, unifies)
        if refusal is not None:
            unit.refusals.append(refusal)
            return
        us = self.prices.carrier(node)
        data = range(len(node.inputs)) if unifies else (0,)
        unit.reads = tuple(index for index in data if node.inputs[index] is not None)
        # of equal costs the mover goes with its neighbours: it has none of its own to add
        us = min(us if us is not None else 0.0, unit.float_us or 0.0)
        unit.options.append(Option(LOW, us, unifies=unifies))

    def _cannot_move(self, unit: Unit, row: Carry | Unify, unifies: bool) -> Refusal | None:
        node, wish = unit.head, unit.wish
        data = node.inputs if unifies else node.inputs[:1]
        if any(is_constant(value) for value in data):
            return Refusal(Code.NOT_SELECTED, "it moves a constant, which stays as it is")
        if Scheme.STATIC not in wish.schemes or wish.kernel or self.rows.activation is None:
            return Refusal(Code.DATA_MOVEMENT, "it moves data, and the recipe keeps floats here")
        if not self.static:
            return Refusal(Code.DATA_MOVEMENT, "it moves data, and its neighbours stay in float")
        context = Context(self.shapes, self.rows.target, self.rows.form)
        for name in row.conditions:
            reason = CONDITIONS[name](node, context)
            if reason is not None:
                return Refusal(code_of(name), f"as a carrier: {reason}")
        return None

    def _chain(self, node: ir.Node, row: Kernel) -> tuple[ir.Node, ...]:
        """The nodes behind ``node`` that the row absorbs: a bias first, then one activation."""
        chain: list[ir.Node] = []
        wanted = ["Add", "Relu|Clip"] if node.op_type in ("MatMul", "Gemm") else ["Relu|Clip"]
        value = node.outputs[0]
        for step in wanted:
            if not has_one_use(value):
                break
            follower = next(iter(value.uses())).node
            if follower.graph is not node.graph or op_name(follower) not in row.fuses:
                continue
            if follower.op_type in step.split("|") and self._absorbs(follower, value, row):
                chain.append(follower)
                value = follower.outputs[0]
        return tuple(chain)

    def _absorbs(self, follower: ir.Node, behind: ir.Value, row: Kernel) -> bool:
        wish = self.wishes[str(follower.name)]
        if not wish.schemes and wish.rule is not None:  # a rule keeps it in float
            return False
        if follower.op_type == "Add":
            shape = shape_of(behind, self.shapes)
            if not shape:
                return False
            return bias_operand(follower, behind, shape[-1]) is not None
        if row.output is not None and row.output.symmetric and self.rows.form is Form.ORT:
            return False  # saturation at qmin is no ReLU when qmin stands for -max
        return follower.op_type != "Clip" or _holds_zero(follower)


def _holds_zero(clip: ir.Node) -> bool:
    """Whether the bounds are constant and 0 lies between them.

    Ranges always hold 0, so only then does saturation do what the Clip does.
    """
    bounds = []
    for index, default in ((1, float("-inf")), (2, float("inf"))):
        value = clip.inputs[index] if index < len(clip.inputs) else None
        array = constant(value)
        if value is not None and (array is None or array.size != 1):
            return False
        bounds.append(default if array is None else float(array.reshape(-1)[0]))
    return bounds[0] <= 0.0 <= bounds[1]


def _share_runtime_quantization(units: Iterable[Unit]) -> None:
    """Add to each option the price of quantizing its activation when the model runs.

    A value is quantized once for all its readers. If what they save together is more than that
    price, each of those that save takes part in it in proportion; else each sees the whole price.
    """
    readers: dict[ir.Value | None, list[tuple[Unit, int]]] = collections.defaultdict(list)
    for unit in units:
        for index, option in enumerate(unit.options):
            if option.runtime_us:
                readers[unit.head.inputs[0]].append((unit, index))
    for group in readers.values():
        saved = [_saving(unit, unit.options[index]) for unit, index in group]
        total = sum(saving for saving in saved if saving > 0)
        for (unit, index), saving in zip(group, saved, strict=True):
            option = unit.options[index]
            price = option.runtime_us
            forced = unit.forced and len(unit.options) == 1
            if forced or total > price:
                price *= 1 / len(group) if forced else max(saving, 0.0) / total
            unit.options[index] = dataclasses.replace(option, us=option.us + price, runtime_us=0.0)


def _saving(unit: Unit, option: Option) -> float:
    others = [other.us for other in unit.options if other.mode == FLOAT and not other.runtime_us]
    if unit.float_us is not None and not unit.forced:
        others.append(unit.float_us)
    return min(others, default=option.us) - option.us
