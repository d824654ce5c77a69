"""The fusing passes change no number beyond rounding, masked rows included."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qcompiler_models import tiny
from qcompiler_passes.float.canonicalize_mean import CanonicalizeMean
from qcompiler_passes.float.fuse_attention import FuseAttention
from qcompiler_passes.float.fuse_gelu import FuseGelu
from qcompiler_passes.float.fuse_layer_norm import FuseLayerNorm
from qcompiler_passes.float.fuse_rms_norm import FuseRmsNorm
from qcompiler_passes.float.fuse_silu import FuseSilu
from qcompiler_passes.float.merge_qkv import MergeQkv
from qcompiler_passes.float.raise_opset import RaiseOpset
from qcompiler_passes.float.simplify_mask import SimplifyMask
from rewriting import Feed, opened, ops, parse, rewrite, worst

ALL = (
    SimplifyMask(),
    FuseLayerNorm(),
    FuseRmsNorm(),
    FuseGelu(),
    FuseSilu(),
    FuseAttention(),
    MergeQkv(enabled=True),
)
# float32 sums in another order: some units in the last place of the largest number
ROUNDING = 2e-6

LOWEST = float(np.finfo(np.float32).min)


def _normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# --- attention -----------------------------------------------------------------------------------

KEYS = {
    "one transpose": "kt = Transpose <perm = [0, 2, 3, 1]> (kr)",
    "two transposes": """k4 = Transpose <perm = [0, 2, 1, 3]> (kr)
        kt = Transpose <perm = [0, 1, 3, 2]> (k4)""",
    "exporter": """k4 = Transpose <perm = [0, 2, 1, 3]> (kr)
        sizes = Shape(k4) size = Slice(sizes, i3, i4) length = Slice(sizes, i2, i3)
        outer = Slice(sizes, i0, i2) three = Concat <axis = 0> (i1, length, size)
        k3 = Reshape(k4, three) k3t = Transpose <perm = [0, 2, 1]> (k3)
        four = Concat <axis = 0> (outer, size, length) kt = Reshape(k3t, four)""",
}
SCALES = {
    "none": "d = MatMul(qt, kt)",
    "on scores": "s = MatMul(qt, kt) d = Mul(s, half)",
    "divided": "s = MatMul(qt, kt) d = Div(s, two)",
    "on both": "qs = Mul(qt, half) ks = Mul(kt, half) d = MatMul(qs, ks)",
    "on query": "qs = Div(qt, two) d = MatMul(qs, kt)",
}
MASKS = {
    "none": "a = Identity(d)",
    "added": "a = Add(d, mask)",
    "added first": "a = Add(mask, d)",
    "twice": "b = Add(d, mask) a = Add(b, bias)",
    "kept": "keep = Equal(mask, zero) a = Where(keep, d, hidden)",
    "dropped": "drop = Less(mask, zero) a = Where(drop, hidden, d)",
    "dropped and added": "drop = Less(mask, zero) c = Where(drop, hidden, d) a = Add(c, bias)",
}
PLAIN = "w = Identity(p)"
GUARD = "nan = IsNaN(p) w = Where(nan, zero, p)"


def _attention(
    key: str = "one transpose",
    scale: str = "divided",
    mask: str = "added",
    guard: bool = False,
    hidden: float = -np.inf,
    mask_shape: str = "B,1,1,S",
) -> ir.Model:
    model = parse(
        f"""g (float[B,S,8] q, float[B,S,8] k, float[B,S,8] v, float[{mask_shape}] mask,
            float[1,2,S,S] bias) => (float[B,S,8] y)
        <int64[4] split = {{0, 0, -1, 4}}, int64[3] merge = {{0, 0, -1}}, float half = {{0.5}},
         float two = {{2}}, float zero = {{0}}, float hidden = {{1}},
         int64[1] i0 = {{0}}, int64[1] i1 = {{-1}}, int64[1] i2 = {{2}}, int64[1] i3 = {{3}},
         int64[1] i4 = {{4}}>
        {{ qr = Reshape(q, split) qt = Transpose <perm = [0, 2, 1, 3]> (qr) kr = Reshape(k, split)
          vr = Reshape(v, split) vt = Transpose <perm = [0, 2, 1, 3]> (vr)
          {KEYS[key]} {SCALES[scale]} {MASKS[mask]}
          p = Softmax <axis = -1> (a) {GUARD if guard else PLAIN} o = MatMul(w, vt)
          ot = Transpose <perm = [0, 2, 1, 3]> (o) y = Reshape(ot, merge) }}"""
    )
    model.graph.initializers["hidden"].const_value = ir.tensor(
        np.array(hidden, np.float32), name="hidden"
    )
    for node in list(model.graph):  # no pass here removes what the text needs Identity for
        if node.op_type == "Identity":
            node.outputs[0].replace_all_uses_with(node.inputs[0])
            model.graph.remove(node, safe=True)
    return model


def _feed(batch: int, length: int, hidden: float, rows: int = 1) -> Feed:
    """The first sequence is half padding; the second nothing but padding."""
    mask = np.zeros((batch, 1, rows, length), np.float32)
    mask[0, ..., length // 2 :] = hidden
    if batch > 1:
        mask[1] = hidden
    flat = {name: _normal(batch, length, 8, seed=i) for i, name in enumerate("qkv")}
    return {**flat, "mask": mask, "bias": _normal(1, 2, length, length, seed=5)}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("key", KEYS)
def test_every_form_of_key_and_scale_becomes_one_attention(key: str, scale: str) -> None:
    model = _attention(key, scale)
    fused = rewrite(model, FuseAttention())
    assert ops(fused).count("Attention") == 1
    assert not {"MatMul", "Softmax", "Transpose", "Reshape"} & set(ops(fused))
    assert worst(model, fused, _feed(2, 6, -10000.0)) < ROUNDING


@pytest.mark.parametrize("hidden", [-1e4, -1e9, LOWEST])
@pytest.mark.parametrize("mask", MASKS)
def test_finite_masks_keep_rows_that_are_masked_everywhere(mask: str, hidden: float) -> None:
    model = _attention(mask=mask, hidden=hidden)
    fused = rewrite(model, FuseAttention())
    if mask == "dropped and added" and hidden != LOWEST:
        # where every key is dropped, a bias decides between scores of -10000
        assert "Attention" not in ops(fused)
        return
    assert "Softmax" not in ops(fused)
    for batch, length in ((2, 6), (3, 5), (1, 1)):
        assert worst(model, fused, _feed(batch, length, hidden)) < ROUNDING


@pytest.mark.parametrize("mask", ["added", "twice", "kept", "dropped", "dropped and added"])
def test_rows_masked_by_infinity_are_zeros_as_behind_the_guard(mask: str) -> None:
    model = _attention(mask=mask, guard=True)
    fused = rewrite(model, FuseAttention())
    assert not {"IsNaN", "Softmax"} & set(ops(fused))
    assert worst(model, fused, _feed(2, 6, -np.inf)) < ROUNDING


def test_a_mask_of_full_size_is_used_as_it_is() -> None:
    model = _attention(mask_shape="B,1,S,S")
    fused = rewrite(model, FuseAttention())
    assert "Expand" not in ops(fused)
    assert worst(model, fused, _feed(2, 6, LOWEST, rows=6)) < ROUNDING


def test_a_mask_that_many_layers_share_is_made_once() -> None:
    layer = """ qr{i} = Reshape({x}, split) qt{i} = Transpose <perm = [0, 2, 1, 3]> (qr{i})
        kt{i} = Transpose <perm = [0, 2, 3, 1]> (qr{i}) s{i} = MatMul(qt{i}, kt{i})
        a{i} = Add(s{i}, mask) p{i} = Softmax(a{i}) o{i} = MatMul(p{i}, qt{i})
        ot{i} = Transpose <perm = [0, 2, 1, 3]> (o{i}) {y} = Reshape(ot{i}, merge)"""
    model = parse(
        """g (float[B,S,8] x, float[B,1,1,S] mask) => (float[B,S,8] y)
        <int64[4] split = {0, 0, 2, 4}, int64[3] merge = {0, 0, 8}> {"""
        + layer.format(i=0, x="x", y="x1")
        + layer.format(i=1, x="x1", y="x2")
        + layer.format(i=2, x="x2", y="y")
        + "}"
    )
    fused = rewrite(model, FuseAttention())
    assert ops(fused).count("Attention") == 3
    assert ops(fused).count("Expand") == 1
    feed = {"x": _normal(2, 6, 8), "mask": _feed(2, 6, -1e4)["mask"]}
    assert worst(model, fused, feed) < 10 * ROUNDING  # three layers


def test_grouped_queries_use_the_few_heads() -> None:
    model = parse(
        """g (float[B,S,16] q, float[B,S,8] k, float[B,S,8] v) => (float[B,S,16] y)
        <int64[4] split = {0, 0, -1, 4}, int64[3] merge = {0, 0, -1}, int64[1] axis = {2},
         int64[5] times = {1, 1, 2, 1, 1}, int64[4] many = {0, 4, -1, 4}, float half = {0.5}>
        { qr = Reshape(q, split) qt = Transpose <perm = [0, 2, 1, 3]> (qr)
          kr = Reshape(k, split) k4 = Transpose <perm = [0, 2, 1, 3]> (kr)
          k5 = Unsqueeze(k4, axis) kx = Expand(k5, times) kn = Reshape(kx, many)
          vr = Reshape(v, split) v4 = Transpose <perm = [0, 2, 1, 3]> (vr)
          v5 = Unsqueeze(v4, axis) vx = Expand(v5, times) vn = Reshape(vx, many)
          kt = Transpose <perm = [0, 1, 3, 2]> (kn) s = MatMul(qt, kt) d = Mul(s, half)
          p = Softmax(d) o = MatMul(p, vn) ot = Transpose <perm = [0, 2, 1, 3]> (o)
          y = Reshape(ot, merge) }"""
    )
    fused = rewrite(model, FuseAttention())
    assert ops(fused) == ["Attention"]
    assert fused.graph[0].attributes.get_int("kv_num_heads") == 2
    feed = {"q": _normal(2, 5, 16), "k": _normal(2, 5, 8, seed=1), "v": _normal(2, 5, 8, seed=2)}
    assert worst(model, fused, feed) < ROUNDING


def test_heads_of_rank_four_stay_of_rank_four() -> None:
    model = parse(
        """g (float[B,2,S,4] q, float[B,2,T,4] k, float[B,2,T,4] v) => (float[B,2,S,4] y)
        <float half = {0.5}>
        { kt = Transpose <perm = [0, 1, 3, 2]> (k) s = MatMul(q, kt) d = Mul(half, s)
          p = Softmax(d) y = MatMul(p, v) }"""
    )
    fused = rewrite(model, FuseAttention())
    assert ops(fused) == ["Attention"]
    feed = {"q": _normal(2, 2, 3, 4), "k": _normal(2, 2, 7, 4), "v": _normal(2, 2, 7, 4, seed=1)}
    assert worst(model, fused, feed) < ROUNDING


def test_a_computed_scale_is_left_alone() -> None:
    model = parse(
        """g (float[B,2,S,4] q, float[B,2,S,4] k, float[B,2,S,4] v, float t) => (float[B,2,S,4] y)
        { kt = Transpose <perm = [0, 1, 3, 2]> (k) s = MatMul(q, kt) d = Mul(s, t)
          p = Softmax(d) y = MatMul(p, v) }"""
    )
    assert "Attention" not in ops(rewrite(model, FuseAttention()))


def test_weights_that_are_an_output_too_keep_their_softmax() -> None:
    model = parse(
        """g (float[B,2,S,4] q, float[B,2,S,4] k, float[B,2,S,4] v)
        => (float[B,2,S,4] y, float[B,2,S,S] p)
        { kt = Transpose <perm = [0, 1, 3, 2]> (k) s = MatMul(q, kt)
          p = Softmax(s) y = MatMul(p, v) }"""
    )
    assert "Softmax" in ops(rewrite(model, FuseAttention()))


def test_before_opset_23_attention_is_left_alone() -> None:
    model = _attention()
    model.opset_imports[""] = 22
    assert "Attention" not in ops(rewrite(model, FuseAttention()))


# --- masks and projections -----------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(2, 6), (1, 1), (3, 4)])
def test_a_mask_looked_up_by_grids_is_the_mask(sizes: tuple[int, int]) -> None:
    model = parse(
        """g (int64[B,S] mask) => (float[B,1,S,S] y)
        <int64 zero = {0}, int64 one = {1}, int64[3] behind = {1, 2, 3}, int64[3] front = {0, 1, 2},
         int64[2] two = {0, 1}, int64[1] last = {-1}, int64[1] three = {3}, float keep = {0},
         float drop = {-1000000}>
        { b1 = Shape <start = 0, end = 1> (mask) b = Squeeze(b1) s1 = Shape <start = 1> (mask)
          s = Squeeze(s1) rows = Range(zero, b, one) columns = Range(zero, s, one)
          r4 = Unsqueeze(rows, behind) c4 = Unsqueeze(columns, front)
          c3 = Unsqueeze(columns, two) q4 = Unsqueeze(c3, three)
          always = GreaterOrEqual(q4, zero) grid = Max(r4, c4) shape = Shape(grid)
          i = Expand(r4, shape) j = Expand(c4, shape) i5 = Unsqueeze(i, last)
          j5 = Unsqueeze(j, last) index = Concat <axis = -1> (i5, j5) cond = Cast <to = 9> (mask)
          found = GatherND(cond, index) ok = And(always, found) y = Where(ok, keep, drop) }"""
    )
    simple = rewrite(model, SimplifyMask())
    assert not {"GatherND", "And", "Range"} & set(ops(simple))
    mask = np.random.default_rng(0).integers(0, 2, sizes)
    assert worst(model, simple, {"mask": mask}) == 0.0


def test_a_grid_that_covers_only_a_part_is_left_alone() -> None:
    model = parse(
        """g (bool[B,S] mask, int64[B,T] other) => (bool[B,T] y)
        <int64 zero = {0}, int64 one = {1}, int64[1] front = {0}, int64[1] last = {-1}>
        { b1 = Shape <start = 0, end = 1> (other) b = Squeeze(b1) t1 = Shape <start = 1> (other)
          t = Squeeze(t1) rows = Range(zero, b, one) columns = Range(zero, t, one)
          r2 = Unsqueeze(rows, last) c2 = Unsqueeze(columns, front) shape = Shape(other)
          i = Expand(r2, shape) j = Expand(c2, shape) i3 = Unsqueeze(i, last)
          j3 = Unsqueeze(j, last) index = Concat <axis = -1> (i3, j3) y = GatherND(mask, index) }"""
    )
    assert "GatherND" in ops(rewrite(model, SimplifyMask()))


def test_merged_projections_compute_the_same() -> None:
    model = rewrite(opened(tiny.build("transformer")), RaiseOpset())
    merged = rewrite(model, MergeQkv(enabled=True))
    assert ops(merged).count("MatMul") == ops(model).count("MatMul") - 2 * 2  # layers x 2
    for feed in tiny.feeds("transformer", 2):
        assert worst(model, merged, feed) < ROUNDING


def test_a_weight_that_is_read_twice_is_not_merged() -> None:
    model = parse(
        """g (float[N,2] x, float[N,2] z) => (float[N,2] a, float[N,2] b, float[N,2] c)
        <float[2,2] w = {1, 2, 3, 4}, float[2,2] u = {1, 2, 3, 4}>
        { a = MatMul(x, w) b = MatMul(x, u) c = MatMul(z, w) }"""
    )
    assert ops(rewrite(model, MergeQkv(enabled=True))) == ["MatMul"] * 3


# --- norms and activations -----------------------------------------------------------------------


NORM = """m = ReduceMean(x, axes) d = Sub(x, m) {square} v = ReduceMean(p, axes) e = Add(v, eps)
    r = Sqrt(e) {over}"""
SQUARES = ["p = Pow(d, two)", "p = Mul(d, d)", "d2 = Sub(x, m2) p = Pow(d2, two)"]
OVERS = ["n = Div(d, r)", "i = Reciprocal(r) n = Mul(i, d)", "i = Div(one, r) n = Mul(d, i)"]
TAILS = {
    "y = Mul(s, n)": 2,
    "y = Identity(n)": 2,
    "t = Mul(n, s) y = Add(b, t)": 3,
    "t = Mul(n, row) y = Add(t, b)": 3,
    "t = Mul(n, single) y = Add(t, b)": 3,
}


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("over", OVERS)
@pytest.mark.parametrize("square", SQUARES)
def test_every_spelling_of_layer_norm_is_fused(square: str, over: str, tail: str) -> None:
    square = square.replace("d2 = ", "m2 = ReduceMean(x, axes) d2 = ")
    model = parse(
        """g (float[N,T,4] x) => (float[N,T,4] y)
        <int64[1] axes = {-1}, float two = {2}, float one = {1}, float eps = {0.00001},
         float[4] s = {1, 2, 3, 4}, float[4] b = {4, 3, 2, 1}, float[1, 1, 4] row = {1, 2, 3, 4},
         float[1] single = {3}> {"""
        + NORM.format(square=square, over=over)
        + tail
        + "}"
    )
    fused = rewrite(model, FuseLayerNorm(), FuseRmsNorm())
    (node,) = [node for node in fused.graph if node.op_type != "Identity"]
    assert node.op_type == "LayerNormalization"
    assert len(node.inputs) == TAILS[tail]
    assert worst(model, fused, {"x": 3 * _normal(2, 5, 4) + 7}) < ROUNDING


def test_layer_norm_regrouped_by_tensorflow_is_fused() -> None:
    model = parse(
        """g (float[N,4] x) => (float[N,4] y)
        <int64[1] axes = {1}, float eps = {0.00001}, float[4] s = {1, 2, 3, 4},
         float[4] b = {4, 3, 2, 1}>
        { m = ReduceMean(x, axes) d = Sub(x, m) p = Mul(d, d) v = ReduceMean(p, axes)
          e = Add(v, eps) r = Sqrt(e) i = Reciprocal(r) k = Mul(i, s) xk = Mul(x, k)
          mk = Mul(m, k) t = Sub(b, mk) y = Add(xk, t) }"""
    )
    fused = rewrite(model, FuseLayerNorm())
    assert ops(fused) == ["LayerNormalization"]
    assert worst(model, fused, {"x": _normal(3, 4) + 1}) < ROUNDING


@pytest.mark.parametrize("over", OVERS)
@pytest.mark.parametrize("scale", ["y = Mul(s, n)", "y = Mul(n, s)", "y = Identity(n)"])
def test_every_spelling_of_rms_norm_is_fused(over: str, scale: str) -> None:
    model = parse(
        """g (float[N,4] d) => (float[N,4] y)
        <int64[1] axes = {-1}, float two = {2}, float one = {1}, float eps = {0.001},
         float[4] s = {1, 2, 3, 4}>
        { p = Pow(d, two) v = ReduceMean(p, axes) e = Add(v, eps) r = Sqrt(e) """
        f"{over} {scale} }}"
    )
    fused = rewrite(model, FuseLayerNorm(), FuseRmsNorm())
    assert "RMSNormalization" in ops(fused)
    assert worst(model, fused, {"d": _normal(3, 4)}) < ROUNDING


def test_half_precision_rms_norm_computes_in_float32() -> None:
    model = parse(
        """g (float16[N,4] x, float16[4] s) => (float16[N,4] y)
        <int64[1] axes = {-1}, float two = {2}, float eps = {0.00001}>
        { w = Cast <to = 1> (x) p = Pow(w, two) m = ReduceMean(p, axes) e = Add(m, eps) r = Sqrt(e)
          i = Reciprocal(r) n = Mul(w, i) c = Cast <to = 10> (n) y = Mul(s, c) }"""
    )
    fused = rewrite(model, FuseRmsNorm())
    assert ops(fused) == ["RMSNormalization"]
    feed = {"x": (300 * _normal(3, 4)).astype(np.float16), "s": _normal(4).astype(np.float16)}
    assert worst(model, fused, feed) < 2e-3  # a unit in the last place of float16


@pytest.mark.parametrize(
    "gate",
    [
        "h = HardSigmoid <alpha = 0.16666667, beta = 0.5> (x) y = Mul(h, x)",
        "a = Add(three, x) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, six)",
        "a = Add(x, three) c = Clip(a, zero, six) m = Div(c, six) y = Mul(m, x)",
    ],
)
def test_every_spelling_of_hard_swish_is_fused(gate: str) -> None:
    model = parse(
        "g (float[N] x) => (float[N] y) <float three = {3}, float zero = {0}, float six = {6}>"
        f"{{ {gate} }}"
    )
    fused = rewrite(model, FuseSilu())
    assert ops(fused) == ["HardSwish"]
    assert worst(model, fused, {"x": 4 * _normal(50)}) < ROUNDING


def test_hard_sigmoid_of_another_slope_is_left_alone() -> None:
    model = parse("g (float[N] x) => (float[N] y) { h = HardSigmoid(x) y = Mul(h, x) }")
    assert "HardSwish" not in ops(rewrite(model, FuseSilu()))


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("opset", [13, 23])
def test_mean_over_an_image_is_a_pool(opset: int, keepdims: int) -> None:
    given = "<axes = [2, 3], keepdims = {}> (x)" if opset < 18 else "<keepdims = {}> (x, axes)"
    model = parse(
        f"g (float[N,3,H,W] x) => (float y) <int64[2] axes = {{-2, -1}}>"
        f"{{ y = ReduceMean {given.format(keepdims)} }}",
        opset,
    )
    pooled = rewrite(model, CanonicalizeMean())
    assert ops(pooled) == ["GlobalAveragePool", "Flatten"][: 2 - keepdims]
    assert worst(model, pooled, {"x": _normal(2, 3, 5, 7)}) < ROUNDING


@pytest.mark.parametrize("alpha", [1.0, 1.702])
def test_silu_is_quick_gelu(alpha: float) -> None:
    model = parse(
        f"g (float[N] x) => (float[N] y) <float k = {{{alpha}}}>"
        "{ a = Mul(x, k) s = Sigmoid(a) y = Mul(s, x) }"
    )
    fused = rewrite(model, FuseSilu())
    assert ops(fused) == ["QuickGelu"]
    assert worst(model, fused, {"x": 4 * _normal(50)}) < ROUNDING


@pytest.mark.parametrize("name", list(tiny.MODELS))
def test_all_passes_together_keep_the_outputs_of_tiny_models(name: str) -> None:
    model = rewrite(opened(tiny.build(name)), RaiseOpset())
    fused = rewrite(model, *ALL)
    for feed in tiny.feeds(name, 3):
        assert worst(model, fused, feed) < 10 * ROUNDING


def test_the_tiny_transformer_is_fused_whole() -> None:
    fused = rewrite(opened(tiny.build("transformer")), RaiseOpset(), *ALL[:-1])
    found = ops(fused)
    assert [found.count(op) for op in ("Attention", "LayerNormalization", "Gelu")] == [2, 4, 2]
    assert not {"Softmax", "Erf", "ReduceMean"} & set(found)
