"""Memory that is kept between two uses of it."""

import ctypes
import sys
from pathlib import Path

import pytest

from qcompiler.runtime.memory import reused_memory

BLOCKS, SIZE = 6, 24 << 20  # below what glibc maps apart from its heap

needs_glibc = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"),
    reason="keeps memory of glibc only",
)


def use() -> None:
    """Fill some blocks and free them."""
    torch = pytest.importorskip("torch")
    blocks = [torch.empty(SIZE, dtype=torch.uint8).fill_(1) for _ in range(BLOCKS)]
    del blocks


def resident() -> int:
    """Bytes of the process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@needs_glibc
def test_what_is_freed_inside_is_kept_to_the_end() -> None:
    use()
    before = resident()
    with reused_memory():
        with reused_memory():
            use()
        use()  # the end of the inner one ends nothing
        inside = resident()
    assert inside - before > BLOCKS * SIZE / 2
    assert resident() - before < SIZE


@needs_glibc
def test_an_error_inside_ends_it() -> None:
    @reused_memory()
    def fail() -> None:
        use()
        raise ValueError("stopped")

    use()
    before = resident()
    with pytest.raises(ValueError, match="stopped"):
        fail()
    assert resident() - before < SIZE


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: None) -> ctypes.CDLL:
        raise TypeError("LoadLibrary() argument 1 must be str, not None")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    with reused_memory():
        pass
