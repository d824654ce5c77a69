"""Quantization operators of the lifted form give the reference's results."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lifted_case import EXAMPLES, Case, agree


@given(st.data())
@EXAMPLES
def test_quantize_and_dequantize(data: st.DataObject) -> None:
    case = Case(data.draw)
    x = case.floats(2, 4, 3)
    dtype = case.pick(np.uint8, np.int8, np.uint16, np.int16)
    attributes: dict[str, Any] = {}
    shape: tuple[int, ...] = ()
    if case.flag():
        attributes["axis"] = case.pick(1, 2, -2)
        shape = (x.shape[attributes["axis"]],)
    elif case.flag():
        attributes, shape = {"axis": 1, "block_size": 2}, (2, 2, 3)
    scale = case.floats(*shape, low=0.01, high=0.05)
    zero = case.rng.integers(0, 20, shape).astype(dtype)
    agree(case, "QuantizeLinear", [x, scale, zero], attributes)
    q = case.rng.integers(0, 100, x.shape).astype(dtype)
    agree(case, "DequantizeLinear", [q, scale, zero], attributes)


@given(st.data())
@EXAMPLES
def test_dynamic_quantize(data: st.DataObject) -> None:
    case = Case(data.draw)
    agree(case, "DynamicQuantizeLinear", [case.floats(3, 4)], outputs=3)
