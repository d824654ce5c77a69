"""Find passes through the entry-point group ``qcompiler.passes``, and read and print pipelines.

Pipeline text: ``fold-constants,fuse-gelu,assign-specs{prefer=speed}``.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import re
from collections.abc import Iterable, Mapping, Sequence

from qcompiler.diagnostics import Code, QcError, nearest
from qcompiler.pipeline.contract import Pass
from qcompiler.plugins import load_plugin

__all__ = ["all_passes", "default_pipeline", "parse_pipeline", "pipeline_text"]

GROUP = "qcompiler.passes"
_STEP = re.compile(r"\s*(?P<name>[a-z0-9-]+)\s*(?:\{(?P<options>[^{}]*)\})?\s*(?:,|$)")


@functools.cache
def all_passes() -> Mapping[str, type[Pass]]:
    """Every installed pass class by name, in the order of the default pipeline.

    An entry point names an iterable of pass classes; a pass goes behind the built-in ones of its
    phase. ``QcError`` QC406 when it names something else, or two passes have one name.
    """
    found: dict[str, type[Pass]] = {}
    points = importlib.metadata.entry_points(group=GROUP)
    for point in sorted(points, key=lambda point: (point.name != "builtin", point.name)):
        for cls in _pass_classes(point):
            if cls.name in found and found[cls.name] is not cls:
                raise QcError(
                    Code.UNKNOWN_PASS, point.value, f"a second pass is called {cls.name!r}"
                )
            found[cls.name] = cls
    ordered = sorted(found.values(), key=lambda cls: cls.phase)  # stable within a phase
    return {cls.name: cls for cls in ordered}


def _pass_classes(point: importlib.metadata.EntryPoint) -> tuple[type[Pass], ...]:
    found = load_plugin(point, Code.UNKNOWN_PASS)
    classes = tuple(found) if isinstance(found, Iterable) else (found,)
    for cls in classes:
        if not (isinstance(cls, type) and issubclass(cls, Pass)):
            raise QcError(
                Code.UNKNOWN_PASS,
                point.value,
                f"holds {cls!r:.80}, wanted classes of passes",
                "name a tuple of classes, each derived from qcompiler.pipeline.contract.Pass",
            )
    return classes


def default_pipeline() -> tuple[Pass, ...]:
    """Every installed pass that is on by default, with default options, phase by phase."""
    return tuple(cls() for cls in all_passes().values() if cls.default)


def parse_pipeline(text: str) -> tuple[Pass, ...]:
    """Read pipeline text.

    Raises:
        QcError: QC406, an unknown pass or option (with the nearest name), or text that does not
            parse.
    """
    passes, position = [], 0
    while position < len(text.strip()):
        found = _STEP.match(text, position)
        if found is None:
            raise QcError(
                Code.UNKNOWN_PASS,
                "pipeline",
                f"cannot read {text[position : position + 30]!r}",
                "write name,name{option=value}",
            )
        passes.append(_build(found["name"], found["options"] or ""))
        position = found.end()
    return tuple(passes)


def pipeline_text(passes: Iterable[Pass]) -> str:
    """The text that :func:`parse_pipeline` reads back; options at their defaults are left out."""
    return ",".join(_pass_text(item) for item in passes)


def _pass_text(item: Pass) -> str:
    changed = [
        f"{field.name}={_value_text(getattr(item, field.name))}"
        for field in dataclasses.fields(item)
        if getattr(item, field.name) != field.default
    ]
    return item.name + ("{" + " ".join(changed) + "}" if changed else "")


def _value_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _build(name: str, options: str) -> Pass:
    known = all_passes()
    if name not in known:
        raise QcError(Code.UNKNOWN_PASS, "pipeline", f"no pass {name!r}", nearest(name, known))
    fields = {field.name: field for field in dataclasses.fields(known[name])}
    given: dict[str, object] = {}
    for item in options.split():
        key, _, text = item.partition("=")
        if key not in fields:
            raise QcError(
                Code.UNKNOWN_PASS, name, f"the pass has no option {key!r}", nearest(key, fields)
            )
        given[key] = _convert(name, key, text, fields[key].default)
    return known[name](**given)


def _convert(name: str, key: str, text: str, default: object) -> object:
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[text.lower()]
        return type(default)(text)  # type: ignore[call-arg]
    except (KeyError, ValueError) as error:
        kind = type(default).__name__
        raise QcError(
            Code.UNKNOWN_PASS, name, f"option {key} = {text!r}, wanted a {kind}"
        ) from error


def names(passes: Sequence[Pass]) -> list[str]:
    """Names in order."""
    return [item.name for item in passes]
