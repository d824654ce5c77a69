"""Distances between arrays."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qcompiler.numerics.error import cosine, max_abs, mse, sqnr_db

X = np.array([[1.0, -2.0], [3.0, 0.0]], np.float32)


def test_equal_arrays_are_not_apart() -> None:
    assert (mse(X, X), max_abs(X, X)) == (0.0, 0.0)
    assert cosine(X, X) == pytest.approx(1.0, abs=1e-12)
    assert sqnr_db(X, X) == math.inf


def test_known_values() -> None:
    y = X + np.float32(0.5)
    assert mse(X, y) == 0.25
    assert max_abs(X, y) == 0.5
    assert sqnr_db(X, y) == pytest.approx(10 * math.log10(14 / 1.0), abs=1e-9)
    assert cosine(np.array([1.0, 0.0]), np.array([1.0, 1.0])) == pytest.approx(math.sqrt(0.5))


def test_zeros() -> None:
    zero = np.zeros(3, np.float32)
    assert cosine(zero, zero) == 1.0
    assert cosine(zero, np.ones(3, np.float32)) == 0.0
    assert sqnr_db(zero, np.ones(3, np.float32)) == -math.inf


def test_float32_sums_do_not_lose_digits() -> None:
    ones = np.full(20_000_000, 1.0, np.float32)
    assert mse(ones, np.zeros_like(ones)) == 1.0


def test_empty_arrays() -> None:
    empty = np.zeros((0, 3), np.float32)
    assert mse(empty, empty) == 0.0
    assert max_abs(empty, empty) == 0.0
