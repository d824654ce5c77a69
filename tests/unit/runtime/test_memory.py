"""Memory that is kept between two uses of it."""

import ctypes
import json
import subprocess
import sys

import pytest

from qcompiler.runtime.memory import reused_memory

BLOCKS, SIZE = 6, 24 << 20  # below what glibc maps apart from its heap

# In a process of its own, whose heap has no holes that would be found first.
PROGRAM = f"""
import contextlib, ctypes, json, pathlib
from qcompiler.runtime.memory import reused_memory

library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
library.free.argtypes = [ctypes.c_void_p]

def use():
    blocks = [library.malloc({SIZE}) for _ in range({BLOCKS})]
    for block in blocks:
        ctypes.memset(block, 1, {SIZE})
    for block in reversed(blocks):
        library.free(block)

def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096

@reused_memory()
def fail():
    use()
    raise ValueError

use()
found = {{"before": resident()}}
with reused_memory():
    with reused_memory():
        use()
    found["between"] = resident()
    use()
    found["inside"] = resident()
found["after"] = resident()
with contextlib.suppress(ValueError):
    fail()
found["after_error"] = resident()
print(json.dumps(found))
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"),
    reason="keeps memory of glibc only",
)
def test_what_is_freed_inside_is_kept_to_the_end() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    found = json.loads(done.stdout)
    grown = {name: size - found["before"] for name, size in found.items()}
    whole = (BLOCKS - 1) * SIZE
    assert grown["between"] > whole  # the end of the inner one ends nothing
    assert grown["inside"] > whole
    assert grown["after"] < SIZE
    assert grown["after_error"] < SIZE


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: None) -> ctypes.CDLL:
        raise TypeError("LoadLibrary() argument 1 must be str, not None")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    with reused_memory():
        pass
