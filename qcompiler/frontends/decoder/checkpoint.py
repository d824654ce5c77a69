"""Weights of a checkpoint by name, read from safetensors files or from a module in memory."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from qcompiler.diagnostics import Code, QcError
from qcompiler.frontends.decoder.families import Family
from qcompiler.ir.lazy import Stored

if TYPE_CHECKING:
    import torch

__all__ = ["INDEX", "WEIGHTS", "from_folder", "from_module", "with_base"]

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_HEADER_LIMIT = 100_000_000  # bytes; the limit of the safetensors library itself
# Types of the format that a decoder's weights have: floats, and int32 words of packed integers.
_DTYPES: Mapping[str, Any] = {
    "BF16": ml_dtypes.bfloat16,
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
    "I32": np.int32,
}


def from_folder(folder: pathlib.Path) -> dict[str, Stored]:
    """Every weight of a transformers folder by name; only the headers of the files are read.

    Raises:
        QcError: QC707 without safetensors or for a damaged file, QC703 for a shard that is missing
            or lies outside the folder.
    """
    found: dict[str, Stored] = {}
    for path in _files(folder):
        found.update(_stored(path))
    return found


def from_module(module: torch.nn.Module) -> dict[str, Stored]:
    """Every tensor of a module's state; shares the module's memory.

    Raises:
        QcError: QC707, a tensor has no data.
    """
    import torch

    found = {}
    for name, tensor in module.state_dict().items():
        if not isinstance(tensor, torch.Tensor):
            continue  # what modules of torch's own quantization keep beside their weights
        if tensor.is_meta:
            raise QcError(
                Code.UNSUPPORTED_INPUT,
                type(module).__name__,
                f"weight {name!r} has no data: it lies on the meta device",
                "load the model with its weights",
            )
        found[name] = Stored(name, tuple(tensor.shape), functools.partial(_array, tensor))
    return found


def with_base(weights: Mapping[str, Stored], family: Family) -> Mapping[str, Stored]:
    """Weights by the family's names, of a model that was saved without its head.

    Such files lack what all names but the head's begin with; OpenAI's own GPT-2 is one.
    """
    begin = f"{family.base}."
    if any(name.startswith(begin) for name in weights):
        return weights
    head = family.top["head"]
    names = {name: name if name.startswith(head) else begin + name for name in weights}
    return {names[old]: dataclasses.replace(weights[old], name=names[old]) for old in weights}


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = folder / INDEX
    if not index.is_file():
        raise QcError(
            Code.UNSUPPORTED_INPUT,
            str(folder),
            f"the folder has neither {WEIGHTS} nor {INDEX}",
            "save the model with save_pretrained, which writes safetensors",
        )
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(index, f"it is no index of shards ({error})") from error
    for shard in shards:
        if not isinstance(shard, str) or pathlib.PurePath(shard).name != shard:
            raise QcError(
                Code.EXTERNAL_DATA,
                str(index),
                f"the shard {shard!r} is not a file of this folder",
                "copy all shards into one folder",
            )
        if not (folder / shard).is_file():
            raise QcError(
                Code.EXTERNAL_DATA,
                str(index),
                f"the shard {shard!r} does not exist",
                "copy all shards into the folder",
            )
    return [folder / shard for shard in shards]


def _stored(path: pathlib.Path) -> dict[str, Stored]:
    """The tensors of one file: a length in eight bytes, a JSON header, then the data."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= min(_HEADER_LIMIT, path.stat().st_size - 8):
            raise _damaged(path, f"its header says a length of {length} bytes")
        try:
            header = json.loads(stream.read(length))
            return {
                name: _entry(path, name, entry, 8 + length)
                for name, entry in header.items()
                if name != "__metadata__"
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _damaged(path, f"its header does not parse ({error})") from error


def _entry(path: pathlib.Path, name: str, entry: Mapping[str, Any], base: int) -> Stored:
    shape = tuple(int(size) for size in entry["shape"])
    begin, end = entry["data_offsets"]
    kind = entry["dtype"]
    dtype = np.dtype(_DTYPES.get(kind, np.uint8))
    wanted = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if not 0 <= int(begin) <= int(end) or (begin, end) != (int(begin), int(end)):
        raise ValueError(f"tensor {name!r} lies from byte {begin} to {end}")
    begin, end = int(begin), int(end)
    if base + end > (size := path.stat().st_size):
        raise _damaged(path, f"tensor {name!r} ends at byte {base + end}, the file at {size}")
    if kind in _DTYPES and end - begin != wanted:
        raise _damaged(path, f"tensor {name!r} needs {wanted} bytes and has {end - begin}")
    return Stored(name, shape, functools.partial(_mapped, path, name, kind, base + begin, shape))


def _mapped(
    path: pathlib.Path, name: str, kind: str, offset: int, shape: tuple[int, ...]
) -> npt.NDArray[Any]:
    if kind not in _DTYPES:
        raise QcError(
            Code.UNSUPPORTED_INPUT,
            str(path),
            f"weight {name!r} has the type {kind}",
            f"weights of {', '.join(_DTYPES)} are read; a checkpoint quantized otherwise must be "
            "dequantized by the library that made it",
        )
    return np.memmap(path, dtype=_DTYPES[kind], mode="r", offset=offset, shape=shape)


def _array(tensor: torch.Tensor) -> npt.NDArray[Any]:
    import torch

    tensor = tensor.detach().cpu()
    if tensor.dtype is torch.bfloat16:
        bits: npt.NDArray[Any] = tensor.contiguous().view(torch.uint16).numpy()
        return bits.view(ml_dtypes.bfloat16)
    array: npt.NDArray[Any] = tensor.numpy()
    return array


def _damaged(path: pathlib.Path, what: str) -> QcError:
    return QcError(
        Code.UNSUPPORTED_INPUT, str(path), f"the file is damaged: {what}", "copy it again"
    )
