"""Clean-up and folding passes keep what a graph computes, whatever the graph."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qcompiler.ir.edit import name_everything
from qcompiler.ir.provenance import mark_origins, user_nodes
from qcompiler.ir.shape_inference import infer_shapes
from qcompiler.pipeline.contract import Pass
from rewriting import CLEANING, rewrite, worst

CLOSE = 1e-4  # float32 sums in another order through at most eight layers
WIDTH = 4


class Draft:
    """A graph that grows operator by operator, on values of rank 2 to 4 whose axis 1 is WIDTH."""

    def __init__(self, draw: st.DrawFn, rank: int) -> None:
        self.draw = draw
        self.rank = rank
        self.nodes: list[ir.Node] = []
        self.constants: list[ir.Value] = []
        self.rng = np.random.default_rng(draw(st.integers(0, 2**16)))
        self.x = ir.Value(
            name="x",
            shape=ir.Shape(["batch", WIDTH, *[3] * (rank - 2)]),
            type=ir.TensorType(ir.DataType.FLOAT),
        )
        self.values = [self.x]

    def constant(self, array: np.ndarray) -> ir.Value:
        name = f"c{len(self.constants)}"
        value = ir.Value(
            name=name,
            const_value=ir.tensor(array, name=name),
            shape=ir.Shape(array.shape),
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        )
        self.constants.append(value)
        return value

    def normal(self, *shape: int) -> ir.Value:
        return self.constant(self.rng.standard_normal(shape).astype(np.float32))

    def positive(self, *shape: int) -> ir.Value:
        return self.constant(self.rng.uniform(0.5, 2, shape).astype(np.float32))

    def op(self, op_type: str, *inputs: ir.Value, **attributes: object) -> ir.Value:
        node = ir.node(op_type, inputs, attributes)  # type: ignore[arg-type]
        self.nodes.append(node)
        return node.outputs[0]

    def pick(self) -> ir.Value:
        return self.draw(st.sampled_from(self.values[-3:]))

    def model(self, opset: int) -> ir.Model:
        outputs = [self.values[-1]]
        if len(self.values) > 3 and self.draw(st.booleans()):
            outputs.append(self.values[-2])
        for index, value in enumerate(outputs):
            value.name = f"out{index}"
            value.type = ir.TensorType(ir.DataType.FLOAT)
        graph = ir.Graph(
            [self.x],
            outputs,
            nodes=self.nodes,
            initializers=self.constants,
            opset_imports={"": opset},
            name="drawn",
        )
        model = ir.Model(graph, ir_version=8)
        name_everything(model)
        mark_origins(model)
        infer_shapes(model)
        return model


def channels(d: Draft) -> tuple[int, ...]:
    return (1, WIDTH, *[1] * (d.rank - 2))


def arithmetic(d: Draft) -> ir.Value:
    shape = d.draw(st.sampled_from([(), (1,), channels(d), channels(d)[1:]]))
    other = d.positive(*shape)
    op = d.draw(st.sampled_from(["Add", "Sub", "Mul", "Div"]))
    x = d.pick()
    return d.op(op, other, x) if d.draw(st.booleans()) else d.op(op, x, other)


def neutral(d: Draft) -> ir.Value:
    op = d.draw(st.sampled_from(["Add", "Mul", "Sub", "Div", "Pow"]))
    number = 0.0 if op in ("Add", "Sub") else 1.0
    shape = d.draw(st.sampled_from([(), (1,), (1, 1), (1,) * 5]))
    y = d.op(op, d.pick(), d.constant(np.full(shape, number, np.float32)))
    return d.op("Reshape", y, like(d)) if len(shape) == 5 else y


def batch_norm(d: Draft) -> ir.Value:
    shape = (WIDTH,)
    return d.op(
        "BatchNormalization",
        d.pick(),
        d.normal(*shape),
        d.normal(*shape),
        d.normal(*shape),
        d.positive(*shape),
        epsilon=1e-3,
    )


def convolution(d: Draft) -> ir.Value:
    if d.rank == 2:
        return linear(d)
    group = d.draw(st.sampled_from([1, 2, WIDTH]))
    kernel = [1] * (d.rank - 2)
    op = d.draw(st.sampled_from(["Conv", "ConvTranspose"]))
    shape = (WIDTH, WIDTH // group, *kernel)
    bias = [d.normal(WIDTH)] if d.draw(st.booleans()) else []
    return d.op(op, d.pick(), d.normal(*shape), *bias, group=group)


def linear(d: Draft) -> ir.Value:
    if d.rank != 2:
        return unary(d)
    weights = [value for value in d.constants if value.shape == ir.Shape([WIDTH, WIDTH])]
    shared = weights and d.draw(st.booleans())
    w = d.draw(st.sampled_from(weights)) if shared else d.normal(WIDTH, WIDTH)
    form = d.draw(st.sampled_from(["Gemm", "MatMul", "Transpose"]))
    if form == "Gemm":
        shapes: list[tuple[int, ...] | None] = [None, (WIDTH,), (1, WIDTH), (), (1,)]
        shape = d.draw(st.sampled_from(shapes))
        bias = [] if shape is None else [d.normal(*shape)]
        return d.op(
            "Gemm",
            d.pick(),
            w,
            *bias,
            transB=d.draw(st.integers(0, 1)),
            alpha=d.draw(st.sampled_from([1.0, 0.5])),
            beta=d.draw(st.sampled_from([1.0, 2.0])),
        )
    if form == "Transpose":
        w = d.op("Transpose", w, perm=[1, 0])
    y = d.op("MatMul", d.pick(), w)
    if d.draw(st.booleans()):
        bias = d.normal(*d.draw(st.sampled_from([(WIDTH,), (1, WIDTH)])))
        y = d.op("Add", bias, y) if d.draw(st.booleans()) else d.op("Add", y, bias)
    return y


def unary(d: Draft) -> ir.Value:
    return d.op(d.draw(st.sampled_from(["Relu", "Neg", "Identity", "Tanh"])), d.pick())


def casts(d: Draft) -> ir.Value:
    return d.op("Cast", d.pick(), to=int(ir.DataType.FLOAT))


def transposes(d: Draft) -> ir.Value:
    perm = d.draw(st.permutations(range(d.rank)))
    back = [perm.index(axis) for axis in range(d.rank)]
    y = d.op("Transpose", d.pick(), perm=perm)
    if d.draw(st.booleans()):
        y = d.op("Relu", y)
    return d.op("Transpose", y, perm=back)


def like(d: Draft, first: int = -1) -> ir.Value:
    """Target of a Reshape, by one of the ways exporters write it."""
    tail = np.array([WIDTH, *[3] * (d.rank - 2)], np.int64)
    if d.draw(st.booleans()):
        return d.constant(np.array([first, *tail], np.int64))
    zero, axis = d.constant(np.zeros((), np.int64)), d.constant(np.array([0], np.int64))
    rows = d.op("Unsqueeze", d.op("Gather", d.op("Shape", d.x), zero), axis)
    return d.op("Concat", rows, d.constant(tail), axis=0)


def reshapes(d: Draft) -> ir.Value:
    if d.draw(st.booleans()):
        return d.op("Reshape", d.pick(), like(d, first=0))
    flat = d.op("Reshape", d.pick(), d.constant(np.array([-1], np.int64)))
    return d.op("Reshape", flat, like(d))


def slices(d: Draft) -> ir.Value:
    end = d.draw(st.sampled_from([WIDTH, WIDTH + 3, 2**31 - 1, 2**63 - 1]))
    return d.op(
        "Slice",
        d.pick(),
        d.constant(np.array([0], np.int64)),
        d.constant(np.array([end], np.int64)),
        d.constant(np.array([1], np.int64)),
    )


def squeezes(d: Draft) -> ir.Value:
    axis = d.constant(np.array([d.draw(st.integers(0, d.rank))], np.int64))
    y = d.op("Unsqueeze", d.pick(), axis)
    return d.op("Squeeze", y, axis)


def twice(d: Draft) -> ir.Value:
    x = d.pick()
    return d.op("Add", d.op("Tanh", x), d.op("Tanh", x))


def constants(d: Draft) -> ir.Value:
    c = d.op("Sqrt", d.op("Add", d.positive(*channels(d)), d.positive(1)))
    return d.op("Mul", d.pick(), c)


def expands(d: Draft) -> ir.Value:
    shape = d.op("Shape", d.x) if d.draw(st.booleans()) else d.constant(np.ones(1, np.int64))
    return d.op("Expand", d.pick(), shape)


MENU: tuple[Callable[[Draft], ir.Value], ...] = (
    arithmetic,
    batch_norm,
    casts,
    constants,
    convolution,
    expands,
    linear,
    neutral,
    reshapes,
    slices,
    squeezes,
    transposes,
    twice,
    unary,
)


@st.composite
def models(draw: st.DrawFn) -> ir.Model:
    draft = Draft(draw, draw(st.integers(2, 4)))
    for step in draw(st.lists(st.sampled_from(MENU), min_size=1, max_size=8)):
        draft.values.append(step(draft))
    if draft.values[-1] is draft.x:
        draft.values.append(draft.op("Neg", draft.x))
    return draft.model(draw(st.sampled_from([13, 17, 18, 21, 23])))


@pytest.mark.parametrize("passes", [*[(item,) for item in CLEANING], CLEANING], ids=str)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(model=models(), batch=st.integers(1, 3))
def test_a_pass_keeps_what_the_graph_computes(
    passes: tuple[Pass, ...], model: ir.Model, batch: int
) -> None:
    after = rewrite(model, *passes)
    shape = [batch, *list(model.graph.inputs[0].shape or ())[1:]]
    feed = {"x": np.random.default_rng(1).standard_normal(shape).astype(np.float32)}
    assert worst(model, after, feed) <= CLOSE
    assert user_nodes(after) <= user_nodes(model)
    assert [v.name for v in after.graph.outputs] == [v.name for v in model.graph.outputs]
