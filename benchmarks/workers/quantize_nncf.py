"""NNCF post-training quantization in a process of its own: ``quantize_nncf.py SPEC.json``.

Spec: ``model``, ``output`` (``.onnx`` file, or ``.xml`` for OpenVINO's own form), ``transformer``,
``calibration`` (folder), ``result`` (file).
"""

from __future__ import annotations

import time
from typing import Any

from job import STARTED, finish, load_feeds, peak_mb, read_spec

_OLDEST_OPSET = 13  # NNCF quantizes per channel from here on
_RAISED_OPSET = 17


def main() -> None:
    spec = read_spec()
    import nncf

    if spec["output"].endswith(".xml"):
        import openvino as runtime
    else:
        import onnx as runtime

    imported, imports_mb = time.perf_counter(), peak_mb()
    kind = nncf.ModelType.TRANSFORMER if spec["transformer"] else None
    feeds = load_feeds(spec["calibration"])
    model = _read(runtime, spec)
    quantized = nncf.quantize(model, nncf.Dataset(feeds), model_type=kind, subset_size=len(feeds))
    if spec["output"].endswith(".xml"):
        runtime.save_model(quantized, spec["output"], compress_to_fp16=False)
    else:
        runtime.save(quantized, spec["output"])
    finish(
        spec,
        seconds=time.perf_counter() - imported,
        import_seconds=imported - STARTED,
        imports_mb=imports_mb,
    )


def _read(runtime: Any, spec: dict[str, Any]) -> Any:
    if spec["output"].endswith(".xml"):
        return runtime.Core().read_model(spec["model"])
    model = runtime.load(spec["model"])
    opset = next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
    if opset < _OLDEST_OPSET:
        from onnx import version_converter

        model = version_converter.convert_version(model, _RAISED_OPSET)
    return model


if __name__ == "__main__":
    main()
