"""Real models in the lifted form, after the float passes, give what ONNX Runtime gives."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qcompiler_models import load_model

torch = pytest.importorskip("torch")

from qcompiler.frontends import open_model
from qcompiler.lift import lift
from qcompiler.pipeline.contract import Phase, State
from qcompiler.pipeline.registry import default_pipeline
from qcompiler.pipeline.run import run_pipeline
from qcompiler.recipe import Recipe
from qcompiler.runtime.session import open_session, run
from qcompiler.targets.registry import load_target
from qcompiler.targets.schema import Form

RELATIVE = 1e-4  # of the largest output; hundreds of float32 layers summed in other orders
ABSOLUTE = 1e-6  # the runtime's sigmoid is a rational approximation, off by 1e-7 near 0
Feed = dict[str, np.ndarray]


def prepared(name: str) -> ir.Model:
    model = open_model(load_model(name).onnx()).model
    state = State(load_target("cpu-vnni"), Recipe(), Form.ORT)
    passes = [item for item in default_pipeline() if item.phase is Phase.FLOAT]
    run_pipeline(passes, model, state, check=False)
    return model


def image(*shape: int) -> Feed:
    return {"x": np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)}


def sentences(batch: int, length: int) -> Feed:
    rng = np.random.default_rng(0)
    mask = np.ones((batch, length), np.int64)
    mask[-1, length // 2 :] = 0
    ids = rng.integers(0, 30000, (batch, length))
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "feeds"),
    [
        ("minilm", [sentences(1, 9), sentences(4, 24)]),
        ("efficientnet-lite0", [image(1, 3, 224, 224), image(2, 3, 224, 224)]),
        ("ppocr-rec", [image(1, 3, 48, 160), image(2, 3, 48, 96)]),
        ("ppocr-det", [image(1, 3, 96, 128), image(2, 3, 64, 64)]),
    ],
)
def test_outputs_are_those_of_the_runtime(name: str, feeds: list[Feed]) -> None:
    model = prepared(name)
    lifted = lift(model.graph)
    session = open_session(model)
    names = [str(value.name) for value in lifted.inputs]
    for feed in feeds:
        feed = feed if len(names) > 1 else {names[0]: next(iter(feed.values()))}
        wanted = run(session, feed)
        with torch.no_grad():
            found = lifted(*[torch.from_numpy(feed[item]) for item in names])
        for value, got in zip(lifted.outputs, found, strict=True):
            want = wanted[str(value.name)]
            assert got.shape == want.shape
            assert np.abs(got.numpy() - want).max() <= RELATIVE * np.abs(want).max() + ABSOLUTE


@pytest.mark.slow
def test_gradients_of_a_whole_transformer_reach_every_weight_matrix() -> None:
    model = prepared("minilm")
    weights = [
        value
        for value in model.graph.initializers.values()
        if value.const_value is not None
        and value.const_value.dtype is ir.DataType.FLOAT
        and len(value.const_value.shape) == 2
    ]
    lifted = lift(model.graph, trainable=weights)
    feed = sentences(2, 8)
    outputs = lifted(*[torch.from_numpy(feed[str(value.name)]) for value in lifted.inputs])
    sum(output.square().sum() for output in outputs).backward()
    idle = [value.name for value in weights if not lifted.params[value].grad.abs().sum() > 0]
    assert len(weights) > 25
    assert not idle
