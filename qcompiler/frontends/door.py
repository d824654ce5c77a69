"""Look at what the user gave and take it to the front end that reads it."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import sys
from typing import Any

import onnx
import onnx_ir as ir

from qcompiler.diagnostics import Code, QcError
from qcompiler.frontends.onnx import open_file, open_ir, open_proto
from qcompiler.frontends.opened import Opened
from qcompiler.output_folder import MANIFEST

__all__ = ["open_model"]

# Files that hold weights without the computation, or that only run by executing a pickle.
_WEIGHT_FILES = {
    ".pt": "a .pt file holds pickled weights",
    ".pth": "a .pth file holds pickled weights",
    ".bin": "a .bin file holds weights only",
    ".ckpt": "a .ckpt file holds weights only",
    ".safetensors": "a .safetensors file holds weights only",
}


def open_model(model: Any, example_inputs: Any = None) -> Opened:
    """Read a model of any supported kind. The user's object is never modified.

    Args:
        model: Path of an ONNX file or of a ``.pt2`` exported program, local transformers folder,
            ``onnx.ModelProto``, ``onnx_ir.Model``, ``torch.nn.Module`` (``torch.fx.GraphModule``
            and transformers ``PreTrainedModel`` included), or ``torch.export.ExportedProgram``.
        example_inputs: For torch modules: a tensor, a tuple of positional inputs, or a dict of
            keyword inputs. Transformers models work them out from their configuration.

    Raises:
        QcError: QC701 to QC710, QC202 or QC301, saying what was found, what was wanted and what
            to do.
    """
    if isinstance(model, Opened):
        return model
    if isinstance(model, str | os.PathLike):
        return _open_path(pathlib.Path(model), example_inputs)
    if isinstance(model, onnx.ModelProto):
        return open_proto(model)
    if isinstance(model, ir.Model):
        return open_ir(model)
    if "torch" in sys.modules:  # whoever holds a torch object has imported torch
        opened = _open_torch(model, example_inputs)
        if opened is not None:
            return opened
    kind = type(model)
    raise QcError(
        Code.UNSUPPORTED_INPUT,
        f"{kind.__module__}.{kind.__qualname__}",
        "this is not a model we can read",
        "give an ONNX path, onnx.ModelProto, onnx_ir.Model, torch.nn.Module, ExportedProgram, "
        "or a local transformers folder",
    )


def _open_path(path: pathlib.Path, example_inputs: Any) -> Opened:
    if not os.path.exists(path):  # which holds for paths that are too long, too
        raise QcError(
            Code.NO_FILE,
            str(path),
            "there is no such file or folder",
            "models are read from this machine only; names on a hub must be downloaded first",
        )
    if path.is_dir():
        if (path / MANIFEST).is_file() and not (path / "config.json").is_file():
            raise QcError(
                Code.UNSUPPORTED_INPUT,
                str(path),
                "this is an artifact, wanted the float model",
                "where a command takes both the float model is the one to name first, or after "
                f"--against; to compile an artifact again give {path / 'model.onnx'}",
            )
        if not (path / "config.json").is_file():
            inside = sorted(item.name for item in path.glob("*.onnx"))
            raise QcError(
                Code.UNSUPPORTED_INPUT,
                str(path),
                "the folder has no config.json, so it is no transformers folder",
                f"give the file itself: {path / inside[0]}" if inside else "give an ONNX file",
            )
        _need(str(path), "torch", "transformers")
        from qcompiler.frontends import decoder, whisper
        from qcompiler.frontends.torch import transformers_model

        if example_inputs is None and decoder.is_decoder(path):
            return decoder.open_folder(path)
        if example_inputs is None and whisper.is_whisper(path):
            return whisper.open_folder(path)
        return transformers_model.open_folder(path, example_inputs)
    if path.suffix == ".gguf":
        _need(str(path), "torch", "transformers")
        from qcompiler.frontends import decoder

        return decoder.open_gguf(path)
    if path.suffix == ".pt2":
        _need(str(path), "torch")
        from qcompiler.frontends.torch import exported_program

        return exported_program.open_file(path)
    if path.suffix in _WEIGHT_FILES:
        raise QcError(
            Code.UNSUPPORTED_INPUT,
            str(path),
            f"{_WEIGHT_FILES[path.suffix]}, not a model's computation",
            "build the torch module, load the weights into it with weights_only=True, and pass "
            "the module with example_inputs",
        )
    return open_file(path)


def _need(source: str, *packages: str) -> None:
    """Refuse what needs packages that are not installed: torch is an extra."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise QcError(
            Code.UNSUPPORTED_INPUT,
            source,
            f"reading it needs {' and '.join(missing)}, which is not installed",
            'pip install "qcompiler-onnx[torch]", or export the model to ONNX elsewhere',
        )


def _open_torch(model: Any, example_inputs: Any) -> Opened | None:
    import torch

    if isinstance(model, torch.export.ExportedProgram):
        from qcompiler.frontends.torch import exported_program

        return exported_program.open_program(model, type(model).__name__)
    if not isinstance(model, torch.nn.Module):
        return None
    while (inner := _wrapped(model)) is not None:
        model = inner
    _need(type(model).__name__, "onnxscript")
    if "transformers" in sys.modules:
        import transformers

        if isinstance(model, transformers.PreTrainedModel):
            from qcompiler.frontends import decoder, whisper
            from qcompiler.frontends.torch import transformers_model

            if example_inputs is None and decoder.is_decoder(model):
                return decoder.open_pretrained(model, type(model).__name__)
            if example_inputs is None and whisper.is_whisper(model):
                return whisper.open_pretrained(model, type(model).__name__)
            return transformers_model.open_pretrained(model, example_inputs, type(model).__name__)
    from qcompiler.frontends.torch.module import open_module

    return open_module(model, example_inputs)


def _wrapped(module: Any) -> Any:
    """The user's module inside what torch.compile or (distributed) data parallelism made of it."""
    import torch

    if isinstance(module, torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel):
        return module.module
    return getattr(module, "_orig_mod", None)
