"""Weights of every format reach ONNX Runtime as exactly the numbers that rounding made."""

from __future__ import annotations

import itertools
import pathlib

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from by_hand import Form, Hand, open_text, ops, run_ort
from nbits_weight import unpack_nbits
from qcompiler import qcompile
from qcompiler.algorithms.data_free import RtnOptions, rtn
from qcompiler.algorithms.double_quantization import with_quantized_scales
from qcompiler.numerics.nbits import (
    NBitsLayout,
    join_planes,
    kernel_data,
    kernel_scale,
    kernel_zero_point,
    nbits_layout,
    planes_of,
    split_planes,
)
from qcompiler.numerics.packing import pack_bits, unpack_bits
from qcompiler.numerics.qtensor import QTensor
from qcompiler.schemes import QSpec

BITS, GROUPS = (2, 4, 8), (16, 32, 64, 128, 256)
COMBINATIONS = [
    f"{sign}{bits}g{group}@0{zero}"
    for bits, group, sign, zero in itertools.product(BITS, GROUPS, "us", ("", "z"))
]
_WORDS = ("u2r1", "u2", "u4r3", "u4", "u8r5", "u8r6", "u8r7", "u8")
INTEGERS = [
    f"{word}g{{}}@0{zero}" for word in _WORDS for zero in ("", "z") if word + zero != "u2r1"
]
CODEBOOKS = [f"{word}g{{}}@0" for word in ("nf4", "fp4", "fp4bnb", "b1")]


