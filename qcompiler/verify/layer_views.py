"""Bring a float model and its quantized form to where their nodes can be held side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterator
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common

from qcompiler.artifact import Artifact
from qcompiler.diagnostics import QcError
from qcompiler.frontends import open_model
from qcompiler.ir.walk import op_name
from qcompiler.pipeline.contract import Feed, Phase, State
from qcompiler.pipeline.registry import parse_pipeline
from qcompiler.pipeline.run import run_pipeline
from qcompiler.plan import Plan, Verdict
from qcompiler.recipe import Recipe
from qcompiler.targets.generic_qdq import GENERIC_QDQ
from qcompiler.targets.registry import load_target
from qcompiler.targets.schema import Form
from qcompiler.verify.layer_branches import take_decode
from qcompiler.verify.layer_folds import take_folds
from qcompiler.verify.layer_products import split_products

__all__ = ["Pair", "pairs_of", "views_of"]

_IMPORT = "import-quantized"
_UNPACK = f"fold-constants{{small_bytes={1 << 62}}}"
_SAME = frozenset({("Gemm", "MatMul"), ("MatMul", "MatMulIntegerToFloat")})
_RENAMED = "_quant"  # what onnxruntime.quantization appends in its QOperator format


@dataclasses.dataclass(frozen=True, slots=True)
class Pair:
    """One value of the float model and the value that stands for it.

    Attributes:
        node: The float node.
        value: Its output, or that of the last node that a kernel absorbed behind it.
        other: The quantized node.
        other_value: Its output; where that is stored, what the stored integers stand for.
    """

    node: ir.Node
    value: ir.Value
    other: ir.Node
    other_value: ir.Value


def views_of(
    float_model: ir.Model, quantized: Artifact | ir.Model, sample: Feed
) -> tuple[ir.Model, ir.Model, Plan | None]:
    """The float model in the form that was quantized, and the quantized one as Q, DQ and floats.

    An artifact tells the passes that ran on floats before anything was rounded, and they are run
    again. The quantized model's integer operators are spelled out. Of a path for prompts and one
    for single tokens the latter is looked at.
    """
    plan = None
    reference = float_model.clone()
    model = quantized
    if isinstance(model, Artifact):
        plan = model.plan
        _run_float_passes(reference, model, sample)
        model = model.model
    spelled = model.clone()
    state = State(GENERIC_QDQ, Recipe.of(None), Form.QDQ)
    steps = [_IMPORT]
    if take_decode(spelled.graph):  # its constants are copied when the model is loaded
        steps.insert(0, _UNPACK)
    if spelled.functions:  # weights that are unpacked then
        common.InlinePass()(spelled)
        steps[:-1] = [_UNPACK]
    run_pipeline(parse_pipeline(",".join(steps)), spelled, state, check=False)
    if plan is not None:
        split_products(reference, spelled)
        take_folds(reference, spelled)
    return reference, spelled, plan


def open_both(float_model: Any, quantized: Any) -> tuple[ir.Model, Artifact | ir.Model]:
    """The part of a float model that ``quantized`` is compared with, and the latter.

    Models and artifacts stay as they are, else :func:`~qcompiler.frontends.open_model` reads them.
    """
    other = quantized if isinstance(quantized, Artifact) else open_model(quantized).model
    if isinstance(float_model, ir.Model):
        return float_model, other
    part = other.model if isinstance(other, Artifact) else other
    return open_model(float_model).part(part).model, other


def pairs_of(reference: ir.Model, spelled: ir.Model, plan: Plan | None) -> Iterator[Pair]:
    """Every float value of the reference that has a counterpart, in graph order.

    Nodes match by name and operator, and by the plan with what was fused into them; else values
    match by name.
    """
    nodes = {node.name: node for node in spelled.graph if _gives_floats(node)}
    values = {node.outputs[0].name: node for node in nodes.values()}
    fed = _fed(reference.graph)
    taken: set[ir.Node] = set()
    for node in reference.graph:
        if node not in fed or node in taken or not _gives_floats(node):
            continue
        decision = plan.nodes.get(node.name or "") if plan is not None else None
        if decision is not None and decision.verdict is Verdict.FUSED:
            continue  # stands in the row of what absorbed it
        other = nodes.get(node.name) or nodes.get(f"{node.name}{_RENAMED}")
        if other is None or not _same_operator(node, other):
            other = values.get(node.outputs[0].name)
        if other is not None:
            chain = _absorbed(node, plan) if plan is not None else _clamped(node, other, nodes)
            taken.update(chain)
            value = chain[-1].outputs[0] if chain else node.outputs[0]
            yield Pair(node, value, other, _settled(node, other, chain))


def _run_float_passes(reference: ir.Model, artifact: Artifact, sample: Feed) -> None:
    try:
        target = load_target(artifact.plan.target)
        passes = parse_pipeline(str(artifact.manifest.get("pipeline", "")))
    except QcError:  # a target file or a pass that is not installed here: names must do
        return
    exact = [item for item in passes if item.phase is Phase.FLOAT and item.exact]
    recipe = Recipe.of(artifact.manifest["recipe"])
    state = State(target, recipe, Form(artifact.plan.form), sample=sample)
    run_pipeline(exact, reference, state, check=False)


def _gives_floats(node: ir.Node) -> bool:
    if not node.outputs or node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return False
    dtype = node.outputs[0].dtype
    return bool(node.outputs[0].name) and (dtype is None or dtype.is_floating_point())


def _fed(graph: ir.Graph) -> set[ir.Node]:
    """Nodes that depend on an input of the graph."""
    reached: set[ir.Value] = set(graph.inputs)
    fed = set()
    for node in graph:
        if any(value in reached for value in node.inputs):
            fed.add(node)
            reached.update(node.outputs)
    return fed


def _same_operator(node: ir.Node, other: ir.Node) -> bool:
    """Whether the operators are the same.

    A Gemm is spelled MatMul and Add. A product whose activations get their scales when it runs has
    no spelling by DequantizeLinear: it stands for itself.
    """
    pair = (node.op_type, other.op_type)
    return op_name(node) == op_name(other) or pair in _SAME


def _clamped(node: ir.Node, other: ir.Node, names: Container[str | None]) -> list[ir.Node]:
    """Clamps behind ``node`` that the quantized model lacks: its integers saturate instead."""
    chain: list[ir.Node] = []
    reader = _only_reader(other.outputs[0])
    follower = _only_reader(node.outputs[0])
    stored = reader is not None and reader.op_type == "QuantizeLinear"
    while stored and follower is not None and follower.op_type in ("Relu", "Clip"):
        if follower.name in names:
            break
        chain.append(follower)
        follower = _only_reader(follower.outputs[0])
    return chain


def _absorbed(node: ir.Node, plan: Plan) -> list[ir.Node]:
    chain: list[ir.Node] = []
    value = node.outputs[0]
    while len(value.uses()) == 1:
        follower = next(iter(value.uses())).node
        decision = plan.nodes.get(follower.name or "")
        fused = decision is not None and decision.verdict is Verdict.FUSED
        if decision is None or not fused or decision.into != node.name:
            break
        chain.append(follower)
        value = follower.outputs[0]
    return chain


def _settled(node: ir.Node, other: ir.Node, chain: list[ir.Node]) -> ir.Value:
    """The value behind ``other`` with the same chain behind it, read back from its integers."""
    value = other.outputs[0]
    if node.op_type == "Gemm" and other.op_type == "MatMul" and len(node.inputs) > 2:
        add = _only_reader(value)
        value = add.outputs[0] if add is not None and add.op_type == "Add" else value
    for follower in chain:
        reader = _only_reader(value)
        if reader is None or reader.op_type != follower.op_type:
            continue  # a clamp that the integers' saturation does
        value = reader.outputs[0]
    stored = value
    while (reader := _only_reader(stored)) is not None:
        if reader.op_type == "DequantizeLinear":
            return reader.outputs[0]
        clamps = reader.op_type == "Clip" and stored is not value
        if reader.op_type != "QuantizeLinear" and not clamps:
            break
        stored = reader.outputs[0]
    readers = [use.node for use in stored.uses()]
    if stored is not value and readers and readers[0].op_type == "DequantizeLinear":
        return readers[0].outputs[0]  # several: all say the same
    return value


def _only_reader(value: ir.Value) -> ir.Node | None:
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return None
    return next(iter(uses)).node
