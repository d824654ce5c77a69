"""What all graphs written from a checkpoint have in common: weights, checked and lazy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import onnx_ir as ir

from qcompiler.diagnostics import Code, QcError
from qcompiler.frontends.decoder.dequantized import dequantized
from qcompiler.frontends.decoder.emitter import MICROSOFT, Emitter
from qcompiler.frontends.decoder.geometry import PLAIN_EXPORT, Activation
from qcompiler.frontends.decoder.quantized import QuantizedLinear
from qcompiler.ir.lazy import Stored, View, lazy_tensor

__all__ = ["ACTIVATIONS", "Writer", "refuse_unused"]

# Buffers that some versions of transformers wrote beside the weights.
_BUFFERS = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")

# Operator, domain and attributes.
ACTIVATIONS: Mapping[Activation, tuple[str, str, Mapping[str, Any]]] = {
    "silu": ("QuickGelu", MICROSOFT, {"alpha": 1.0}),  # x * sigmoid(alpha * x)
    "gelu": ("Gelu", "", {"approximate": "none"}),
    "gelu-tanh": ("Gelu", "", {"approximate": "tanh"}),
    "relu": ("Relu", "", {}),
}


class Writer:
    """Writes one graph; keeps account of the weights that it has used."""

    def __init__(
        self,
        weights: Mapping[str, Stored],
        source: str,
        quantized: Mapping[str, QuantizedLinear],
    ) -> None:
        self.weights = weights
        self.source = source
        self.quantized = quantized
        self.emit = Emitter()
        self.used: set[str] = set()

    def _constant(self, view: View, name: str | None = None) -> ir.Value:
        name = name or view.stored.name
        return self.emit.constant(name, lazy_tensor(view, name))

    def _stored(self, name: str, shape: tuple[int, ...]) -> Stored:
        stored = self.weights.get(name)
        if stored is None:
            raise QcError(
                Code.UNSUPPORTED_INPUT,
                self.source,
                f"the checkpoint has no weight {name!r}",
                "the file is not complete, or the model is built otherwise than its model_type "
                f"says; {PLAIN_EXPORT}",
            )
        if stored.shape != shape:
            found = f"weight {name!r} has shape {list(stored.shape)}"
            raise self._foreign(f"{found}, config.json wants {list(shape)}")
        self.used.add(name)
        return stored

    def _dequantized(
        self,
        x: ir.Value,
        module: str,
        name: str,
        shape: tuple[int, int],
        span: tuple[int, int, int] | None = None,
    ) -> tuple[ir.Value, ir.Value]:
        """Input and weight of a layer that comes quantized."""
        linear = self.quantized[module]
        self.used.add(module)
        if linear.shape != shape:
            found = f"layer {module!r} has {linear.shape[0]} inputs and {linear.shape[1]} outputs"
            raise self._foreign(f"{found}, config.json wants {shape[0]} and {shape[1]}")
        return dequantized(self.emit, x, linear, name, span and span[1:])

    def _foreign(self, what: str) -> QcError:
        hint = "config.json and the weights belong to different models"
        return QcError(Code.UNSUPPORTED_INPUT, self.source, what, hint)


def refuse_unused(names: Iterable[str], used: set[str], source: str) -> None:
    """QC707 where weights are left that no part of the graph has read."""
    unused = [name for name in names if name not in used and not name.endswith(_BUFFERS)]
    if unused:
        raise QcError(
            Code.UNSUPPORTED_INPUT,
            source,
            f"{len(unused)} weights belong to no part that is known of this architecture: "
            + ", ".join(unused[:4])
            + (", ..." if len(unused) > 4 else ""),
            PLAIN_EXPORT,
        )
