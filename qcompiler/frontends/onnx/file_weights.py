"""Take the large weights of an ONNX file straight from the file.

A protobuf parser copies every byte of a message, and its bindings copy once more what is asked
for: a model of 1 GB takes 3 GB to read. The wire format (https://protobuf.dev/programming-guides/
encoding) says where each field begins and ends, so the weights are left out of what is parsed and
looked at where the file is mapped.
"""

from __future__ import annotations

import math
import mmap
import pathlib
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

__all__ = ["Weights", "attach", "read_file"]

# Numbers of fields in https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5  # wire types
_LARGE = 1 << 16  # bytes of raw data; a smaller copy costs nothing

_Found = MutableMapping[str, npt.NDArray[Any]]
Weights = Mapping[str, npt.NDArray[Any]]


def read_file(path: pathlib.Path) -> tuple[onnx.ModelProto, Weights]:
    """The model of a protobuf file without its large weights, and those by name.

    Only initializers of the main graph are left out: views of the mapped file where they lie
    even, else copies.

    Raises:
        ValueError: The file is empty, ends early, or is no protobuf message.
        google.protobuf.message.DecodeError: It is another message.
    """
    with path.open("rb") as file:
        mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    weights: dict[str, npt.NDArray[Any]] = {}
    proto = onnx.ModelProto()
    proto.ParseFromString(b"".join(_model(mapped, weights)))
    return proto, weights


def attach(model: ir.Model, weights: Weights) -> None:
    """Give the initializers of the main graph the weights that :func:`read_file` left out."""
    for name, array in weights.items():
        value = model.graph.initializers[name]
        header = value.const_value
        assert header is not None
        value.const_value = ir.Tensor(
            array, dtype=header.dtype, name=name, doc_string=header.doc_string
        )


def _model(message: memoryview, weights: _Found) -> Iterator[memoryview | bytes]:
    for number, field, value in _fields(message):
        if number == _GRAPH:
            yield from _spelled(_GRAPH, list(_graph(value, weights)))
        else:
            yield field


def _graph(message: memoryview, weights: _Found) -> Iterator[memoryview | bytes]:
    for number, field, value in _fields(message):
        header = _header(value, weights) if number == _INITIALIZER else None
        if header is None:
            yield field
        else:
            yield from _spelled(_INITIALIZER, [header])


def _header(message: memoryview, weights: _Found) -> bytes | None:
    """A tensor without its raw data, which go to ``weights``; None when it stays as it is."""
    if len(message) < _LARGE:
        return None
    rest, raw = [], None
    for number, field, value in _fields(message):
        if number == _RAW_DATA:
            raw = value
        else:
            rest.append(field)
    if raw is None or len(raw) < _LARGE:
        return None
    header = b"".join(rest)
    said = onnx.TensorProto.FromString(header)
    try:
        dtype = ir.DataType(said.data_type)
    except ValueError:
        return None
    # whatever is unusual or wrong is read, and refused, as in every other model
    packed = dtype is ir.DataType.STRING or dtype.bitwidth < 8
    if packed or not said.name or said.name in weights or said.external_data:
        return None
    if math.prod(said.dims) * dtype.numpy().itemsize != len(raw):
        return None
    array = np.frombuffer(raw, np.uint8).view(dtype.numpy()).reshape(said.dims)
    # protobuf puts a field anywhere, arithmetic wants numbers at multiples of their size
    weights[said.name] = array if array.flags.aligned else array.copy()
    return header


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """Number, bytes and value (without tag and length) of each field of a message."""
    at = 0
    while at < len(message):
        begin = at
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        if kind == _LENGTH:
            length, at = _varint(message, at)
            end = at + length
        elif kind == _VARINT:
            _, end = _varint(message, at)
        elif kind in (_FIXED32, _FIXED64):
            end = at + (4 if kind == _FIXED32 else 8)
        else:
            raise ValueError(f"wire type {kind} is not part of protobuf 3")
        if end > len(message):
            raise ValueError("the message ends within a field")
        yield number, message[begin:end], message[at:end]
        at = end


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, least first, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise ValueError("the message ends within a number")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number has more than ten bytes")


def _spelled(number: int, parts: list[memoryview | bytes]) -> Iterator[memoryview | bytes]:
    """A field of a length, tag first."""
    yield _bytes_of(number << 3 | _LENGTH)
    yield _bytes_of(sum(len(part) for part in parts))
    yield from parts


def _bytes_of(value: int) -> bytes:
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
