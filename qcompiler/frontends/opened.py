"""What every door hands over."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

import onnx_ir as ir

from qcompiler.diagnostics import Diagnostic
from qcompiler.pipeline.contract import Feed
from qcompiler.runtime.settings import SessionSettings

__all__ = ["Companions", "Kind", "Opened"]

Kind = Literal["onnx", "torch", "exported-program", "fx", "transformers"]

# Files that belong beside the compiled model, by name, once its session options are known.
Companions = Callable[[SessionSettings], Mapping[str, bytes]]


def _no_companions(settings: SessionSettings) -> Mapping[str, bytes]:
    return {}


@dataclasses.dataclass(frozen=True, slots=True)
class Opened:
    """A model inside the compiler.

    Attributes:
        model: Our own copy, which may share tensors with the user's model and never writes to
            them: all nodes and values named, origins marked, functions inlined.
        example: A feed the model runs on, when the user gave inputs or the configuration told.
        kind: Which door it came through.
        source: The user's name for it: a path, or the name of a class.
        quantized: Whether it holds quantized operators already.
        diagnostics: What happened at the door.
        companions: Files that the artifact is to hold as well.
    """

    model: ir.Model
    example: Feed | None
    kind: Kind
    source: str
    quantized: bool = False
    diagnostics: tuple[Diagnostic, ...] = ()
    companions: Companions = _no_companions
