"""Scales that learn from the float model, through the whole compiler."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from graph_text import with_weights
from learning import FEEDS, error_of
from qcompiler import Artifact, qcompile
from qcompiler.diagnostics import Code, QcError
from qcompiler_models import tiny

WEIGHTS = {"group_size": 16, "symmetric": True, "bits": 3}


def compiled(
    algorithm: str = "rtn", steps: int = 24, calibration: Any = FEEDS, work: Any = None, **keys: Any
) -> Artifact:
    recipe = {
        "base": "weight-int4",
        "embeddings": False,
        "weights": {**WEIGHTS, "algorithm": algorithm},
        "distill": {"steps": steps, "lr": 5e-3, "batch_size": 2},
        "verify": {"guard": False},
        **keys,
    }
    return qcompile(tiny.transformer(layers=4), "cpu-vnni", recipe, calibration, work=work)


def told(artifact: Artifact, code: Code) -> list[Any]:
    return [item for item in artifact.report.diagnostics if item.code is code]


@pytest.mark.parametrize("algorithm", ["rtn", "gptq"])
def test_outputs_come_nearer_to_float_and_integers_stay(algorithm: str) -> None:
    feeds = tiny.feeds("transformer", 24)
    plain, learned = (compiled(algorithm, steps, feeds) for steps in (0, 24))
    assert error_of(learned) < 0.9 * error_of(plain)
    (said,) = told(learned, Code.SCALES_LEARNED)
    assert said.values["after"] < said.values["before"]
    assert (said.values["steps"], said.values["held_out"]) == (24, 3)
    assert not told(plain, Code.SCALES_LEARNED)
    before, after = (
        {name: value.const_value.numpy() for name, value in item.model.graph.initializers.items()}
        for item in (plain, learned)
    )
    assert before.keys() == after.keys()
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved
    assert all("scale" in name for name in moved)


@pytest.mark.parametrize("hides", [False, True])
def test_products_are_in_bfloat16_where_that_hides_nothing(
    hides: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qcompiler.distillation import student

    monkeypatch.setattr(student, "computes_bfloat16", lambda device: True)
    monkeypatch.setattr(student, "_HIDDEN", 0.0 if hides else 0.5)
    used, learn = set(), student.Student.learn

    def watched(model: Any, samples: Any) -> float:
        used.add(model.half_precision)
        return learn(model, samples)

    monkeypatch.setattr(student.Student, "learn", watched)
    learned = compiled(calibration=tiny.feeds("transformer", 24))
    assert used == {not hides}
    assert error_of(learned) < 0.9 * error_of(compiled(steps=0))


def test_logits_before_the_end_stay_what_they_were_from_step_to_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from qcompiler.distillation import student

    rng = np.random.default_rng(0)
    weights = {
        name: rng.normal(size=(64, 64)).astype(np.float32) / 8
        for index in range(4)
        for name in (f"a{index}", f"b{index}")
    }
    lines, value = [], "x"
    for index in range(4):
        after = "logits" if index == 1 else "y" if index == 3 else f"h{index}"
        lines += [
            f"u{index} = MatMul({value}, a{index})",
            f"r{index} = Relu(u{index})",
            f"d{index} = MatMul(r{index}, b{index})",
            f"{after} = Add({value}, d{index})",
        ]
        value = after
    declared = ", ".join(f"float[64,64] {name}" for name in weights)
    model = with_weights(
        f"""<ir_version: 10, opset_import: ["" : 21]>
        g (float[N,64] x, {declared}) => (float[N,64] logits, float[N,64] y) {{
            {" ".join(lines)}
        }}""",
        weights,
    )
    for number, node in enumerate(model.graph):
        module = node.metadata_props["qcompiler.module"] = f"layers.{number // 4}"
        node.name = f"{module}.{('up', 'act', 'down', 'add')[number % 4]}"
    losses: list[float] = []
    mean_loss = student.Student.mean_loss

    def twice(model: Any, samples: Any) -> float:
        losses.extend((mean_loss(model, samples), mean_loss(model, samples)))
        return losses[-1]

    monkeypatch.setattr(student.Student, "mean_loss", twice)
    feeds = [{"x": rng.normal(size=(16, 64)).astype(np.float32)} for _ in range(8)]
    recipe = {"base": "w4-rtn", "weights": {"group_size": 16}, "distill": {"steps": 8}}
    artifact = qcompile(model, "cpu-vnni", recipe, feeds)
    assert losses[::2] == losses[1::2]
    assert losses[-1] < losses[0]
    (said,) = told(artifact, Code.SCALES_LEARNED)
    kept = {item.where for item in told(artifact, Code.SCALES_KEPT)}
    assert kept == {f"layers.{index}.{name}" for index in (2, 3) for name in ("up", "down")}
    assert said.values["layers"] == 4


def test_a_compile_that_was_killed_goes_on_to_the_same_scales(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qcompiler.distillation import scales

    taken, last, step = 0, 13, scales._Training.step

    def counted(*given: Any) -> float:
        nonlocal taken
        if taken == last:
            raise KeyboardInterrupt
        taken += 1
        return step(*given)

    plain = compiled()
    monkeypatch.setattr(scales._Training, "step", counted)
    with pytest.raises(KeyboardInterrupt):
        compiled(work=tmp_path)
    taken, last = 0, 99
    again = compiled(work=tmp_path)
    assert taken == 24 - 8  # 8 of the 13 were kept
    taken = 0
    whole = compiled(work=tmp_path)
    assert taken == 0
    for feed in FEEDS:
        for name, wanted in plain.run(feed).items():
            np.testing.assert_array_equal(again.run(feed)[name], wanted)
            np.testing.assert_array_equal(whole.run(feed)[name], wanted)
    compiled(work=tmp_path, seed=1)
    assert taken == 24


def test_scales_that_something_else_depends_on_stay_and_that_is_told() -> None:
    double = {"weights": {**WEIGHTS, "double_quant": {"bits": 8, "group_size": 16}}}
    artifact = compiled(**double)
    layers = {n.node for n in artifact.plan if n.op == "MatMul" and n.verdict == "quantized"}
    said = told(artifact, Code.SCALES_KEPT)
    assert {item.where for item in said} == layers
    assert all("double_quant" in item.message for item in said)
    (float_reader, *_) = said
    assert float_reader.hint == ""


def test_a_decoder_learns_on_its_logits() -> None:
    pytest.importorskip("transformers")
    from decoders import decoder, decoder_feed, tokens
    from qcompiler.runtime.inputs import input_specs

    recipe = {"base": "w4-rtn", "weights": {"bits": 3, "group_size": 16}, "embeddings": True}
    recipe |= {"verify": {"guard": False}, "text": {"samples": 24, "length": 12}}
    model, rows = decoder("llama-tied"), tokens(24, 12)
    plain = qcompile(model, "cpu-vnni", recipe, rows)
    distill = {"steps": 24, "lr": 5e-3}
    learned = qcompile(model, "cpu-vnni", {**recipe, "distill": distill}, rows)
    (said,) = told(learned, Code.SCALES_LEARNED)
    assert said.values["after"] < 0.97 * said.values["before"]
    assert said.values["layers"] == 2 * 7 + 1

    def divergence(artifact: Artifact) -> float:
        """Of what comes next in other texts, nats."""
        exact = qcompile(model, "cpu-vnni", "float")
        specs, total = input_specs(artifact.model), 0.0
        for row in tokens(6, 12, seed=5):
            feed = decoder_feed(row[None], np.ones((1, 12), np.int64), None, specs)
            p, q = (torch.from_numpy(item.run(feed)["logits"]) for item in (exact, artifact))
            log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
            total += float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
        return total

    assert divergence(learned) < divergence(plain)


def test_it_needs_data() -> None:
    with pytest.raises(QcError, match=r"QC410 distill\.steps: .*no data"):
        compiled(calibration=None)


def test_keys_without_steps_are_told() -> None:
    artifact = compiled(steps=0, distill={"lr": 1e-2})
    assert "distill.lr" in [item.where for item in told(artifact, Code.KEY_UNUSED)]
    static = {"base": "static-int8", "distill": {"steps": 3}}
    artifact = qcompile(tiny.transformer(), "cpu-vnni", static, FEEDS)
    assert "distill.steps" in [item.where for item in told(artifact, Code.KEY_UNUSED)]


def test_one_sample_is_learned_and_judged_and_that_is_told() -> None:
    (said,) = told(compiled(calibration=FEEDS[:1]), Code.SCALES_LEARNED)
    assert "on the only sample" in said.message
    assert said.values["held_out"] == 0


def test_a_step_that_is_too_large_costs_nothing() -> None:
    wild = compiled(distill={"steps": 8, "lr": 1e4, "batch_size": 2})
    (said,) = told(wild, Code.SCALES_KEPT)
    assert said.where == "distill"
    assert "smaller distill.lr" in said.hint
    assert error_of(wild) == error_of(compiled(steps=0))


def test_weights_that_lose_nothing_learn_nothing() -> None:
    model = with_weights(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (float[N,32] x, float[32,16] w) => (float[N,16] y) { [fc] y = MatMul(x, w) }""",
        {"w": np.random.default_rng(0).choice([-8, 8], (32, 16)).astype(np.float32)},
    )
    feeds = [{"x": np.eye(32, dtype=np.float32)}] * 8
    recipe = {"base": "w4-rtn", "weights": {"group_size": 16}, "distill": {"steps": 3}}
    artifact = qcompile(model, "cpu-vnni", recipe, feeds)
    said = told(artifact, Code.SCALES_KEPT)
    assert [item.where for item in said] == ["distill"]
    assert "nothing to learn" in said[0].message


