"""Find a target: by name, by file, or the one that fits this machine."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import os
import pathlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from qcompiler.diagnostics import Code, QcError, nearest
from qcompiler.plugins import load_plugin
from qcompiler.targets.cuda import CUDA
from qcompiler.targets.generic_qdq import GENERIC_QDQ
from qcompiler.targets.host import Host, host, target_name
from qcompiler.targets.onnxruntime_arm64 import CPU_ARM64
from qcompiler.targets.onnxruntime_cpu import CPU_AMX, CPU_AVX2, CPU_AVX512, CPU_VNNI
from qcompiler.targets.openvino import OPENVINO
from qcompiler.targets.qnn_htp import QNN_HTP
from qcompiler.targets.schema import Target
from qcompiler.targets.tensorrt import TENSORRT
from qcompiler.targets.toml import dict_to_toml, from_toml, target_to_dict

if TYPE_CHECKING:
    from qcompiler.targets.probe import ProbeReport

__all__ = [
    "host_flags", "host_target", "load_target", "probe_file", "refuse_foreign", "save_probe",
    "target_names",
]  # fmt: skip

_HOST = "cpu"  # the name that means this machine
_BUILT_IN: Mapping[str, Target] = {
    target.name: target
    for target in (
        CPU_AMX,
        CPU_VNNI,
        CPU_AVX512,
        CPU_AVX2,
        CPU_ARM64,
        GENERIC_QDQ,
        TENSORRT,
        CUDA,
        OPENVINO,
        QNN_HTP,
    )
}
_BUSY = 3.0  # noise of a probe above which its costs would mislead more than the shipped ones
_PROBED = ("threads", "source", "costs")  # what a probe finds out
_GROUP = "qcompiler.targets"  # entry points by which other packages bring targets


def target_names() -> tuple[str, ...]:
    """Names that :func:`load_target` knows: ``cpu`` (this machine), built-in, of other packages."""
    return (_HOST, *_BUILT_IN, *sorted(entry.name for entry in _plugins()))


def load_target(target: str | os.PathLike[str] | Target) -> Target:
    """The target by name, by the path of a TOML file, or as it is.

    ``cpu`` is the machine this runs on; when ``qcompile probe --save`` measured it under the
    installed runtime, with those costs.

    Raises:
        QcError: QC401 for an unknown name, QC409 for a file that is not a target.
    """
    if isinstance(target, Target):
        return target
    if not isinstance(target, str | os.PathLike):
        raise QcError(
            Code.UNKNOWN_TARGET,
            "target",
            f"found a {type(target).__name__}, wanted a name, a path or a Target",
            nearest("", target_names()),
        )
    text = os.fspath(target)
    if text == _HOST:
        return host_target()
    if text in _BUILT_IN:
        return _BUILT_IN[text]
    if text.lower().endswith(".toml"):
        return _read(pathlib.Path(text))
    for entry in _plugins():
        if entry.name == text:
            found = load_plugin(entry, Code.UNKNOWN_TARGET)
            if isinstance(found, Target):
                return found
            raise QcError(Code.UNKNOWN_TARGET, text, f"{entry.value} is not a Target")
    raise QcError(Code.UNKNOWN_TARGET, text, f"no target {text!r}", nearest(text, target_names()))


def host_target() -> Target:
    """The CPU target of this machine, with the costs the user's probe kept when they still hold.

    Raises:
        QcError: QC401, the machine is neither x86-64 nor ARM64; QC409, what was kept is damaged.
    """
    cpu = _host()
    name = target_name(cpu)
    if name is None:
        raise QcError(
            Code.UNKNOWN_TARGET,
            _HOST,
            f"no target describes the processor architecture {cpu.machine!r}",
            "name the target that the model will run on",
        )
    path = probe_file()
    if path.is_file():
        try:
            kept = _read(path)
        except QcError as error:
            raise QcError(
                Code.TARGET_FILE,
                str(path),
                f"the costs that a probe kept here cannot be read: {error.diagnostic.message}",
                "remove the file; `qcompile probe --save` writes it again",
            ) from error
        if kept.name == name and kept.source.startswith(_measured_on(cpu)):
            return kept
    return _BUILT_IN[name]


def host_flags() -> frozenset[str]:
    """CPU features of this machine, as :attr:`Target.isa` names them."""
    return _host().features


def probe_file() -> pathlib.Path:
    """Where the probed costs of this machine are kept, in the user's cache folder."""
    import platformdirs

    slug = re.sub(r"[^a-z0-9]+", "-", _host().model.lower()).strip("-") or "host"
    folder = platformdirs.user_cache_path("qcompiler", appauthor=False) / "targets"
    return folder / f"{slug}-{os.cpu_count() or 1}.toml"


def save_probe(report: ProbeReport) -> pathlib.Path:
    """Keep the costs a probe of this machine refitted; ``load_target("cpu")`` uses them.

    They hold for the CPU and the version of the runtime they were measured with; with another
    version the shipped costs are back until the next probe.

    Raises:
        QcError: QC706, the cache folder cannot be written; QC411, the target is not of this CPU,
            or the machine was too busy to measure.
    """
    if report.noise > _BUSY:
        raise QcError(
            Code.USAGE,
            report.target.name,
            f"the machine was busy: runs took {report.noise:.1f} times as long as their shortest",
            "probe again when nothing else runs; nothing was saved",
            noise=report.noise,
        )
    target = report.refitted
    refuse_foreign(target)
    kept = dataclasses.replace(
        target, source=f"{_measured_on(_host())}, {target.threads} threads, by qcompile probe"
    )
    path = probe_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(f".{os.getpid()}.tmp")
        scratch.write_text(_as_override(kept), encoding="utf-8")
        scratch.replace(path)  # a reader sees the old file or the new one
    except OSError as error:
        raise QcError(
            Code.NOT_WRITABLE,
            str(path),
            f"cannot be written: {error.strerror or error}",
            "let XDG_CACHE_HOME name a folder that can be written",
        ) from error
    return path


def refuse_foreign(target: Target) -> None:
    """Refuse (QC411) to keep costs under a target that does not describe this machine."""
    here = target_name(_host())
    if target.name != here:
        raise QcError(
            Code.USAGE,
            target.name,
            f"costs of target {target.name!r} are no costs of this machine ({here})",
            "probe the target 'cpu'",
        )


def _as_override(target: Target) -> str:
    """A file with the costs only: rows come from the built-in target, of whatever version."""
    data = target_to_dict(target)
    return dict_to_toml({"base": target.name, **{key: data[key] for key in _PROBED}})


def _read(path: pathlib.Path) -> Target:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise QcError(Code.TARGET_FILE, str(path), f"cannot be read: {reason}") from error
    return from_toml(text, str(path), _base)


def _base(name: str) -> Target:
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    raise QcError(Code.UNKNOWN_TARGET, name, f"no base target {name!r}", nearest(name, _BUILT_IN))


def _measured_on(cpu: Host) -> str:
    try:
        version = importlib.metadata.version("onnxruntime")
    except importlib.metadata.PackageNotFoundError:
        version = "?"
    return f"measured with onnxruntime {version} on {cpu.model}"


@functools.cache
def _host() -> Host:
    return host()


@functools.cache
def _plugins() -> tuple[importlib.metadata.EntryPoint, ...]:
    return tuple(importlib.metadata.entry_points(group=_GROUP))
