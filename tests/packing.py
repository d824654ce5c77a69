"""Decoders of few bits before passes that pack products, and those passes by themselves."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from decoders import decoder
from qcompiler import qcompile
from qcompiler.pipeline.contract import Pass, State
from qcompiler.pipeline.registry import default_pipeline, pipeline_text
from qcompiler.recipe import Recipe
from qcompiler.targets.registry import load_target
from qcompiler.targets.schema import Form

WEIGHTS = {"bits": 4, "group_size": 16, "symmetric": True}


def compiled_without(passes: tuple[str, ...], name: str, **changes: Any) -> ir.Model:
    recipe = {
        "base": "weight-int4",
        "weights": WEIGHTS,
        "pipeline": pipeline_text([item for item in default_pipeline() if item.name not in passes]),
        "verify": {"enabled": False},
        **changes,
    }
    return qcompile(decoder(name), "cpu-amx", recipe).model


def packed_by(item: Pass, model: ir.Model, form: Form = Form.ORT) -> ir.Model:
    packed = model.clone()
    item.run(packed, State(load_target("cpu-amx"), Recipe(), form))
    return packed
