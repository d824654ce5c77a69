"""TEQ through the whole compiler."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from learning import FEEDS, error_of
from qcompiler import qcompile
from qcompiler.diagnostics import Code, QcError
from qcompiler_models import tiny


def compiled(algorithm="teq", feeds=FEEDS, **options):
    recipe = {
        "base": "weight-int4",
        "embeddings": False,
        "weights": {"group_size": 16, "symmetric": False, "bits": 4, "algorithm": algorithm},
        "teq": {"iters": 40, "batch_size": 2, "lr": 0.05, "insert": True, **options},
    }
    return qcompile(tiny.transformer(layers=4), "cpu-vnni", recipe, feeds, check=True)


def test_it_is_nearer_to_float_than_rounding_to_nearest():
    artifact = compiled()
    assert error_of(artifact) < error_of(compiled("rtn"))
    told = [d for d in artifact.report.diagnostics if d.code is Code.SALIENT_SCALED]
    assert told
    assert all(d.values["after"] < d.values["before"] for d in told)


def test_no_steps_change_nothing_and_are_told():
    artifact = compiled(iters=0)
    np.testing.assert_allclose(error_of(artifact), error_of(compiled("rtn")), rtol=1e-6)
    codes = {d.code for d in artifact.report.diagnostics}
    assert Code.SALIENT_KEPT in codes
    assert Code.SALIENT_SCALED not in codes


def test_it_needs_data():
    with pytest.raises(QcError, match="QC410"):
        compiled(feeds=None)
