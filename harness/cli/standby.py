"""Lets a child do the work and tells how it ended: Ray's libraries may abort a process, which no `except` sees."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from harness.errors import FailureError

__all__ = ["stand_by"]

_PR_SET_PDEATHSIG = 1
_HANDED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def stand_by(kept: str = "what was measured is on disk") -> int | None:
    """Fork. In the child return None: it goes on with the work. In the parent hand signals on, and return the child's exit code.

    Only for a process without threads. `kept` says what is not lost if the child is.

    Raises:
        FailureError: a signal ended the child.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    parent, child = os.getpid(), os.fork()
    if child == 0:
        _follow(parent)
        return None
    before = {number: signal.signal(number, lambda number, _: os.kill(child, number)) for number in _HANDED_ON}
    try:
        _, status = os.waitpid(child, 0)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        msg = f"the run was ended by {signal.Signals(-code).name}, which Ray may do to a process whose cluster it has lost; {kept}"
        raise FailureError(msg)
    return code


def _follow(parent: int) -> None:
    """End when the parent does; and let signals come from it alone, since of two Ctrl-C the second would cut the end short."""
    os.setpgid(0, 0)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
