"""Verify a saved artifact again, beside its float model."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

from qcompiler.artifact import Artifact
from qcompiler.pipeline.contract import State
from qcompiler.recipe import Recipe
from qcompiler.report.model import Report
from qcompiler.targets.registry import load_target
from qcompiler.targets.schema import Form
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
        data: Feeds as for calibration; None uses example or generated inputs.
        threads: Intra-op threads; None is the runtime's default.

    Returns:
        The artifact's report with ``fidelity``, ``kernels``, ``latency``, ``profile`` and the QC6xx
        diagnostics replaced.

    Raises:
        QcError: The float model or the data cannot be used, or the artifact does not load.
    """
    from qcompiler.calibration.feeds import open_feeds
    from qcompiler.frontends import open_model
    from qcompiler.runtime.inputs import generate_feed, input_specs

    whole = open_model(against)
    opened = whole.part(artifact.model)
    recipe = Recipe.of(artifact.manifest["recipe"])
    if data is not None and whole.encoder is not None:
        from qcompiler.calibration.encoder_decoder import part_feeds

        heard, read = part_feeds(data, whole.encoder.model, whole.model, recipe.verify.feeds)
        data = read if opened is whole else heard
    if data is not None:
        feeds = open_feeds(data, input_specs(opened.model))
        samples = list(itertools.islice(feeds, recipe.verify.feeds))
    else:
        samples = [opened.example or generate_feed(opened.model, recipe.seed)]
    state = State(
        load_target(artifact.plan.target),
        recipe,
        Form(artifact.plan.form),
        sample=samples[0],
        plan=artifact.plan,
        session=artifact.settings,
    )
    checked = check_artifact(
        opened.model, artifact.model, state, samples, threads=threads, source=opened.source
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
