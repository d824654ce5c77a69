"""What the clean-up and folding passes do to small graphs, as text."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from qcompiler.ir.shape_inference import infer_shapes
from qcompiler.pipeline.contract import Pass
from qcompiler_passes.float.canonicalize_linear import CanonicalizeLinear
from qcompiler_passes.float.canonicalize_mean import CanonicalizeMean
from qcompiler_passes.float.fold_batch_norm import FoldBatchNorm
from qcompiler_passes.float.fold_constants import FoldConstants
from qcompiler_passes.float.raise_opset import RaiseOpset
from qcompiler_passes.float.remove_dead import RemoveDead
from qcompiler_passes.float.remove_no_ops import RemoveNoOps
from qcompiler_passes.float.share_duplicates import ShareDuplicates
from rewriting import both, parse

RAISE = {
    "axes_and_split": (
        11,
        """g (float[N,4] x) => (float[N,1,2] y, float[N,1] z)
        { a, b = Split <axis = 1, split = [2, 2]> (x) y = Unsqueeze <axes = [1]> (a)
          z = ReduceMean <axes = [1], keepdims = 1> (b) }""",
    ),
    "softmax_over_several_axes": (
        11,
        "g (float[N,2,3] x) => (float[N,2,3] y) { y = Softmax <axis = 1> (x) }",
    ),
    "dropout_and_resize": (
        11,
        """g (float[1,1,2,2] x) => (float[1,1,4,4] y)
        <float[0] none = {}, int64[4] sizes = {1, 1, 4, 4}>
        { d = Dropout <ratio = 0.3> (x) y = Resize <mode = "nearest"> (d, none, none, sizes) }""",
    ),
    "inside_a_body": (
        12,
        """g (bool c, float[2] x) => (float[1,2] y)
        { y = If(c) <then_branch = t () => (float[1,2] a) { a = Unsqueeze <axes = [0]> (x) },
                     else_branch = e () => (float[1,2] b)
                     { n = Neg(x) b = Unsqueeze <axes = [0]> (n) }> }""",
    ),
}
CONSTANTS = {
    "arithmetic": """g (float[N] x) => (float[N] y) <float a = {2}, float b = {3}>
        { c = Mul(a, b) d = Sqrt(c) y = Mul(x, d) }""",
    "static_shape": """g (float[N,8] x) => (float[N] y) <int64 one = {1}, int64[1] axis = {1}>
        { s = Shape(x) d = Gather(s, one) r = Cast <to = 1> (d)
          m = ReduceSum <keepdims = 0> (x, axis) y = Div(m, r) }""",
    "reshape_of_kept_dimensions": """g (float[B,S,8] x) => (float[B,S,2,4] y)
        <int64 zero = {0}, int64 one = {1}, int64[1] axis = {0}, int64[2] heads = {2, 4}>
        { s = Shape(x) b = Gather(s, zero) n = Gather(s, one) b1 = Unsqueeze(b, axis)
          n1 = Unsqueeze(n, axis) t = Concat <axis = 0> (b1, n1, heads) y = Reshape(x, t) }""",
    "weight_dequantizer_stays": """g (float[N,2] x) => (float[N,2] y)
        <int8[2,2] q = {1, 2, 3, 4}, float s = {0.5}>
        { w = DequantizeLinear(q, s) y = MatMul(x, w) }""",
}
NO_OPS = {
    "casts_and_transposes": """g (float[A,B] x) => (float[A,B] y)
        { a = Cast <to = 1> (x) b = Transpose <perm = [1, 0]> (a) c = Relu(b)
          d = Transpose <perm = [1, 0]> (c) e = Transpose <perm = [1, 0]> (d)
          f = Transpose <perm = [1, 0]> (e) g = Identity(f) y = Neg(g) }""",
    "neutral_elements": """g (float[A,4] x) => (float[A,4] y)
        <float one = {1}, float[1] zero = {0}, float[4] zeros = {0, 0, 0, 0}>
        { a = Mul(one, x) b = Add(a, zero) c = Div(b, one) d = Add(c, zeros) y = Relu(d) }""",
    "slices_and_squeezes": """g (float[A,4] x) => (float[A,4] y)
        <int64[1] zero = {0}, int64[1] four = {4}, int64[1] one = {1}>
        { a = Slice(x, zero, four, one) b = Unsqueeze(a, zero) c = Squeeze(b, zero)
          y = Relu(c) }""",
    "output_names_stay": """g (float[A] x) => (float[A] y, float[A] z)
        { a = Relu(x) y = Identity(a) z = Identity(x) }""",
}
DUPLICATES = {
    "weights_and_nodes": """g (float[A,2] x) => (float[A,2] y)
        <float[2] b1 = {1, 2}, float[2] b2 = {1, 2}, float[2] b3 = {1, 3}>
        { a = Add(x, b1) b = Add(x, b2) c = Add(x, b3) d = Mul(a, b) y = Mul(c, d) }""",
    "random_and_outputs_stay": """g (float[2] x) => (float[2] y, float[2] z)
        { a = RandomNormalLike(x) b = RandomNormalLike(x) c = Add(a, b) y = Neg(c) z = Neg(c) }""",
}
LINEAR = {
    "gemm": """g (float[N,2] x) => (float[N,3] y)
        <float[3,2] w = {1, 2, 3, 4, 5, 6}, float[1,3] b = {1, 2, 3}>
        { y = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (x, w, b) }""",
    "bias_on_the_left": """g (float[N,2,2] x) => (float[N,2,2] y)
        <float[1,2,2] w = {1, 2, 3, 4}, float[1,1,2] b = {1, 2}>
        { m = MatMul(x, w) y = Add(b, m) }""",
    "one_transpose_for_all": """g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {1, 2, 3, 4}>
        { a = Gemm <transB = 1> (x, w) b = Gemm <transB = 1> (a, w) t = Transpose(w)
          y = MatMul(b, t) }""",
    "transposed_activation_stays": """g (float[2,N] x) => (float[N,2] y)
        <float[2,2] w = {1, 2, 3, 4}> { y = Gemm <transA = 1> (x, w) }""",
}
MEAN = {
    "over_an_image": """g (float[N,2,4,4] x) => (float[N,2] y, float[N,2,1,1] z)
        <int64[2] axes = {2, 3}, int64[2] last = {-1, -2}>
        { y = ReduceMean <keepdims = 0> (x, axes) z = ReduceMean(x, last) }""",
    "over_channels_or_a_sequence_stays": """g (float[N,2,4,4] x, float[N,8,4] s)
        => (float[N,4,4] y, float[N,4] z) <int64[1] channels = {1}, int64[1] steps = {1}>
        { y = ReduceMean <keepdims = 0> (x, channels)
          z = ReduceMean <keepdims = 0> (s, steps) }""",
}
_NORM = """float[2] g = {1, 2}, float[2] b = {1, 1}, float[2] m = {0.5, 1}, float[2] v = {1, 3}"""
NORM = {
    "conv": f"""g (float[N,1,4] x) => (float[N,2,4] y) <float[2,1,1] w = {{1, 2}}, {_NORM}>
        {{ a = Conv(x, w) y = BatchNormalization <epsilon = 1.0> (a, g, b, m, v) }}""",
    "transposed_conv_in_groups": f"""g (float[N,2,4] x) => (float[N,2,4] y)
        <float[2,1,1] w = {{1, 2}}, float[2] c = {{1, 1}}, {_NORM}>
        {{ a = ConvTranspose <group = 2> (x, w, c)
           y = BatchNormalization <epsilon = 1.0> (a, g, b, m, v) }}""",
    "linear": f"""g (float[N,2] x) => (float[N,2] y)
        <float[2,2] w = {{1, 2, 3, 4}}, float[2] c = {{1, 1}}, {_NORM}>
        {{ a = MatMul(x, w) d = Add(a, c)
           y = BatchNormalization <epsilon = 1.0> (d, g, b, m, v) }}""",
    "channel_arithmetic": """g (float[N,1,4] x) => (float[N,2,4] y)
        <float[2,1,1] w = {1, 2}, float[1,2,1] k = {2, 3}, float[2,1] s = {1, 2}, float d = {2}>
        { a = Conv(x, w) b = Mul(a, k) c = Add(s, b) y = Div(c, d) }""",
    "read_elsewhere": f"""g (float[N,1,4] x) => (float[N,2,4] y, float[N,2,4] z)
        <float[2,1,1] w = {{1, 2}}, {_NORM}>
        {{ a = Conv(x, w) y = BatchNormalization(a, g, b, m, v) z = Neg(a) }}""",
}
DEAD = {
    "chain": """g (float[N] x) => (float[N] y) <float w = {1}>
        { a = Add(x, w) b = Neg(a) y = Neg(x) }""",
}


def prepared(text: str, opset: int = 23) -> ir.Model:
    model = parse(text, opset)
    infer_shapes(model)
    return model


def cases() -> list[object]:
    table: list[tuple[Pass, dict[str, str]]] = [
        (FoldConstants(), CONSTANTS),
        (RemoveNoOps(), NO_OPS),
        (ShareDuplicates(), DUPLICATES),
        (CanonicalizeLinear(), LINEAR),
        (CanonicalizeMean(), MEAN),
        (FoldBatchNorm(), NORM),
        (RemoveDead(), DEAD),
    ]
    return [
        pytest.param(item, case, 23, text, id=f"{item.name}-{case}")
        for item, texts in table
        for case, text in texts.items()
    ] + [
        pytest.param(RaiseOpset(), case, opset, text, id=f"raise-opset-{case}")
        for case, (opset, text) in RAISE.items()
    ]


@pytest.mark.parametrize(("item", "case", "opset", "text"), cases())
def test_golden(item: Pass, case: str, opset: int, text: str, golden: object) -> None:
    name = f"{item.name.replace('-', '_')}/{case}"
    golden(name, both(prepared(text, opset), item))  # type: ignore[operator]
