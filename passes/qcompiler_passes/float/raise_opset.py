"""Bring a model to the opset that the target's operators want."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from qcompiler.diagnostics import Code, Diagnostic, QcError
from qcompiler.ir.edit import collect_names
from qcompiler.ir.walk import all_graphs, all_nodes
from qcompiler.pipeline.contract import Pass, PassResult, Phase, State
from qcompiler.runtime.observe import weightless
from qcompiler.runtime.session import open_session
from qcompiler.runtime.settings import SessionSettings
from qcompiler_passes.float.opset_adapters import ADAPTERS, misfit, since

__all__ = ["RaiseOpset"]

# ONNX IR version 10 is the oldest with 4-bit types and block quantization, and the newest that
# ONNX Runtime 1.20 reads; https://github.com/onnx/onnx/blob/main/docs/Versioning.md
_IR_VERSION = 10
# The check wants to know whether every node has a kernel, not to make the session fast.
_CHECK = SessionSettings("disable", {"session.disable_prepacking": "1"})


@dataclasses.dataclass(frozen=True)
class RaiseOpset(Pass):
    """Rewrite nodes whose definition changed, up to ``target.opset``; never down.

    Works on the IR, so names, metadata, weights and nested bodies stay. When an operator cannot
    come along, the model stops below the opset that changed it; when the runtime refuses the raised
    model, it stays as it was. Both are told (QC502).

    Given (opset 11):  ``%y = Unsqueeze(%x) axes=[1]``
    Result (opset 23): ``%y = Unsqueeze(%x, %axes)``
    """

    name: ClassVar[str] = "raise-opset"
    phase: ClassVar[Phase] = Phase.FLOAT

    def run(self, model: ir.Model, state: State) -> PassResult:
        """Raise the opset; diagnostics QC502 kept and QC503 raised."""
        opset = model.opset_imports.get("")
        wanted = state.target.opset
        if opset is None or opset >= wanted:
            return PassResult(modified=False)
        reached, kept = _highest(model, opset, wanted)
        diagnostics = []
        if kept:
            diagnostics.append(_kept(opset, wanted, kept))
        if reached == opset:
            return PassResult(modified=False, diagnostics=diagnostics)
        trial = model.clone()
        collect_names(trial)
        reason = _convert(trial, opset, reached) or _refused(trial)
        if reason:
            return PassResult(modified=False, diagnostics=[_kept(opset, wanted, reason)])
        _convert(model, opset, reached)
        told = Diagnostic(
            Code.OPSET_RAISED,
            model.graph.name or "model",
            f"opset {opset} was raised to {reached}",
            values={"from": opset, "to": reached},
        )
        return PassResult(modified=True, diagnostics=[told, *diagnostics])


def _highest(model: ir.Model, opset: int, wanted: int) -> tuple[int, str]:
    """The highest opset that all nodes can reach, and what stops them there."""
    reached, reason = wanted, ""
    for node in all_nodes(model):
        if node.domain:
            continue
        for version in range(opset + 1, reached + 1):
            if since(node.op_type, version) == since(node.op_type, version - 1):
                continue
            if (node.op_type, version) in ADAPTERS:
                break  # the rest is checked on the rewritten node, by _convert
            stop = misfit(node, version - 1, version)
            if stop:
                reached, reason = version - 1, f"{node.name}: {stop}"
                break
    return reached, reason


def _convert(model: ir.Model, opset: int, wanted: int) -> str | None:
    """Convert in place, one opset at a time; the reason when a node cannot."""
    for version in range(opset + 1, wanted + 1):
        for node in list(all_nodes(model)):
            if node.domain or since(node.op_type, version) == since(node.op_type, version - 1):
                continue
            adapter = ADAPTERS.get((node.op_type, version))
            reason = adapter(node) if adapter else misfit(node, version - 1, version)
            if reason:
                return f"{node.name}: {reason}"
    for graph in all_graphs(model):
        graph.opset_imports[""] = wanted
    for node in all_nodes(model):
        if node.domain == "" and node.version is not None:
            node.version = wanted
    model.ir_version = max(model.ir_version, _IR_VERSION)
    return None


def _refused(model: ir.Model) -> str | None:
    try:
        open_session(weightless(model, {})[0], settings=_CHECK, threads=1)
    except QcError as error:
        return error.diagnostic.message
    return None


def _kept(opset: int, wanted: int, reason: str) -> Diagnostic:
    return Diagnostic(
        Code.OPSET_KEPT,
        "model",
        f"the target wants opset {wanted}, and a model of opset {opset} cannot be raised to it: "
        f"{reason}",
        "export the model with a newer opset",
        {"from": opset, "wanted": wanted},
    )
