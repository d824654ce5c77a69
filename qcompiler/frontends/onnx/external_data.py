"""External data of an ONNX model: inside its folder, all there, and only then memory-mapped.

A model file is untrusted: a location such as ``../../etc/passwd`` would copy somebody's file into
the artifact. What stays inside the folder after following links is allowed, everything else is not.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from qcompiler.diagnostics import Code, QcError
from qcompiler.ir.walk import all_graphs

__all__ = ["check_external"]

# Below this an external tensor is read at once: shapes, scalars and biases are needed anyway, and
# a session wants them inside the protobuf.
_READ_BYTES = 4096


def check_external(model: ir.Model, source: str, folder: pathlib.Path | None) -> None:
    """Check every external tensor of ``model`` and read the small ones.

    Args:
        model: Its initializers and tensor attributes are looked at; small ones are replaced by
            the same tensor in memory.
        source: The user's name for the model.
        folder: Folder the locations are relative to; None takes what each tensor says, and
            refuses a tensor that says nothing.

    Raises:
        QcError: QC703 for a location outside the folder, a missing or a short file.
    """
    sizes: dict[str, tuple[pathlib.Path, int]] = {}
    for value, tensor in _external(model):
        location = os.fspath(tensor.location)
        base = folder if folder is not None else _own_folder(tensor, source)
        key = f"{base}|{location}"
        if key not in sizes:
            path = _inside(base, location, source, tensor.name)
            sizes[key] = path, _size(path, location, source, tensor.name)
        path, size = sizes[key]
        offset = tensor.offset or 0
        # a model without a length means "to the end of the file"
        wanted = tensor.nbytes if tensor.length is None else tensor.length
        if offset < 0 or wanted < tensor.nbytes or offset + wanted > size:
            raise QcError(
                Code.EXTERNAL_DATA,
                source,
                f"initializer {tensor.name!r} needs {tensor.nbytes} bytes at offset {offset} of "
                f"{location!r}, which has {size} bytes"
                + (f" (the model says {wanted})" if wanted != tensor.nbytes else ""),
                "the file is truncated or belongs to another model; copy it again",
            )
        if value is not None:
            value.const_value = _settle(tensor, path)


def _external(model: ir.Model) -> Iterator[tuple[ir.Value | None, ir.ExternalTensor]]:
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield value, value.const_value
        for node in graph:
            for attr in node.attributes.values():
                if isinstance(attr, ir.Attr) and isinstance(attr.value, ir.ExternalTensor):
                    yield None, attr.value


def _own_folder(tensor: ir.ExternalTensor, source: str) -> pathlib.Path:
    if not os.fspath(tensor.base_dir):
        raise QcError(
            Code.EXTERNAL_DATA,
            source,
            f"initializer {tensor.name!r} lies in {os.fspath(tensor.location)!r}, and a model in "
            "memory does not say in which folder that is",
            "give the path of the model file, or load it with its external data",
        )
    return pathlib.Path(tensor.base_dir)


def _inside(base: pathlib.Path, location: str, source: str, name: str | None) -> pathlib.Path:
    """The real path of a location, which must not leave ``base``."""
    root = pathlib.Path(os.path.realpath(base))
    path = pathlib.Path(os.path.realpath(root / location))
    windows = pathlib.PureWindowsPath(location)
    absolute = pathlib.PurePosixPath(location).is_absolute() or windows.is_absolute()
    climbs = ".." in pathlib.PurePosixPath(location).parts or ".." in windows.parts
    if absolute or climbs or not path.is_relative_to(root):
        what = (
            "an absolute path"
            if absolute
            else "a path with '..'"
            if climbs
            else f"a link to {path}"
        )
        raise QcError(
            Code.EXTERNAL_DATA,
            source,
            f"initializer {name!r} lies in {location!r}, {what}; "
            f"external data must be in the model's folder {root}",
            "copy the model and its data into one folder, links resolved (cp -L)",
        )
    return path


def _size(path: pathlib.Path, location: str, source: str, name: str | None) -> int:
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise QcError(
            Code.EXTERNAL_DATA,
            source,
            f"initializer {name!r} lies in {location!r}, and {path} {what}",
            "put the data file beside the model file, under the name it was saved with",
        )
    return path.stat().st_size


def _settle(tensor: ir.ExternalTensor, path: pathlib.Path) -> ir.TensorProtocol:
    """The tensor in memory when small, else mapped from its checked path."""
    assert tensor.name is not None, "an initializer has a name"
    # The path is checked above, and onnx_ir's own check refuses hard links, which package
    # installers make; an empty base folder is its way to say "this path is trusted".
    mapped = ir.ExternalTensor(
        str(path),
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name,
        doc_string=tensor.doc_string,
    )
    if tensor.nbytes >= _READ_BYTES:
        return mapped
    return ir.Tensor(np.array(mapped.numpy()), dtype=tensor.dtype, name=tensor.name)
