"""Laws of the fusing passes on drawn spellings, masks and readers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.analysis.dims import Dims
from qcompiler.runtime.observe import observe
from qcompiler_models import tiny
from qcompiler_passes.float.fuse_attention import FuseAttention
from qcompiler_passes.float.fuse_gelu import FuseGelu
from qcompiler_passes.float.fuse_layer_norm import FuseLayerNorm
from rewriting import opened, ops, parse, rewrite, worst

ROUNDING = 3e-6  # float32 sums in another order, relative to the largest number

LOWEST = np.finfo(np.float32).min
LAYER_NORM = (
    ("m", "ReduceMean", "x, axes"),
    ("d", "Sub", "x, m"),
    ("p", "Pow", "d, two"),
    ("v", "ReduceMean", "p, axes"),
    ("e", "Add", "v, eps"),
    ("r", "Sqrt", "e"),
    ("n", "Div", "d, r"),
    ("t", "Mul", "n, s"),
    ("y", "Add", "t, b"),
)


@st.composite
def erf_gelus(draw: st.DrawFn) -> str:
    """Nodes that compute GELU of x into y, in a drawn spelling."""
    inside = draw(st.sampled_from(["Div(x, root)", "Mul(x, inverse)", "Mul(inverse, x)"]))
    shifted = draw(st.sampled_from(["Add(e, one)", "Add(one, e)"]))

    def product(a: str, b: str) -> str:
        return draw(st.sampled_from([f"Mul({a}, {b})", f"Mul({b}, {a})"]))

    def halved(a: str) -> str:
        return draw(st.sampled_from([f"Mul({a}, half)", f"Mul(half, {a})", f"Div({a}, two)"]))

    where = draw(st.sampled_from(["x", "gate", "product"]))
    if where == "x":
        tail = f"h = {halved('x')} y = {product('h', 'g')}"
    elif where == "gate":
        tail = f"h = {halved('g')} y = {product('x', 'h')}"
    else:
        tail = f"h = {product('x', 'g')} y = {halved('h')}"
    return f"i = {inside} e = Erf(i) g = {shifted} {tail}"


@settings(max_examples=40, deadline=None)
@given(erf_gelus(), st.integers(0, 2**31))
def test_every_spelling_of_gelu_is_fused_and_equal(nodes: str, seed: int) -> None:
    model = parse(
        "g (float[N] x) => (float[N] y) <float root = {1.4142135}, float inverse = {0.70710677},"
        f" float half = {{0.5}}, float one = {{1}}, float two = {{2}}> {{ {nodes} }}"
    )
    fused = rewrite(model, FuseGelu())
    assert ops(fused) == ["Gelu"]
    x = 3 * np.random.default_rng(seed).standard_normal(40).astype(np.float32)
    assert worst(model, fused, {"x": x}) < ROUNDING


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([row[0] for row in LAYER_NORM]))
def test_a_second_reader_of_any_inner_result_prevents_the_fusion(read: str) -> None:
    nodes = " ".join(f"{out} = {op}({inputs})" for out, op, inputs in LAYER_NORM)
    model = parse(
        "g (float[N,4] x) => (float[N,4] y, float[N,?] z)"
        " <int64[1] axes = {-1}, float two = {2}, float eps = {0.00001}, float[4] s = {1, 2, 3, 4},"
        f" float[4] b = {{4, 3, 2, 1}}> {{ {nodes} z = Neg({read}) }}"
    )
    fused = rewrite(model, FuseLayerNorm())
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    assert worst(model, fused, {"x": x}) < ROUNDING
    # a tail that is read elsewhere leaves a smaller pattern in front of it
    assert ("LayerNormalization" in ops(fused)) == (read in "nty")


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    """Additive masks ``[2, 1, 4, 4]`` with whole rows hidden in drawn ways."""
    hidden = st.sampled_from([0.0, -1.5, -1e4, -1e9, float(LOWEST), -np.inf])
    cells = draw(st.lists(hidden, min_size=32, max_size=32))
    mask = np.array(cells, np.float32).reshape(2, 1, 4, 4)
    for row in draw(st.lists(st.integers(0, 7), max_size=4)):
        mask.reshape(8, 4)[row] = draw(hidden)
    return mask


@settings(max_examples=60, deadline=None)
@given(masks(), st.integers(0, 2**31))
def test_attention_behind_the_guard_is_equal_for_any_mask(mask: np.ndarray, seed: int) -> None:
    model = parse(
        """g (float[B,2,S,4] q, float[B,2,S,4] k, float[B,2,S,4] v, float[B,1,S,S] mask)
        => (float[B,2,S,4] y) <float half = {0.5}, float zero = {0}>
        { kt = Transpose <perm = [0, 1, 3, 2]> (k) s = MatMul(q, kt) d = Mul(s, half)
          a = Add(d, mask) p = Softmax(a) nan = IsNaN(p) w = Where(nan, zero, p)
          y = MatMul(w, v) }"""
    )
    fused = rewrite(model, FuseAttention())
    assert "Attention" in ops(fused)
    rng = np.random.default_rng(seed)
    q, k, v = (rng.standard_normal((2, 2, 4, 4)).astype(np.float32) for _ in range(3))
    assert worst(model, fused, {"q": q, "k": k, "v": v, "mask": mask}) < ROUNDING


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([name for name in tiny.MODELS if name != "control_flow"]), st.integers(0, 99)
)
def test_symbolic_sizes_are_the_real_ones(name: str, seed: int) -> None:
    model = opened(tiny.build(name))
    (feed,) = tiny.feeds(name, 1, seed)
    seen = {key: shape for key, (_, shape) in observe(model, feed).items()}
    seen |= {key: array.shape for key, array in feed.items()}
    names: dict[str, int] = {}
    for value in model.graph.inputs:
        for size, real in zip(value.shape or (), seen[value.name or ""], strict=True):
            if isinstance(size, ir.SymbolicDim) and size.value is not None:
                names[size.value] = real
    dims = Dims(model.graph)
    compared = 0
    for node in model.graph:
        for output in node.outputs:
            found = dims.shape(output)
            if found is None or output.name not in seen:
                continue
            real = seen[output.name]
            assert len(found) == len(real)
            for axis, size in enumerate(found):
                if isinstance(size, tuple):
                    size = seen.get(size[0].name or "", {size[1]: real[axis]})[size[1]]
                assert names.get(size, size) == real[axis], (output.name, axis)
                compared += 1
    assert compared > 0
