"""What the fusing passes do to small graphs, as text."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.targets.schema import Form
from qcompiler_passes.float.fuse_attention import FuseAttention
from qcompiler_passes.float.fuse_gelu import FuseGelu
from qcompiler_passes.float.fuse_layer_norm import FuseLayerNorm
from qcompiler_passes.float.fuse_rms_norm import FuseRmsNorm
from qcompiler_passes.float.fuse_silu import FuseSilu
from qcompiler_passes.float.merge_qkv import MergeQkv
from qcompiler_passes.float.simplify_mask import SimplifyMask
from qcompiler_passes.lower.fuse_skip_norm import FuseSkipNorm
from qcompiler_passes.lower.tile_attention import TileAttention
from rewriting import both, parse, state

GELU = {
    "erf": """g (float[N,8] x) => (float[N,8] y)
        <float r = {1.4142135}, float one = {1}, float half = {0.5}>
        { a = Div(x, r) b = Erf(a) c = Add(b, one) d = Mul(x, c) y = Mul(d, half) }""",
    "tanh": """g (float[N,8] x) => (float[N,8] y)
        <float k = {0.044715}, float r = {0.7978845608}, float one = {1}, float half = {0.5},
         float three = {3}>
        { a = Pow(x, three) b = Mul(k, a) c = Add(x, b) d = Mul(c, r) e = Tanh(d)
          f = Add(one, e) h = Mul(half, x) y = Mul(h, f) }""",
    "read_elsewhere": """g (float[N,8] x) => (float[N,8] y, float[N,8] z)
        <float r = {1.4142135}, float one = {1}, float half = {0.5}>
        { a = Div(x, r) b = Erf(a) c = Add(b, one) d = Mul(x, c) y = Mul(d, half) z = Neg(c) }""",
}
LAYER_NORM = {
    "scaled_shifted": """g (float[N,4] x) => (float[N,4] y)
        <int64[1] axes = {-1}, float two = {2}, float eps = {0.00001}, float[4] s = {1, 2, 3, 4},
         float[4] b = {4, 3, 2, 1}>
        { m = ReduceMean(x, axes) d = Sub(x, m) p = Pow(d, two) v = ReduceMean(p, axes)
          e = Add(v, eps) r = Sqrt(e) n = Div(d, r) t = Mul(n, s) y = Add(t, b) }""",
    "plain": """g (float[N,4] x) => (float[N,4] y)
        <int64[1] axes = {-1}, float eps = {0.00001}>
        { m = ReduceMean(x, axes) d = Sub(x, m) p = Mul(d, d) v = ReduceMean(p, axes)
          e = Add(v, eps) r = Sqrt(e) i = Reciprocal(r) y = Mul(d, i) }""",
    "other_axis": """g (float[N,4] x) => (float[N,4] y)
        <int64[1] axes = {0}, float two = {2}, float eps = {0.00001}>
        { m = ReduceMean(x, axes) d = Sub(x, m) p = Pow(d, two) v = ReduceMean(p, axes)
          e = Add(v, eps) r = Sqrt(e) y = Div(d, r) }""",
}
RMS_NORM = {
    "llama": """g (float[N,4] x) => (float[N,4] y)
        <int64[1] axes = {-1}, float two = {2}, float eps = {0.00001}, float[4] s = {1, 2, 3, 4}>
        { p = Pow(x, two) m = ReduceMean(p, axes) e = Add(m, eps) r = Sqrt(e) i = Reciprocal(r)
          n = Mul(x, i) y = Mul(s, n) }""",
    "half_precision": """g (float16[N,4] x) => (float16[N,4] y)
        <int64[1] axes = {-1}, float two = {2}, float eps = {0.00001}, float16[4] s = {1, 2, 3, 4}>
        { w = Cast <to = 1> (x) p = Pow(w, two) m = ReduceMean(p, axes) e = Add(m, eps) r = Sqrt(e)
          i = Reciprocal(r) n = Mul(w, i) c = Cast <to = 10> (n) y = Mul(s, c) }""",
}
SILU = "g (float[N,8] x) => (float[N,8] y) { s = Sigmoid(x) y = Mul(x, s) }"
HARD_SWISH = """g (float[N,8] x) => (float[N,8] y)
    <float three = {3}, float zero = {0}, float six = {6}>
    { a = Add(x, three) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, six) }"""
ATTENTION = {
    # torch.onnx.export(dynamo=True) below opset 23
    "exporter": """g (float[B,S,8] q, float[B,S,8] k, float[B,S,8] v, float[B,1,S,S] mask)
        => (float[B,S,8] y)
        <int64[4] split = {0, 0, 2, 4}, int64[3] merge = {0, 0, -1}, float scale = {0.70710678},
         float zero = {0}, int64[1] m1 = {-1}, int64[1] i0 = {0}, int64[1] i2 = {2},
         int64[1] i3 = {3}, int64[1] i4 = {4}>
        { qr = Reshape(q, split) qt = Transpose <perm = [0, 2, 1, 3]> (qr)
          kr = Reshape(k, split) kt = Transpose <perm = [0, 2, 1, 3]> (kr)
          vr = Reshape(v, split) vt = Transpose <perm = [0, 2, 1, 3]> (vr)
          sizes = Shape(kt) size = Slice(sizes, i3, i4) length = Slice(sizes, i2, i3)
          outer = Slice(sizes, i0, i2)
          three = Concat <axis = 0> (m1, length, size) k3 = Reshape(kt, three)
          k3t = Transpose <perm = [0, 2, 1]> (k3)
          four = Concat <axis = 0> (outer, size, length) k4t = Reshape(k3t, four)
          qs = Mul(qt, scale) ks = Mul(k4t, scale) s = MatMul(qs, ks) a = Add(s, mask)
          p = Softmax <axis = -1> (a) nan = IsNaN(p) w = Where(nan, zero, p)
          o = MatMul(w, vt) ot = Transpose <perm = [0, 2, 1, 3]> (o) y = Reshape(ot, merge) }""",
    # transformers through torch.onnx.export(dynamo=False), opset 11 to 17
    "older": """g (float[B,S,8] q, float[B,S,8] k, float[B,S,8] v, float[B,S] keep)
        => (float[B,S,8] y)
        <int64[4] split = {0, 0, 2, 4}, int64[3] merge = {0, 0, 8}, float two = {2},
         float one = {1}, float away = {-10000}, int64[2] axes = {1, 2}>
        { qr = Reshape(q, split) qt = Transpose <perm = [0, 2, 1, 3]> (qr)
          kr = Reshape(k, split) kt = Transpose <perm = [0, 2, 3, 1]> (kr)
          vr = Reshape(v, split) vt = Transpose <perm = [0, 2, 1, 3]> (vr)
          ku = Unsqueeze(keep, axes) drop = Sub(one, ku) mask = Mul(drop, away)
          s = MatMul(qt, kt) d = Div(s, two) a = Add(d, mask) p = Softmax <axis = 3> (a)
          o = MatMul(p, vt) ot = Transpose <perm = [0, 2, 1, 3]> (o) y = Reshape(ot, merge) }""",
    # heads of rank 4 that come from elsewhere; the lowest float as a mask
    "headed": """g (float[B,2,S,4] q, float[B,2,S,4] k, float[B,2,S,4] v, bool[B,1,1,S] keep)
        => (float[B,2,S,4] y)
        <float half = {0.5}, float zero = {0}, float lowest = {-3.4028235e38}>
        { kt = Transpose <perm = [0, 1, 3, 2]> (k) s = MatMul(q, kt) d = Mul(s, half)
          mask = Where(keep, zero, lowest) a = Add(d, mask) p = Softmax <axis = -1> (a)
          y = MatMul(p, v) }""",
    # the mask chooses scores; no proof that the batch of k is that of q
    "unproven_batch": """g (float[A,2,S,4] q, float[B,2,S,4] k, float[B,2,S,4] v)
        => (float[A,2,S,4] y) <float half = {0.5}>
        { kt = Transpose <perm = [0, 1, 3, 2]> (k) s = MatMul(q, kt) d = Mul(s, half)
          p = Softmax <axis = -1> (d) y = MatMul(p, v) }""",
    # torch.onnx.export(dynamo=True) at opset 23
    "flatten": """g (float[B,S,8] q, float[B,S,4] k, float[B,S,4] v, bool[B,1,S,S] mask)
        => (float[B,S,8] y)
        <int64[4] split = {0, 0, -1, 4}, int64[3] merge = {0, 0, -1}>
        { qr = Reshape(q, split) qt = Transpose <perm = [0, 2, 1, 3]> (qr)
          kr = Reshape(k, split) kt = Transpose <perm = [0, 2, 1, 3]> (kr)
          vr = Reshape(v, split) vt = Transpose <perm = [0, 2, 1, 3]> (vr)
          o = Attention <scale = 0.5> (qt, kt, vt, mask)
          ot = Transpose <perm = [0, 2, 1, 3]> (o) y = Reshape(ot, merge) }""",
}
MASK = """g (int64[B,S] mask) => (float[B,1,S,S] y)
    <int64 zero = {0}, int64 one = {1}, int64[1] a0 = {0}, int64[1] a1 = {1}, int64[2] a12 = {1, 2},
     int64[3] a123 = {1, 2, 3}, int64[3] a012 = {0, 1, 2}, int64[2] a01 = {0, 1},
     int64[1] last = {-1}, int64[1] a3 = {3}, float keep = {0}, float drop = {-1000000}>
    { b1 = Shape <start = 0, end = 1> (mask) b = Squeeze(b1) s1 = Shape <start = 1> (mask)
      s = Squeeze(s1) rows = Range(zero, b, one) columns = Range(zero, s, one)
      r4 = Unsqueeze(rows, a123) c4 = Unsqueeze(columns, a012)
      c3 = Unsqueeze(columns, a01) q4 = Unsqueeze(c3, a3) always = GreaterOrEqual(q4, zero)
      grid = Max(r4, c4) shape = Shape(grid) i = Expand(r4, shape) j = Expand(c4, shape)
      i5 = Unsqueeze(i, last) j5 = Unsqueeze(j, last) index = Concat <axis = -1> (i5, j5)
      cond = Cast <to = 9> (mask) found = GatherND(cond, index) ok = And(always, found)
      y = Where(ok, keep, drop) }"""
RESIDUAL = """g (float[B,S,4] x, float[B,S,4] r) => (float[B,S,4] y)
    <float[4] gain = {1, 2, 3, 4}>
    { s = Add(x, r) n = RMSNormalization <epsilon = 0.001> (s, gain) y = Mul(n, s) }"""
LONG = """g (float[B,S,16] q, float[B,S,16] k, float[B,S,16] v) => (float[B,S,16] y)
    { y = Attention <q_num_heads = 2, kv_num_heads = 2, scale = 0.5> (q, k, v) }"""
QKV = """g (float[N,2] x) => (float[N,2] q, float[N,2] k, float[N,1] v)
    <float[2,2] wq = {1, 2, 3, 4}, float[2,2] wk = {5, 6, 7, 8}, float[2,1] wv = {9, 10},
     float[2] bq = {1, 2}, float[1] bv = {3}>
    { a = MatMul(x, wq) q = Add(a, bq) k = MatMul(x, wk) c = MatMul(x, wv) v = Add(bv, c) }"""


@pytest.mark.parametrize("case", GELU)
def test_fuse_gelu(case: str, golden) -> None:
    golden(f"fuse_gelu/{case}", both(parse(GELU[case]), FuseGelu()))


@pytest.mark.parametrize("case", LAYER_NORM)
def test_fuse_layer_norm(case: str, golden) -> None:
    golden(f"fuse_layer_norm/{case}", both(parse(LAYER_NORM[case]), FuseLayerNorm()))


@pytest.mark.parametrize("case", RMS_NORM)
def test_fuse_rms_norm(case: str, golden) -> None:
    golden(f"fuse_rms_norm/{case}", both(parse(RMS_NORM[case]), FuseRmsNorm()))


def test_fuse_silu_for_onnxruntime(golden) -> None:
    golden("fuse_silu/onnxruntime", both(parse(SILU), FuseSilu()))


def test_fuse_silu_leaves_the_portable_form_alone(golden) -> None:
    golden("fuse_silu/portable", both(parse(SILU), FuseSilu(), given=state(form=Form.QDQ)))


def test_fuse_silu_makes_hard_swish(golden) -> None:
    golden("fuse_silu/hard_swish", both(parse(HARD_SWISH), FuseSilu()))


@pytest.mark.parametrize("case", ATTENTION)
def test_fuse_attention(case: str, golden) -> None:
    golden(f"fuse_attention/{case}", both(parse(ATTENTION[case]), FuseAttention()))


def test_simplify_mask(golden) -> None:
    golden("simplify_mask/exporter", both(parse(MASK), SimplifyMask()))


def test_merge_qkv(golden) -> None:
    golden("merge_qkv/three", both(parse(QKV), MergeQkv(enabled=True)))


def test_merge_qkv_is_off_by_default(golden) -> None:
    golden("merge_qkv/off", both(parse(QKV), MergeQkv()))


def test_fuse_skip_norm(golden) -> None:
    golden("fuse_skip_norm/residual", both(parse(RESIDUAL), FuseSkipNorm()))


def test_tile_attention(golden) -> None:
    given = state()
    shape = (np.dtype(np.float32), (1, 1024, 16))
    given.shapes = dict.fromkeys("qkv", shape)
    golden("tile_attention/long", both(parse(LONG), TileAttention(), given=given))
