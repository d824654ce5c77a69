"""Packed low-bit weights stand for what the rounding algorithm made, in every combination."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from by_hand import Form, Hand, open_text, ops, run_ort
from qcompiler.algorithms.rtn import round_to_nearest
from qcompiler.numerics.packing import (
    pack_bits,
    pack_matmul_nbits,
    unpack_bits,
    unpack_matmul_nbits,
)
from qcompiler.schemes import QSpec

BITS, GROUPS = (2, 4, 8), (16, 32, 64, 128, 256)
COMBINATIONS = [
    f"{sign}{bits}g{group}@0{zero}"
    for bits, group, sign, zero in itertools.product(BITS, GROUPS, "us", ("", "z"))
]


def weight(k: int, n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((k, n)) * rng.uniform(0.1, 3, (k, 1)) + 0.2
    return w.astype(np.float32)


@pytest.mark.parametrize("shape", [(300, 5), (64, 1), (17, 3), (256, 16)])
@pytest.mark.parametrize("spec", COMBINATIONS)
def test_packing_keeps_every_number(spec: str, shape: tuple[int, int]) -> None:
    quantized = round_to_nearest(weight(*shape), QSpec.parse(spec))
    assert np.array_equal(unpack_matmul_nbits(pack_matmul_nbits(quantized)), quantized.dequantize())


@pytest.mark.parametrize("spec", COMBINATIONS)
def test_the_kernel_multiplies_by_the_dequantized_weight(spec: str) -> None:
    k, n = 280, 6  # a ragged last block for every group size
    w = weight(k, n)
    model = open_text(
        f"""<ir_version: 10, opset_import: ["" : 23]>
        g (float[{k},{k}] x) => (float[{k},{n}] y) {{ y = MatMul(x, w) }}""",
        {"w": w},
    )
    hand = Hand(model, {"Y": ("matmul-weight", f"-,{spec}->-")})
    native, settings = hand.lowered()
    assert ops(native) == ["MatMulNBits"]
    # a row of the identity is exact in int8, so that accuracy level 4 reads the weight row back;
    # one product of float32 scales is all the rounding there is
    (found,) = run_ort(native, {"x": np.eye(k, dtype=np.float32)}, settings)
    expected = round_to_nearest(w, QSpec.parse(spec), clip_ratios=_ratios(spec)).dequantize()
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    "spec", ["u4g32@0", "s4g32@0", "u4g16@0z", "u8g128@0", "s8g64@0", "u2g32@0"]
)
def test_the_portable_form_dequantizes_blocks(spec: str) -> None:
    k, n = 280, 6
    model = open_text(
        f"""<ir_version: 10, opset_import: ["" : 23]>
        g (float[{k},{k}] x) => (float[{k},{n}] z) {{ y = MatMul(x, w) z = Add(y, b) }}""",
        {"w": weight(k, n), "b": weight(1, n)[0]},
    )
    hand = Hand(model, {"Y": ("matmul-weight", f"-,{spec}->-")}, fused={"Z": "Y"})
    feed = {"x": np.eye(k, dtype=np.float32)}
    portable, settings = hand.lowered(Form.QDQ)
    assert ops(portable) == ["DequantizeLinear", "MatMul", "Add"]
    expected, found = run_ort(hand.dialect(), feed)[0], run_ort(portable, feed, settings)[0]
    assert np.abs(expected - found).max() <= 1e-5 * np.abs(expected).max()


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


def _ratios(spec: str) -> tuple[float, ...]:
    from qcompiler.algorithms.rtn import CLIP_RATIOS

    return CLIP_RATIOS if spec[1] in "24" else (1.0,)
