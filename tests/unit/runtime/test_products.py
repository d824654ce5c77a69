"""Products by the runtime are those of numpy, however the matrices lie."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.runtime.products import product, small_product


@pytest.mark.parametrize("sizes", [(3, 4, 5), (90, 100, 110), (1, 300, 1000), (1000, 1, 300)])
@pytest.mark.parametrize("left_turned", [False, True])
@pytest.mark.parametrize("right_turned", [False, True])
def test_equals_numpy(sizes: tuple[int, int, int], left_turned: bool, right_turned: bool) -> None:
    m, k, n = sizes
    rng = np.random.default_rng(m)
    left, right = (
        rng.standard_normal(shape[::-1] if turned else shape, np.float32)
        for shape, turned in (((m, k), left_turned), ((k, n), right_turned))
    )
    left = left.T if left_turned else left
    right = right.T if right_turned else right
    np.testing.assert_allclose(product(left, right), left @ right, rtol=1e-4, atol=1e-4)


def test_takes_parts_of_matrices() -> None:
    array = np.random.default_rng(0).standard_normal((300, 400), np.float32)
    left, right = array[10:200, 5:105], array[100:200, 50:]
    np.testing.assert_allclose(product(left, right), left @ right, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(product(left.T, left), left.T @ left, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (85, 300, 64), (7, 129, 4000), (0, 5, 3), (4, 0, 3)])
def test_on_one_thread(sizes: tuple[int, int, int]) -> None:
    rows, depth, width = sizes
    rng = np.random.default_rng(0)
    left = rng.standard_normal((rows, depth), np.float32)
    right = rng.standard_normal((width, depth), np.float32).T
    found = small_product(left, right)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, left.astype(np.float64) @ right, rtol=1e-4, atol=1e-4)
