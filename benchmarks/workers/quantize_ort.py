"""ONNX Runtime's own quantization tool in a process of its own: ``quantize_ort.py SPEC.json``.

Spec: ``model``, ``output`` (file), ``method`` (``dynamic``, ``minmax``, ``percentile`` or
``entropy``), ``operators`` or null, ``calibration`` (folder), ``result`` (file).
"""

from __future__ import annotations

import pathlib
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from job import STARTED, finish, load_feeds, peak_mb, raised_for_channels, read_spec


def main() -> None:
    spec = read_spec()
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    imported, imports_mb = time.perf_counter(), peak_mb()
    if spec["method"] == "dynamic":
        quantization.quantize_dynamic(
            spec["model"],
            spec["output"],
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
        )
        pre_process_seconds = 0.0
    else:
        with tempfile.TemporaryDirectory() as folder:
            prepared = pathlib.Path(folder) / "prepared.onnx"
            source = raised_for_channels(spec["model"], folder)
            quant_pre_process(source, str(prepared), skip_symbolic_shape=True)
            pre_process_seconds = time.perf_counter() - imported
            _quantize_static(quantization, spec, prepared)
    finish(
        spec,
        seconds=time.perf_counter() - imported,
        import_seconds=imported - STARTED,
        imports_mb=imports_mb,
        pre_process_seconds=pre_process_seconds,
    )


def _quantize_static(quantization: Any, spec: dict[str, Any], prepared: pathlib.Path) -> None:
    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.feeds: Iterator[dict[str, Any]] = iter(load_feeds(spec["calibration"]))

        def get_next(self) -> dict[str, Any] | None:
            return next(self.feeds, None)

    methods = {
        "minmax": quantization.CalibrationMethod.MinMax,
        "percentile": quantization.CalibrationMethod.Percentile,
        "entropy": quantization.CalibrationMethod.Entropy,
    }
    quantization.quantize_static(
        str(prepared),
        spec["output"],
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=spec["operators"],
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        calibrate_method=methods[spec["method"]],
    )


if __name__ == "__main__":
    main()
