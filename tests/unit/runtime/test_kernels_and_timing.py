"""What the runtime runs, and how fast."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from qcompiler.diagnostics import Code, QcError
from qcompiler.runtime.kernels import optimized_graph
from qcompiler.runtime.session import open_session
from qcompiler.runtime.settings import SessionSettings
from qcompiler.runtime.timing import clear_round, compare_latency


def model(text: str) -> ir.Model:
    return ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["": 20]>
        g (float[n, 64] x) => (float[n, 64] y) {{ {text} }}"""
    )


def test_the_nodes_are_those_after_the_runtimes_optimizations() -> None:
    chain = model("a = Identity(x) b = Relu(a) y = Clip(b)")
    chain.graph[1].name = "the_relu"
    plain = optimized_graph(chain, SessionSettings("disable"))
    assert [node.op for node in plain] == ["Identity", "Relu", "Clip"]
    assert plain[1].name == "the_relu"
    assert (plain[1].inputs, plain[1].outputs) == (("a",), ("b",))
    assert "Identity" not in [node.op for node in optimized_graph(chain, SessionSettings("all"))]


def test_other_domains_are_named_with_the_operator() -> None:
    erf = model(
        """half = Constant<value_float=0.5>() one = Constant<value_float=1.0>()
        root = Constant<value_float=1.4142135>() d = Div(x, root) e = Erf(d) s = Add(e, one)
        m = Mul(x, s) y = Mul(m, half)"""
    )
    ops = [node.op for node in optimized_graph(erf, SessionSettings("all"))]
    assert ops == ["com.microsoft:Gelu"] or ops == ["Gelu"]


def test_a_model_the_runtime_refuses_is_told() -> None:
    with pytest.raises(QcError) as error:
        optimized_graph(model("y = NoSuchOperator(x)"), SessionSettings())
    assert error.value.code is Code.DOES_NOT_LOAD


def many_erfs_and_one() -> tuple[ort.InferenceSession, ort.InferenceSession]:
    chain = " ".join(f"v{i} = Erf({'x' if i == 0 else f'v{i - 1}'})" for i in range(40))
    return (
        open_session(model(chain + " y = Erf(v39)"), threads=1),
        open_session(model("y = Erf(x)"), threads=1),
    )


def test_the_slower_session_shows_in_the_ratio() -> None:
    feed = {"x": np.ones((64, 64), np.float32)}
    found = compare_latency(*many_erfs_and_one(), feed, 0.05)
    assert found.ratio > 3
    assert found.a_ms > found.b_ms > 0
    assert 3 <= found.runs <= 200


def test_at_least_three_rounds_are_run() -> None:
    session = open_session(model("y = Erf(x)"), threads=1)
    found = compare_latency(session, session, {"x": np.ones((1, 64), np.float32)}, 0.0)
    assert found.runs == 3


def test_what_is_clear_is_not_measured_to_the_end() -> None:
    feed = {"x": np.ones((2048, 64), np.float32)}
    found = compare_latency(*many_erfs_and_one(), feed, 3600.0, until_clear=True)
    assert found.ratio > 3
    assert found.runs >= 2


def test_what_is_not_clear_is_measured_to_the_end() -> None:
    session = open_session(model("y = Erf(x)"), threads=1)
    feed = {"x": np.ones((64, 64), np.float32)}
    assert compare_latency(session, session, feed, 3600.0, until_clear=True).runs == 200


def test_a_feed_that_does_not_fit_is_told() -> None:
    session = open_session(model("y = Erf(x)"), threads=1)
    with pytest.raises(QcError):
        compare_latency(session, session, {"x": np.ones((1, 3), np.float32)}, 0.01)


def test_the_median_of_clear_rounds_is_chosen() -> None:
    assert clear_round([0.9, 0.3, 0.6], [0.30, 0.103, 0.19]) == 0  # ratios 3.0, 2.91, 3.16


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([], []),
        ([0.9, 0.9], [0.3, 0.3]),  # two rounds may be chance
        ([0.9, 0.9, 0.9], [0.3, 0.3, 0.8]),  # one is not a quarter faster
        ([0.009, 0.9, 0.9], [0.003, 0.3, 0.3]),  # one is too short for the profiler
    ],
)
def test_rounds_that_leave_doubt_choose_nothing(a: list[float], b: list[float]) -> None:
    assert clear_round(a, b) is None
