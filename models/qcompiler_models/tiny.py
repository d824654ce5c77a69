"""Tiny models with seeded weights, for tests: each holds one thing a compiler stumbles over.

Every builder gives a fresh ``onnx_ir.Model`` that ONNX Runtime accepts. Values between inputs and
outputs have no types: that is shape inference's to find.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler_models.graph_builder import GraphBuilder, graph_input, graph_output

__all__ = [
    "MODELS",
    "build",
    "constant_weights",
    "control_flow",
    "convnet",
    "encoder",
    "feeds",
    "half",
    "mlp",
    "odd_classifier",
    "residual",
    "tied",
    "transformer",
]

_Array = npt.NDArray[np.generic]

_VOCABULARY, _WIDTH, _HEADS = 50, 32, 4
_FLOAT, _INT64, _BOOL = ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.BOOL


def mlp(seed: int = 0, dtype: str = "float32") -> ir.Model:
    """Three linear layers with ReLU between; the last is a Gemm with ``transB``."""
    b = GraphBuilder(seed)
    element = ir.DataType.from_numpy(np.dtype(dtype))
    x = graph_input("x", ["batch", 16], element)
    y = b.op("Relu", b.linear(x, "fc1", 16, 32, dtype))
    y = b.op("Relu", b.linear(y, "fc2", 32, 32, dtype))
    w = b.weight("fc3.weight", 10, 32, fan_in=32, dtype=dtype)
    y = b.op("Gemm", y, w, b.bias("fc3.bias", 10, dtype), transB=1)
    return b.model("mlp", [x], [graph_output(y, "y", ["batch", 10], element)], opset=21)


def half(seed: int = 0) -> ir.Model:
    """``mlp`` in float16, inputs and outputs included."""
    return mlp(seed, dtype="float16")


def transformer(seed: int = 0, layers: int = 2) -> ir.Model:
    """Encoder blocks as exporters before opset 17 wrote them, with a padding mask.

    LayerNorm and erf-GELU are spelled out, heads are split by shape arithmetic, and masked keys
    get -10000.
    """
    b = GraphBuilder(seed)
    x = graph_input("x", ["batch", "sequence", _WIDTH])
    mask = graph_input("mask", ["batch", "sequence"], _INT64)
    ones = b.op("Cast", b.op("Unsqueeze", mask, b.constant("axes_1_2", [1, 2])), to=1)
    blocked = b.op("Sub", b.constant("one", np.float32(1)), ones)
    penalty = b.op("Mul", blocked, b.constant("minus_10000", np.float32(-10000)))
    y = x
    for i in range(layers):
        attended = _attention(b, y, penalty, f"layers.{i}.attention")
        y = _layer_norm(b, b.op("Add", y, attended), f"layers.{i}.norm1")
        wide = _erf_gelu(b, b.linear(y, f"layers.{i}.fc1", _WIDTH, 2 * _WIDTH))
        narrow = b.linear(wide, f"layers.{i}.fc2", 2 * _WIDTH, _WIDTH)
        y = _layer_norm(b, b.op("Add", y, narrow), f"layers.{i}.norm2")
    outputs = [graph_output(y, "y", ["batch", "sequence", _WIDTH])]
    return b.model("transformer", [x, mask], outputs, opset=13)


def _attention(b: GraphBuilder, x: ir.Value, penalty: ir.Value, name: str) -> ir.Value:
    shape = b.op("Shape", x)
    zero = b.constant(f"{name}.axis", np.array([0]))
    batch = b.op("Gather", shape, b.constant(f"{name}.0", np.int64(0)), axis=0)
    length = b.op("Gather", shape, b.constant(f"{name}.1", np.int64(1)), axis=0)
    lead = [b.op("Unsqueeze", batch, zero), b.op("Unsqueeze", length, zero)]
    head = _WIDTH // _HEADS
    split = b.op("Concat", *lead, b.constant(f"{name}.heads", [_HEADS, head]), axis=0)
    joined = b.op("Concat", *lead, b.constant(f"{name}.width", [_WIDTH]), axis=0)

    def heads(part: str, perm: Sequence[int]) -> ir.Value:
        projected = b.linear(x, f"{name}.{part}", _WIDTH, _WIDTH)
        return b.op("Transpose", b.op("Reshape", projected, split), perm=perm)

    q, k, v = heads("q", [0, 2, 1, 3]), heads("k", [0, 2, 3, 1]), heads("v", [0, 2, 1, 3])
    root = b.constant(f"{name}.root", np.float32(np.sqrt(head)))
    logits = b.op("Add", b.op("Div", b.op("MatMul", q, k), root), penalty)
    mixed = b.op("MatMul", b.op("Softmax", logits, axis=-1), v)
    together = b.op("Reshape", b.op("Transpose", mixed, perm=[0, 2, 1, 3]), joined)
    return b.linear(together, f"{name}.out", _WIDTH, _WIDTH)


def _layer_norm(b: GraphBuilder, x: ir.Value, name: str) -> ir.Value:
    centred = b.op("Sub", x, b.op("ReduceMean", x, axes=[-1]))
    squared = b.op("Pow", centred, b.constant(f"{name}.two", np.float32(2)))
    variance = b.op("ReduceMean", squared, axes=[-1])
    deviation = b.op("Sqrt", b.op("Add", variance, b.constant(f"{name}.eps", np.float32(1e-5))))
    gamma = b.constant(f"{name}.weight", b.rng.uniform(0.5, 1.5, _WIDTH).astype("float32"))
    scaled = b.op("Mul", b.op("Div", centred, deviation), gamma)
    return b.op("Add", scaled, b.bias(f"{name}.bias", _WIDTH))


def _erf_gelu(b: GraphBuilder, x: ir.Value) -> ir.Value:
    """``x * (1 + erf(x / sqrt 2)) * 0.5``, its constants made anew at each use, as exporters do."""
    at = f"gelu_{len(b.nodes)}"
    inner = b.op("Div", x, b.constant(f"{at}.root_two", np.float32(np.sqrt(2))))
    grown = b.op("Add", b.op("Erf", inner), b.constant(f"{at}.one", np.float32(1)))
    return b.op("Mul", b.op("Mul", x, grown), b.constant(f"{at}.half", np.float32(0.5)))


def encoder(seed: int = 0) -> ir.Model:
    """Embedding and feed-forward as torch exports them now: LayerNormalization and Gelu nodes."""
    b = GraphBuilder(seed)
    ids = graph_input("ids", ["batch", "sequence"], _INT64)
    table = b.weight("embedding.weight", _VOCABULARY, _WIDTH, fan_in=1)
    y = b.op("Gather", table, ids)
    gamma = b.constant("norm.weight", b.rng.uniform(0.5, 1.5, _WIDTH).astype("float32"))
    normed = b.op("LayerNormalization", y, gamma, b.bias("norm.bias", _WIDTH), axis=-1)
    wide = b.op("Gelu", b.linear(normed, "fc1", _WIDTH, 2 * _WIDTH), approximate="none")
    y = b.op("Add", y, b.linear(wide, "fc2", 2 * _WIDTH, _WIDTH))
    return b.model(
        "encoder", [ids], [graph_output(y, "y", ["batch", "sequence", _WIDTH])], opset=20
    )


def convnet(seed: int = 0) -> ir.Model:
    """Convolutions with batch norm: plain, depthwise at stride 2, pointwise; then a classifier."""
    b = GraphBuilder(seed)
    x = graph_input("x", ["batch", 3, 16, 16])
    y = b.op("Relu", b.conv_norm(x, "stem", (8, 3, 3)))
    y = b.conv_norm(y, "depthwise", (8, 1, 3), groups=8, stride=2)
    low, high = b.constant("zero", np.float32(0)), b.constant("six", np.float32(6))
    y = b.op("Clip", y, low, high)
    y = b.op("Relu", b.conv_norm(y, "pointwise", (16, 8, 1)))
    y = b.op("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])
    y = b.op("Flatten", b.op("GlobalAveragePool", y))
    w = b.weight("classifier.weight", 10, 16, fan_in=16)
    y = b.op("Gemm", y, w, b.bias("classifier.bias", 10), transB=1)
    return b.model("convnet", [x], [graph_output(y, "y", ["batch", 10])], opset=17)


def residual(seed: int = 0) -> ir.Model:
    """Convolutions with bias, an addition of branches, a Concat, and a value used three times."""
    b = GraphBuilder(seed)
    x = graph_input("x", ["batch", 8, 12, 12])

    def conv(value: ir.Value, name: str, inputs: int, outputs: int) -> ir.Value:
        w = b.weight(f"{name}.weight", outputs, inputs, 3, 3, fan_in=9 * inputs)
        return b.op("Conv", value, w, b.bias(f"{name}.bias", outputs), pads=[1, 1, 1, 1])

    stem = b.op("Relu", conv(x, "stem", 8, 8))
    y = b.op("Relu", conv(stem, "conv1", 8, 8))
    y = b.op("Relu", b.op("Add", conv(y, "conv2", 8, 8), stem))
    y = b.op("Concat", y, stem, axis=1)
    y = conv(y, "head", 16, 4)
    return b.model("residual", [x], [graph_output(y, "y", ["batch", 4, 12, 12])], opset=17)


def odd_classifier(seed: int = 0) -> ir.Model:
    """Gemms of widths no group size divides, with and without bias, ``transB`` and ``alpha``."""
    b = GraphBuilder(seed)
    x = graph_input("x", ["batch", 37])
    w1 = b.weight("fc1.weight", 37, 13, fan_in=37)
    y = b.op("Sigmoid", b.op("Gemm", x, w1, alpha=0.5))
    w2 = b.weight("fc2.weight", 7, 13, fan_in=13)
    y = b.op("Gemm", y, w2, b.bias("fc2.bias", 7), beta=2.0, transB=1)
    return b.model("odd_classifier", [x], [graph_output(y, "y", ["batch", 7])], opset=21)


def tied(seed: int = 0) -> ir.Model:
    """A language model whose head is the transpose of its embedding: one weight, two uses."""
    b = GraphBuilder(seed)
    ids = graph_input("ids", ["batch", "sequence"], _INT64)
    table = b.weight("embedding.weight", _VOCABULARY, 24, fan_in=24)
    y = b.op("Tanh", b.linear(b.op("Gather", table, ids), "fc", 24, 24))
    y = b.op("MatMul", y, b.op("Transpose", table, perm=[1, 0]))
    outputs = [graph_output(y, "logits", ["batch", "sequence", _VOCABULARY])]
    return b.model("tied", [ids], outputs, opset=21)


def control_flow(seed: int = 0) -> ir.Model:
    """An If whose branches multiply by weights, and a Loop that applies a layer three times.

    The first branch and the loop use a weight of the graph around them, the second branch has its
    own.
    """
    b = GraphBuilder(seed)
    x, flag = graph_input("x", ["batch", 16]), graph_input("flag", [], _BOOL)
    shared = b.weight("shared.weight", 16, 16, fan_in=16)

    then, other = GraphBuilder(seed + 1, "then."), GraphBuilder(seed + 2, "else.")
    chosen = then.op("Relu", then.op("MatMul", x, shared))
    branch_a = then.graph("then", [], [graph_output(chosen, "then.y", ["batch", 16])], 21)
    own = other.weight("weight", 16, 16, fan_in=16)
    chosen = other.op("Relu", other.op("MatMul", x, own))
    branch_b = other.graph("else", [], [graph_output(chosen, "else.y", ["batch", 16])], 21)
    y = b.op("If", flag, then_branch=branch_a, else_branch=branch_b)

    body = GraphBuilder(seed + 3, "body.")
    step, going = graph_input("body.step", [], _INT64), graph_input("body.going", [], _BOOL)
    state = graph_input("body.state", ["batch", 16])
    still = graph_output(body.op("Identity", going), "body.still", [], _BOOL)
    after = body.op("Tanh", body.op("MatMul", state, shared))
    after = graph_output(after, "body.after", ["batch", 16])
    loop_body = body.graph("body", [step, going, state], [still, after], 21)
    count, always = b.constant("count", np.int64(3)), b.constant("always", np.bool_(True))
    y = b.op("Loop", count, always, y, body=loop_body)
    return b.model("control_flow", [x, flag], [graph_output(y, "y", ["batch", 16])], opset=21)


def constant_weights(seed: int = 0) -> ir.Model:
    """Two linear layers whose weights come out of Constant nodes, not initializers."""
    b = GraphBuilder(seed)
    x = graph_input("x", ["batch", 16])

    def constant(*shape: int) -> ir.Value:
        return b.op("Constant", value=ir.tensor(b.normal(*shape, fan_in=16)))

    y = b.op("Relu", b.op("Add", b.op("MatMul", x, constant(16, 16)), constant(16)))
    y = b.op("Gemm", y, constant(16, 8), constant(8))
    return b.model("constant_weights", [x], [graph_output(y, "y", ["batch", 8])], opset=21)


MODELS: Mapping[str, Callable[[], ir.Model]] = MappingProxyType(
    {
        "mlp": mlp,
        "transformer": transformer,
        "encoder": encoder,
        "convnet": convnet,
        "residual": residual,
        "odd_classifier": odd_classifier,
        "tied": tied,
        "control_flow": control_flow,
        "constant_weights": constant_weights,
        "half": half,
    }
)
"""Every builder by name; called without arguments it always gives the same model."""


def build(name: str) -> ir.Model:
    """A fresh model of that name.

    Raises:
        KeyError: If there is none; the message names the nearest.
    """
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise KeyError(f"no tiny model named {name!r}; {hint}known: {', '.join(MODELS)}")
    return MODELS[name]()


def feeds(name: str, n: int = 4, seed: int = 0) -> list[dict[str, _Array]]:
    """Seeded inputs of a tiny model, each feed of another batch and sequence length.

    Args:
        name: Of the model.
        n: How many feeds.
        seed: Of the numbers.
    """
    rng = np.random.default_rng(seed)
    inputs = build(name).graph.inputs
    sizes = [{"batch": 2 + i % 3, "sequence": 5 + 2 * (i % 4)} for i in range(n)]
    return [{str(value.name): _draw(value, size, rng) for value in inputs} for size in sizes]


def _draw(value: ir.Value, size: Mapping[str, int], rng: np.random.Generator) -> _Array:
    assert value.shape is not None, "every input of a tiny model has a shape"
    assert value.dtype is not None, "every input of a tiny model has a type"
    shape = [d if isinstance(d, int) else size[str(d.value)] for d in value.shape]
    if value.dtype == _BOOL:
        return np.asarray(rng.random(shape) < 0.5)
    if value.name == "mask":  # every row keeps its first tokens
        lengths = rng.integers(1, shape[1] + 1, size=(shape[0], 1))
        return (np.arange(shape[1]) < lengths).astype(np.int64)
    if value.dtype == _INT64:
        return rng.integers(0, _VOCABULARY, size=shape)
    return rng.standard_normal(shape).astype(value.dtype.numpy())
