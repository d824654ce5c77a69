"""What the runtime really runs: the nodes of its optimized graph."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Iterator

import onnx
import onnx_ir as ir

from qcompiler.ir.walk import op_name
from qcompiler.runtime.session import open_session
from qcompiler.runtime.settings import SessionSettings

__all__ = ["SeenNode", "optimized_graph", "read_optimized"]


@dataclasses.dataclass(frozen=True, slots=True)
class SeenNode:
    """A node of the optimized graph.

    Attributes:
        name: Its name; the runtime makes up names for what it fuses.
        op: ``MatMul`` or ``com.microsoft:MatMulIntegerToFloat``.
        inputs: Names of the values it reads; "" for an absent one.
        outputs: Names of the values it gives.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def optimized_graph(
    model: ir.Model | str | os.PathLike[str], settings: SessionSettings
) -> tuple[SeenNode, ...]:
    """The graph after the runtime's optimizations under ``settings``, bodies last, in order.

    Args:
        model: A model, or the path of one.
        settings: The session options it is deployed with.

    Raises:
        QcError: QC606, the runtime refuses the model.
    """
    with tempfile.TemporaryDirectory(prefix="qcompiler-") as folder:
        path = pathlib.Path(folder) / "optimized.onnx"
        open_session(model, settings=settings, threads=1, optimized_path=path)
        return read_optimized(path)


def read_optimized(path: pathlib.Path) -> tuple[SeenNode, ...]:
    """The nodes of the graph that a session wrote to its ``optimized_path``, bodies last."""
    return tuple(_seen(onnx.load(path, load_external_data=False).graph))


def _seen(graph: onnx.GraphProto) -> Iterator[SeenNode]:
    # not by onnx_ir, which builds a graph of all that is read here once
    for node in graph.node:
        yield SeenNode(node.name, op_name(node), tuple(node.input), tuple(node.output))
    for node in graph.node:
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _seen(body)
