"""Front end for ``torch.export.ExportedProgram`` and the ``.pt2`` files that hold one."""

from __future__ import annotations

import io
import json
import pathlib
import pickle
import warnings
import zipfile
from typing import Any

import torch
from torch.utils import _pytree as pytree

from qcompiler.diagnostics import Code, QcError
from qcompiler.frontends.admission import admit
from qcompiler.frontends.opened import Opened
from qcompiler.frontends.torch.example_inputs import example_feed
from qcompiler.frontends.torch.export import export_to_ir, output_names

__all__ = ["open_file", "open_program"]


def open_program(program: torch.export.ExportedProgram, source: str) -> Opened:
    """Translate a program; its dynamic shapes and example inputs are kept.

    Raises:
        QcError: QC705 when an operator has no ONNX form.
    """
    spec = program.call_spec.out_spec
    names = None
    if spec is not None:
        leaves = list(range(spec.num_leaves))
        taken = list(program.graph_signature.user_inputs)
        names = output_names(pytree.tree_unflatten(leaves, spec), [str(name) for name in taken])
    model = export_to_ir(program, None, source, outputs=names)
    example = None
    if program.example_inputs is not None:
        leaves = pytree.tree_leaves(program.example_inputs)
        tensors = [item for item in leaves if isinstance(item, torch.Tensor)]
        example = example_feed(model, tensors)
    return admit(model, "exported-program", source, example)


def open_file(path: pathlib.Path) -> Opened:
    """Read a file of ``torch.export.save``.

    torch reads parts of such a file as pickles, which can run any code; a file with such parts is
    refused before torch sees it.

    Raises:
        QcError: QC707 when the file is no exported program, or holds pickled objects.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            reason = _unsafe_part(archive)
    except (zipfile.BadZipFile, ValueError, KeyError) as error:
        raise QcError(
            Code.UNSUPPORTED_INPUT,
            str(path),
            f"the file is no archive of torch.export.save: {error}",
            "save the program with torch.export.save of torch 2.8 or newer",
        ) from error
    if reason:
        raise QcError(
            Code.UNSUPPORTED_INPUT,
            str(path),
            f"{reason}, and no pickle from disk is executed",
            "if you trust the file, pass torch.export.load(path) instead of the path",
        )
    return open_program(torch.export.load(path), str(path))


def _unsafe_part(archive: zipfile.ZipFile) -> str | None:
    """Why torch would unpickle something in the archive, or None."""
    names = archive.namelist()
    if not any(name.endswith("/archive_format") for name in names):
        raise ValueError("it has no entry archive_format")
    for name in names:
        if name.endswith("_config.json") and _pickled(json.loads(archive.read(name))):
            return f"its entry {name} refers to pickled tensors or objects"
        if "/sample_inputs/" in name and not _loads_safely(archive.read(name)):
            return f"its entry {name} holds more than tensors"
    return None


def _pickled(config: Any) -> bool:
    entries = config.get("config", {}).values()
    return any(
        entry.get("use_pickle") or not entry["path_name"].startswith(("weight_", "tensor_"))
        for entry in entries
    )


def _loads_safely(data: bytes) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of pickles of other protocols
            torch.load(io.BytesIO(data), weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError):
        return False
    return True
