"""Which of the user's nodes a node stands for, kept as node metadata through every rewrite."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable

import onnx_ir as ir

from qcompiler.ir.walk import all_nodes

__all__ = [
    "SPEC",
    "forget_decisions",
    "inherit",
    "mark_origins",
    "module_of",
    "origins",
    "set_module",
    "user_nodes",
]

SPEC = "qcompiler.spec"  # on the DequantizeLinear of a weight: its spec

_OURS = "qcompiler."
_ORIGIN = "qcompiler.origin"
_MODULE = "qcompiler.module"
_LASTING = frozenset({SPEC, _ORIGIN, _MODULE})
_NO_MODULE = "_empty_nn_module_stack_from_metadata_hook"  # torch's name for "outside any module"
_SCOPES = "pkg.torch.onnx.name_scopes"  # written by torch.onnx.export(dynamo=True)


def forget_decisions(model: ir.Model) -> None:
    """Take off what an earlier compile stamped on its artifact for its own lowering."""
    for node in all_nodes(model):
        stamps = [key for key in node.metadata_props if key.startswith(_OURS)]
        for key in stamps:
            if key not in _LASTING:
                del node.metadata_props[key]


def mark_origins(model: ir.Model) -> None:
    """Stamp every node with its own name and torch module path; called once, at the door."""
    for node in all_nodes(model):
        if _ORIGIN not in node.metadata_props:
            node.metadata_props[_ORIGIN] = json.dumps([node.name])
        module = _torch_module(node)
        if module:
            node.metadata_props[_MODULE] = module


def origins(node: ir.Node) -> tuple[str, ...]:
    """Names of the user's nodes that ``node`` stands for, in their order; may be empty."""
    return _names(node.metadata_props.get(_ORIGIN, "[]"))


def module_of(node: ir.Node) -> str:
    """Module path of the torch model (``encoder.layer.3.output.dense``), or ""."""
    return node.metadata_props.get(_MODULE, "")


def set_module(node: ir.Node, path: str) -> None:
    """Say which module of the user's model a node belongs to, where no exporter wrote it."""
    node.metadata_props[_MODULE] = path


def inherit(new: Iterable[ir.Node], old: Iterable[ir.Node]) -> None:
    """Let each of ``new`` stand for all the user's nodes that ``old`` stood for."""
    old = list(old)
    names = [name for node in old for name in origins(node)]
    modules = [module_of(node) for node in old]
    for node in new:
        union = dict.fromkeys([*origins(node), *names])
        node.metadata_props[_ORIGIN] = json.dumps(list(union))
        module = _common_path([path for path in modules if path])
        if module and _MODULE not in node.metadata_props:
            node.metadata_props[_MODULE] = module


def user_nodes(model: ir.Model) -> set[str]:
    """All the user's node names that the model still stands for."""
    return {name for node in all_nodes(model) for name in origins(node)}


@functools.lru_cache(maxsize=1 << 16)  # the runner asks for all names before and after each pass
def _names(text: str) -> tuple[str, ...]:
    return tuple(json.loads(text))


def _torch_module(node: ir.Node) -> str:
    text = node.metadata_props.get(_SCOPES, "")
    if not text:
        return ""
    try:
        scopes = json.loads(text.replace("'", '"'))
    except ValueError:
        return ""
    # the scopes run from the model ("") to the innermost module, then the FX node itself
    if not isinstance(scopes, list) or len(scopes) < 2 or scopes[-2] == _NO_MODULE:
        return ""
    return str(scopes[-2])


def _common_path(paths: list[str]) -> str:
    if not paths:
        return ""
    split = [path.split(".") for path in paths]
    common = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common) or paths[0]
