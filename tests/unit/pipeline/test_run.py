from __future__ import annotations

import dataclasses
import importlib.metadata
import pathlib
from typing import ClassVar

import onnx_ir as ir
import pytest

from qcompiler import qcompile
from qcompiler.diagnostics import Code, QcError
from qcompiler.ir.edit import name_everything, remove_dead
from qcompiler.ir.provenance import mark_origins
from qcompiler.pipeline import registry
from qcompiler.pipeline.contract import Fact, Pass, PassResult, Phase, State
from qcompiler.pipeline.registry import default_pipeline, parse_pipeline, pipeline_text
from qcompiler.pipeline.run import check_order, run_pipeline
from qcompiler.recipe import Recipe
from qcompiler.targets.schema import Form, Target
from qcompiler_models import tiny

TEXT = """
<ir_version: 9, opset_import: ["" : 18]>
agraph (float[N,4] x) => (float[N,4] y)
{
    a = Relu(x)
    dead = Abs(x)
    y = Neg(a)
}
"""


def a_state(**facts: object) -> State:
    target = Target("t", "onnxruntime", "test", Form.ORT, 21, ())
    return State(target, Recipe(), Form.ORT, **facts)  # type: ignore[arg-type]


def a_model() -> ir.Model:
    model = ir.from_onnx_text(TEXT)
    name_everything(model)
    mark_origins(model)
    return model


@dataclasses.dataclass(frozen=True)
class Sweep(Pass):
    """Remove what nobody reads."""

    name: ClassVar[str] = "sweep"
    phase: ClassVar[Phase] = Phase.FLOAT

    def run(self, model: ir.Model, state: State) -> PassResult:
        return PassResult(remove_dead(model))


@dataclasses.dataclass(frozen=True)
class Liar(Pass):
    """Say that nothing changed."""

    name: ClassVar[str] = "liar"
    phase: ClassVar[Phase] = Phase.FLOAT
    strength: int = 1
    loud: bool = False

    def run(self, model: ir.Model, state: State) -> PassResult:
        remove_dead(model)
        return PassResult(modified=False)


@dataclasses.dataclass(frozen=True)
class Negate(Pass):
    """Change the result, though it says it is exact."""

    name: ClassVar[str] = "negate"
    phase: ClassVar[Phase] = Phase.PREPARE

    def run(self, model: ir.Model, state: State) -> PassResult:
        model.graph[-1].op_type = "Abs"
        return PassResult(modified=True)


@dataclasses.dataclass(frozen=True)
class Editor(Pass):
    """Edit where only decisions are allowed."""

    name: ClassVar[str] = "editor"
    phase: ClassVar[Phase] = Phase.DECIDE

    def run(self, model: ir.Model, state: State) -> PassResult:
        return PassResult(remove_dead(model))


@dataclasses.dataclass(frozen=True)
class NeedsPlan(Pass):
    """Need a plan."""

    name: ClassVar[str] = "needs-plan"
    phase: ClassVar[Phase] = Phase.MEASURE
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN})

    def run(self, model: ir.Model, state: State) -> PassResult:
        return PassResult(modified=False)


def test_the_runner_notes_which_pass_folded_a_node_away() -> None:
    state = a_state()
    timings = run_pipeline([Sweep()], a_model(), state, check=True)
    assert state.removed == {"Abs_1": "sweep"}
    assert [(t.name, t.modified, t.nodes) for t in timings] == [("sweep", True, 2)]


@pytest.mark.parametrize(
    ("item", "words"), [(Liar(), "says not modified"), (Editor(), "edited the graph")]
)
def test_a_pass_that_breaks_its_word_is_our_bug(item: Pass, words: str) -> None:
    with pytest.raises(QcError, match=words) as error:
        run_pipeline([item], a_model(), a_state(), check=True)
    assert error.value.code is Code.PASS_CONTRACT


def test_an_inexact_exact_pass_is_found_by_running_both_graphs() -> None:
    def compare(before: ir.Model, after: ir.Model, state: State) -> str | None:
        return None if before.graph[-1].op_type == after.graph[-1].op_type else "output y differs"

    with pytest.raises(QcError, match="is not exact: output y differs"):
        run_pipeline([Negate()], a_model(), a_state(), check=True, compare=compare)


def test_a_missing_fact_is_refused_before_any_work() -> None:
    with pytest.raises(QcError, match="needs plan, which no earlier pass gives"):
        check_order([Sweep(), NeedsPlan()], a_state())


def test_phases_out_of_order_are_refused() -> None:
    with pytest.raises(QcError, match="belongs to phase float"):
        check_order([Negate(), Sweep()], a_state())


def test_dumps_hold_the_text_and_the_diff(tmp_path: pathlib.Path) -> None:
    run_pipeline([Sweep()], a_model(), a_state(), check=False, dump=tmp_path)
    assert "%a = Relu" in (tmp_path / "00-sweep.txt").read_text()
    assert "-  %dead = Abs" in (tmp_path / "00-sweep.diff").read_text()


def plugin(monkeypatch: pytest.MonkeyPatch, value: str, group: str) -> None:
    """Let one more package be installed, which names ``value``."""
    point = importlib.metadata.EntryPoint("mine", value, group)
    points = importlib.metadata.entry_points

    def installed(**kept: str) -> list[importlib.metadata.EntryPoint]:
        return [*points(**kept), *([point] if kept.get("group") == group else [])]

    monkeypatch.setattr(importlib.metadata, "entry_points", installed)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("no_such_package:PASSES", "No module named 'no_such_package'"),
        ("qcompiler:NOTHING", "has no attribute 'NOTHING'"),
        ("qcompiler:Plan", "wanted classes of passes"),
        ("qcompiler.pipeline.registry:GROUP", "wanted classes of passes"),
    ],
)
def test_a_package_that_brings_no_passes_is_named(
    monkeypatch: pytest.MonkeyPatch, value: str, words: str
) -> None:
    plugin(monkeypatch, value, registry.GROUP)
    with pytest.raises(QcError, match=words) as error:
        registry.all_passes.__wrapped__()
    assert error.value.code is Code.UNKNOWN_PASS
    assert error.value.diagnostic.where == value


def test_pipeline_text_reads_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "all_passes", lambda: {"sweep": Sweep, "liar": Liar})
    text = "sweep,liar{strength=3 loud=true}"
    assert pipeline_text(parse_pipeline(text)) == text
    assert parse_pipeline("") == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sweap", "did you mean 'sweep'"),
        ("liar{strenth=1}", "did you mean 'strength'"),
        ("liar{strength=x}", "wanted a int"),
        ("liar{loud=perhaps}", "wanted a bool"),
        ("sweep;liar", "cannot read"),
    ],
)
def test_bad_pipeline_text_is_answered(
    monkeypatch: pytest.MonkeyPatch, text: str, words: str
) -> None:
    monkeypatch.setattr(registry, "all_passes", lambda: {"sweep": Sweep, "liar": Liar})
    with pytest.raises(QcError, match=words) as error:
        parse_pipeline(text)
    assert error.value.code is Code.UNKNOWN_PASS


def test_a_pipeline_without_the_pass_that_rounds_is_answered() -> None:
    text = pipeline_text(item for item in default_pipeline() if item.name != "round-in-stages")
    recipe = {"base": "w4-gptq", "weights": {"group_size": 16}, "pipeline": text}
    with pytest.raises(QcError, match=r"QC407.*gptq was planned"):
        qcompile(tiny.build("mlp"), "cpu-vnni", recipe, tiny.feeds("mlp", 8))
