"""Match an artifact with the float checkpoint it was compiled from, layer by layer."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.artifact import Artifact
from qcompiler.diagnostics import Code, QcError
from qcompiler.export.kernel_weights import (
    KernelWeight,
    constants_by_origin,
    kernel_nodes,
)
from qcompiler.ir.edit import constant
from qcompiler.ir.lazy import View, view_of
from qcompiler.ir.provenance import module_of
from qcompiler.plan import NodeDecision, Verdict
from qcompiler.schemes import QSpec

__all__ = ["Layer", "Matched", "match"]

_NORMS = ("RMSNormalization", "LayerNormalization")


@dataclasses.dataclass(frozen=True, slots=True)
class Layer:
    """A quantized linear layer of the checkpoint.

    Attributes:
        module: Its path.
        shape: ``(K, N)``.
        spec: Spec of its weight.
        parts: Its weight in the artifact, in the order of its outputs.
    """

    module: str
    shape: tuple[int, int]
    spec: QSpec
    parts: tuple[KernelWeight, ...]

    def codes(self) -> npt.NDArray[np.uint8]:
        """``[K, N]``, 0 to 2^bits - 1."""
        return np.concatenate([part.codes() for part in self.parts], axis=1)

    def scale(self) -> npt.NDArray[np.float32]:
        """``[groups, N]``."""
        return np.concatenate([part.scale() for part in self.parts], axis=1)

    def zero_point(self) -> npt.NDArray[np.uint8]:
        """``[groups, N]``."""
        return np.concatenate([part.zero_point() for part in self.parts], axis=1)


@dataclasses.dataclass(frozen=True, slots=True)
class Matched:
    """What of the checkpoint is otherwise in the artifact.

    Attributes:
        layers: Quantized layers by module.
        floats: Modules of linear layers that are float in the artifact.
        changed: Float tensors that the compiler changed, by their name in the checkpoint, as the
            checkpoint stores them.
        left: Modules outside of the layers that are quantized in the artifact: head, embedding.
    """

    layers: Mapping[str, Layer]
    floats: tuple[str, ...]
    changed: Mapping[str, Callable[[], npt.NDArray[Any]]]
    left: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class _Site:
    """A MatMul of the float graph: all of a module's weight, or a part of its outputs."""

    node: str
    module: str
    view: View

    @property
    def begin(self) -> int:
        return 0 if self.view.span is None else self.view.span[1]


def match(artifact: Artifact, reference: ir.Model, top: Mapping[str, str], source: str) -> Matched:
    """Find each layer of the float graph in the artifact.

    Args:
        artifact: The artifact.
        reference: The float graph of the checkpoint.
        top: Module path by role outside the layers. The head stays as in the checkpoint, and with
            it the norm in front: the compiler may have moved factors between them.
        source: The user's name for the checkpoint.

    Raises:
        QcError: QC714, a part of the artifact has no place in a checkpoint; QC709, the artifact
            was not compiled from this checkpoint.
    """
    _check_ends(artifact.model.graph, reference.graph, source)
    head = top["head"]
    sites = _sites(reference)
    kernels = kernel_nodes(artifact.model.graph)
    widths = {site.node: site.view.shape[1] for site in sites}
    layers: dict[str, Layer] = {}
    floats: list[str] = []
    left = _left(artifact, head)
    modules: dict[str, list[_Site]] = {}
    for site in sites:
        if site.module != head:
            modules.setdefault(site.module, []).append(site)
    for module, parts in modules.items():
        parts.sort(key=lambda site: site.begin)
        decisions = [_decision(artifact, site, source) for site in parts]
        specs = {decision.inputs[1] for decision in decisions if len(decision.inputs) > 1}
        if all(decision.verdict is Verdict.FLOAT for decision in decisions):
            floats.append(module)
            continue
        spec = specs.pop() if len(specs) == 1 else None
        if spec is None or any("weight" not in d.kernel for d in decisions):
            kinds = ", ".join(sorted({d.kernel or "float" for d in decisions}))
            raise not_held(module, f"is computed by {kinds}", "weights alone rounded, all alike")
        found = [_kernel_weight(kernels, site, spec, widths, source) for site in parts]
        shape = (parts[0].view.shape[0], sum(site.view.shape[1] for site in parts))
        layers[module] = Layer(module, shape, spec, tuple(found))
    if not layers:
        raise not_held(source, "has no layer whose weight alone is rounded", "at least one")
    untouched = (head, top["norm"])
    changed = _changed(artifact, reference, layers, sites, untouched, source)
    return Matched(layers, tuple(floats), changed, left)


def not_held(where: str, found: str, wanted: str) -> QcError:
    """The refusal of what a checkpoint format cannot hold."""
    return QcError(
        Code.NOT_EXPORTABLE,
        where,
        f"{found}, wanted {wanted}",
        "compile with a recipe of weights alone (weight-int4, or bits, group_size and format in "
        "[weights]), or keep the layer in float by a rule",
    )


def _foreign(where: str, what: str, source: str) -> QcError:
    return QcError(
        Code.NOT_ARTIFACT,
        where,
        f"{what}: the artifact was not compiled from {source}",
        "give the folder of the float model that the artifact was compiled from",
    )


def _check_ends(graph: ir.Graph, reference: ir.Graph, source: str) -> None:
    """Refuse an artifact with other inputs, or other sizes of them or of the logits."""
    ours, theirs = (
        {value.name: _sizes(value) for value in (*ends.inputs, *ends.outputs)}
        for ends in (graph, reference)
    )
    for name in (*ours, *theirs):
        if ours.get(name) != theirs.get(name):
            found = f"%{name} has the sizes {ours.get(name)} there and {theirs.get(name)} here"
            raise _foreign(str(name), found, source)


