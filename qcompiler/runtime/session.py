"""Open and run ONNX Runtime sessions on models, on the CPU.

A model in memory is handed over without its large weights, which the runtime reads where they are:
no 2 GB limit of protobuf, no temporary file, and without graph optimization no copy either.
"""

from __future__ import annotations

import functools
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.diagnostics import Code, QcError
from qcompiler.ir.walk import all_graphs, all_nodes
from qcompiler.pipeline.contract import Feed
from qcompiler.runtime.settings import Level, SessionSettings

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = [
    "check_threads", "fitting_feed", "open_session", "run", "runtime_errors", "tensors_of",
]  # fmt: skip

_LEVELS: dict[Level, str] = {
    "disable": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "layout": "ORT_ENABLE_LAYOUT",
    "all": "ORT_ENABLE_ALL",
}
_DEFAULT = SessionSettings()
_NOT_WRITTEN = "Protobuf serialization failed"  # which it says of a full disk, too
_FLOAT8 = "tensor(float8"  # fused into operators on integers, which then refuse them
_UNFUSED = "session.disable_quant_qdq"
_TOO_LONG = "cos_cache dimension 0 shall not be less"  # its table of rotary embeddings has ended
_LACKING = re.compile(r"Could not find an implementation for .* with name '(.*?)'")
_QUIET = 4  # only fatal messages: what fails comes back as an exception anyway
# Smaller initializers stay in the protobuf, where shape inference of the runtime reads them.
_LENT_BYTES = 4096
# Types that an OrtValue takes from numpy; bfloat16, float8 and 4 bits stay in the protobuf.
_LENT_DTYPES = frozenset(
    {
        ir.DataType.FLOAT,
        ir.DataType.FLOAT16,
        ir.DataType.DOUBLE,
        ir.DataType.INT8,
        ir.DataType.UINT8,
        ir.DataType.INT16,
        ir.DataType.UINT16,
        ir.DataType.INT32,
        ir.DataType.UINT32,
        ir.DataType.INT64,
        ir.DataType.UINT64,
        ir.DataType.BOOL,
    }
)
# Above this an optimized model is not written as one protobuf (limit 2 GiB, less room for nodes).
_ONE_FILE_BYTES = 1_800_000_000


def check_threads(threads: int | None) -> None:
    """Refuse (QC411) what is no number of threads; None leaves it to the runtime."""
    is_count = isinstance(threads, int) and not isinstance(threads, bool) and threads >= 1
    if threads is not None and not is_count:
        raise QcError(
            Code.USAGE,
            "threads",
            f"found {threads!r}, wanted a whole number from 1 on",
            "leave it out to let the runtime choose",
        )


def _options(
    settings: SessionSettings,
    threads: int | None,
    optimized_path: pathlib.Path | None,
    profile: pathlib.Path | None,
    arena: bool,
) -> ort.SessionOptions:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _QUIET
    options.graph_optimization_level = getattr(
        onnxruntime.GraphOptimizationLevel, _LEVELS[settings.level]
    )
    options.enable_cpu_mem_arena = arena
    if threads is not None:
        options.intra_op_num_threads = threads
    for key, entry in settings.entries.items():
        options.add_session_config_entry(key, str(entry))
    if optimized_path is not None:
        options.optimized_model_filepath = str(optimized_path)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return options


def _unfused(settings: SessionSettings, said: str) -> SessionSettings | None:
    """For a model that came in 8-bit floats; an artifact of ours brings the option along."""
    if _FLOAT8 not in said or _UNFUSED in settings.entries:
        return None
    return SessionSettings(settings.level, {**settings.entries, _UNFUSED: "1"})


def _not_written(optimized: pathlib.Path, said: str) -> QcError:
    return QcError(
        Code.NOT_WRITABLE,
        str(optimized.parent),
        f"the runtime cannot write its optimized graph: {said}",
        "free disk space, or let TMPDIR name another folder for temporary files",
    )


