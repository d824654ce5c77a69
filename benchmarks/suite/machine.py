"""What a reader must know of the machine. No host name, no path, no user."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import platform
from typing import Any

__all__ = ["describe"]

_ISA = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile",
        "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve")  # fmt: skip
_PACKAGES = ("qcompiler-onnx", "onnxruntime", "onnx", "onnx-ir", "numpy", "torch", "transformers")


def describe(threads: int, peers: dict[str, str]) -> dict[str, Any]:
    """CPU, instruction sets that matter to int8, cores, memory, system and versions.

    Args:
        threads: Threads within an operator that every contestant gets.
        peers: Versions in the peers' environment.
    """
    info = _cpu_info()
    flags = set((info.get("flags") or info.get("Features") or "").split())
    return {
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "isa": [flag for flag in _ISA if flag in flags],
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": threads,
        "memory_gb": round(_memory_bytes() / 1e9),
        "system": f"{platform.system()} {platform.release().split('-')[0]} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "peers": peers,
    }


def _cpu_info() -> dict[str, str]:
    """The first processor of ``/proc/cpuinfo``; empty where there is none."""
    path = pathlib.Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    first = path.read_text(encoding="utf-8").split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
