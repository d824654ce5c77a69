"""The plan: every decision of a compile, made before anything is edited.

A plan is *total*: each node of the planned graph has exactly one :class:`NodeDecision`. It prints,
compares, saves as ``plan.json``, may be edited by hand and given back to ``qcompile(plan=...)``.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import json
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from qcompiler.diagnostics import Code, Diagnostic, QcError, nearest
from qcompiler.schemes import QSpec

__all__ = ["FORMAT", "Fixed", "Intent", "NodeDecision", "Own", "Plan", "Same", "Verdict"]

FORMAT = 1  # of plan.json; raised when old files can no longer be read
_BY_HAND = "the plan was edited to keep it in float"


class Verdict(str, enum.Enum):
    """What becomes of a node."""

    QUANTIZED = "quantized"  # computes in low precision, by ``kernel``
    CARRIED = "carried"  # moves low-precision data without computing
    FUSED = "fused"  # absorbed by the quantized node ``into`` (bias Add, Relu, Clip)
    FLOAT = "float"  # stays as it is, for ``reason``
    REMOVED = "removed"  # an exact rewrite folded the user's node away; ``into`` names the pass


@dataclasses.dataclass(frozen=True, slots=True)
class Own:
    """The value has quantization parameters of its own, from calibration."""

    spec: QSpec


@dataclasses.dataclass(frozen=True, slots=True)
class Fixed:
    """The value's range is known without data (Sigmoid: 0 to 1)."""

    spec: QSpec
    lo: float
    hi: float


@dataclasses.dataclass(frozen=True, slots=True)
class Same:
    """The value shares the parameters of value ``of`` (through a Reshape, into a Concat)."""

    of: str


Intent = Own | Fixed | Same