def open_session(
    model: ir.Model | str | os.PathLike[str],
    *,
    settings: SessionSettings = _DEFAULT,
    threads: int | None = None,
    optimized_path: pathlib.Path | None = None,
    profile: pathlib.Path | None = None,
    arena: bool = True,
    code: Code = Code.DOES_NOT_LOAD,
) -> ort.InferenceSession:
    """An ``onnxruntime.InferenceSession`` on the CPU provider.

    Args:
        model: A model, or the path of one. The session of a model borrows its large weights, so
            they must not be written to while it lives.
        settings: Optimization level and configuration entries.
        threads: Threads within an operator; None leaves the choice to the runtime.
        optimized_path: Where the runtime shall write the graph it really runs. Weights of more
            than 1.8 GB go to a second file beside it.
        profile: Turns the runtime's profiler on. The trace that it writes at ``end_profiling`` has
            a name that begins so; see :mod:`qcompiler.runtime.profile`.
        arena: Keep memory between runs. Without it what a run took goes back at once: for large
            results that come seldom.
        code: Code of the error, since only the caller knows whose model this is.

    Raises:
        QcError: ``code`` with the runtime's own words when it refuses the model; QC706, the disk
            is full or otherwise cannot hold ``optimized_path``.
    """
    import onnxruntime

    check_threads(threads)
    model = _openable(model)
    options = _options(settings, threads, optimized_path, profile, arena)
    if isinstance(model, ir.Model):
        where, lent = model.graph.name or "model", _lendable(model)
        source: bytes | str = _bytes_without(model, lent)
        values = {name: _ort_value(tensor) for name, (_, tensor) in lent.items()}
        if values:
            options.add_external_initializers(list(values), list(values.values()))
        if settings.level == "disable":
            # The runtime then computes on our arrays instead of a copy. Not with optimization: its
            # transpose optimizer changes constants under their old name, which this would undo.
            for name, value in values.items():
                options.add_initializer(name, value)
        if optimized_path is not None and sum(t.nbytes for _, t in lent.values()) > _ONE_FILE_BYTES:
            options.add_session_config_entry(
                "session.optimized_model_external_initializers_file_name",
                f"{optimized_path.name}.data",
            )
    else:
        where, source, values = str(model), os.fspath(model), {}
    try:
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except runtime_errors() as error:
        said = runtime_message(error)
        unfused = _unfused(settings, said) if code is Code.FLOAT_MODEL_FAILS else None
        if unfused is not None:
            return open_session(
                model, settings=unfused, threads=threads, optimized_path=optimized_path,
                profile=profile, arena=arena, code=code,
            )  # fmt: skip
        if optimized_path is not None and _NOT_WRITTEN in said:
            raise _not_written(optimized_path, said) from error
        message = f"the runtime refuses the model: {said}"
        raise QcError(code, where, message, _hint(model, said)) from error
    session._qcompiler_lent = values  # the session points into these arrays: keep them alive
    return session


def _openable(model: ir.Model | str | os.PathLike[str]) -> ir.Model | str | os.PathLike[str]:
    """The model; read, where it is a file under a name that is no UTF-8 as the runtime wants."""
    if isinstance(model, ir.Model):
        return model
    try:
        os.fspath(model).encode()
    except UnicodeEncodeError:
        return ir.load(model)
    return model


def _hint(model: ir.Model | str | os.PathLike[str], said: str) -> str:
    """What to do about a model that was refused; the runtime does not say which type it lacks."""
    lacking = _LACKING.search(said)
    if lacking is not None and isinstance(model, ir.Model):
        nodes = [node for node in all_nodes(model) if node.name == lacking[1]]
        values = [value for node in nodes for value in (*node.inputs, *node.outputs)]
        if any(value is not None and value.dtype is ir.DataType.BFLOAT16 for value in values):
            return "the node computes in bfloat16: export the model in float32 or float16"
    return "check that onnxruntime is new enough for the model's opset and operators"


