"""What a model wants to be fed, whether a feed is that, and a plausible feed when there is none."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.diagnostics import Code, QcError, nearest
from qcompiler.ir.edit import constant
from qcompiler.pipeline.contract import Feed
from qcompiler.runtime.known_sizes import known_sizes

__all__ = [
    "FreeSizes", "InputSpec", "check_feed", "default_dims", "generate_feed", "input_specs",
]  # fmt: skip

_SPATIAL = 224  # a multiple of 32, the usual stride of a vision backbone
_OTHER = 4
_SEQUENCE_WORDS = ("seq", "length", "token", "time", "frames", "samples")


@dataclasses.dataclass(frozen=True, slots=True)
class FreeSizes:
    """What dimensions without a size are taken to be.

    Attributes:
        batch: Of a batch: more than one, so that a wrongly frozen batch shows.
        sequence: Of a sequence, and of what nothing is known of.
        leads: The first free dimension of an input is its batch, wherever it stands: recurrent
            states are ``[layers, batch, width]``.
    """

    batch: int = 2
    sequence: int = 32
    leads: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class InputSpec:
    """What one input takes.

    Attributes:
        name: Name of the graph input.
        dtype: Element type; ``object`` for strings.
        shape: A size, a name (equal names are equal sizes), or None for any size. An input of
            unknown rank has ``rank_known`` False and an empty shape.
        rank_known: Whether ``shape`` says anything.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]
    rank_known: bool = True

    def __str__(self) -> str:
        dims = ", ".join("?" if dim is None else str(dim) for dim in self.shape)
        return f"{self.name}: {self.dtype.name}[{dims if self.rank_known else '...'}]"


def input_specs(model: ir.Model) -> tuple[InputSpec, ...]:
    """The inputs a user must feed, in order; those with a default (an initializer) are left out."""
    return tuple(
        _spec(value) for value in model.graph.inputs if value.name not in model.graph.initializers
    )


def check_feed(feed: Mapping[str, Any], specs: Sequence[InputSpec]) -> Feed:
    """The feed as arrays of exactly the wanted types.

    A narrower type of the same kind is widened (int32 to int64, float16 to float32), since that
    loses nothing, and so is what is empty (a past of no token); everything else is refused. CPU
    tensors of torch are taken as arrays.

    Raises:
        QcError: QC202 names, QC203 shapes (equal names of dimensions included), QC204 types.
    """
    wanted = {spec.name: spec for spec in specs}
    if not isinstance(feed, Mapping):
        raise QcError(
            Code.FEED_NAME,
            "feed",
            f"found a {type(feed).__name__}, wanted a mapping from input names to arrays",
            "feed {" + ", ".join(f"{name!r}: ..." for name in wanted) + "}",
        )
    for name in feed:
        if name not in wanted:
            raise QcError(
                Code.FEED_NAME, str(name), "the model has no such input", nearest(str(name), wanted)
            )
    dims: dict[str, tuple[int, str]] = {}
    checked = {}
    for name, spec in wanted.items():
        if name not in feed:
            raise QcError(
                Code.FEED_NAME,
                name,
                f"the feed lacks this input; it has {', '.join(map(str, feed)) or 'nothing'}",
                f"feed {spec}",
            )
        array = _typed(np.asarray(feed[name]), spec)
        _check_shape(array, spec, dims)
        checked[name] = array
    return checked


def default_dims(specs: Sequence[InputSpec], sizes: FreeSizes = FreeSizes()) -> dict[str, int]:
    """A size for every named dimension, guessed from its name and place."""
    dims: dict[str, int] = {}
    for spec in specs:
        for axis, dim in enumerate(spec.shape):
            if isinstance(dim, str):
                dims.setdefault(dim, _guess(dim, axis, spec, sizes))
    return dims


def generate_feed(
    model: ir.Model,
    seed: int = 0,
    dims: Mapping[str, int] | None = None,
    sizes: FreeSizes = FreeSizes(),
) -> Feed:
    """A feed the model runs on, made from what its graph does with its inputs.

    Integers that index an embedding table (a Gather along axis 0 of a constant, through casts and
    reshapes) are uniform below the smallest such table; masks and other integers are ones; token
    types are zeros; positions count up; floats are normal(0, 1). Sizes that are not stated are
    those that the graph's constants tell (channels of a convolution), else 2 for a batch, 32 for a
    sequence, 0 for what is past, 224 for the sides of a picture, unless ``dims`` or ``sizes`` say
    otherwise.

    Args:
        model: The model.
        seed: Seed of the random numbers; equal seeds give equal feeds.
        dims: Size by name of a dimension.
        sizes: Of the dimensions that are not in ``dims``.
    """
    rng = np.random.default_rng(seed)
    specs = input_specs(model)
    values = {value.name: value for value in model.graph.inputs}
    known = {spec.name: known_sizes(values[spec.name]) for spec in specs}
    told = {
        dim: known[spec.name][axis]
        for spec in specs
        for axis, dim in enumerate(spec.shape)
        if isinstance(dim, str) and axis in known[spec.name]
    }
    named = {**default_dims(specs, sizes), **told, **(dims or {})}
    feed = {}
    for spec in specs:
        shape = tuple(
            dim
            if isinstance(dim, int)
            else named[dim]
            if dim
            else known[spec.name].get(axis, _guess("", axis, spec, sizes))
            for axis, dim in enumerate(spec.shape)
        )
        feed[spec.name] = _draw(rng, values[spec.name], spec, shape)
    return feed


