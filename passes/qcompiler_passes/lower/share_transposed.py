"""Float weights that are another constant transposed take that one's place in the file."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from qcompiler.ir.edit import Tape
from qcompiler.ir.lazy import View, view_of
from qcompiler.pipeline.contract import Pass, PassResult, Phase, State
from qcompiler_passes.lower.to_ort import UNPACKING_SETTINGS

__all__ = ["ShareTransposed"]


@dataclasses.dataclass(frozen=True)
class ShareTransposed(Pass):
    """Store an embedding table and the float output layer that is tied to it once.

    While the compiler works they are two views of one array; two constants of a file would be two
    arrays. The runtime folds the Transpose when it loads the model.

    Given::

        %e = Gather(%table, %ids);  %y = MatMul(%x, %table_transposed)

    Result::

        %e = Gather(%table, %ids);  %t = Transpose(%table);  %y = MatMul(%x, %t)
    """

    name: ClassVar[str] = "share-transposed"
    phase: ClassVar[Phase] = Phase.LOWER

    def run(self, model: ir.Model, state: State) -> PassResult:
        """The main graph's constants, wherever they are read."""
        graph = model.graph
        tables: dict[View, ir.Value] = {}
        columns: list[tuple[ir.Value, View]] = []
        for value in graph.initializers.values():
            view = view_of(value.const_value)
            if view is None or len(view.shape) != 2 or not value.uses():
                continue
            if view.transposed:
                columns.append((value, dataclasses.replace(view, transposed=False)))
            else:
                tables[view] = value
        shared = [(value, tables[view]) for value, view in columns if view in tables]
        for value, table in shared:
            tape = Tape(graph, value.name or "")
            value.replace_all_uses_with(tape.op("Transpose", table, perm=[1, 0]))
            graph.insert_before(graph[0], tape.nodes)
            del graph.initializers[value.name or ""]
        if shared and state.session.level == "disable":
            state.session = UNPACKING_SETTINGS
        return PassResult(bool(shared))
