"""One lifted operator against the ONNX reference evaluator, on operands that hypothesis draws.

Importing it skips a test file where torch is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from onnx import helper

torch = pytest.importorskip("torch")
torch.set_num_threads(1)  # operands are tiny

from qcompiler.lift import lift

RTOL = ATOL = 2e-5  # float32 sums of a few dozen terms, added in different orders
Draw = Callable[[st.SearchStrategy[Any]], Any]
Array = np.ndarray
EXAMPLES = settings(max_examples=25, deadline=None, derandomize=True)


class Case:
    """One node with its operands, drawn by hypothesis."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.rng = np.random.default_rng(draw(st.integers(0, 2**16)))

    def integer(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def flag(self) -> int:
        return int(self.draw(st.booleans()))

    def pick(self, *options: Any) -> Any:
        return self.draw(st.sampled_from(options))

    def shape(self, low: int = 1, high: int = 4) -> tuple[int, ...]:
        return tuple(self.draw(st.lists(st.integers(1, 4), min_size=low, max_size=high)))

    def floats(self, *shape: int, low: float = -3.0, high: float = 3.0) -> Array:
        return self.rng.uniform(low, high, shape).astype(np.float32)

    def tied(self, *shape: int) -> Array:
        """Few distinct values, so that ties and zeros happen."""
        return self.rng.integers(-2, 3, shape).astype(np.float32)

    def broadcastable(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        start = self.integer(0, len(shape))
        return tuple(size if self.flag() else 1 for size in shape[start:])

    def axis(self, shape: tuple[int, ...]) -> int:
        return self.integer(-len(shape), len(shape) - 1)

    def axes(self, shape: tuple[int, ...], smallest: int = 0) -> list[int]:
        places = st.integers(0, len(shape) - 1)
        chosen = self.draw(st.lists(places, min_size=smallest, max_size=len(shape), unique=True))
        return [place - len(shape) if self.flag() else place for place in chosen]


def agree(
    case: Case,
    op_type: str,
    inputs: list[Any],
    attributes: dict[str, Any] | None = None,
    *,
    outputs: int = 1,
    opset: int = 23,
    data: int = 1,
    tolerance: float = 1.0,
    by_runtime: bool = False,
) -> None:
    """Lifted and reference results are equal. Operands behind the first ``data`` may be constant.

    ``by_runtime`` asks ONNX Runtime, where the reference evaluator is known to err (comment at the
    call).
    """
    names = [f"x{index}" if array is not None else "" for index, array in enumerate(inputs)]
    constant = {
        index
        for index, array in enumerate(inputs)
        if array is not None and index >= data and case.flag()
    }
    results = [f"y{index}" for index in range(outputs)]
    node = helper.make_node(op_type, names, results, name="node", **(attributes or {}))
    typed = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(np.asarray(array).dtype), np.shape(array)
        )
        for index, (name, array) in enumerate(zip(names, inputs, strict=True))
        if array is not None and index not in constant
    ]
    graph = helper.make_graph(
        [node],
        "g",
        typed,
        [onnx.ValueInfoProto(name=name) for name in results],
        [onnx.numpy_helper.from_array(np.asarray(inputs[i]), names[i]) for i in sorted(constant)],
    )
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    feed = {item.name: np.asarray(inputs[int(item.name[1:])]) for item in typed}
    with np.errstate(all="ignore"):
        wanted = runtime(model, feed) if by_runtime else _reference(model, feed)
    found = lift(ir.from_proto(model).graph)(
        *[torch.from_numpy(np.array(a)) for a in feed.values()]
    )
    for want, got in zip(wanted, found, strict=True):
        want, got = np.asarray(want), got.numpy()
        assert got.shape == want.shape
        if want.dtype != bool:  # the reference sometimes widens or narrows; kinds must agree
            assert got.dtype.kind == want.dtype.kind
        np.testing.assert_allclose(got, want, rtol=RTOL * tolerance, atol=ATOL * tolerance)


def _reference(model: onnx.ModelProto, feed: dict[str, Array]) -> list[Any]:
    return onnx.reference.ReferenceEvaluator(model).run(None, feed)


def runtime(model: onnx.ModelProto, feed: dict[str, Array]) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feed)


def with_fixed(op_type: str, inputs: list[Any], attributes: Any = None, **options: Any) -> None:
    """:func:`agree` on given operands, none of them constant."""

    class Fixed(Case):
        def __init__(self) -> None:
            self.rng = np.random.default_rng(0)

        def flag(self) -> int:
            return 0

    agree(Fixed(), op_type, inputs, attributes, **options)