def _spec(value: ir.Value) -> InputSpec:
    assert value.name is not None, "a model at the door has all its inputs named"
    # a string has no numpy type of its own
    dtype = value.dtype or ir.DataType.FLOAT
    numpy_dtype = np.dtype(object) if dtype is ir.DataType.STRING else dtype.numpy()
    if value.shape is None:
        return InputSpec(value.name, numpy_dtype, (), rank_known=False)
    # negative sizes stand for "any" in files of older Paddle converters
    dims = tuple(
        (dim if dim >= 0 else None) if isinstance(dim, int) else dim.value for dim in value.shape
    )
    return InputSpec(value.name, numpy_dtype, dims)


def _typed(array: npt.NDArray[Any], spec: InputSpec) -> npt.NDArray[Any]:
    if array.dtype == spec.dtype:
        return array
    if spec.dtype == object and array.dtype.kind in "US":
        return array.astype(object)
    same_kind = array.dtype.kind == spec.dtype.kind and array.dtype.kind in "iuf"
    lossless = same_kind and np.can_cast(array.dtype, spec.dtype, "safe")
    if lossless or (not array.size and array.dtype.kind in "iuf" and spec.dtype.kind in "iuf"):
        return array.astype(spec.dtype)
    raise QcError(
        Code.FEED_DTYPE,
        spec.name,
        f"the array is {array.dtype.name}, the input takes {spec.dtype.name}",
        f"convert it with .astype({spec.dtype.name!r})",
    )


def _check_shape(
    array: npt.NDArray[Any], spec: InputSpec, dims: dict[str, tuple[int, str]]
) -> None:
    if not spec.rank_known:
        return
    found = list(array.shape)
    if len(found) != len(spec.shape):
        raise QcError(
            Code.FEED_SHAPE,
            spec.name,
            f"the array has shape {found} of rank {len(found)}, "
            f"the input takes rank {len(spec.shape)}",
            f"feed {spec}",
        )
    for axis, (size, dim) in enumerate(zip(found, spec.shape, strict=True)):
        if isinstance(dim, int) and size != dim:
            raise QcError(
                Code.FEED_SHAPE,
                spec.name,
                f"the array has shape {found}, and axis {axis} must be {dim}",
                f"feed {spec}",
            )
        if isinstance(dim, str):
            known, where = dims.setdefault(dim, (size, f"axis {axis} of {spec.name}"))
            if known != size:
                raise QcError(
                    Code.FEED_SHAPE,
                    spec.name,
                    f"axis {axis} is {size}, but {dim!r} is {known} by {where}",
                    "dimensions named alike must be equal",
                )


def _guess(name: str, axis: int, spec: InputSpec, sizes: FreeSizes) -> int:
    lower = name.lower()
    if "batch" in lower or lower in ("n", "b"):
        return sizes.batch
    if "past" in lower:
        return 0  # a text that begins: what has gone before must not disagree with the mask
    if any(word in lower for word in _SEQUENCE_WORDS):
        return sizes.sequence
    if axis == 0 or (sizes.leads and all(isinstance(dim, int) for dim in spec.shape[:axis])):
        return sizes.batch
    if spec.dtype.kind == "f" and len(spec.shape) == 4:
        return _SPATIAL if axis >= 2 else _OTHER
    return sizes.sequence


def _draw(
    rng: np.random.Generator, value: ir.Value, spec: InputSpec, shape: tuple[int, ...]
) -> npt.NDArray[Any]:
    kind, name = spec.dtype.kind, spec.name.lower()
    if kind not in "iub":
        if spec.dtype == object:
            return np.full(shape, "a", dtype=object)
        if "mask" in name:
            return np.ones(shape, spec.dtype)
        return np.asarray(rng.standard_normal(shape)).astype(spec.dtype)
    if kind == "b" or "mask" in name:
        return np.ones(shape, spec.dtype)
    limit = min(_table_rows(value), default=None)
    if limit is None:
        pixels = spec.dtype in (np.dtype(np.uint8), np.dtype(np.int8)) and len(shape) >= 3
        return (
            rng.integers(0, 128, shape).astype(spec.dtype) if pixels else np.ones(shape, spec.dtype)
        )
    if "type" in name or "segment" in name:
        return np.zeros(shape, spec.dtype)
    if "position" in name and shape:
        return np.broadcast_to(np.arange(shape[-1]) % limit, shape).astype(spec.dtype)
    return rng.integers(0, limit, shape).astype(spec.dtype)


# Operators behind which the elements are still the input's own integers.
_PASSING = frozenset(
    {
        "Cast",
        "Reshape",
        "Unsqueeze",
        "Squeeze",
        "Flatten",
        "Identity",
        "Transpose",
        "Expand",
        "Slice",
    }
)


def _table_rows(value: ir.Value) -> Iterator[int]:
    """Rows of each constant table that the value's elements index along axis 0."""
    stack, seen = [value], {value}
    while stack:
        for node, index in stack.pop().uses():
            table = constant(node.inputs[0]) if node.op_type == "Gather" and index == 1 else None
            axis = node.attributes.get("axis")
            if table is not None and table.ndim and (axis is None or axis.as_int() == 0):
                yield table.shape[0]
            if node.op_type in _PASSING and index == 0 and node.outputs[0] not in seen:
                seen.add(node.outputs[0])
                stack.append(node.outputs[0])
