"""Spring the traps of ONNX Runtime's CPU provider, to see whether this version still has them.

Each probe returns whether the trap is armed and what was seen. Wrong numbers and missing fusions
are certain; slow kernels are called armed when they are slower than their replacement by a margin
that noise does not reach.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompiler.diagnostics import QcError
from qcompiler.ir.edit import Tape
from qcompiler.runtime.session import runtime_errors
from qcompiler.runtime.settings import SessionSettings
from qcompiler.targets.probe_float8 import FLOAT8_TRAP_PROBES
from qcompiler.targets.probe_layers import Array, Build, model_of
from qcompiler.targets.probe_timing import Case, compute, operators, time_cases

__all__ = ["TRAP_PROBES", "TrapProbeFunction"]

TrapProbeFunction = Callable[[], "tuple[bool, str]"]

_MS = "com.microsoft"
_DEFAULT = SessionSettings("all")
_PLAIN = SessionSettings("disable")
_WRONG = 0.02  # far above rounding to 8 bits in these layers, far below what the traps do
_SLOWER = 1.15  # beyond the noise of time_cases
_SIZE = 48
_SCALE = np.asarray(0.02, np.float32)
_ZERO = np.asarray(128, np.uint8)
_Values = Mapping[str, ir.Value]


def _data(rows: int = 8, inner: int = _SIZE, columns: int = _SIZE) -> dict[str, Array]:
    rng = np.random.default_rng(3)
    return {
        "x": rng.normal(0, 1, (rows, inner)).astype(np.float32),
        "xq": rng.integers(0, 256, (rows, inner)).astype(np.uint8),
        "w": rng.integers(-127, 128, (inner, columns)).astype(np.int8),
        "scale": rng.uniform(0.001, 0.01, columns).astype(np.float32),
        "bias": rng.normal(0, 1, columns).astype(np.float32),
        "rows": rng.uniform(0.005, 0.05, (rows, 1)).astype(np.float32),
    }


def _differs(build: Build, feed: Mapping[str, Array], expected: Array) -> tuple[bool, str]:
    """Whether the runtime, optimizing as it does by default, gets something else or fails."""
    model = model_of([build], feed)
    try:
        found = compute(model, feed, _DEFAULT)[0]
    except QcError as error:
        return True, f"does not load: {error.diagnostic.message}"[:160]
    except runtime_errors() as error:
        return True, f"fails: {error}"[:160]
    off = _off(found, expected)
    return off > _WRONG, f"off by {off:.1%}, runs as {_seen(model)}"


def _off(found: Array, expected: Array) -> float:
    """Largest error as a share of the largest expected value; infinite where NaN was found."""
    if not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found.astype(np.float64) - expected).max() / np.abs(expected).max())


def _seen(model: ir.Model) -> str:
    """The operators, for the reader: what is armed is known without, and stands if this fails."""
    try:
        return ", ".join(operators(model, _DEFAULT))
    except (QcError, OSError) as error:
        return f"something not seen ({error})"[:160]


def _slower(
    slow: Build,
    fast: Build,
    feed: Mapping[str, Array],
    *,
    settings: SessionSettings = _PLAIN,
    fast_feed: Mapping[str, Array] | None = None,
    opset: int = 21,
) -> tuple[bool, str]:
    other = feed if fast_feed is None else fast_feed
    cases = [
        Case(model_of([slow], feed, opset=opset), feed, settings, 1),
        Case(model_of([fast], other, opset=opset), other, settings, 1),
    ]
    return _compare(cases)


def _compare(cases: list[Case]) -> tuple[bool, str]:
    slow, fast = (item.us for item in time_cases(cases, 3, 0.003))
    return slow > _SLOWER * fast, f"{slow:.0f} us against {fast:.0f} us"


def _real(tape: Tape, x: ir.Value) -> Any:
    q = tape.op("QuantizeLinear", x, _SCALE, _ZERO)
    return tape.op("DequantizeLinear", q, _SCALE, _ZERO)


def _round_trip(x: Array) -> Array:
    q = np.clip(np.rint(x / _SCALE) + 128, 0, 255)
    return np.asarray((q - 128) * _SCALE, np.float32)


def _row_scale_bias() -> tuple[bool, str]:
    d = _data()

    def build(tape: Tape, v: _Values) -> Any:
        return tape.op(
            "MatMulIntegerToFloat",
            *(v["xq"], d["w"], v["rows"], d["scale"], _ZERO, None, d["bias"]),
            domain=_MS,
        )

    product = (d["xq"].astype(np.float64) - 128) @ d["w"].astype(np.float64)
    expected = product * d["rows"] * d["scale"] + d["bias"]
    return _differs(build, {"xq": d["xq"], "rows": d["rows"]}, expected)


def _weight_axis_0_matmul() -> tuple[bool, str]:
    d = _data()

    def build(tape: Tape, v: _Values) -> Any:
        zero = np.zeros(_SIZE, np.int8)
        w = tape.op("DequantizeLinear", d["w"], d["scale"], zero, axis=0)
        y = tape.op("MatMul", _real(tape, v["x"]), w)
        big = np.asarray(1.0, np.float32)
        q = tape.op("QuantizeLinear", y, big, _ZERO)
        return tape.op("DequantizeLinear", q, big, _ZERO)

    w = d["w"].astype(np.float32) * d["scale"][:, None]
    scaled = d["x"] * 20  # outputs of several steps of 1.0
    expected = np.clip(np.rint(_round_trip(scaled) @ w), -128, 127)
    return _differs(build, {"x": scaled.astype(np.float32)}, expected)


def _weight_axis_1_conv() -> tuple[bool, str]:
    rng = np.random.default_rng(5)
    x = rng.normal(0, 1, (1, 8, 6, 6)).astype(np.float32)
    w = rng.integers(-127, 128, (8, 8, 1, 1)).astype(np.int8)
    scale = rng.uniform(0.001, 0.02, 8).astype(np.float32)
    step = np.asarray(0.1, np.float32)

    def build(tape: Tape, v: _Values) -> Any:
        real = tape.op("DequantizeLinear", w, scale, np.zeros(8, np.int8), axis=1)
        y = tape.op("Conv", _real(tape, v["x"]), real)
        q = tape.op("QuantizeLinear", y, step, _ZERO)
        return tape.op("DequantizeLinear", q, step, _ZERO)

    filters = w[:, :, 0, 0] * scale
    expected = np.einsum("fc,bchw->bfhw", filters, _round_trip(x))
    expected = np.clip(np.rint(expected / step), -128, 127) * step
    return _differs(build, {"x": x}, expected)


def _row_scale_in_qdq() -> tuple[bool, str]:
    d = _data()
    scale, zero = d["rows"].reshape(-1), np.full(len(d["rows"]), 128, np.uint8)

    def build(tape: Tape, v: _Values) -> Any:
        q = tape.op("QuantizeLinear", v["x"], scale, zero, axis=0)
        real = tape.op("DequantizeLinear", q, scale, zero, axis=0)
        w = tape.op("DequantizeLinear", d["w"], d["scale"], np.zeros(_SIZE, np.int8), axis=1)
        return tape.op("MatMul", real, w)

    q = np.clip(np.rint(d["x"] / d["rows"]) + 128, 0, 255)
    expected = ((q - 128) * d["rows"]) @ (d["w"] * d["scale"])
    return _differs(build, {"x": d["x"]}, expected)


def _float_weight_quantized() -> tuple[bool, str]:
    rng = np.random.default_rng(5)
    x = rng.normal(0, 1, (1, 8, 6, 6)).astype(np.float32)
    w = rng.normal(0, 0.1, (8, 8, 3, 3)).astype(np.float32)

    def build(tape: Tape, v: _Values) -> Any:
        y = tape.op("Conv", _real(tape, v["x"]), w, pads=[1, 1, 1, 1])
        return tape.op("QuantizeLinear", y, _SCALE, _ZERO)

    return _runs(build, {"x": x}, "QLinearConv")


def _runs(build: Build, feed: Mapping[str, Array], *ops: str) -> tuple[bool, str]:
    """Whether one of the operators is in the graph that the runtime makes of it by default."""
    seen = operators(model_of([build], feed), _DEFAULT)
    armed = any(op.rpartition(":")[2] in ops for op in seen)
    return armed, "runs as " + ", ".join(seen)


def _weight_only_activations() -> tuple[bool, str]:
    d = _data(inner=64)

    def build(tape: Tape, v: _Values) -> Any:
        w = tape.op("DequantizeLinear", d["w"], d["scale"], np.zeros(_SIZE, np.int8), axis=1)
        return tape.op("MatMul", v["x"], w)

    return _runs(build, {"x": d["x"]}, "MatMulNBits")


def _dynamic_bias_in_qdq() -> tuple[bool, str]:
    d = _data(inner=64)

    def build(tape: Tape, v: _Values) -> Any:
        q, scale, zero = tape.op("DynamicQuantizeLinear", v["x"], outputs=3)
        real = tape.op("DequantizeLinear", q, scale, zero)
        w = tape.op("DequantizeLinear", d["w"], d["scale"], np.zeros(_SIZE, np.int8), axis=1)
        return tape.op("Add", tape.op("MatMul", real, w), d["bias"])

    return _runs(build, {"x": d["x"]}, "MatMulNBits", "Gemm")


def _static_bias_in_qdq() -> tuple[bool, str]:
    d = _data(inner=64)

    def build(tape: Tape, v: _Values) -> Any:
        w = tape.op("DequantizeLinear", d["w"], d["scale"], np.zeros(_SIZE, np.int8), axis=1)
        return tape.op("Add", tape.op("MatMul", _real(tape, v["x"]), w), d["bias"])

    return _runs(build, {"x": d["x"]}, "Gemm", "MatMulNBits")


def _integer_matmul(x: Array, w: Array) -> Build:
    zero = np.asarray(0, x.dtype)
    return lambda tape, v: tape.op(
        "MatMulIntegerToFloat", v["x"], w, _SCALE, _SCALE, zero, domain=_MS
    )


def _large() -> tuple[Array, Array]:
    rng = np.random.default_rng(5)
    return (
        rng.integers(0, 128, (64, 512)).astype(np.uint8),
        rng.integers(-127, 128, (512, 512)).astype(np.int8),
    )


def _signed_activations() -> tuple[bool, str]:
    x, w = _large()
    signed = x.astype(np.int8)
    return _slower(
        _integer_matmul(signed, w), _integer_matmul(x, w), {"x": signed}, fast_feed={"x": x}
    )


def _unsigned_weights() -> tuple[bool, str]:
    x, w = _large()
    return _slower(_integer_matmul(x, w.view(np.uint8)), _integer_matmul(x, w), {"x": x})


def _x64_quant_precision() -> tuple[bool, str]:
    x, w = _large()
    feed = {"x": x}
    model = model_of([_integer_matmul(x, w)], feed)
    option = SessionSettings("all", {"session.x64quantprecision": "1"})
    return _compare([Case(model, feed, option, 1), Case(model, feed, _DEFAULT, 1)])


def _conv_integer() -> tuple[bool, str]:
    rng = np.random.default_rng(5)
    x = rng.integers(0, 256, (1, 64, 28, 28)).astype(np.uint8)
    w = rng.integers(-127, 128, (64, 64, 3, 3)).astype(np.int8)
    pads = [1, 1, 1, 1]
    return _slower(
        lambda t, v: t.op("ConvInteger", v["x"], w, _ZERO, pads=pads),
        lambda t, v: t.op("Conv", v["x"], w.astype(np.float32), pads=pads),
        {"x": x},
        settings=_DEFAULT,
        fast_feed={"x": x.astype(np.float32)},
    )


def _qlinear_softmax() -> tuple[bool, str]:
    x = np.random.default_rng(5).integers(0, 256, (512, 128)).astype(np.uint8)
    small = np.asarray(1 / 256, np.float32)

    def slow(tape: Tape, v: _Values) -> Any:
        zero = np.asarray(0, np.uint8)
        inputs = (v["x"], _SCALE, _ZERO, small, zero)
        return tape.op("QLinearSoftmax", *inputs, domain=_MS, axis=-1, opset=13)

    return _slower(
        slow,
        lambda t, v: t.op("Softmax", v["x"], axis=-1),
        {"x": x},
        fast_feed={"x": x.astype(np.float32)},
    )


def _wide() -> tuple[dict[str, Array], Array]:
    x = np.random.default_rng(5).normal(0, 1, (256, 384)).astype(np.float32)
    return {"x": x, "y": x[::-1].copy()}, np.ones(384, np.float32)


def _skip_layer_norm() -> tuple[bool, str]:
    feed, ones = _wide()
    return _slower(
        lambda t, v: t.op("SkipLayerNormalization", v["x"], v["y"], ones, ones, domain=_MS),
        lambda t, v: t.op("LayerNormalization", t.op("Add", v["x"], v["y"]), ones, ones, axis=-1),
        feed,
    )


def _bias_gelu() -> tuple[bool, str]:
    feed, ones = _wide()
    return _slower(
        lambda t, v: t.op("BiasGelu", v["x"], ones, domain=_MS),
        lambda t, v: t.op("Gelu", t.op("Add", v["x"], ones)),
        {"x": feed["x"]},
    )


def _nbits(bits: int, level: int, *, float_zero: bool = False) -> tuple[Build, dict[str, Array]]:
    rng = np.random.default_rng(5)
    data = rng.integers(0, 256, (512, 4, 16 * bits)).astype(np.uint8)
    scale = rng.uniform(0.001, 0.01, (512, 4)).astype(np.float32)
    zero = [np.full((512, 4), 2 ** (bits - 1), np.float32)] if float_zero else []
    attributes = {"K": 512, "N": 512, "bits": bits, "block_size": 128, "accuracy_level": level}
    feed = {"x": rng.normal(0, 1, (1, 512)).astype(np.float32)}
    return (
        lambda t, v: t.op("MatMulNBits", v["x"], data, scale, *zero, domain=_MS, **attributes),
        feed,
    )


def _nbits_accuracy_level() -> tuple[bool, str]:
    slow, feed = _nbits(8, 0)
    return _slower(slow, _nbits(8, 4)[0], feed)


def _nbits_float_zero_point() -> tuple[bool, str]:
    slow, feed = _nbits(4, 4, float_zero=True)
    return _slower(slow, _nbits(4, 4)[0], feed)


def _nbits_half_chain() -> tuple[bool, str]:
    rng = np.random.default_rng(3)
    inner, group = 64, 32
    shape = (inner, inner // group, group)  # 8 bits: a byte each
    weights = [rng.integers(0, 256, shape).astype(np.uint8) for _ in range(2)]
    scales = [rng.uniform(0.001, 0.002, shape[:2]).astype(np.float16) for _ in range(2)]
    feed = {"x": rng.normal(0, 1, (8, inner)).astype(np.float16)}

    def build(tape: Tape, v: _Values) -> Any:
        y = v["x"]
        attributes: dict[str, Any] = {
            "K": inner,
            "N": inner,
            "bits": 8,
            "block_size": group,
            "accuracy_level": 4,
        }
        for w, s in zip(weights, scales, strict=True):
            product = tape.op("MatMulNBits", y, w, s.reshape(-1), domain=_MS, **attributes)
            y = tape.op("Relu", product)
        return y

    expected = feed["x"].astype(np.float64)
    for w, s in zip(weights, scales, strict=True):
        real = ((w.astype(np.float64) - 128) * s[..., None]).reshape(inner, inner)
        expected = np.maximum(expected @ real.T, 0)
    model = model_of([build], feed)
    plain, full = (_off(compute(model, feed, how)[0], expected) for how in (_PLAIN, _DEFAULT))
    # the kernel rounds activations to 8 bits in blocks: two layers of it are off by 1 %
    return (
        plain > 0.1 >= full,
        f"off by {plain:.1%} without optimization, {full:.1%} with all of it",
    )


def _dequantized_table() -> tuple[bool, str]:
    rng = np.random.default_rng(5)
    table = rng.integers(-127, 128, (8000, 64)).astype(np.int8)
    scale = rng.uniform(0.01, 0.02, 8000).astype(np.float32)
    feed = {"ids": rng.integers(0, 8000, 32).astype(np.int64)}

    def slow(tape: Tape, v: _Values) -> Any:
        real = tape.op("DequantizeLinear", table, scale, np.zeros(8000, np.int8), axis=0)
        return tape.op("Gather", real, v["ids"])

    def fast(tape: Tape, v: _Values) -> Any:
        rows = tape.op("Cast", tape.op("Gather", table, v["ids"]), to=int(ir.DataType.FLOAT))
        return tape.op("Mul", rows, tape.op("Gather", scale[:, None].copy(), v["ids"]))

    return _slower(slow, fast, feed, settings=_DEFAULT)


def _last_axis_quantize() -> tuple[bool, str]:
    feed, ones = _wide()
    zeros = np.full(384, 128, np.uint8)
    return _slower(
        lambda t, v: t.op("QuantizeLinear", v["x"], ones, zeros, axis=1),
        lambda t, v: t.op("QuantizeLinear", t.op("Mul", v["x"], ones), _SCALE, _ZERO),
        {"x": feed["x"]},
    )


TRAP_PROBES: Mapping[str, TrapProbeFunction] = {
    "row-scale-bias": _row_scale_bias,
    "weight-axis-0-matmul": _weight_axis_0_matmul,
    "weight-axis-1-conv": _weight_axis_1_conv,
    "row-scale-in-qdq": _row_scale_in_qdq,
    "float-weight-quantized": _float_weight_quantized,
    "weight-only-activations": _weight_only_activations,
    "dynamic-bias-in-qdq": _dynamic_bias_in_qdq,
    "static-bias-in-qdq": _static_bias_in_qdq,
    "signed-activations": _signed_activations,
    "unsigned-weights": _unsigned_weights,
    "x64-quant-precision": _x64_quant_precision,
    "conv-integer": _conv_integer,
    "qlinear-softmax": _qlinear_softmax,
    "skip-layer-norm": _skip_layer_norm,
    "bias-gelu": _bias_gelu,
    "nbits-accuracy-level": _nbits_accuracy_level,
    "nbits-float-zero-point": _nbits_float_zero_point,
    "nbits-half-chain": _nbits_half_chain,
    "dequantized-table": _dequantized_table,
    "last-axis-quantize": _last_axis_quantize,
    **FLOAT8_TRAP_PROBES,
}