@dataclasses.dataclass(frozen=True, slots=True)
class NodeDecision:
    """What becomes of one node, and why.

    Attributes:
        node: Name of the node in the planned (canonical) graph; unique.
        op: Its operator, as ``MatMul`` or ``com.microsoft:Gelu``.
        verdict: What becomes of it.
        kernel: Id of the target's kernel row (QUANTIZED), else "".
        inputs: A spec for each input that the kernel takes in low precision, else None.
        outputs: The same for outputs (a float output has None).
        into: FUSED: the node that absorbs it. REMOVED: the pass that folded it.
        reason: FLOAT: why. May also comment another verdict.
        origin: Names of the user's nodes that this node stands for.
        module: Module path of the torch model it comes from, or "".
        gain_us: Predicted microseconds saved against float, conversions excluded; None unknown.
        algorithm: How a weight-only kernel's weight is rounded; "" is round to nearest.
    """

    node: str
    op: str
    verdict: Verdict
    kernel: str = ""
    inputs: tuple[QSpec | None, ...] = ()
    outputs: tuple[QSpec | None, ...] = ()
    into: str = ""
    reason: Diagnostic | None = None
    origin: tuple[str, ...] = ()
    module: str = ""
    gain_us: float | None = None
    algorithm: str = ""

    def __post_init__(self) -> None:
        if self.verdict is Verdict.FLOAT and self.reason is None:
            raise ValueError(f"{self.node} is kept in float without a reason")
        if (self.verdict is Verdict.QUANTIZED) != bool(self.kernel):
            raise ValueError(f"{self.node}: a kernel goes with the verdict 'quantized' alone")

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form without empty fields."""
        data: dict[str, Any] = {"node": self.node, "op": self.op, "verdict": self.verdict.value}
        data["kernel"] = self.kernel
        data["inputs"] = [spec and str(spec) for spec in self.inputs]
        data["outputs"] = [spec and str(spec) for spec in self.outputs]
        data["into"] = self.into
        data["reason"] = self.reason.to_dict() if self.reason else None
        data["origin"] = list(self.origin)
        data["module"] = self.module
        data["gain_us"] = self.gain_us
        data["algorithm"] = self.algorithm
        return {key: value for key, value in data.items() if value not in ("", None, [])}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> NodeDecision:
        """Read what :meth:`to_dict` wrote."""
        for key in ("node", "op", "verdict", "kernel", "into", "module", "algorithm"):
            if not isinstance(data.get(key, ""), str):
                raise ValueError(f"{data.get('node')!r}: {key} = {data[key]!r}, wanted a text")
        reason = data.get("reason")
        if reason is None and data["verdict"] == Verdict.FLOAT.value:
            # who edits a plan by hand has a reason, and need not spell a diagnostic
            reason = Diagnostic(Code.KEPT_BY_RULE, data["node"], _BY_HAND).to_dict()
        return cls(
            node=data["node"],
            op=data["op"],
            verdict=Verdict(data["verdict"]),
            kernel=data.get("kernel", ""),
            inputs=tuple(text and QSpec.parse(text) for text in data.get("inputs", ())),
            outputs=tuple(text and QSpec.parse(text) for text in data.get("outputs", ())),
            into=data.get("into", ""),
            reason=Diagnostic.from_dict(reason) if reason else None,
            origin=tuple(data.get("origin", ())),
            module=data.get("module", ""),
            gain_us=data.get("gain_us"),
            algorithm=data.get("algorithm", ""),
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """All decisions of one compile.

    Attributes:
        target: Name of the target.
        recipe: Name of the recipe.
        form: "ort" or "qdq".
        nodes: A decision per node of the planned graph, by node name, in graph order.
        values: How each activation that is stored in low precision gets its parameters, by value
            name. Weights are not here: their spec stands in the decision of the node using them.
        removed: Decisions (verdict REMOVED) for the user's nodes that exact rewrites folded away.
    """

    target: str
    recipe: str
    form: str
    nodes: Mapping[str, NodeDecision]
    values: Mapping[str, Intent] = dataclasses.field(default_factory=dict)
    removed: tuple[NodeDecision, ...] = ()

    def __iter__(self) -> Iterator[NodeDecision]:
        return iter(self.nodes.values())

    @property
    def only_weights(self) -> bool:
        """Whether something is quantized, and of it the weights alone."""
        operands = [
            sum(spec is not None for spec in (*item.inputs, *item.outputs))
            for item in self
            if item.verdict is Verdict.QUANTIZED
        ]
        return bool(operands) and max(operands) == 1

    def resolve(self, value: str) -> Own | Fixed:
        """Follow :class:`Same` to the intent that owns the parameters of ``value``."""
        return self.values[self.owner(value)]  # type: ignore[return-value]

    def owner(self, value: str) -> str:
        """The value whose parameters ``value`` uses: itself unless it is :class:`Same`."""
        seen = set()
        while isinstance(intent := self.values[value], Same):
            if value in seen:
                raise QcError(Code.BAD_PLAN, value, "values share parameters in a circle")
            if intent.of not in self.values:
                raise QcError(
                    Code.BAD_PLAN,
                    value,
                    f"shares the parameters of %{intent.of}, which has none in the plan",
                    nearest(intent.of, self.values),
                )
            seen.add(value)
            value = intent.of
        return value

    def keep_float(self, *names: str, reason: str = _BY_HAND) -> Plan:
        """The same plan with some nodes, and what they absorb, in float.

        Args:
            names: Nodes of the plan, or the user's nodes that they stand for.
            reason: Shown in the report.

        Raises:
            QcError: QC408, no node has such a name.
        """
        heads = set()
        for name in names:
            found = [item.node for item in self if name == item.node or name in item.origin]
            if not found:
                raise QcError(
                    Code.BAD_PLAN,
                    str(name),
                    "the plan has no such node",
                    nearest(str(name), self.nodes),
                )
            heads.update(found)
        nodes = {}
        for item in self:
            absorbed = item.verdict is Verdict.FUSED and item.into in heads
            if item.node in heads or absorbed:
                why = Diagnostic(Code.KEPT_BY_RULE, item.node, reason)
                item = dataclasses.replace(
                    item,
                    verdict=Verdict.FLOAT,
                    kernel="",
                    inputs=(),
                    outputs=(),
                    into="",
                    reason=why,
                    gain_us=None,
                    algorithm="",
                )
            nodes[item.node] = item
        return dataclasses.replace(self, nodes=nodes)

    def count(self) -> dict[str, int]:
        """How many nodes have each verdict."""
        counts = collections.Counter(decision.verdict.value for decision in self)
        return {
            verdict.value: counts[verdict.value] for verdict in Verdict if counts[verdict.value]
        }

    def __str__(self) -> str:
        lines = [f"plan target={self.target} recipe={self.recipe} form={self.form}"]
        lines.extend("  " + _line(decision) for decision in self)
        lines.extend(f"  %{name} := {_intent(intent)}" for name, intent in self.values.items())
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form; :meth:`from_dict` reads it back."""
        return {
            "format": FORMAT,
            "target": self.target,
            "recipe": self.recipe,
            "form": self.form,
            "nodes": [decision.to_dict() for decision in self],
            "values": {name: _intent_to_dict(intent) for name, intent in self.values.items()},
            "removed": [decision.to_dict() for decision in self.removed],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """Read what :meth:`to_dict` wrote.

        Raises:
            QcError: QC408, the data is not a plan of this format.
        """
        try:
            if data["format"] != FORMAT:
                raise ValueError(f"format {data['format']}, wanted {FORMAT}")
            decisions = [NodeDecision.from_dict(item) for item in data["nodes"]]
            return cls(
                target=data["target"],
                recipe=data["recipe"],
                form=data["form"],
                nodes={decision.node: decision for decision in decisions},
                values={name: _intent_from_dict(item) for name, item in data["values"].items()},
                removed=tuple(NodeDecision.from_dict(item) for item in data.get("removed", ())),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            lacks = "lacks the key " if isinstance(error, KeyError) else ""
            raise QcError(
                Code.BAD_PLAN, "plan", f"not a plan: {lacks}{error}", "save one with Artifact.save"
            ) from error

    @classmethod
    def load(cls, path: str | pathlib.Path) -> Plan:
        """Read a ``plan.json``."""
        try:
            data = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError) as error:
            raise QcError(
                Code.BAD_PLAN,
                str(path),
                f"cannot be read: {error}",
                "give a plan.json, or the folder of an artifact",
            ) from error
        if not isinstance(data, Mapping):
            raise QcError(Code.BAD_PLAN, str(path), "is not a JSON table", "give a plan.json")
        return cls.from_dict(data)


def _line(decision: NodeDecision) -> str:
    what = decision.kernel or decision.into
    specs = ""
    if decision.verdict is Verdict.QUANTIZED:
        specs = " " + ",".join(str(s) if s else "-" for s in decision.inputs)
        specs += " -> " + ",".join(str(s) if s else "-" for s in decision.outputs)
    why = f" {decision.reason.code.id} {decision.reason.message}" if decision.reason else ""
    return f"{decision.node} ({decision.op}): {decision.verdict.value} {what}{specs}{why}".rstrip()


def _intent(intent: Intent) -> str:
    if isinstance(intent, Own):
        return str(intent.spec)
    if isinstance(intent, Fixed):
        return f"{intent.spec} fixed [{intent.lo:g}, {intent.hi:g}]"
    return f"same as %{intent.of}"


def _intent_to_dict(intent: Intent) -> dict[str, Any]:
    if isinstance(intent, Own):
        return {"spec": str(intent.spec)}
    if isinstance(intent, Fixed):
        return {"spec": str(intent.spec), "lo": intent.lo, "hi": intent.hi}
    return {"same": intent.of}


def _intent_from_dict(data: Mapping[str, Any]) -> Intent:
    if "same" in data:
        return Same(data["same"])
    spec = QSpec.parse(data["spec"])
    if "lo" in data:
        lo, hi = float(data["lo"]), float(data["hi"])
        if not (math.isfinite(lo) and math.isfinite(hi) and lo <= hi):
            raise ValueError(f"the range [{lo:g}, {hi:g}] is none")
        return Fixed(spec, lo, hi)
    return Own(spec)
