"""A program on a terminal of its own: what it wrote, with the keys that are pressed."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from typing import Self

__all__ = ["Terminal", "plain"]

# The terminal must be the process's controlling one, or Ctrl-C is a character like any other.
_TAKE_IT = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
_ESCAPE = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|\][^\x07]*\x07|[()][A-Z0-9])")


def plain(text: str) -> str:
    """Return a text without escape sequences."""
    return _ESCAPE.sub("", text)


class Terminal:
    """Runs a Python program, given by its arguments, on a pseudo-terminal."""

    def __init__(self, args: Sequence[object], *, columns: int = 80, rows: int = 24, **env: str) -> None:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        dropped = {"NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "HARNESS_KEY", "TTY_COMPATIBLE", "TTY_INTERACTIVE"}
        kept = {k: v for k, v in os.environ.items() if k not in dropped}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _TAKE_IT, sys.executable, *map(str, args)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env=kept | {"TERM": "xterm-256color", "LANG": "C.UTF-8"} | env,
        )
        os.close(theirs)
        self._fd = ours
        self.text = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        os.close(self._fd)

    def until(self, words: str, timeout_s: float = 60.0) -> str:
        """Read until some words were written; return all that was."""
        deadline = time.monotonic() + timeout_s
        while words not in plain(self.text):
            assert self._read(deadline), f"{words!r} was never said:\n{plain(self.text)}"
        return self.text

    def press(self, key: str) -> None:
        """Press a key."""
        os.write(self._fd, key.encode())

    def end(self, timeout_s: float = 60.0) -> int:
        """Read to the end; return the exit code."""
        deadline = time.monotonic() + timeout_s
        while self._read(deadline):
            pass
        return self.process.wait(max(0.1, deadline - time.monotonic()))

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._fd], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return False
        try:
            part = os.read(self._fd, 1 << 16)
        except OSError:  # the other end was closed
            return False
        self.text += part.decode(errors="replace")
        return bool(part)