def _sizes(value: ir.Value) -> list[int]:
    """Those that are fixed, but those of 1: ``last_logits`` gives one position."""
    return [size for size in value.shape or () if isinstance(size, int) and size != 1]


def _sites(reference: ir.Model) -> list[_Site]:
    found = []
    for node in reference.graph:
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        view = None if weight is None else view_of(weight.const_value)
        if view is not None:
            found.append(_Site(str(node.name), module_of(node), view))
    return found


def _decision(artifact: Artifact, site: _Site, source: str) -> NodeDecision:
    decision = artifact.plan.nodes.get(site.node)
    if decision is None:
        raise _foreign(site.module, f"the plan has no node {site.node!r}", source)
    return decision


def _kernel_weight(
    kernels: Mapping[str, tuple[ir.Node, tuple[str, ...]]],
    site: _Site,
    spec: QSpec,
    widths: Mapping[str, int],
    source: str,
) -> KernelWeight:
    if spec.codebook or spec.scales is not None or spec.is_float8:
        raise not_held(site.module, f"is stored as {spec}", "integers with float scales")
    if site.node not in kernels:  # unpacked by functions
        raise not_held(site.module, f"is stored as {spec}", "groups of 16 or a multiple")
    node, names = kernels[site.node]
    together = [name for name in names if name in widths]
    begin = sum(widths[name] for name in together[: together.index(site.node)])
    weight = KernelWeight(node, spec, (begin, begin + widths[site.node]))
    shape = (site.view.shape[0], sum(widths[name] for name in together))
    if weight.shape != shape:
        found = f"the weight is {list(weight.shape)} there and {list(shape)} here"
        raise _foreign(site.module, found, source)
    if not weight.has_integer_zero_points():
        raise not_held(site.module, "has float zero points", "integers (zero_point = 'int')")
    operator = weight.factor()
    if operator is not None:
        raise not_held(
            site.module,
            f"reads its input behind a {operator} that the compiler put there",
            "none: the format has no place for it",
        )
    return weight


def _left(artifact: Artifact, head: str) -> tuple[str, ...]:
    """Head and embedding tables that are rounded in the artifact."""
    return tuple(
        dict.fromkeys(
            decision.module
            for decision in artifact.plan
            if decision.verdict is Verdict.QUANTIZED
            and (decision.op == "Gather" or decision.module == head)
        )
    )


def _changed(
    artifact: Artifact,
    reference: ir.Model,
    layers: Mapping[str, Layer],
    sites: list[_Site],
    untouched: tuple[str, ...],
    source: str,
) -> dict[str, Callable[[], npt.NDArray[Any]]]:
    """Norms, biases and float weights of the artifact that are not those of the checkpoint."""
    held = constants_by_origin(artifact.model.graph)
    by_node = {site.node: site for site in sites}
    biases = _kernel_biases(layers)
    changed: dict[str, Callable[[], npt.NDArray[Any]]] = {}
    parts: dict[str, list[tuple[View, npt.NDArray[np.float32]]]] = {}
    for node in reference.graph:
        if node.op_type not in (*_NORMS, "Add", "MatMul"):
            continue
        site = by_node.get(str(node.name))
        if module_of(node) in untouched or (site is not None and site.module in layers):
            continue
        for value in node.inputs:
            view = None if value is None else view_of(value.const_value)
            if view is None:
                continue
            wanted = view.array()
            candidates = [
                x
                for v in held.get(str(node.name), ())
                if (x := constant(v)) is not None and x.shape == wanted.shape
            ]
            if (name := view.stored.name) in biases:
                candidates.append(_slice(biases[name], view))
            if not candidates and str(node.name) not in artifact.plan.nodes:
                raise _foreign(name, "the artifact has no such tensor", source)
            if not candidates:
                raise not_held(name, "has no counterpart in the artifact", "one of its shape")
            if not any(np.array_equal(x, wanted) for x in candidates):
                parts.setdefault(name, []).append((view, np.asarray(candidates[0], np.float32)))
    for name, pieces in parts.items():
        changed[name] = functools.partial(_as_stored, pieces)
    return changed


def _kernel_biases(layers: Mapping[str, Layer]) -> dict[str, npt.NDArray[np.float32]]:
    """Biases that kernels add themselves, by their name in the checkpoint."""
    found = {}
    for module, layer in layers.items():
        pieces = [part.bias() for part in layer.parts]
        if all(piece is not None for piece in pieces):
            found[f"{module}.bias"] = np.concatenate([x for x in pieces if x is not None])
    return found


def _slice(whole: npt.NDArray[np.float32], view: View) -> npt.NDArray[np.float32]:
    return whole if view.span is None else whole[view.span[1] : view.span[2]]


def _as_stored(pieces: list[tuple[View, npt.NDArray[np.float32]]]) -> npt.NDArray[np.float32]:
    """The checkpoint's own form of tensors that the graph has as views."""
    whole = np.array(pieces[0][0].stored.read(), np.float32)
    for view, array in pieces:
        piece = (array.T if view.transposed else array) - np.float32(view.offset)
        if view.span is None:
            whole[...] = piece
        else:
            axis, begin, end = view.span
            whole[(slice(None),) * axis + (slice(begin, end),)] = piece
    return whole
