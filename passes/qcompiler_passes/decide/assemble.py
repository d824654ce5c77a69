"""Write a solution down as a plan: a decision for every node, an intent for every stored value."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from qcompiler.diagnostics import Code, Diagnostic
from qcompiler.ir.provenance import module_of, origins
from qcompiler.ir.walk import all_nodes, op_name
from qcompiler.pipeline.contract import State
from qcompiler.plan import Fixed, Intent, NodeDecision, Own, Plan, Same, Verdict
from qcompiler.recipe_options import DATA_DRIVEN
from qcompiler.schemes import QSpec
from qcompiler.targets.activations import activation_spec
from qcompiler.targets.schema import Form, Kernel, Scheme
from qcompiler_passes.decide.cut import Solution
from qcompiler_passes.decide.prices import Prices
from qcompiler_passes.decide.reasons import diagnose, why_float
from qcompiler_passes.decide.rows import Refusal, operand_specs
from qcompiler_passes.decide.units import Option, Unit

__all__ = ["assemble", "decision_of"]


def assemble(
    model: ir.Model, units: Sequence[Unit], solution: Solution, state: State, prices: Prices
) -> Plan:
    """The plan of a solution.

    Args:
        model: The planned model.
        units: All units of its main graph.
        solution: What was chosen for them.
        state: Target, recipe, form, shapes, and the user's nodes that are gone.
        prices: For the numbers in reasons.
    """
    writer = _Writer(units, solution, state, prices)
    decided = {decision.node: decision for unit in units for decision in writer.decide(unit)}
    nodes = {}
    for node in model.graph:
        nodes[str(node.name)] = decided[str(node.name)]
    for node in all_nodes(model):
        if node.graph is not model.graph:
            refusal = Refusal(Code.IN_SUBGRAPH, "it is in the body of an If, Loop or Scan")
            nodes[str(node.name)] = decision_of(node, Verdict.FLOAT, reason=diagnose(node, refusal))
    removed = tuple(
        NodeDecision(name, "", Verdict.REMOVED, into=by, origin=(name,))
        for name, by in state.removed.items()
    )
    return Plan(
        state.target.name, state.recipe.name, state.form.value, nodes, writer.intents(), removed
    )


def decision_of(node: ir.Node, verdict: Verdict, **fields: object) -> NodeDecision:
    """What the plan says of a node; ``fields`` are those of :class:`NodeDecision`."""
    return NodeDecision(
        str(node.name),
        op_name(node),
        verdict,
        origin=origins(node),
        module=module_of(node),
        **fields,  # type: ignore[arg-type]  # dataclass fields, checked at each call
    )


class _Writer:
    def __init__(
        self, units: Sequence[Unit], solution: Solution, state: State, prices: Prices
    ) -> None:
        assert state.shapes is not None, "place-precision needs shapes"
        self.units = units
        self.solution = solution
        self.state = state
        self.shapes = state.shapes
        self.prices = prices
        self.activation = activation_spec(state.target, state.form, state.recipe.activations)
        self.low = {  # operands that are read in low precision
            (unit.head, index)
            for unit in units
            if solution.modes[unit.name][0]
            for index in unit.reads
        }
        # outputs of unifiers that share parameters: their range is not that of their operator
        self.gathered = {
            str(value.name)
            for unit in units
            if (option := solution.chosen.get(unit.name)) is not None and option.unifies
            for value in unit.outputs
        } & set(solution.owners.values())

    def decide(self, unit: Unit) -> list[NodeDecision]:
        """The decisions of the unit's nodes."""
        option = self.solution.chosen.get(unit.name)
        if option is None:
            reason = why_float(unit, self.state.target, self.shapes, self.prices)
            head = decision_of(unit.head, Verdict.FLOAT, reason=reason)
            return [head, *(self._left(node, unit, reason) for node in unit.followers)]
        if option.kernel is None:
            return [self._carried(unit, option)]
        decisions = [self._quantized(unit, option)]
        for index, node in enumerate(unit.followers):
            if index < option.absorbed:
                decisions.append(decision_of(node, Verdict.FUSED, into=unit.name))
            else:
                decisions.append(self._beside(node, unit, option))
        return decisions

    def intents(self) -> dict[str, Intent]:
        """How each stored activation gets its parameters, in graph order."""
        found: dict[str, Intent] = {}
        for unit in self.units:
            reads, writes = self.solution.modes[unit.name]
            values: list[ir.Value] = []
            if reads:
                values += [v for i in unit.reads if (v := unit.head.inputs[i]) is not None]
            if writes:
                values += [value for value in unit.outputs if value.name]
            for value in values:
                found.setdefault(str(value.name), self._intent(value))
        return found

    def _intent(self, value: ir.Value) -> Intent:
        name = str(value.name)
        if name in self.solution.owners:
            return Same(self.solution.owners[name])
        assert self.activation is not None, "only targets with static rows store activations"
        producer = value.producer()
        bounds = None
        if producer is not None:
            bounds = self.state.target.fixed_range(op_name(producer), self.activation)
        if bounds is not None and name not in self.gathered:
            return Fixed(self.activation, *bounds)
        return Own(self.activation)

    def _quantized(self, unit: Unit, option: Option) -> NodeDecision:
        row = option.kernel
        assert row is not None, "the caller saw a kernel"
        outputs: list[QSpec | None] = [None] * len(unit.head.outputs)
        outputs[0] = row.output or self._stored_for_all(unit, option, row)
        gain = None
        if self.prices.known and unit.float_us is not None and not row.reference:
            gain = unit.float_us - option.us
        weight_only = row.scheme is Scheme.WEIGHT and option.weight is not None
        algorithm = unit.wish.algorithm if weight_only and unit.wish.algorithm != "rtn" else ""
        if row.op == "Gather" and algorithm in DATA_DRIVEN and not unit.wish.tied:
            algorithm = "hqq"  # nothing reaches a table that data could tell of
        return decision_of(
            unit.head,
            Verdict.QUANTIZED,
            kernel=row.id,
            inputs=operand_specs(row, unit.head, option.weight),
            outputs=tuple(outputs),
            reason=self._comment(unit, option, gain),
            gain_us=_rounded(gain),
            algorithm=algorithm,
        )

    def _stored_for_all(self, unit: Unit, option: Option, row: Kernel) -> QSpec | None:
        """The type in which all read the result of a kernel that gives floats; None: as floats.

        In form qdq onnxruntime fuses the Q behind a MatMul where nothing else reads the result, and
        the floats where there is no Q. Where both are wanted it would fuse nothing, so all read
        what is stored.
        """
        if self.state.form is not Form.QDQ or row.scheme is not Scheme.STATIC or not row.qdq_ops:
            return None
        last = unit.followers[option.absorbed - 1] if option.absorbed else unit.head
        result = last.outputs[0]
        low = [(use.node, use.idx) in self.low for use in result.uses()]
        mixed = any(low) and (not all(low) or result.is_graph_output())
        return self.activation if mixed else None

    def _comment(self, unit: Unit, option: Option, gain: float | None) -> Diagnostic | None:
        if gain is None or gain >= 0 or not unit.forced:
            return None
        message = f"{-gain:.1f} us slower than float ({unit.float_us:.1f} us)"
        if option.kernel is not None and option.kernel.op == "Gather":
            value = unit.head.inputs[0]
            size = self._bytes(value)
            message = f"for size: {size} bytes become about {size // 4}; " + message
            return diagnose(unit.head, Refusal(Code.FOR_SIZE, message), gain_us=_rounded(gain))
        return diagnose(
            unit.head, Refusal(Code.FORCED, "forced: " + message), gain_us=_rounded(gain)
        )

    def _bytes(self, value: ir.Value | None) -> int:
        tensor = None if value is None else ir.convenience.get_const_tensor(value)
        assert tensor is not None, "the conditions want a table"
        return int(tensor.nbytes)

    def _carried(self, unit: Unit, option: Option) -> NodeDecision:
        inputs: list[QSpec | None] = [None] * len(unit.head.inputs)
        for index in unit.reads:
            inputs[index] = self.activation
        gain = None
        if self.prices.known and unit.float_us is not None:
            gain = unit.float_us - option.us
        return decision_of(
            unit.head,
            Verdict.CARRIED,
            inputs=tuple(inputs),
            outputs=tuple(self.activation if value.name else None for value in unit.outputs),
            gain_us=_rounded(gain),
        )

    def _left(self, node: ir.Node, unit: Unit, reason: Diagnostic) -> NodeDecision:
        """A follower whose head is float."""
        code = Code.KEPT_BY_RULE if reason.code is Code.KEPT_BY_RULE else Code.FLOAT_NEIGHBOURS
        refusal = Refusal(
            code, f"it would be absorbed by {unit.name}, which stays in float ({reason.code.id})"
        )
        return decision_of(node, Verdict.FLOAT, reason=diagnose(node, refusal))

    def _beside(self, node: ir.Node, unit: Unit, option: Option) -> NodeDecision:
        """A follower that the chosen kernel does not absorb."""
        assert option.kernel is not None, "carriers have no followers"
        refusal = Refusal(
            Code.CONDITION,
            f"{option.kernel.id} of {unit.name} gives floats and does not absorb {op_name(node)}",
        )
        return decision_of(node, Verdict.FLOAT, reason=diagnose(node, refusal))


def _rounded(us: float | None) -> float | None:
    return None if us is None else round(us, 2)
