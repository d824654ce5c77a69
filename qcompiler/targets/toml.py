"""Targets as TOML files: the same dataclasses, written and read back.

A file may start from a target: ``base = "cpu-vnni"``. Its own keys then take the place of the
base's; ``options``, ``fixed`` and ``costs`` are merged by key, ``kernels`` and ``traps`` by id.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qcompiler.diagnostics import Code, QcError, nearest
from qcompiler.schemes import QSpec
from qcompiler.targets.conditions import CONDITIONS
from qcompiler.targets.schema import (
    CacheType,
    Carry,
    Cost,
    Form,
    Kernel,
    Scheme,
    Target,
    Trap,
    Unify,
)

__all__ = ["dict_to_toml", "from_toml", "target_from_dict", "target_to_dict", "to_toml"]

_ROWS: Mapping[str, type[Any]] = {
    "kernels": Kernel,
    "carries": Carry,
    "unifies": Unify,
    "traps": Trap,
    "caches": CacheType,
}
_TABLES = ("options", "fixed", "costs")


def to_toml(target: Target) -> str:
    """The target as a TOML file; :func:`from_toml` reads the equal target back."""
    return dict_to_toml(target_to_dict(target))


def dict_to_toml(data: Mapping[str, Any]) -> str:
    """Some or all keys of :func:`target_to_dict`, and maybe ``base``, as a TOML file."""
    lines = [
        f"{key} = {_toml(value)}"
        for key, value in data.items()
        if key not in _TABLES and key not in _ROWS
    ]
    for table in ("options", "fixed"):
        if data.get(table):
            lines += ["", f"[{table}]"]
            lines += [f"{_key(key)} = {_toml(value)}" for key, value in data[table].items()]
    for name in _ROWS:
        for row in data.get(name, ()):
            lines += ["", f"[[{name}]]", *(f"{key} = {_toml(value)}" for key, value in row.items())]
    for name, cost in data.get("costs", {}).items():
        lines += ["", f"[costs.{_key(name)}]"]
        lines += [f"{key} = {_toml(value)}" for key, value in cost.items()]
    return "\n".join(lines) + "\n"


def from_toml(text: str, where: str, load: Callable[[str], Target] | None = None) -> Target:
    """Read a target file.

    Args:
        text: Its content.
        where: Its path, for messages.
        load: Finds the target that ``base`` names; None: no base is allowed.

    Raises:
        QcError: QC409, naming the key that is wrong.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]
    try:
        data = tomllib.loads(text)
    except ValueError as error:
        raise QcError(Code.TARGET_FILE, where, f"does not parse as TOML: {error}") from error
    base = data.pop("base", None)
    if base is not None:
        if load is None or not isinstance(base, str):
            raise QcError(Code.TARGET_FILE, where, f"base = {base!r} cannot be used here")
        data = _merge(target_to_dict(load(base)), data)
    return target_from_dict(data, where)


def target_to_dict(target: Target) -> dict[str, Any]:
    """A JSON-able form; :func:`target_from_dict` reads it back."""
    data = {field.name: _plain(getattr(target, field.name)) for field in _fields(Target)}
    for name in _ROWS:
        data[name] = [_row_to_dict(row) for row in getattr(target, name)]
    data["costs"] = {name: _row_to_dict(cost) for name, cost in target.costs.items()}
    return data


def target_from_dict(data: Mapping[str, Any], where: str) -> Target:
    """Read what :func:`target_to_dict` wrote, strictly.

    Raises:
        QcError: QC409, naming the key that is wrong.
    """
    values = _known(data, Target, where, "")
    for name, row in _ROWS.items():
        items = _expect(values.get(name, ()), Sequence, where, name, "an array of tables")
        values[name] = tuple(
            _read(item, row, where, f"{name}[{index}]") for index, item in enumerate(items)
        )
    for name in _TABLES:
        values[name] = dict(_expect(values.get(name, {}), Mapping, where, name, "a table"))
    values["costs"] = {
        key: _read(item, Cost, where, f"costs.{key}") for key, item in values["costs"].items()
    }
    values["fixed"] = {
        op: _interval(item, where, f"fixed.{op}") for op, item in values["fixed"].items()
    }
    target: Target = _build(Target, values, where, "")
    _check_ids(target, where)
    return target


