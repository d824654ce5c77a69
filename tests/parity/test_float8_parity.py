"""Our 8-bit floats and 16-bit integers, ONNX's reference and ONNX Runtime: the same numbers."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator

from qcompiler import qcompile
from qcompiler.numerics.affine import dequantize, quantize_as
from qcompiler.schemes import QSpec
from qcompiler_models import tiny

FLOATS = ["e4m3t", "e5m2t"]


def model_of(body: str, spec: QSpec, scale: float, zero: int = 0) -> onnx.ModelProto:
    """A graph on one ``x`` whose initializers are the scale ``s`` and zero point ``z``."""
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 21]> g {body}')
    s = onnx.numpy_helper.from_array(np.float32(scale), "s")
    z = ir.serde.serialize_tensor(ir.tensor(np.asarray(zero, spec.dtype.numpy()), name="z"))
    model.graph.initializer.extend([s, z])
    return model


def both(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [session.run(None, {"x": x})[0], ReferenceEvaluator(model).run(None, {"x": x})[0]]


def hard_floats(spec: QSpec) -> np.ndarray:
    """Numbers of all magnitudes, ties, what overflows, subnormals, NaN and infinities."""
    rng = np.random.default_rng(7)
    spread = np.exp2(rng.uniform(-30, 20, 20000)) * rng.choice([-1.0, 1.0], 20000)
    codes = np.arange(256, dtype=np.uint8).view(spec.dtype.numpy()).astype(np.float32)
    finite = np.unique(codes[np.isfinite(codes)])
    ties = (finite[1:] + finite[:-1]) / 2
    edges = [spec.qmax * 1.03, spec.qmax * 1.1, 1e38, np.inf, -np.inf, np.nan, 0.0, -0.0]
    return np.concatenate([spread, finite, ties, edges]).astype(np.float32)


@pytest.mark.parametrize("word", FLOATS)
@pytest.mark.parametrize("scale", [1.0, 0.125, 0.0173])
def test_quantizing_is_that_of_onnx_and_of_the_runtime(word: str, scale: float) -> None:
    spec = QSpec.parse(word)
    x = hard_floats(spec)
    body = "(float[N] x) => (float[N] y) { q = QuantizeLinear(x, s, z) y = Cast<to: int = 1>(q) }"
    ours = quantize_as(x, np.float32(scale), np.int32(0), spec).astype(np.float32)
    with np.errstate(over="ignore"):
        found = both(model_of(body, spec, scale), x)
    for theirs in found:
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("word", FLOATS)
def test_all_256_codes_dequantize_to_the_same_numbers(word: str) -> None:
    spec = QSpec.parse(word)
    codes = np.arange(256, dtype=np.uint8).view(spec.dtype.numpy())
    model = model_of("(float[1] x) => (float[256] y) { y = DequantizeLinear(c, s) }", spec, 0.37)
    model.graph.initializer.append(ir.serde.serialize_tensor(ir.tensor(codes, name="c")))
    ours = dequantize(codes, np.float32(0.37), np.int32(0))
    for theirs in both(model, np.zeros(1, np.float32)):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(("word", "zero"), [("u16tz", 31000), ("u16t", 32768), ("s16t", 0)])
def test_16_bit_integers_quantize_and_dequantize_alike(word: str, zero: int) -> None:
    spec, scale = QSpec.parse(word), np.float32(0.0021)
    x = np.random.default_rng(3).normal(0, 40, 5000).astype(np.float32)
    body = "(float[N] x) => (float[N] y) { q = QuantizeLinear(x, s, z)"
    body += " y = DequantizeLinear(q, s, z) }"
    ours = dequantize(quantize_as(x, scale, np.int32(zero), spec), scale, np.int32(zero))
    inside = x > -32767 * scale  # a symmetric spec leaves out the lowest integer, ONNX does not
    for theirs in both(model_of(body, spec, float(scale), zero), x):
        np.testing.assert_array_equal(ours[inside], theirs[inside])


@pytest.mark.parametrize("name", ["mlp", "convnet", "transformer"])
@pytest.mark.parametrize(
    ("target", "recipe"),
    [
        ("tensorrt", "static-fp8"),
        ("cuda", "static-fp8-e5m2"),
        ("generic-qdq", "static-fp8"),
        ("qnn-htp", "static-a16w8"),
    ],
)
def test_an_artifact_gives_what_the_reference_of_onnx_gives(
    name: str, target: str, recipe: str
) -> None:
    artifact = qcompile(tiny.build(name), target, recipe, tiny.feeds(name, 4))
    proto = ir.to_proto(artifact.model)
    onnx.checker.check_model(proto, full_check=True)
    feed = tiny.feeds(name, 1)[0]
    expected = ReferenceEvaluator(proto).run(None, feed)
    for ours, theirs in zip(artifact.run(feed).values(), expected, strict=True):
        # a sum that rounds otherwise may move a few elements by a step
        far = np.abs(ours - theirs) > 1e-4 * np.abs(theirs).max()
        assert far.mean() <= 0.1
        assert np.abs(ours - theirs).max() <= 0.1 * np.abs(theirs).max()
