"""Small models quantized by ONNX Runtime's own tool, and by hand, for tests of what comes in."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir
from onnxruntime import quantization

from qcompiler.pipeline.contract import State
from qcompiler.pipeline.quantized import quantized_pipeline
from qcompiler.pipeline.run import run_pipeline
from qcompiler.recipe import Recipe
from qcompiler.runtime.session import open_session, run
from qcompiler.runtime.settings import SessionSettings
from qcompiler.targets.registry import load_target
from qcompiler.targets.schema import Form

Feed = dict[str, np.ndarray]

PLAIN = SessionSettings("disable")
TARGET = "cpu-vnni"
HEAD = '<ir_version: 10, opset_import: ["" : 21]>'


class _Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, feeds: Sequence[Feed]) -> None:
        self.feeds: Iterator[Feed] = iter(feeds)

    def get_next(self) -> Feed | None:
        return next(self.feeds, None)


def quantize(
    model: ir.Model,
    feeds: Sequence[Feed],
    folder: pathlib.Path,
    *,
    form: str = "qdq",
    activations: str = "u8",
    weights: str = "s8",
    per_channel: bool = True,
    operators: Sequence[str] | None = None,
) -> pathlib.Path:
    """The model as ONNX Runtime's ``quantize_static`` or ``quantize_dynamic`` leaves it."""
    source, target = folder / "float.onnx", folder / "quantized.onnx"
    ir.save(model, source)
    types = {"u8": quantization.QuantType.QUInt8, "s8": quantization.QuantType.QInt8}
    if form == "dynamic":
        quantization.quantize_dynamic(
            source, target, per_channel=per_channel, weight_type=types[weights]
        )
        return target
    formats = {
        "qdq": quantization.QuantFormat.QDQ,
        "qoperator": quantization.QuantFormat.QOperator,
    }
    quantization.quantize_static(
        source,
        target,
        _Reader(feeds),
        quant_format=formats[form],
        per_channel=per_channel,
        activation_type=types[activations],
        weight_type=types[weights],
        op_types_to_quantize=None if operators is None else list(operators),
    )
    return target


def relower(
    model: ir.Model,
    feed: Feed | None = None,
    form: Form = Form.ORT,
    target: str = TARGET,
    recipe: object = None,
) -> tuple[ir.Model, State]:
    """The model through the pipeline of quantized models; every pass held to its contract."""
    copy = model.clone()
    state = State(load_target(target), Recipe.of(recipe), form, sample=feed)  # type: ignore[arg-type]
    run_pipeline(quantized_pipeline(), copy, state, check=True)
    return copy, state


def outputs(model: ir.Model, feed: Feed, settings: SessionSettings = PLAIN) -> list[np.ndarray]:
    return list(run(open_session(model, settings=settings), feed).values())


def integers(model: ir.Model) -> list[bytes]:
    """Weights: 8-bit constants of more than one axis or place, as signed numbers, sorted.

    Channels of zeros, which images get, do not count.
    """
    found = []
    for value in model.graph.initializers.values():
        array = value.const_value.numpy() if value.const_value is not None else np.zeros(0)
        if array.dtype in (np.int8, np.uint8) and array.ndim >= 2:
            shift = 128 if array.dtype == np.uint8 else 0
            signed = array.astype(np.int16) - shift
            if signed.ndim == 4:
                signed = signed[:, signed.any(axis=(0, 2, 3))]
            found.append(np.sort(signed.reshape(-1)).tobytes())
    return sorted(found)
