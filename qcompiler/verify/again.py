"""Verify a saved artifact again, beside its float model."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

from qcompiler.artifact import Artifact
from qcompiler.pipeline.contract import State
from qcompiler.recipe import Recipe
from qcompiler.report.model import Report
from qcompiler.runtime.trial_feeds import runnable_feed
from qcompiler.targets.registry import load_target
from qcompiler.targets.schema import Form
from qcompiler.verify.beside import float_side
from qcompiler.verify.check import check_artifact

__all__ = ["verify_artifact"]


def verify_artifact(
    artifact: Artifact, against: Any, data: Any = None, *, threads: int | None = None
) -> Report:
    """A fresh report of an artifact: fidelity, kernels and latency measured now.

    Args:
        artifact: What to verify; of an encoder-decoder one of its ``parts``.
        against: The float model, anything :func:`qcompiler.qcompile` takes, or what
            :func:`qcompiler.frontends.open_model` made of it.
        data: Feeds as for calibration, text too; None uses example or generated inputs.
        threads: Intra-op threads; None is the runtime's default.

    Returns:
        The artifact's report with ``fidelity``, ``kernels``, ``latency``, ``profile`` and the QC6xx
        diagnostics replaced.

    Raises:
        QcError: The float model or the data cannot be used, or the artifact does not load.
    """
    recipe = Recipe.of(artifact.manifest["recipe"])
    beside = float_side(artifact, against, data, most=recipe.verify.feeds)
    if beside.feeds is not None:
        samples = list(itertools.islice(beside.feeds, recipe.verify.feeds))
    else:
        samples = [beside.example or runnable_feed(beside.model, recipe.seed)]
    state = State(
        load_target(artifact.plan.target),
        recipe,
        Form(artifact.plan.form),
        sample=samples[0],
        plan=artifact.plan,
        session=artifact.settings,
    )
    checked = check_artifact(
        beside.model, artifact.model, state, samples, threads=threads, source=beside.file
    )
    kept = [d for d in artifact.report.diagnostics if not d.code.id.startswith("QC6")]
    return dataclasses.replace(
        artifact.report,
        fidelity=tuple(item.to_dict() for item in checked.fidelity),
        kernels=checked.proof.to_dict() if checked.proof else {},
        latency=checked.latency,
        profile=checked.profile,
        diagnostics=(*kept, *checked.diagnostics),
    )
