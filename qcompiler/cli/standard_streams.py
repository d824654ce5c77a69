"""Standard output and error as they may be: closed, unread, in ASCII; and the wish to stop."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any, TextIO, cast

__all__ = ["TERMINATED", "standard_streams"]

TERMINATED = 128 + signal.SIGTERM  # exit code


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Make standard output and error safe to write to, and SIGTERM an orderly end, meanwhile.

    A stream that is closed takes everything and shows nothing. Characters that an encoding lacks
    are spelled out. A reader that leaves, as ``head`` does, does not end the command: what it has
    begun it finishes, and its exit code holds.
    """
    before = sys.stdout, sys.stderr
    with contextlib.ExitStack() as stack:
        sys.stdout, sys.stderr = (_writable(stream, stack) for stream in before)
        if threading.current_thread() is threading.main_thread():
            handler = signal.signal(signal.SIGTERM, _terminate)
            stack.callback(signal.signal, signal.SIGTERM, handler)
        try:
            yield
        finally:
            for stream in (sys.stdout, sys.stderr):
                try:
                    stream.flush()
                except OSError:
                    _discard(stream)  # else the interpreter tries again, and tells of it
            sys.stdout, sys.stderr = before


def _writable(stream: TextIO | None, stack: contextlib.ExitStack) -> TextIO:
    if stream is None:
        return stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return cast(TextIO, _Unread(stream))


class _Unread:
    """A stream that goes on into nothing when nobody reads it any more."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            _discard(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            _discard(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _discard(stream: TextIO) -> None:
    """Let what is and will be written to the stream's file go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _terminate(number: int, frame: object) -> None:
    raise SystemExit(TERMINATED)
