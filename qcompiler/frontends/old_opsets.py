"""Models of opsets older than the compiler reads, brought to the oldest that it does."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import onnx
import onnx_ir as ir

from qcompiler.diagnostics import Code, Diagnostic, QcError
from qcompiler.ir.walk import all_nodes

__all__ = ["OLDEST_OPSET", "modernize"]

OLDEST_OPSET = 11


def modernize(model: ir.Model, version: int, source: str) -> list[Diagnostic]:
    """Convert a model of an older opset by onnx's version converter; large weights stay outside.

    Args:
        model: Edited; its main graph is another afterwards.
        version: Its opset.
        source: The user's name for the model.

    Returns:
        QC503, that it was raised; nothing for a model that is new enough.

    Raises:
        QcError: QC704, an operator has no newer form.
    """
    if version >= OLDEST_OPSET:
        return []
    from onnxscript.version_converter import convert_version

    with _failures_of("onnxscript") as failures:
        convert_version(model, OLDEST_OPSET, fallback=True)
    if model.opset_imports.get("") != OLDEST_OPSET:
        ops = {node.op_type for node in all_nodes(model) if not node.domain}
        gone = sorted(op for op in ops if not onnx.defs.has(op, OLDEST_OPSET, ""))
        raise QcError(
            Code.UNKNOWN_OPSET,
            source,
            f"the model uses opset {version}, and onnx's converter cannot bring it to "
            f"{OLDEST_OPSET}, the oldest that is supported: "
            + (f"{', '.join(gone)} exist in no such opset" if gone else "; ".join(failures)),
            "export it again with a newer opset",
            opset=version,
        )
    said = f"opset {version} was raised to {OLDEST_OPSET} by onnx's version converter"
    values = {"from": version, "to": OLDEST_OPSET}
    return [Diagnostic(Code.OPSET_RAISED, source, said, values=values)]


@contextlib.contextmanager
def _failures_of(library: str) -> Iterator[list[str]]:
    """What a library logs of exceptions, which it neither raises nor shall print here."""
    found: list[str] = []

    class Collect(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            error = record.exc_info[1] if record.exc_info else None
            if error is not None:
                found.append(" ".join(str(error).split())[:300])
            return False

    log = logging.getLogger(f"{library}.version_converter")
    collect = Collect()
    log.addFilter(collect)
    try:
        yield found
    finally:
        log.removeFilter(collect)
