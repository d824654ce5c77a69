"""Stages of small graphs: each value as in the whole graph, every product once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import pytest

from qcompiler.algorithms.rtn import round_to_nearest
from qcompiler.diagnostics import Code, QcError
from qcompiler.ir.edit import constant, name_everything
from qcompiler.numerics.qtensor import QTensor
from qcompiler.runtime.session import open_session, run
from qcompiler.schemes import QSpec
from qcompiler.stages.cut import LayerGroup, Site, cut, groups_of
from qcompiler.stages.walk import Observer, walk
from qcompiler_models.tiny import MODELS, build, feeds

SPEC = QSpec.parse("s4c@1")
NAMES = [name for name in MODELS if "half" not in name]


class Rounding(Observer):
    """Keeps what it sees and rounds to nearest."""

    def __init__(self, group: LayerGroup) -> None:
        self.group = group
        self.seen: list[np.ndarray] = []

    def update(self, x: np.ndarray) -> None:
        self.seen.append(x)

    def finish(self) -> Mapping[Site, QTensor]:
        return {(node.name or "", 1): nearest(node) for node in self.group.nodes}


def nearest(node: ir.Node) -> QTensor:
    weight = constant(node.inputs[1])
    assert weight is not None
    return round_to_nearest(weight, SPEC)


def layers(model: ir.Model) -> list[ir.Node]:
    return [
        node
        for node in model.graph
        if node.op_type == "MatMul"
        and (array := constant(node.inputs[1])) is not None
        and array.dtype == np.float32
    ]


def named(name: str) -> ir.Model:
    model = build(name)
    name_everything(model)
    return model


def whole(model: ir.Model, values: list[str], feed: Mapping[str, np.ndarray]) -> dict:
    """The values in the model with all layers rounded, in one session."""
    copy = model.clone()
    for node in layers(copy):
        weight = node.inputs[1]
        assert weight is not None
        rounded = ir.tensor(nearest(node).dequantize(), name=f"{node.name}/r")
        fresh = ir.Value(name=rounded.name, const_value=rounded, shape=weight.shape)
        copy.graph.register_initializer(fresh)
        node.replace_input_with(1, fresh)
    made = {output.name: output for node in copy.graph for output in node.outputs}
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(made[value] for value in values)
    return run(open_session(copy), feed)


@pytest.mark.parametrize("memory", [1 << 30, 0])
@pytest.mark.parametrize("name", NAMES)
def test_layers_see_what_the_rounded_model_gives(name: str, memory: int) -> None:
    model, data = named(name), feeds(name)[:3]
    groups = groups_of(layers(model))
    if not groups:
        assert walk(model, groups, data, Rounding) == 0
        return
    observers = {group.value.name or "": Rounding(group) for group in groups}
    count = walk(
        model, groups, data, lambda g: observers[g.value.name or ""], mask="", memory=memory
    )
    assert count == len(data)
    inner = [value for value in observers if value not in {v.name for v in model.graph.inputs}]
    for index, feed in enumerate(data):
        wanted = {**feed, **(whole(model, inner, feed) if inner else {})}
        for value, observer in observers.items():
            np.testing.assert_allclose(
                observer.seen[index], wanted[value], atol=2e-4, err_msg=value
            )


@pytest.mark.parametrize("name", NAMES)
def test_no_node_runs_twice_and_none_before_its_weights(name: str) -> None:
    model = named(name)
    groups = groups_of(layers(model))
    stages = cut(model.graph, groups)
    count = Counter(node.name for stage in stages for node in stage.nodes)
    assert not count or max(count.values()) == 1
    at = {node: index for index, stage in enumerate(stages) for node in stage.nodes}
    depth = {group.value: i for i, stage in enumerate(stages) for group in stage.groups}
    assert sorted(depth.values()) == sorted(depth[group.value] for group in groups)
    for group in groups:
        assert all(at[node] > depth[group.value] for node in group.nodes if node in at)


def test_layers_whose_weights_are_known_are_not_watched() -> None:
    model, data = named("transformer"), feeds("transformer")[:1]
    groups = groups_of(layers(model))
    known = {(node.name or "", 1): nearest(node) for g in groups for node in g.nodes}
    assert walk(model, groups, data, lambda _: known, mask="") == 0
    last = Rounding(groups[-1])
    walk(model, groups, data, lambda g: last if g is groups[-1] else known, mask="")
    value = groups[-1].value.name or ""
    np.testing.assert_allclose(last.seen[0], whole(model, [value], data[0])[value], atol=2e-4)


def test_no_feed_is_an_error() -> None:
    model = named("mlp")
    with pytest.raises(QcError) as found:
        walk(model, groups_of(layers(model)), [], Rounding)
    assert found.value.code is Code.EMPTY_CALIBRATION
