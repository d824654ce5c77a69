"""Logits of each text's last token alone, which is all that a loop of generation reads."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompiler.diagnostics import Code, QcError
from qcompiler.ir.edit import Tape
from qcompiler.ir.provenance import inherit

__all__ = ["keep_last_logits"]

_AFTER_HEAD = frozenset({"Add", "Div", "Mul", "Tanh"})  # biases and soft caps


def keep_last_logits(model: ir.Model, source: str) -> None:
    """Let the head of a decoder read one position of each text: ``logits`` ``[batch, 1, tokens]``.

    The head is the largest product of a small model, and for a prompt it is computed at every
    position. Where a text is padded the last real position counts, by ``attention_mask``.

    Args:
        model: With ``input_ids``, ``attention_mask`` and ``logits``; changed in place.
        source: The user's name for it.

    Raises:
        QcError: QC411, the model is no such decoder.
    """
    graph = model.graph
    inputs = {value.name: value for value in graph.inputs}
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    logits = next((value for value in graph.outputs if value.name == "logits"), None)
    behind = _head(logits)
    if ids is None or mask is None or not behind:
        raise QcError(
            Code.USAGE,
            source,
            "last_logits wants a decoder with the inputs input_ids and attention_mask and a MatMul "
            "that gives logits",
            "leave last_logits out of the recipe",
        )
    head = behind[-1]
    hidden = head.inputs[0]
    assert hidden is not None, "a MatMul has two inputs"
    tape = Tape(graph, "last_logits")
    last = _positions(tape, ids, mask)
    rows = tape.op("GatherND", hidden, last, batch_dims=1)
    row = tape.op("Unsqueeze", rows, np.array([1], np.int64))
    graph.insert_before(head, tape.nodes)
    inherit(tape.nodes, [head])
    head.replace_input_with(0, row)
    for value in (row, *(node.outputs[0] for node in behind)):
        shape = (hidden if value is row else value).shape
        value.shape = None if shape is None else ir.Shape([shape[0], 1, *shape[2:]])
        value.type = hidden.type


def _head(logits: ir.Value | None) -> list[ir.Node]:
    """The nodes from the one that gives the logits back to the head's MatMul."""
    found: list[ir.Node] = []
    node = None if logits is None else logits.producer()
    while node is not None and node.op_type in _AFTER_HEAD and node.inputs[0] is not None:
        found.append(node)
        node = node.inputs[0].producer()
    return [*found, node] if node is not None and node.op_type == "MatMul" else []


def _positions(tape: Tape, ids: ir.Value, mask: ir.Value) -> ir.Value:
    """Place of each text's last token in ``ids``, ``[batch, 1]``: ``ones - 1 - past``, at least 0.

    A text that is shorter than its batch falls behind the mask's length, hence "at least".
    """
    one = np.array([1], np.int64)
    ones = tape.op("ReduceSum", mask, one, keepdims=1)
    total = tape.op("Gather", tape.op("Shape", mask), one)
    length = tape.op("Gather", tape.op("Shape", ids), one)
    past = tape.op("Sub", total, length)
    last = tape.op("Sub", tape.op("Sub", ones, one), past)
    result: ir.Value = tape.op("Max", last, np.array([0], np.int64))
    return result
