"""The second moment against a product in float64, whatever the sizes."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.algorithms.second_moment import SecondMoment


@pytest.mark.parametrize("channels", [1, 127, 128, 300])
@pytest.mark.parametrize("counts", [[1], [4096], [5000, 1, 4095], [0, 7]])
def test_equals_the_product(channels: int, counts: list[int]) -> None:
    rng = np.random.default_rng(channels)
    parts = [rng.standard_normal((2, count, channels), np.float32) for count in counts]
    moment = SecondMoment(channels)
    for part in parts:
        moment.update(part)
    rows = np.concatenate([part.reshape(-1, channels) for part in parts]).astype(np.float64)
    wanted = rows.T @ rows
    found = moment.sum()
    assert moment.rows == len(rows)
    assert np.array_equal(found, found.T)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-4 * len(rows) ** 0.5)


def test_goes_on_behind_a_look() -> None:
    rows = np.random.default_rng(0).standard_normal((10, 200), np.float32)
    moment = SecondMoment(200)
    moment.update(rows[:4])
    moment.sum()
    moment.update(rows[4:])
    np.testing.assert_allclose(moment.sum(), rows.T @ rows, rtol=1e-4, atol=1e-4)
