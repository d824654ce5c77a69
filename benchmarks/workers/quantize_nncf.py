"""NNCF post-training quantization in a process of its own: ``quantize_nncf.py SPEC.json``.

Spec: ``model``, ``output`` (``.onnx`` file, or ``.xml`` for OpenVINO's own form), ``transformer``,
``calibration`` (folder), ``result`` (file).
"""

from __future__ import annotations

import tempfile
import time
from typing import Any

from job import STARTED, finish, load_feeds, peak_mb, raised_for_channels, read_spec


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
    with tempfile.TemporaryDirectory() as folder:
        return runtime.load(raised_for_channels(spec["model"], folder))


if __name__ == "__main__":
    main()
