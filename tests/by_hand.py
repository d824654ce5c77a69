"""Plans and ranges written by hand, to test what comes after them without planner or data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from qcompiler.diagnostics import Code, Diagnostic
from qcompiler.ir.edit import name_everything
from qcompiler.ir.provenance import mark_origins
from qcompiler.pipeline.contract import State, TensorRange
from qcompiler.pipeline.run import run_pipeline
from qcompiler.plan import Fixed, Intent, NodeDecision, Own, Plan, Verdict
from qcompiler.recipe import Recipe
from qcompiler.runtime.settings import SessionSettings
from qcompiler.schemes import QSpec
from qcompiler.targets.schema import Form, Target
from qcompiler_passes.apply.insert_qdq import InsertQdq
from qcompiler_passes.lower.finish_qdq import FinishQdq
from qcompiler_passes.lower.to_ort import ToOrt
from qcompiler_passes.weights.quantize_weights import QuantizeWeights

_LEVELS = {
    "disable": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
Feed = Mapping[str, np.ndarray]


@dataclasses.dataclass
class Hand:
    """One model with a plan written by hand.

    ``kernels``: node -> (kernel id, "spec,spec->spec"); ``-`` is a float operand.
    ``fused``: node -> absorbing node. ``carried``: nodes. ``values``: value -> "u8tz" or an intent.
    ``ranges``: value -> (lo, hi).
    """

    model: ir.Model
    kernels: Mapping[str, tuple[str, str]]
    values: Mapping[str, str | Intent] = dataclasses.field(default_factory=dict)
    ranges: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    fused: Mapping[str, str] = dataclasses.field(default_factory=dict)
    carried: Sequence[str] = ()
    runtime: str = "onnxruntime"

    def plan(self) -> Plan:
        decisions = {}
        for node in self.model.graph:
            name = node.name or ""
            if name in self.kernels:
                kernel, specs = self.kernels[name]
                inputs, outputs = (_specs(part) for part in specs.split("->"))
                decision = NodeDecision(
                    name, node.op_type, Verdict.QUANTIZED, kernel, inputs, outputs
                )
            elif name in self.fused:
                decision = NodeDecision(name, node.op_type, Verdict.FUSED, into=self.fused[name])
            elif name in self.carried:
                decision = NodeDecision(name, node.op_type, Verdict.CARRIED)
            else:
                why = Diagnostic(Code.NOT_SELECTED, name, "not selected")
                decision = NodeDecision(name, node.op_type, Verdict.FLOAT, reason=why)
            decisions[name] = decision
        values = {
            name: Own(QSpec.parse(intent)) if isinstance(intent, str) else intent
            for name, intent in self.values.items()
        }
        return Plan("hand", "hand", "ort", decisions, values)

    def state(self, form: Form) -> State:
        ranges = {
            name: TensorRange(np.float32(lo), np.float32(hi), "hand")
            for name, (lo, hi) in self.ranges.items()
        }
        target = Target("hand", self.runtime, "by hand", form, 23, ())
        return State(target, Recipe.of("auto"), form, plan=self.plan(), ranges=ranges)

    def dialect(self) -> ir.Model:
        """The QDQ dialect, before any lowering."""
        model = self.model.clone()
        run_pipeline([QuantizeWeights(), InsertQdq()], model, self.state(Form.ORT), check=True)
        return model

    def lowered(self, form: Form = Form.ORT) -> tuple[ir.Model, SessionSettings]:
        model, state = self.model.clone(), self.state(form)
        passes = [QuantizeWeights(), InsertQdq(), ToOrt(), FinishQdq()]
        run_pipeline(passes, model, state, check=True)
        return model, state.session


def open_text(text: str, constants: Mapping[str, np.ndarray]) -> ir.Model:
    """A model from ONNX text, to which initializers are added."""
    model = ir.from_onnx_text(text)
    values = {value.name: value for node in model.graph for value in node.inputs if value}
    for name, array in constants.items():
        value = values[name]
        value.const_value = ir.tensor(array, name=name)
        value.shape, value.dtype = ir.Shape(array.shape), value.const_value.dtype
        model.graph.register_initializer(value)
    name_everything(model)
    for node in model.graph:  # the parser gives no names: call a node like its result
        node.name = node.outputs[0].name.upper()
    mark_origins(model)
    return model


def run_ort(
    model: ir.Model, feed: Feed, settings: SessionSettings | None = None
) -> list[np.ndarray]:
    """Outputs of the model, by default under ORT_DISABLE_ALL."""
    settings = settings or SessionSettings(level="disable")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = _LEVELS[settings.level]
    for key, entry in settings.entries.items():
        options.add_session_config_entry(key, entry)
    data = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(feed))


def run_reference(model: ir.Model, feed: Feed) -> list[np.ndarray]:
    """Outputs by the ONNX reference evaluator."""
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(ir.to_proto(model)).run(None, dict(feed))


def fixed(spec: str, lo: float, hi: float) -> Fixed:
    return Fixed(QSpec.parse(spec), lo, hi)


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def _specs(text: str) -> tuple[QSpec | None, ...]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    return tuple(None if word == "-" else QSpec.parse(word) for word in words)


__all__ = [
    "FinishQdq",
    "Form",
    "Hand",
    "InsertQdq",
    "QuantizeWeights",
    "ToOrt",
    "fixed",
    "onnx",
    "open_text",
    "ops",
    "run_ort",
    "run_reference",
]
