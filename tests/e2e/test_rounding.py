"""EfficientNet-Lite0 with one scale per weight, which is all that simple NPUs have."""

from __future__ import annotations

import functools

import pytest

from qcompiler import qcompile
from qcompiler.pipeline.registry import default_pipeline, pipeline_text
from qcompiler_models import load_model

pytestmark = pytest.mark.slow


@functools.cache
def score(rounding: str, iterations: int = 0) -> dict[str, float]:
    model = load_model("efficientnet-lite0")
    recipe = {
        "base": "static-int8",
        "weights": {"granularity": "tensor", "rounding": rounding},
        "verify": {"enabled": False},
    }
    if iterations:
        limited = f"learn-rounding{{iterations={iterations}}}"
        text = pipeline_text(default_pipeline()).replace("learn-rounding", limited)
        recipe["pipeline"] = text
    artifact = qcompile(model.onnx(), "cpu-vnni", recipe, model.calibration(), check=False)
    return model.score(artifact.run)


def test_one_scale_per_weight_agrees_with_float_on_nine_pictures_of_ten() -> None:
    assert score("moment")["agreement"] >= 0.90


def test_a_few_steps_of_learning_bring_it_nearer() -> None:
    pytest.importorskip("torch")
    learned = score("adaround", 20)
    assert learned["agreement"] >= 0.90
    assert learned["kl"] < 0.95 * score("moment")["kl"]  # 0.90; 0.76 after 40 steps