def weight(k: int, n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((k, n)) * rng.uniform(0.1, 3, (k, 1)) + 0.2
    return w.astype(np.float32)


def rounded(w: np.ndarray, text: str, *, full_range: bool = True) -> QTensor:
    own, _, scales = text.partition("/")
    tensor = rtn(w, QSpec.parse(own), RtnOptions(full_range=full_range))
    return with_quantized_scales(tensor, QSpec.parse(scales), w) if scales else tensor


def product(k: int, n: int, w: np.ndarray) -> ir.Model:
    return open_text(
        f"""<ir_version: 10, opset_import: ["" : 23]>
        g (float[{k},{k}] x) => (float[{k},{n}] y) {{ y = MatMul(x, w) }}""",
        {"w": w},
    )


def received(model: ir.Model, spec: QSpec, k: int, folder: pathlib.Path) -> np.ndarray:
    """The weight that the kernel multiplies by, from the constants that reach it in the runtime."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folder / "loaded.onnx")
    onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    graph = onnx.load(folder / "loaded.onnx").graph
    (node,) = graph.node
    assert node.op_type == "MatMulNBits"
    arrays = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
    data, scale = arrays[node.input[1]], arrays[node.input[2]]
    zero = arrays[node.input[3]] if len(node.input) > 3 else None
    layout = nbits_layout(spec, k)
    assert isinstance(layout, NBitsLayout)
    n, blocks = data.shape[0], data.shape[1]
    q = unpack_bits(data, layout.bits, layout.block_size).astype(np.float32)
    middle: np.ndarray = np.full((n, blocks), 2 ** (layout.bits - 1), np.float32)
    if zero is not None:
        middle = unpack_bits(zero, layout.bits, blocks).astype(np.float32)
    return ((q - middle[..., None]) * scale.reshape(n, blocks, 1)).reshape(n, -1)[:, :k].T


@pytest.mark.parametrize("shape", [(300, 5), (64, 1), (17, 3), (256, 16)])
@pytest.mark.parametrize("spec", COMBINATIONS)
def test_packing_keeps_every_number(spec: str, shape: tuple[int, int]) -> None:
    tensor, layout = rtn(weight(*shape), QSpec.parse(spec)), nbits_layout(QSpec.parse(spec))
    assert isinstance(layout, NBitsLayout)
    data = kernel_data(tensor.q, tensor.spec, layout)
    zero = None
    if not tensor.spec.symmetric:
        points = np.zeros_like(tensor.scale, np.int32)
        points = points if tensor.zero_point is None else tensor.zero_point
        zero = kernel_zero_point(points, shape[0], tensor.spec, layout)
    floats = unpack_nbits(
        data, kernel_scale(tensor.scale, tensor.spec), zero, tensor.spec, shape[0]
    )
    assert np.array_equal(floats, tensor.dequantize())


@pytest.mark.parametrize(
    ("width", "bits"), [(1, 2), (3, 4), (5, 8), (6, 8), (7, 8), (1, 8), (4, 8)]
)
def test_planes_keep_every_bit(width: int, bits: int) -> None:
    codes = np.random.default_rng(0).integers(0, 1 << width, (3, 5, 16)).astype(np.uint8)
    container, planes = pack_bits(codes, bits), planes_of(width)
    parts = split_planes(container, bits, planes)
    assert sum(part.size for part in parts) == codes.size * width // 8
    assert np.array_equal(join_planes(parts, bits, planes), container)


@given(
    template=st.sampled_from(
        [*INTEGERS, *CODEBOOKS, "u4c@1", "u4c@1z", "u4r3c@1", "nf4c@1", "b1c@1"]
    ),
    group=st.one_of(st.sampled_from([16, 32, 48, 64, 128, 512]), st.integers(1, 80)),
    k=st.integers(1, 200),
    n=st.integers(1, 9),
    scales=st.sampled_from(["", "", "/u8g256@0z", "/s8g7@0", "/u4g16@0z"]),
    seed=st.integers(0, 99),
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_the_runtime_makes_exactly_the_rounded_weight(
    template: str, group: int, k: int, n: int, scales: str, seed: int, tmp_path: pathlib.Path
) -> None:
    text = template.format(group) + scales
    spec, w = QSpec.parse(text), weight(k, n, seed)
    expected = rounded(w, text).dequantize()
    native = not isinstance(nbits_layout(spec), str)
    kernel = "matmul-weight" if native else "matmul-weight-float"
    model, settings_ = Hand(product(k, n, w), {"Y": (kernel, f"-,{text}->-")}).lowered()
    if native:
        assert np.array_equal(received(model, spec, k, tmp_path), expected)
    else:
        (found,) = run_ort(model, {"x": np.eye(k, dtype=np.float32)}, settings_)
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("spec", [*COMBINATIONS, "u4r3g64@0", "u8r5g32@0z", "fp4g32@0", "b1g32@0"])
def test_the_kernel_multiplies_by_the_dequantized_weight(spec: str) -> None:
    k, n = 280, 6  # a ragged last block for every group size
    w = weight(k, n)
    hand = Hand(product(k, n, w), {"Y": ("matmul-weight", f"-,{spec}->-")})
    native, settings = hand.lowered()
    assert ops(native)[-1] == "MatMulNBits"
    # a row of the identity is exact in int8, so that accuracy level 4 reads the weight row back;
    # one product of float32 scales is all the rounding there is
    (found,) = run_ort(native, {"x": np.eye(k, dtype=np.float32)}, settings)
    expected = rounded(w, spec).dequantize()
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    "spec",
    [
        *("u4g32@0", "s4g32@0", "u4g16@0z", "u8g128@0", "s8g64@0", "u2g32@0", "u4r3g50@0z"),
        *("nf4g64@0", "nf4c@1", "fp4bnbg50@0", "b1g32@0", "u4g32@0z/u8g256@0z", "u4c@1/u8g4@0z"),
    ],
)
def test_the_portable_form_dequantizes(spec: str) -> None:
    k, n = 280, 6
    w = weight(k, n)
    model = product(k, n, w)
    hand = Hand(model, {"Y": ("matmul-weight", f"-,{spec}->-")})
    portable, _ = hand.lowered(Form.QDQ)
    (found,) = run_ort(portable, {"x": np.eye(k, dtype=np.float32)})
    assert np.array_equal(found, rounded(w, spec, full_range=False).dequantize())


@pytest.mark.parametrize("spec", ["u4g32@0f", "u4g48@0f", "u4r3g64@0f", "u8g16@0f", "u4c@1f"])
def test_float_zero_points_run_on_the_integer_kernel(spec: str) -> None:
    k, n = 280, 6
    w = weight(k, n)
    hand = Hand(product(k, n, w), {"Y": ("matmul-weight", f"-,{spec}->-")})
    feed = {"x": np.eye(k, dtype=np.float32)}
    expected = rounded(w, spec).dequantize()
    native, settings = hand.lowered()
    assert "MatMulNBits" in ops(native)
    (found,) = run_ort(native, feed, settings)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    (portable,) = run_ort(hand.lowered(Form.QDQ)[0], feed)
    assert np.array_equal(portable, expected)


def test_float_zero_points_of_other_groups_are_exact() -> None:
    k, n = 50, 3
    w = weight(k, n)
    hand = Hand(product(k, n, w), {"Y": ("matmul-weight-float", "-,u4g20@0f->-")})
    model, settings = hand.lowered()
    (found,) = run_ort(model, {"x": np.eye(k, dtype=np.float32)}, settings)
    assert np.array_equal(found, rounded(w, "u4g20@0f").dequantize())


def test_the_bias_goes_into_the_kernel() -> None:
    model = open_text(
        """<ir_version: 10, opset_import: ["" : 23]> g (float[2,3,32] x) => (float[2,3,6] z)
        { y = MatMul(x, w) z = Add(b, y) }""",
        {"w": weight(32, 6), "b": weight(1, 6)[0]},
    )
    hand = Hand(model, {"Y": ("matmul-weight", "-,u4g32@0->-")}, fused={"Z": "Y"})
    native, _ = hand.lowered()
    assert ops(native) == ["MatMulNBits"]
    assert native.graph[0].inputs[5].name == "b"
    assert native.graph[0].attributes.get_int("accuracy_level") == 4


@pytest.mark.parametrize("bits", BITS)
def test_bits_are_packed_low_first(bits: int) -> None:
    q = np.arange(2**bits)[None, : 8 // bits]
    byte = pack_bits(q, bits)
    assert byte.tolist() == [[sum(int(v) << (bits * i) for i, v in enumerate(q[0]))]]
    odd = np.random.default_rng(0).integers(0, 2**bits, (3, 7))
    assert np.array_equal(unpack_bits(pack_bits(odd, bits), bits, 7), odd)


@pytest.mark.parametrize("form", ["ort", "qdq"])
@pytest.mark.parametrize("recipe", ["weight-int8", "weight-int4"])
@pytest.mark.parametrize("k", [96, 200])
def test_weights_with_a_ragged_last_block_are_lowered_again(k: int, recipe: str, form: str) -> None:
    first = qcompile(product(k, 8, weight(k, 8)), "cpu-vnni", recipe)
    again = qcompile(first.model, "cpu-vnni", form=form)
    assert again.plan.count() == {"quantized": 1, "fused": 1}  # the DequantizeLinear
    x = {"x": np.random.default_rng(0).normal(size=(k, k)).astype(np.float32)}
    assert np.array_equal(again.run(x)["y"], first.run(x)["y"])


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_products_of_one_weight_read_one_set_of_numbers(bits: int) -> None:
    w = weight(64, 64)
    model = open_text(
        """<ir_version: 10, opset_import: ["" : 23]>
        g (float[4,64] x) => (float[4,64] y) { h = MatMul(x, w) r = Relu(h) y = MatMul(r, w) }""",
        {"w": w},
    )
    recipe = {"base": "weight-int4", "force": True, "weights": {"bits": bits, "group_size": 32}}
    artifact = qcompile(model, "cpu-vnni", recipe)
    products = [node for node in artifact.model.graph if node.op_type == "MatMulNBits"]
    assert len(products) == 2
    assert products[0].inputs[1:] == products[1].inputs[1:]
    assert artifact.report.fidelity[0]["cosine"] > 0.9
