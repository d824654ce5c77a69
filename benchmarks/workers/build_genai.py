"""Build a folder with ONNX Runtime GenAI's builder: ``build_genai.py SPEC.json``.

Spec: ``model`` (transformers folder), ``output`` (folder), ``precision`` (``fp32``, ``int4``),
``algorithm`` (``algo_config`` of the builder, or null for its default), ``result`` (file).
"""

from __future__ import annotations

import pathlib
import runpy
import sys
import time

from job import STARTED, finish, read_spec


def main() -> None:
    spec = read_spec()
    import onnxruntime_genai.models.builders  # noqa: F401

    imported = time.perf_counter()
    cache = pathlib.Path(spec["output"]).parent / "cache"
    command = ["-i", spec["model"], "-o", spec["output"], "-p", spec["precision"], "-e", "cpu"]
    command += ["-m", "local", "-c", str(cache)]
    if spec["algorithm"]:
        command += ["--extra_options", f"algo_config={spec['algorithm']}"]
    sys.argv[1:] = command
    runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__")
    finish(spec, seconds=time.perf_counter() - imported, import_seconds=imported - STARTED)


if __name__ == "__main__":
    main()
