"""Compile a model with qcompiler in a process of its own: ``compile_ours.py SPEC.json``.

Spec: ``model``, ``output`` (folder), ``recipe`` (name or mapping), ``form`` or null,
``calibration`` (folder of ``.npz`` files) or null, ``result`` (file).
"""

from __future__ import annotations

import importlib
import pathlib
import time

from job import STARTED, finish, peak_mb, read_spec

_ON_THE_WAY = (
    "jinja2",
    "networkx",
    "numpy.ma",
    "numpy.random",
    "onnx_ir",
    "onnxruntime",
    "platformdirs",
    "qcompiler.calibration.runner",
    "qcompiler.calibration.text",
    "qcompiler.driver",
    "qcompiler.frontends",
    "qcompiler.report.page",
    "qcompiler.runtime.kernels",
    "qcompiler.runtime.timing",
    "qcompiler.targets.registry",
    "qcompiler_passes",
)


def main() -> None:
    spec = read_spec()
    # What a compile imports on its way, so that `seconds` is work and `import_seconds` is the rest,
    # as it is for tools that import everything at once.
    for name in _ON_THE_WAY:
        importlib.import_module(name)
    from qcompiler import qcompile

    if pathlib.Path(spec["model"]).is_dir():
        import qcompiler.frontends.torch.transformers_model  # noqa: F401

    imported, imports_mb = time.perf_counter(), peak_mb()
    artifact = qcompile(
        spec["model"],
        target="cpu",
        recipe=spec["recipe"],
        form=spec["form"],
        calibration=spec["calibration"],
        output=spec["output"],
    )
    finish(
        spec,
        seconds=time.perf_counter() - imported,
        import_seconds=imported - STARTED,
        imports_mb=imports_mb,
        phases=artifact.report.timings["phases"],
        diagnostics=[str(item) for item in artifact.report.diagnostics if item.severity > 0],
    )


if __name__ == "__main__":
    main()
