"""Front end for ONNX: a file, a protobuf, or an ``onnx_ir.Model``."""

from __future__ import annotations

import contextlib
import logging
import pathlib
import warnings
from collections.abc import Iterator
from types import MappingProxyType

import onnx
import onnx_ir as ir
from google.protobuf import json_format, text_format
from google.protobuf.message import DecodeError

from qcompiler.diagnostics import Code, QcError
from qcompiler.frontends.admission import admit
from qcompiler.frontends.onnx.external_data import check_external
from qcompiler.frontends.onnx.file_weights import Weights, attach, read_file
from qcompiler.frontends.opened import Opened

__all__ = ["open_file", "open_ir", "open_proto"]

# The suffix decides the format that onnx reads: protobuf, or one of its text forms.
_UNREADABLE = (
    DecodeError,
    ValueError,
    json_format.ParseError,
    onnx.parser.ParseError,
    text_format.ParseError,
)


def open_file(path: pathlib.Path) -> Opened:
    """Read an ONNX file; external data stays on disk, memory-mapped when first read.

    Raises:
        QcError: QC702 not ONNX or truncated, QC703 external data, QC704 opset, QC707 sparse
            tensors, QC710 graph.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the text formats are "experimental"
            if path.suffix == ".onnx":
                proto, weights = read_file(path)
            else:
                proto, weights = onnx.load(path, load_external_data=False), {}
    except _UNREADABLE as error:
        raise QcError(
            Code.NOT_ONNX,
            str(path),
            f"the file of {path.stat().st_size} bytes does not parse as ONNX",
            "it may be truncated, a Git LFS pointer, or another format",
        ) from error
    except OSError as error:
        raise QcError(Code.NO_FILE, str(path), f"the file cannot be read: {error}") from error
    return _open(proto, str(path), path.parent, weights)


def open_proto(proto: onnx.ModelProto) -> Opened:
    """Take a protobuf, which is left as it is.

    Raises:
        QcError: As :func:`open_file`; QC703 also when it refers to external data, because a
            protobuf does not know its folder.
    """
    return _open(proto, proto.graph.name or "ModelProto", None)


def open_ir(model: ir.Model) -> Opened:
    """Take an ``onnx_ir.Model``, which is left as it is; tensors are shared.

    Raises:
        QcError: As :func:`open_file`.
    """
    source = model.graph.name or "onnx_ir.Model"
    copy = model.clone()
    check_external(copy, source, None)
    return admit(copy, "onnx", source)


def _open(
    proto: onnx.ModelProto,
    source: str,
    folder: pathlib.Path | None,
    weights: Weights = MappingProxyType({}),
) -> Opened:
    if not proto.HasField("graph"):
        raise QcError(
            Code.NOT_ONNX,
            source,
            "it holds no graph",
            "it may be truncated, empty, or another protobuf file",
        )
    if proto.graph.sparse_initializer:
        name = proto.graph.sparse_initializer[0].values.name
        raise _sparse(source, f"initializer {name!r} is stored sparse")
    _check_types(proto.graph, source)
    try:
        with _silent_onnx_ir():
            model = ir.from_proto(proto)
            attach(model, weights)
    except (ir.serde.SerdeError, ValueError, TypeError, KeyError) as error:
        reason = _innermost(error)
        if "sparse" in str(reason).lower():
            raise _sparse(source, "a Constant has a sparse value") from error
        raise QcError(
            Code.INVALID_GRAPH,
            source,
            f"the graph is not legal ONNX: {_one_line(reason)}",
            "onnx.checker.check_model tells more",
        ) from error
    if folder is not None:
        ir.external_data.set_base_dir(model.graph, folder)
    check_external(model, source, folder)
    return admit(model, "onnx", source)


def _check_types(graph: onnx.GraphProto, source: str) -> None:
    """Refuse maps: they are legal, and what this is built on has no form for them."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        kind = value.type
        while kind.HasField("sequence_type"):
            kind = kind.sequence_type.elem_type
        if kind.HasField("map_type"):
            raise QcError(
                Code.UNSUPPORTED_INPUT,
                source,
                f"{value.name!r} is a map or a sequence of maps (ZipMap), wanted tensors",
                "convert the model without: options={'zipmap': False} of skl2onnx",
            )


def _innermost(error: BaseException) -> BaseException:
    """What was raised first: onnx_ir fails itself while it tells of some errors."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return error


def _sparse(source: str, found: str) -> QcError:
    return QcError(
        Code.UNSUPPORTED_INPUT,
        source,
        f"{found}, wanted dense tensors",
        "store it as an ordinary initializer",
    )


@contextlib.contextmanager
def _silent_onnx_ir() -> Iterator[None]:
    """onnx_ir logs what is illegal and reads on; the same is refused later, as an error."""
    log = logging.getLogger("onnx_ir")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")