def _check_ids(target: Target, where: str) -> None:
    seen: set[str] = set()
    for row in target.kernels:
        if row.id in seen:
            raise QcError(Code.TARGET_FILE, where, f"two kernels have the id {row.id!r}")
        seen.add(row.id)


def _fields(kind: type[Any]) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(kind)


def _row_to_dict(row: Any) -> dict[str, Any]:
    """The fields of a row that differ from their defaults."""
    data = {}
    for field in _fields(type(row)):
        value = getattr(row, field.name)
        if field.default is dataclasses.MISSING or value != field.default:
            data[field.name] = _plain(value)
    return data


def _plain(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, (Form, Scheme)):
        return value.value
    if isinstance(value, QSpec):
        return str(value)
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        if key in _TABLES and isinstance(value, Mapping):
            merged[key] = {**base[key], **value}
        elif key in _ROWS and isinstance(value, list):
            name = "id" if key in ("kernels", "traps") else "op"
            mine = {row.get(name): row for row in value if isinstance(row, Mapping)}
            kept = [mine.pop(row[name], row) for row in base[key]]
            merged[key] = [*kept, *mine.values()]
        else:
            merged[key] = value
    return merged


def _known(data: Any, kind: type[Any], where: str, path: str) -> dict[str, Any]:
    table = _expect(data, Mapping, where, path, "a table")
    names = {field.name for field in _fields(kind)}
    for key in table:
        if key not in names:
            full = f"{path}.{key}" if path else key
            raise QcError(Code.TARGET_FILE, where, f"unknown key {full!r}", nearest(key, names))
    for field in _fields(kind):
        required = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if required and field.name not in table:
            full = f"{path}.{field.name}" if path else field.name
            raise QcError(Code.TARGET_FILE, where, f"lacks the key {full!r}")
    return dict(table)


def _read(data: Any, kind: type[Any], where: str, path: str) -> Any:
    return _build(kind, _known(data, kind, where, path), where, path)


def _build(kind: type[Any], values: Mapping[str, Any], where: str, path: str) -> Any:
    built = {}
    for field in _fields(kind):
        if field.name not in values:
            continue
        full = f"{path}.{field.name}" if path else field.name
        reader = _BY_NAME.get(field.name) or _READERS.get(str(field.type))
        value = values[field.name]
        built[field.name] = value if reader is None else reader(value, where, full)
    try:
        return kind(**built)
    except ValueError as error:
        place = f"{path}." if path else ""
        raise QcError(Code.TARGET_FILE, where, f"{place}{error}") from error


def _expect(value: Any, kind: type[Any], where: str, path: str, wanted: str) -> Any:
    wrong_text = kind is not str and isinstance(value, str)
    if wrong_text or not isinstance(value, kind) or isinstance(value, bool):
        place = f"{path} = " if path else ""
        raise QcError(Code.TARGET_FILE, where, f"{place}{value!r}, wanted {wanted}")
    return value


def _text(value: Any, where: str, path: str) -> str:
    return str(_expect(value, str, where, path, "a text"))


def _number(value: Any, where: str, path: str) -> float:
    number = float(_expect(value, (int, float), where, path, "a number"))  # type: ignore[arg-type]
    if not math.isfinite(number) or number < 0:
        raise QcError(Code.TARGET_FILE, where, f"{path} = {value!r}, wanted a number >= 0")
    return number


def _integer(value: Any, where: str, path: str) -> int:
    return int(_expect(value, int, where, path, "a whole number"))


def _flag(value: Any, where: str, path: str) -> bool:
    if not isinstance(value, bool):
        raise QcError(Code.TARGET_FILE, where, f"{path} = {value!r}, wanted true or false")
    return value