def run(
    session: ort.InferenceSession,
    feed: Feed,
    outputs: Sequence[str] | None = None,
    *,
    code: Code = Code.FLOAT_MODEL_FAILS,
) -> dict[str, npt.NDArray[Any]]:
    """Outputs by name; all of them when ``outputs`` is None.

    Args:
        session: An open session.
        feed: Array by input name.
        outputs: Names of the outputs to compute.
        code: Code of the error, since only the caller knows whose model this is.

    Raises:
        QcError: ``code``, with the runtime's own words and the shapes of the feed.
    """
    names = [o.name for o in session.get_outputs()] if outputs is None else list(outputs)
    try:
        return dict(zip(names, session.run(names, fitting_feed(session, feed)), strict=True))
    except runtime_errors() as error:
        shapes = ", ".join(f"{name} {x.dtype}{list(x.shape)}" for name, x in feed.items())
        said = runtime_message(error)
        hint = "check that the feed suits the model; dimensions named alike must be equal"
        if _TOO_LONG in said:
            hint = "the tokens, those in the cache included, are more than the model has positions"
        raise QcError(
            code, "session", f"the runtime fails on a feed of {shapes}: {said}", hint
        ) from error


def tensors_of(outputs: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
    """What can be compared among the outputs of a run.

    Elements of a sequence are called ``name[0]``, ``name[1]`` ...; maps, and optionals that are not
    there, are left out.
    """
    found: dict[str, npt.NDArray[Any]] = {}
    for name, item in outputs.items():
        elements = {f"{name}[{i}]": x for i, x in enumerate(item)} if isinstance(item, list) else {}
        spread = elements or {name: item}
        found.update((key, x) for key, x in spread.items() if isinstance(x, np.ndarray))
    return found


def fitting_feed(session: ort.InferenceSession, feed: Feed) -> dict[str, npt.NDArray[Any]]:
    """The feed; an empty past of another type than the session's int8 cache is taken as such."""
    if all(x.size for x in feed.values()):
        return dict(feed)
    stored = {item.name for item in session.get_inputs() if item.type == "tensor(int8)"}
    return {
        name: x.astype(np.int8) if name in stored and not x.size else x for name, x in feed.items()
    }


@functools.cache
def runtime_errors() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises: its own classes, and what its binding makes of bad arguments."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [item for item in vars(state).values() if isinstance(item, type)]
    return (
        *(item for item in own if issubclass(item, Exception)),
        RuntimeError,
        ValueError,
        TypeError,
    )


def runtime_message(error: BaseException) -> str:
    """The runtime's own words on one line, without the prefix and the paths of its sources."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error).strip())
    text = re.sub(r"/\S+?/onnxruntime/(core|contrib_ops)/", r"\1/", text)
    return re.sub(r"\s+", " ", text)[:800].rstrip(". ")


def _lendable(model: ir.Model) -> dict[str, tuple[ir.Value, ir.TensorProtocol]]:
    """Initializers of the main graph that a session can read in place, by name."""
    found = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.dtype not in _LENT_DTYPES or tensor.nbytes < _LENT_BYTES:
            continue
        # a default may be replaced by a feed, and the runtime forgets weights that nobody reads
        if value.uses() and not value.is_graph_input():
            found[name] = (value, tensor)
    return found


def _bytes_without(model: ir.Model, lent: dict[str, tuple[ir.Value, ir.TensorProtocol]]) -> bytes:
    """The protobuf, with the lent initializers as references to a file that is never opened."""
    stand_ins: list[tuple[ir.Value, ir.TensorProtocol, ir.TensorProtocol]] = []
    for name, (value, tensor) in lent.items():
        nowhere = ir.ExternalTensor(
            "lent", 0, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name
        )
        stand_ins.append((value, tensor, nowhere))
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            mapped = value.const_value
            if isinstance(mapped, ir.ExternalTensor) and value.name not in lent:
                inside = ir.Tensor(mapped.numpy(), dtype=mapped.dtype, name=mapped.name)
                stand_ins.append((value, mapped, inside))
    for value, _, stand_in in stand_ins:
        value.const_value = stand_in
    try:
        data: bytes = ir.to_proto(model).SerializeToString()
        return data
    finally:
        for value, tensor, _ in stand_ins:
            value.const_value = tensor


def _ort_value(tensor: ir.TensorProtocol) -> ort.OrtValue:
    import onnxruntime

    array = tensor.numpy()
    if not (array.flags.c_contiguous and array.flags.aligned):
        array = np.require(array, requirements=["C", "ALIGNED"])
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)
