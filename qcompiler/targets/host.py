"""What the CPU of this machine can do: its model and features, and the target that fits."""

from __future__ import annotations

import dataclasses
import importlib
import pathlib
import platform
import re
import subprocess

__all__ = ["Host", "host", "parse_cpuinfo", "parse_sysctl", "target_name"]

_X86 = ("x86_64", "amd64", "i386", "i686")
_ARM = ("aarch64", "arm64")
_VNNI = {"avx512_vnni", "avx_vnni"}


@dataclasses.dataclass(frozen=True, slots=True)
class Host:
    """A machine's CPU.

    Attributes:
        machine: ``x86_64`` or ``arm64`` or what the platform says.
        model: The CPU's name, for people.
        features: Names as Linux writes them (``avx2``, ``avx512_vnni``, ``amx_int8``,
            ``asimddp``), and ``vnni`` for any of its kinds.
    """

    machine: str
    model: str
    features: frozenset[str]

    def has(self, features: tuple[str, ...]) -> bool:
        """Whether all the features are there."""
        return self.features.issuperset(features)


def host() -> Host:
    """The CPU this process runs on, read from the operating system in about a millisecond."""
    system, machine = platform.system(), platform.machine().lower()
    if system == "Linux":
        path = pathlib.Path("/proc/cpuinfo")
        if path.is_file():
            return parse_cpuinfo(path.read_text(encoding="utf-8", errors="replace"), machine)
    if system == "Darwin":
        return parse_sysctl(_sysctl(), machine)
    return Host(_family(machine), platform.processor() or machine, _with_vnni(_numpy_features()))


def parse_cpuinfo(text: str, machine: str) -> Host:
    """Read Linux's ``/proc/cpuinfo``; only features that every core has count."""
    flags = [
        frozenset(found.split())
        for found in re.findall(r"^(?:flags|Features)\s*:(.*)$", text, re.M)
    ]
    model = re.search(r"^(?:model name|Hardware|CPU part)\s*:\s*(.+)$", text, re.M)
    features = frozenset.intersection(*flags) if flags else frozenset[str]()
    return Host(_family(machine), model[1].strip() if model else machine, _with_vnni(features))


def parse_sysctl(text: str, machine: str) -> Host:
    """Read ``sysctl -a machdep.cpu hw.optional`` of macOS."""
    values = dict(re.findall(r"^([\w.]+):\s*(.*)$", text, re.M))
    words = " ".join(values.get(f"machdep.cpu.{key}", "") for key in ("features", "leaf7_features"))
    names = {word.lower() for word in words.split()}
    if values.get("hw.optional.arm.FEAT_DotProd") == "1" or _family(machine) == "arm64":
        names.add("asimddp")  # every Apple Silicon has it
    if "avx512vnni" in names:
        names.add("avx512_vnni")
    model = values.get("machdep.cpu.brand_string", machine)
    return Host(_family(machine), model, _with_vnni(frozenset(names)))


def target_name(cpu: Host) -> str | None:
    """The built-in CPU target whose claims hold there; None for an unknown architecture."""
    if cpu.machine == "arm64":
        return "cpu-arm64"
    if cpu.machine != "x86_64":
        return None
    if cpu.has(("amx_int8", "avx512_vnni")):
        return "cpu-amx"
    if "vnni" in cpu.features:
        return "cpu-vnni"
    return "cpu-avx512" if "avx512bw" in cpu.features else "cpu-avx2"


def _family(machine: str) -> str:
    if machine in _X86:
        return "x86_64"
    return "arm64" if machine in _ARM else machine


def _with_vnni(features: frozenset[str]) -> frozenset[str]:
    return features | {"vnni"} if features & _VNNI else features


def _sysctl() -> str:
    try:
        return subprocess.run(
            ["/usr/sbin/sysctl", "machdep.cpu", "hw.optional"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _numpy_features() -> frozenset[str]:
    """Features as numpy found them: for systems without a file to read (Windows)."""
    try:
        umath = importlib.import_module("numpy._core._multiarray_umath")
    except ImportError:
        return frozenset()
    found: dict[str, bool] = getattr(umath, "__cpu_features__", {})
    names = {name.lower() for name, present in found.items() if present}
    words = {"avx512bw": "avx512bw", "avx512vnni": "avx512_vnni", "asimddp": "asimddp"}
    # numpy also has groups: SKX has BW, ICL has VNNI, SPR (Sapphire Rapids) comes with AMX
    if "avx512_skx" in names:
        names.add("avx512bw")
    if "avx512_icl" in names:
        names.add("avx512_vnni")
    return frozenset(words.get(name, name) for name in names)
