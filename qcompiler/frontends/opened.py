"""What every door hands over."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal, Protocol

import onnx_ir as ir

from qcompiler.diagnostics import Diagnostic
from qcompiler.pipeline.contract import Feed
from qcompiler.runtime.settings import SessionSettings

__all__ = ["ENCODER", "Companions", "Kind", "Opened"]

Kind = Literal["onnx", "torch", "exported-program", "fx", "transformers"]

ENCODER = "encoder"  # folder of an encoder's artifact inside its decoder's


class Companions(Protocol):
    """Files that belong beside the compiled model, by name."""

    def __call__(
        self, settings: SessionSettings, encoder: SessionSettings | None = None
    ) -> Mapping[str, bytes]:
        """The files, once session options are known, those of the encoder included."""
        ...


def _no_companions(
    settings: SessionSettings, encoder: SessionSettings | None = None
) -> Mapping[str, bytes]:
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
        encoder: Of an encoder-decoder the other graph; ``model`` is the decoder then.
    """

    model: ir.Model
    example: Feed | None
    kind: Kind
    source: str
    quantized: bool = False
    diagnostics: tuple[Diagnostic, ...] = ()
    companions: Companions = _no_companions
    encoder: Opened | None = None

    def part(self, model: ir.Model) -> Opened:
        """The part that ``model`` was compiled from, by the names of its inputs."""
        names = {value.name for value in model.graph.inputs}
        other = self.encoder
        if other is not None and names == {value.name for value in other.model.graph.inputs}:
            return other
        return self
