"""Laws of every plan: total, consistent, and as cheap as any placement can be."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placing import CALIBRATED, COSTS, TOY
from qcompiler.analysis import regions
from qcompiler.ir.edit import name_everything
from qcompiler.ir.provenance import mark_origins
from qcompiler.ir.walk import all_nodes
from qcompiler.pipeline.contract import State
from qcompiler.pipeline.run import run_pipeline
from qcompiler.plan import Own, Plan, Verdict
from qcompiler.recipe import Recipe
from qcompiler.runtime.observe import observe
from qcompiler.targets.generic_qdq import GENERIC_QDQ
from qcompiler.targets.registry import load_target, target_names
from qcompiler.targets.schema import Cost, Scheme, Target
from qcompiler_models.tiny import MODELS, build, feeds
from qcompiler_passes.decide.check_plan import check_plan
from qcompiler_passes.decide.cut import place, problem_of
from qcompiler_passes.decide.observe_shapes import ObserveShapes
from qcompiler_passes.decide.place_precision import PlacePrecision
from qcompiler_passes.decide.prices import Prices
from qcompiler_passes.decide.rows import Rows
from qcompiler_passes.decide.units import survey
from qcompiler_passes.decide.wishes import wishes_of

SHAPE = (1, 4, 6, 6)


class _Random:
    """Collects nodes; every value has one shape, so that any may be combined with any."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.rng = np.random.default_rng(0)
        self.weights: dict[str, ir.Value] = {}
        self.nodes: list[ir.Node] = []

    def weight(self, name: str, *shape: int) -> ir.Value:
        array = self.rng.standard_normal(shape).astype(np.float32)
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        value.shape, value.type = ir.Shape(shape), ir.TensorType(ir.DataType.FLOAT)
        return self.weights.setdefault(name, value)

    def op(
        self, kind: str, *inputs: ir.Value, outputs: int = 1, **attributes: object
    ) -> list[ir.Value]:
        name = f"n{len(self.nodes)}"
        node = ir.node(kind, inputs, attributes, num_outputs=outputs, name=name)  # type: ignore[arg-type]
        for index, output in enumerate(node.outputs):
            output.name = f"{name}.{index}"
        self.nodes.append(node)
        return list(node.outputs)

    def step(self, a: ir.Value, b: ir.Value) -> list[ir.Value]:
        """One or more new nodes on the values."""
        kind = self.draw(st.sampled_from(["conv", "linear", "two", "one", "move", "join", "split"]))
        if kind == "conv":
            return self.op("Conv", a, self.weight("conv", 4, 4, 3, 3), pads=[1, 1, 1, 1])
        if kind == "linear":
            made = self.op("MatMul", a, self.weight("linear", 6, 6))
            biased = self.draw(st.booleans())
            return self.op("Add", made[0], self.weight("bias", 6)) if biased else made
        if kind == "two":
            return self.op(self.draw(st.sampled_from(["Add", "Mul", "MatMul"])), a, b)
        if kind == "one":
            return self.op(self.draw(st.sampled_from(["Relu", "Sigmoid", "Softmax", "Tanh"])), a)
        if kind == "move":
            return self.op("Transpose", a, perm=[0, 1, 3, 2])
        if kind == "join":
            joined = self.op("Concat", a, b, axis=1)
            return self.op("Conv", joined[0], self.weight("narrow", 4, 8, 1, 1))
        halves = self.op("Split", a, outputs=2, axis=1, num_outputs=2)
        return self.op("Concat", *halves, axis=1)


@st.composite
def models(draw: st.DrawFn) -> ir.Model:
    """Graphs of up to nine steps, each reading any earlier values."""
    random = _Random(draw)
    x = ir.Value(name="x", shape=ir.Shape(SHAPE), type=ir.TensorType(ir.DataType.FLOAT))
    values = [x]
    for _ in range(draw(st.integers(1, 9))):
        values += random.step(draw(st.sampled_from(values)), draw(st.sampled_from(values)))
    outputs = [v for v in values[1:] if not v.uses() or draw(st.integers(0, 5)) == 0]
    for value in outputs:
        value.type = ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        [x],
        outputs,
        nodes=random.nodes,
        initializers=list(random.weights.values()),
        opset_imports={"": 21},
        name="random",
    )
    model = ir.Model(graph, ir_version=10)
    name_everything(model)
    mark_origins(model)
    return model


