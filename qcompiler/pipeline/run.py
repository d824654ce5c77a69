"""Run a pipeline: check its order, time it, dump it; in check mode hold passes to their word."""

from __future__ import annotations

import dataclasses
import difflib
import logging
import os
import pathlib
import time
from collections.abc import Callable, Sequence

import onnx_ir as ir

from qcompiler.diagnostics import Code, QcError
from qcompiler.ir.edit import collect_names
from qcompiler.ir.legality import violations
from qcompiler.ir.provenance import user_nodes
from qcompiler.ir.text import model_text
from qcompiler.pipeline.contract import Fact, Pass, Phase, State
from qcompiler.pipeline.registry import pipeline_text

__all__ = ["Compare", "PassTiming", "check_order", "run_pipeline"]

_LOG = logging.getLogger(__name__)

Compare = Callable[[ir.Model, ir.Model, State], str | None]


@dataclasses.dataclass(frozen=True, slots=True)
class PassTiming:
    """What one pass took.

    Attributes:
        name: Pipeline text of the pass.
        phase: Its phase, in lower case.
        seconds: Wall time.
        modified: Whether it changed the model.
        nodes: Nodes of the main graph afterwards.
    """

    name: str
    phase: str
    seconds: float
    modified: bool
    nodes: int


def check_order(passes: Sequence[Pass], state: State) -> None:
    """Refuse a pipeline in which a pass needs what no earlier one gives.

    Raises:
        QcError: QC407, naming the pass and the missing facts.
    """
    have = {fact for fact in Fact if state.has(fact)}
    phase = Phase.FLOAT
    for item in passes:
        missing = sorted(fact.value for fact in item.needs - have)
        if missing:
            raise QcError(
                Code.PASS_ORDER,
                item.name,
                f"needs {', '.join(missing)}, which no earlier pass gives",
                "put a pass that gives it before; `qcompile passes` lists what each gives",
            )
        if item.phase < phase:
            raise QcError(
                Code.PASS_ORDER,
                item.name,
                f"belongs to phase {item.phase.name.lower()}, stands behind {phase.name.lower()}",
            )
        phase = item.phase
        have = (have - item.drops) | item.gives


def run_pipeline(
    passes: Sequence[Pass],
    model: ir.Model,
    state: State,
    *,
    check: bool | None = None,
    dump: pathlib.Path | None = None,
    compare: Compare | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[PassTiming]:
    """Run ``passes`` on ``model`` in place.

    Args:
        passes: In order.
        model: Edited in place; clone it first if you need the original.
        state: Facts and diagnostics are added to it.
        check: Hold each pass to its claims (``modified``, legality, exactness, idempotence of
            float passes). None reads ``QC_CHECK``.
        dump: Folder for a text of the model after each pass that changed it, and the diff. None
            reads ``QC_DUMP``.
        compare: In check mode, compares the models before and after an exact pass and returns what
            differs, or None.
        progress: Called with each pass's name before it runs, and by long passes on their way.

    Returns:
        A timing per pass.

    Raises:
        QcError: QC407 wrong order, QC901 a broken contract; what passes raise gets a note naming
            the pass.
    """
    check = bool(os.environ.get("QC_CHECK")) if check is None else check
    if dump is None and os.environ.get("QC_DUMP"):
        dump = pathlib.Path(os.environ["QC_DUMP"])
    check_order(passes, state)
    state.progress = progress
    timings = []
    text = model_text(model) if check or dump is not None else ""
    users = user_nodes(model)
    collect_names(model)
    for index, item in enumerate(passes):
        if progress is not None:
            progress(item.name)
        before_model = model.clone() if check and item.exact and compare else None
        started = time.perf_counter()
        try:
            result = item.run(model, state)
        except Exception as error:
            ran = pipeline_text(passes[:index]) or "none"
            if hasattr(error, "add_note"):
                error.add_note(f"in pass {item.name}; passes before it: {ran}")
            raise
        seconds = time.perf_counter() - started
        state.diagnostics.extend(result.diagnostics)
        if result.modified:
            before_users, users = users, user_nodes(model)
            for name in before_users - users:
                state.removed[name] = item.name
            collect_names(model)
        timings.append(
            PassTiming(
                pipeline_text([item]),
                item.phase.name.lower(),
                seconds,
                result.modified,
                len(model.graph),
            )
        )
        _LOG.debug("%s: %.3f s, modified %s", item.name, seconds, result.modified)
        before_text = text
        if check or (dump is not None and result.modified):
            text = model_text(model)
        if dump is not None and result.modified:
            _dump(dump, index, item, seconds, before_text, text)
        if check:
            changed = text != before_text
            _check(item, model, state, result.modified, changed, before_model, compare)
    return timings


def _dump(
    folder: pathlib.Path, index: int, item: Pass, seconds: float, before: str, after: str
) -> None:
    try:
        _write_dump(folder, index, item, seconds, before, after)
    except OSError as error:
        raise QcError(
            Code.NOT_WRITABLE,
            str(folder),
            f"dumps cannot be written: {error.strerror or error}",
            "choose another folder",
        ) from error


def _write_dump(
    folder: pathlib.Path, index: int, item: Pass, seconds: float, before: str, after: str
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    head = f"# after {pipeline_text([item])} ({seconds:.3f} s)\n"
    (folder / f"{index:02d}-{item.name}.txt").write_text(head + after, encoding="utf-8")
    diff = difflib.unified_diff(
        before.splitlines(), after.splitlines(), "before", item.name, lineterm=""
    )
    (folder / f"{index:02d}-{item.name}.diff").write_text("\n".join(diff), encoding="utf-8")


def _check(
    item: Pass,
    model: ir.Model,
    state: State,
    modified: bool,
    changed: bool,
    before_model: ir.Model | None,
    compare: Compare | None,
) -> None:
    if modified != changed:
        said = "modified" if modified else "not modified"
        raise QcError(Code.PASS_CONTRACT, item.name, f"says {said}; the text says otherwise")
    if item.phase in (Phase.DECIDE, Phase.MEASURE, Phase.WEIGHTS) and modified:
        raise QcError(Code.PASS_CONTRACT, item.name, "edited the graph in a phase that may not")
    broken = violations(model)
    if broken:
        raise QcError(Code.PASS_CONTRACT, item.name, f"left an illegal graph: {broken[0]}")
    missing = sorted(fact.value for fact in item.gives if not state.has(fact))
    if missing:
        raise QcError(Code.PASS_CONTRACT, item.name, f"promised {', '.join(missing)}")
    if modified and before_model is not None and compare is not None:
        difference = compare(before_model, model, state)
        if difference is not None:
            raise QcError(Code.PASS_CONTRACT, item.name, f"is not exact: {difference}")
    if modified and item.phase is Phase.FLOAT:
        again = model.clone()
        collect_names(again)
        if item.run(again, dataclasses.replace(state, diagnostics=[])).modified:
            raise QcError(Code.PASS_CONTRACT, item.name, "changes the graph again on a second run")
