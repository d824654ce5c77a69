"""Run passes on graphs written as text, held to their contracts, and compare what they compute."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import onnxruntime

from qcompiler.ir.edit import name_everything
from qcompiler.ir.provenance import mark_origins
from qcompiler.ir.text import model_text
from qcompiler.pipeline.contract import Pass, State
from qcompiler.pipeline.run import run_pipeline
from qcompiler.recipe import Recipe
from qcompiler.targets.schema import Form, Target
from qcompiler_passes.float.canonicalize_linear import CanonicalizeLinear
from qcompiler_passes.float.fold_batch_norm import FoldBatchNorm
from qcompiler_passes.float.fold_constants import FoldConstants
from qcompiler_passes.float.raise_opset import RaiseOpset
from qcompiler_passes.float.remove_dead import RemoveDead
from qcompiler_passes.float.remove_no_ops import RemoveNoOps
from qcompiler_passes.float.share_duplicates import ShareDuplicates

Feed = Mapping[str, np.ndarray]

CLEANING: tuple[Pass, ...] = (
    RaiseOpset(),
    FoldConstants(),
    RemoveNoOps(),
    ShareDuplicates(),
    CanonicalizeLinear(),
    FoldBatchNorm(),
    RemoveDead(),
)


def state(
    opset: int = 23, runtime: str = "onnxruntime", form: Form = Form.ORT, **of_target
) -> State:
    target = Target(
        "tested",
        runtime,
        "for tests",
        form,
        opset,
        kernels=of_target.pop("kernels", ()),
        **of_target,
    )
    return State(target=target, recipe=Recipe(), form=form)


def parse(body: str, opset: int = 23, domains: str = "") -> ir.Model:
    """A model from ``name (inputs) => (outputs) <initializers> { nodes }``."""
    return opened(
        ir.from_onnx_text(f'<ir_version: 10, opset_import: ["": {opset}{domains}]> {body}')
    )


def opened(model: ir.Model) -> ir.Model:
    """A named copy with provenance, as a front end leaves it."""
    copy = model.clone()
    name_everything(copy)
    mark_origins(copy)
    return copy


def rewrite(model: ir.Model, *passes: Pass, given: State | None = None) -> ir.Model:
    """A copy after ``passes``, each checked: ``modified`` is true, legal graph, idempotent."""
    result = model.clone()
    run_pipeline(passes, result, given or state(), check=True)
    return result


def both(model: ir.Model, *passes: Pass, given: State | None = None) -> str:
    """Text before and after."""
    after = model_text(rewrite(model, *passes, given=given))
    names = ",".join(item.name for item in passes)
    return f"{model_text(model)}--- after {names} ---\n{after}"


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def run(model: ir.Model, feed: Feed) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, dict(feed))


def worst(before: ir.Model, after: ir.Model, feed: Feed) -> float:
    """Largest difference relative to the largest number, over all outputs; NaN must meet NaN."""
    result = 0.0
    for old, new in zip(run(before, feed), run(after, feed), strict=True):
        assert old.shape == new.shape
        assert old.dtype == new.dtype
        np.testing.assert_array_equal(np.isnan(old), np.isnan(new))
        scale = float(np.nanmax(np.abs(old))) or 1.0
        with np.errstate(invalid="ignore"):  # equal infinities
            result = max(result, float(np.nanmax(np.abs(old - new))) / scale)
    return result