def _bits(value: Any, where: str, path: str) -> int | None:
    return None if value in ("", None) else _integer(value, where, path)


def _texts(value: Any, where: str, path: str) -> tuple[str, ...]:
    items = _expect(value, Sequence, where, path, "an array of texts")
    return tuple(_text(item, where, f"{path}[{i}]") for i, item in enumerate(items))


def _spec(value: Any, where: str, path: str) -> QSpec | None:
    text = "" if value is None else _text(value, where, path)
    try:
        return QSpec.parse(text) if text else None
    except ValueError as error:
        raise QcError(Code.TARGET_FILE, where, f"{path}: {error}") from error


def _specs(value: Any, where: str, path: str) -> tuple[QSpec | None, ...]:
    items = _expect(value, Sequence, where, path, 'an array of specs such as "u8tz" ("": float)')
    return tuple(_spec(item, where, f"{path}[{i}]") for i, item in enumerate(items))


def _member(kind: type[Form | Scheme]) -> Callable[[Any, str, str], Any]:
    def read(value: Any, where: str, path: str) -> Any:
        known = [member.value for member in kind]
        if value not in known:
            raise QcError(
                Code.TARGET_FILE, where, f"{path} = {value!r}", nearest(str(value), known)
            )
        return kind(value)

    return read


def _forms(value: Any, where: str, path: str) -> tuple[Form, ...]:
    read = _member(Form)
    return tuple(read(item, where, path) for item in _texts(value, where, path))


def _conditions(value: Any, where: str, path: str) -> tuple[str, ...]:
    return tuple(_condition(name, where, path) for name in _texts(value, where, path))


def _condition(value: Any, where: str, path: str) -> str:
    name = _text(value, where, path)
    if name not in CONDITIONS:
        raise QcError(
            Code.TARGET_FILE, where, f"{path}: no condition {name!r}", nearest(name, CONDITIONS)
        )
    return name


def _interval(value: Any, where: str, path: str) -> tuple[float, float]:
    items = _expect(value, Sequence, where, path, "[lo, hi]")
    if len(items) != 2 or not all(isinstance(item, (int, float)) for item in items):
        raise QcError(Code.TARGET_FILE, where, f"{path} = {value!r}, wanted [lo, hi]")
    return float(items[0]), float(items[1])


def _points(value: Any, where: str, path: str) -> tuple[tuple[float, float], ...]:
    wanted = "[[rows, nanoseconds], ...] with ascending rows"
    points = []
    for item in _expect(value, Sequence, where, path, wanted):
        pair = _expect(item, Sequence, where, path, wanted)
        if len(pair) != 2:
            raise QcError(Code.TARGET_FILE, where, f"{path}: {item!r}, wanted {wanted}")
        points.append((_number(pair[0], where, path), _number(pair[1], where, path)))
    rows = [row for row, _ in points]
    if rows != sorted(set(rows)) or (rows and rows[0] <= 0):
        raise QcError(Code.TARGET_FILE, where, f"{path} = {value!r}, wanted {wanted}")
    return tuple(points)


_READERS: Mapping[str, Callable[[Any, str, str], Any]] = {
    # by the annotation of the field in schema.py; rows and tables are read before
    "str": _text,
    "float": _number,
    "int": _integer,
    "bool": _flag,
    "int | None": _bits,
    "Form": _member(Form),
    "Scheme": _member(Scheme),
    "QSpec | None": _spec,
    "tuple[QSpec | None, ...]": _specs,
    "tuple[Form, ...]": _forms,
    "tuple[str, ...]": _texts,
    "tuple[tuple[float, float], ...]": _points,
}

_BY_NAME: Mapping[str, Callable[[Any, str, str], Any]] = {
    "conditions": _conditions,
    "condition": _condition,
}


def _key(name: str) -> str:
    bare = name.replace("-", "").replace("_", "")
    return name if bare.isalnum() and bare.isascii() else json.dumps(name)


def _toml(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)  # TOML's basic strings have JSON's escapes
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return repr(value)