@st.composite
def targets(draw: st.DrawFn) -> Target:
    """The toy target with costs drawn anew, or one that unifies and has no costs."""
    if draw(st.integers(0, 4)) == 0:
        return GENERIC_QDQ
    ns = st.integers(0, 30).map(lambda n: n * 100.0)
    costs = {
        key: Cost(float(draw(st.integers(0, 40))), cost.per_mac_ns and ((1, draw(ns)),), draw(ns))
        for key, cost in COSTS.items()
    }
    unifies = GENERIC_QDQ.unifies
    if draw(st.booleans()):
        rows = tuple(row for row in TOY.kernels if row.op != "Concat")
        return dataclasses.replace(TOY, kernels=rows, unifies=unifies, costs=costs)
    return dataclasses.replace(TOY, costs=costs)


def check_total(plan: Plan, model: ir.Model, state: State) -> None:
    assert list(plan.nodes) == [str(node.name) for node in all_nodes(model)]
    check_plan(plan, model, state)
    for decision in plan:
        assert (decision.verdict is Verdict.FLOAT) <= (decision.reason is not None)
    for value, intent in plan.values.items():
        assert isinstance(plan.resolve(value), Own) or not isinstance(intent, Own)


@settings(max_examples=80, deadline=None)
@given(models(), targets(), st.booleans(), st.sampled_from(["auto", "static-int8"]))
def test_plans_of_random_graphs_are_total_consistent_and_cheapest(
    model: ir.Model, target: Target, force: bool, recipe: str
) -> None:
    state = State(
        target,
        Recipe.of({"base": recipe, "force": force}),
        target.form,
        feeds=CALIBRATED,
        sample={"x": np.zeros(SHAPE, np.float32)},
    )
    run_pipeline([ObserveShapes(), PlacePrecision()], model, state, check=True)
    assert state.plan is not None
    assert state.shapes is not None
    check_total(state.plan, model, state)

    prices = Prices(target, state.shapes)
    rows = Rows(
        target,
        state.form,
        state.shapes,
        embeddings=True,
        activations=state.recipe.activations,
    )
    wishes = wishes_of(model.graph, state.recipe, {})
    units = survey(model.graph, rows, prices, wishes, static=True)
    covered = [node for unit in units for node in (unit.head, *unit.followers)]
    assert sorted(map(id, covered)) == sorted(map(id, model.graph))

    place(model.graph, units, prices)  # takes unifiers out where they cannot share
    problem = problem_of(model.graph, units, prices)
    found = regions.solve(problem)
    in_float = {unit.name: regions.FLOAT for unit in problem.units}
    assert found.cost_us <= regions.cost_of(problem, in_float) + 1e-6
    choices = [[(unit.name, mode) for mode in unit.costs] for unit in problem.units]
    if np.prod([len(choice) for choice in choices]) <= 3000:
        best = min(regions.cost_of(problem, dict(p)) for p in itertools.product(*choices))
        assert found.cost_us == pytest.approx(best, abs=1e-4)


@pytest.mark.parametrize("target", target_names())
@pytest.mark.parametrize("name", MODELS)
def test_plans_of_tiny_models_are_total(name: str, target: str) -> None:
    model = build(name)
    name_everything(model)
    mark_origins(model)
    sample = feeds(name, 1)[0]
    shapes = observe(model, sample)
    found = load_target(target)
    runs = [("auto", CALIBRATED), ("auto", None)]
    if any(row.scheme is Scheme.WEIGHT for row in found.kernels):
        runs.append(("weight-int8", None))
    for recipe, data in runs:
        for force in (False, True):
            options = {"base": recipe, "force": force}
            state = State(found, Recipe.of(options), found.form, feeds=data, sample=sample)
            state.shapes = shapes
            run_pipeline([PlacePrecision()], model, state, check=True)
            assert state.plan is not None
            check_total(state.plan, model, state)
            assert Plan.from_dict(state.plan.to_dict()) == state.plan
