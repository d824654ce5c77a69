"""Prove from the runtime's own optimized graph that the planned kernels run."""

from __future__ import annotations

import bisect
import collections
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

from qcompiler.diagnostics import Code, Diagnostic
from qcompiler.plan import Plan, Verdict
from qcompiler.targets.schema import Form, Target

__all__ = ["KernelProof", "Proof", "SeenNode", "prove"]

_QDQ = ("QuantizeLinear", "DequantizeLinear")
_TRANSFORMED = ("com.microsoft:", "com.microsoft.nchwc:", "com.ms.internal.nhwc:")


class SeenNode(Protocol):
    """A node of the optimized graph, as :mod:`qcompiler.runtime.kernels` reports it."""

    @property
    def name(self) -> str:
        """Node name."""

    @property
    def op(self) -> str:
        """``MatMul`` or ``com.microsoft:MatMulIntegerToFloat``."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the values it reads."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the values it gives."""


@dataclasses.dataclass(frozen=True, slots=True)
class KernelProof:
    """One planned kernel and what the runtime made of it.

    Attributes:
        node: Name of the planned node.
        kernel: Id of the target's row.
        planned: Operators of which the row promises one.
        seen: Operator found under the node's name or output, or "" when there is none.
    """

    node: str
    kernel: str
    planned: tuple[str, ...]
    seen: str

    @property
    def ok(self) -> bool:
        """Whether the runtime runs what was planned (its domain may change with the layout)."""
        return _is_one_of(self.seen, self.planned)


@dataclasses.dataclass(frozen=True, slots=True)
class Proof:
    """All planned kernels, and the operators of the optimized graph.

    Attributes:
        kernels: One entry per quantized node.
        leftover: Names of float-side Q/DQ nodes that no kernel absorbed, beyond the planned ones.
        operators: How often each operator occurs in the optimized graph.
    """

    kernels: tuple[KernelProof, ...]
    leftover: tuple[str, ...]
    operators: dict[str, int]

    @property
    def ok(self) -> bool:
        """Whether every planned kernel was seen."""
        return all(item.ok for item in self.kernels)

    def diagnostics(self) -> list[Diagnostic]:
        """KERNEL_NOT_SEEN for each kernel that does not run, LEFTOVER_QDQ for stray conversions."""
        found = [
            Diagnostic(
                Code.KERNEL_NOT_SEEN,
                item.node,
                f"planned {' or '.join(item.planned)} ({item.kernel}), the runtime runs "
                + (item.seen or "something else under another name"),
                "please report it with the runtime's version",
                {"kernel": item.kernel, "planned": item.planned, "seen": item.seen},
            )
            for item in self.kernels
            if not item.ok
        ]
        found.extend(
            Diagnostic(Code.LEFTOVER_QDQ, name, "no kernel absorbed it: it runs by itself")
            for name in self.leftover
        )
        return found

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form."""
        return {
            "planned": len(self.kernels),
            "seen": sum(item.ok for item in self.kernels),
            "kernels": [{**dataclasses.asdict(item), "ok": item.ok} for item in self.kernels],
            "leftover": list(self.leftover),
            "operators": dict(sorted(self.operators.items())),
        }


def prove(
    plan: Plan,
    target: Target,
    seen: Sequence[SeenNode],
    standing: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> Proof:
    """Hold the plan against the optimized graph.

    A planned node is found by its name, else by the value it gives (fused nodes are renamed by the
    runtime but keep the names of what they give). In the QDQ form the runtime may give the output
    of the Q behind the node, so any node that carries the planned name as a prefix counts as well.

    Args:
        plan: What was planned.
        target: Its rows name the operators to look for.
        seen: Nodes of the optimized graph.
        standing: Names of the artifact's nodes that stand for a node of the user, where one node
            took the place of several.
    """
    by_name = {node.name: node for node in seen}
    by_output = {value: node for node in seen for value in node.outputs}
    names, values = _Beginnings(by_name), _Beginnings(by_output)
    rows = {row.id: row for row in target.kernels}
    proofs = []
    for decision in plan:
        if decision.verdict is not Verdict.QUANTIZED or decision.kernel not in rows:
            continue
        planned = rows[decision.kernel].seen_as(Form(plan.form))
        if not planned:
            continue
        name = decision.node
        candidates = [by_name.get(name), *names.find(name + "/", name + "_")]
        candidates += values.find(name + ".", name + "/")
        joined = (name for user in decision.origin for name in standing.get(user, ()))
        candidates += map(by_name.get, joined)
        found = [node for node in candidates if node is not None]
        right = next((node for node in found if _is_one_of(node.op, planned)), None)
        chosen = right or (found[0] if found else None)
        proofs.append(
            KernelProof(decision.node, decision.kernel, planned, chosen.op if chosen else "")
        )
    operators = collections.Counter(node.op for node in seen)
    references = any(d.kernel in rows and rows[d.kernel].reference for d in plan)
    stray = [] if references else _stray(plan, seen, by_output)  # references run them by design
    return Proof(tuple(proofs), tuple(stray), dict(operators))


class _Beginnings:
    """Nodes by how a name of theirs begins."""

    def __init__(self, nodes: Mapping[str, SeenNode]) -> None:
        self._nodes = nodes
        self._order = {name: index for index, name in enumerate(nodes)}
        self._names = sorted(nodes)

    def find(self, *prefixes: str) -> list[SeenNode]:
        """Those with a name that begins with one of the prefixes, in their order."""
        found: set[str] = set()
        for prefix in prefixes:
            begin = bisect.bisect_left(self._names, prefix)
            found.update(
                self._names[begin : bisect.bisect(self._names, prefix + chr(sys.maxunicode))]
            )
        return [self._nodes[name] for name in sorted(found, key=self._order.__getitem__)]


def _is_one_of(op: str, planned: tuple[str, ...]) -> bool:
    return _bare(op) in {_bare(name) for name in planned}


def _bare(op: str) -> str:
    """The operator without the runtime's layout domains: an NHWC QLinearConv is a QLinearConv."""
    return op.rpartition(":")[2] if op.startswith(_TRANSFORMED) else op


def _stray(plan: Plan, seen: Sequence[SeenNode], by_output: dict[str, SeenNode]) -> list[str]:
    """Q followed by DQ on one value (a round trip no kernel used), in the optimized graph."""
    if plan.form == Form.ORT.value and not plan.values:
        return []
    found = []
    for node in seen:
        if _bare(node.op) != "DequantizeLinear" or not node.inputs:
            continue
        producer = by_output.get(node.inputs[0])
        if producer is not None and _bare(producer.op) == "QuantizeLinear":
            found.append(node.name)
    return found
