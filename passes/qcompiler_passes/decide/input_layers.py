"""Layers at the door of a transformer: their rounding is in all that follows, and they are cheap.

A convolution that turns a spectrogram or picture into tokens has few input channels, and so a few
hundredths of a transformer's products, while what it rounds goes down the residual stream to every
layer. Measured on Whisper tiny.en: a third of all the damage that 8 bits do to the encoder, for
2.4 % of what they save.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import onnx_ir as ir

from qcompiler.diagnostics import Code, Diagnostic
from qcompiler.ir.edit import constant, is_constant
from qcompiler_passes.decide.wishes import Wish

__all__ = ["input_layers"]

_NORMALIZATIONS = frozenset({"LayerNormalization", "RMSNormalization"})


def input_layers(graph: ir.Graph, wishes: Mapping[str, Wish]) -> dict[str, Diagnostic]:
    """The convolutions to keep in float, by name, and why.

    Those with a constant weight that read an input of a transformer: a model with layer or RMS
    normalizations, and with more linear layers than convolutions (a convolution net may end in a
    few attentions). A recipe with ``force`` and a rule that asks for low precision have their way.
    """
    counts = Counter(node.op_type for node in graph if _is_layer(node))
    normalized = any(node.op_type in _NORMALIZATIONS for node in graph)
    if not normalized or counts["Conv"] > counts["MatMul"]:
        return {}
    inputs = set(graph.inputs)
    found = {}
    for node in graph:
        if node.op_type != "Conv" or node.inputs[0] not in inputs:
            continue
        name, wish = str(node.name), wishes[str(node.name)]
        if wish.force or wish.is_demand or not wish.schemes or constant(node.inputs[1]) is None:
            continue
        found[name] = Diagnostic(
            Code.INPUT_LAYER,
            name,
            f"it reads the input %{node.inputs[0].name} of a transformer: its rounding reaches "
            "every layer",
            "a rule with scheme = 'static' on it quantizes it all the same",
        )
    return found


def _is_layer(node: ir.Node) -> bool:
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    return node.op_type in ("Conv", "MatMul") and weight is not None and is_constant(weight)
