"""Matrix products in pieces."""

import numpy as np
import pytest

from qcompiler.numerics.products import small_product


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (3, 128, 2), (85, 300, 64), (7, 129, 4000), (0, 5, 3), (4, 0, 3)]
)
def test_the_pieces_make_the_product(shape: tuple[int, int, int]) -> None:
    rows, depth, width = shape
    rng = np.random.default_rng(0)
    left = rng.standard_normal((rows, depth), np.float32)
    right = rng.standard_normal((depth, width), np.float32)
    product = small_product(left, right)
    assert product.dtype == np.float32
    np.testing.assert_allclose(product, left.astype(np.float64) @ right, rtol=1e-4, atol=1e-4)
