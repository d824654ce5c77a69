"""Write safetensors files tensor by tensor: each is made, written and forgotten.

Format: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

__all__ = ["Entry", "write_shards"]

_WORDS = {
    np.dtype(ml_dtypes.bfloat16): "BF16",
    np.dtype(np.float16): "F16",
    np.dtype(np.float32): "F32",
    np.dtype(np.float64): "F64",
    np.dtype(np.int32): "I32",
}
_SHARD = 4_000_000_000  # bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """A tensor to write.

    Attributes:
        name: Its name.
        dtype: Its type.
        shape: Its shape.
        make: Gives its elements; asked once.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    make: Callable[[], npt.NDArray[Any]]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_shards(folder: pathlib.Path, entries: Sequence[Entry], limit: int = _SHARD) -> None:
    """Write ``model.safetensors``, or shards of at most ``limit`` bytes with their index."""
    shards: list[list[Entry]] = [[]]
    for entry in entries:
        if shards[-1] and sum(e.nbytes for e in shards[-1]) + entry.nbytes > limit:
            shards.append([])
        shards[-1].append(entry)
    if len(shards) == 1:
        _write(folder / "model.safetensors", shards[0])
        return
    places = {}
    for index, shard in enumerate(shards, 1):
        name = f"model-{index:05}-of-{len(shards):05}.safetensors"
        _write(folder / name, shard)
        places.update({entry.name: name for entry in shard})
    total = sum(entry.nbytes for entry in entries)
    said = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(said, indent=1) + "\n")


def _write(path: pathlib.Path, entries: Sequence[Entry]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for entry in entries:
        header[entry.name] = {
            "dtype": _WORDS[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [begin, begin + entry.nbytes],
        }
        begin += entry.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little"))
        stream.write(text)
        for entry in entries:
            array = np.ascontiguousarray(entry.make(), entry.dtype)
            assert array.shape == entry.shape, entry.name
            stream.write(array.view(np.uint8).data if array.ndim else array.tobytes())
