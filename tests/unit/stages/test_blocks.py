"""A walk by block: each sees what the rounded blocks before it give, and float's answer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch")

from graph_text import with_weights
from qcompiler.algorithms.rtn import round_to_nearest
from qcompiler.analysis.blocks import Block, repeated_blocks
from qcompiler.ir.edit import constant, name_everything
from qcompiler.lift import lift
from qcompiler.numerics.qtensor import QTensor
from qcompiler.runtime.session import open_session, run
from qcompiler.schemes import QSpec
from qcompiler.stages.blocks import BlockVisit, walk_blocks
from qcompiler.stages.cut import Site
from qcompiler_models.tiny import feeds, transformer

SPEC = QSpec.parse("s4c@1")


def rounded_weights(visit: BlockVisit) -> dict[Site, QTensor]:
    return {
        (str(node.name), 1): round_to_nearest(array, SPEC)
        for node in visit.nodes
        if node.op_type == "MatMul" and (array := constant(node.inputs[1])) is not None
    }


def outputs_of(model: ir.Model, names: list[str], feed: Mapping[str, np.ndarray]) -> dict:
    if not names:
        return {}
    copy = model.clone()
    made = {output.name: output for node in copy.graph for output in node.outputs}
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(made[name] for name in names)
    return run(open_session(copy), feed)


@pytest.mark.parametrize("memory", [1 << 30, 0])
def test_blocks_see_rounded_inputs_and_float_targets(memory: int) -> None:
    model = transformer(layers=3)
    name_everything(model)
    blocks = repeated_blocks(model.graph)
    data = feeds("transformer", 2)
    seen = []

    def visit(block: BlockVisit) -> dict[Site, QTensor]:
        assert len(block.samples) == len(block.targets) == len(data)
        for index, feed in enumerate(data):
            inputs = outputs_of(rounded, [v.name for v in block.inputs if v.producer()], feed)
            for value, found in zip(block.inputs, block.samples[index], strict=True):
                if value.producer() is not None:
                    np.testing.assert_allclose(
                        found.numpy(), inputs[value.name], rtol=1e-4, atol=1e-5
                    )
            wanted = outputs_of(model, [v.name for v in block.outputs], feed)
            for value, target in zip(block.outputs, block.targets[index], strict=True):
                np.testing.assert_allclose(target.numpy(), wanted[value.name], rtol=1e-4, atol=1e-5)
        lifted = lift(block.nodes, inputs=block.inputs, outputs=block.outputs)
        assert len(lifted(*block.samples[0])) == len(block.outputs)
        seen.append(block.name)
        weights = rounded_weights(block)
        for node in rounded.graph:
            tensor = weights.get((str(node.name), 1))
            if tensor is not None:
                node.inputs[1].const_value = ir.tensor(tensor.dequantize(), name=node.name)
        return weights

    rounded = model.clone()
    assert walk_blocks(model, blocks, data, visit, memory=memory) == len(data)
    assert seen == [block.name for block in blocks]
    assert len(seen) > 1


def test_text_that_crosses_blocks_is_none_of_their_samples() -> None:
    eye = np.eye(8, dtype=np.float32)
    model = with_weights(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[N,8] x, string[N] names, float[8,8] v, float[8,8] w)
            => (float[N,8] y, string[N] told) {
            a = MatMul(x, v)
            told = Identity(names)
            y = MatMul(a, w)
        }""",
        {"v": eye, "w": eye},
    )
    name_everything(model)
    first, text, second = list(model.graph)
    seen = []

    def visit(block: BlockVisit) -> dict[Site, QTensor]:
        seen.append([value.name for value in (*block.inputs, *block.outputs)])
        assert len(block.samples[0]) == len(block.inputs)
        assert len(block.targets[0]) == len(block.outputs)
        return {}

    feed = {"x": np.ones((2, 8), np.float32), "names": np.array(["a", "b"], object)}
    blocks = [Block("all", (first, text, second))]
    assert walk_blocks(model, blocks, [feed], visit) == 1
    assert seen == [["x", "y"]]