def test_layers_before_what_has_no_gradient_keep_their_scales_and_that_is_told() -> None:
    rng = np.random.default_rng(0)
    model = with_weights(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (float[N,32] x, bool c, float[32,16] w, float[16,16] v) => (float[N,16] y) {
            [fc] h = MatMul(x, w)
            k = If (c) <
                then_branch = t () => (float[N,16] a) { a = Relu(h) },
                else_branch = e () => (float[N,16] b) { b = Neg(h) }
            >
            [behind] y = MatMul(k, v)
        }""",
        {
            "w": rng.normal(size=(32, 16)).astype(np.float32),
            "v": rng.normal(size=(16, 16)).astype(np.float32),
        },
    )
    feeds = [
        {"x": rng.normal(size=(64, 32)).astype(np.float32), "c": np.array(True)} for _ in range(8)
    ]
    recipe = {"base": "w4-rtn", "weights": {"group_size": 16}, "distill": {"steps": 8}}
    artifact = qcompile(model, "cpu-vnni", recipe, feeds)
    (kept,) = told(artifact, Code.SCALES_KEPT)
    assert kept.where == "fc"
    assert "If" in kept.message
    (said,) = told(artifact, Code.SCALES_LEARNED)
    assert said.values["layers"] == 1


def test_outputs_that_are_no_floats_teach_nothing_and_that_is_told() -> None:
    rng = np.random.default_rng(0)
    model = with_weights(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (float[N,32] x, float[32,16] w, float[32,16] v) => (int64[N] best, float[N,16] y) {
            [scores] s = MatMul(x, w)
            best = ArgMax <axis = 1, keepdims = 0> (s)
            [other] y = MatMul(x, v)
        }""",
        {name: rng.normal(size=(32, 16)).astype(np.float32) for name in "wv"},
    )
    feeds = [{"x": rng.normal(size=(64, 32)).astype(np.float32)} for _ in range(8)]
    recipe = {"base": "w4-rtn", "weights": {"group_size": 16}, "distill": {"steps": 8}}
    artifact = qcompile(model, "cpu-vnni", recipe, feeds)
    (kept,) = told(artifact, Code.SCALES_KEPT)
    assert kept.where == "scores"
    assert "no gradient" in kept.message
    (said,) = told(artifact, Code.SCALES_LEARNED)
    assert said.values["layers"] == 1
