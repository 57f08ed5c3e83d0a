"""Whether a cluster is still there, found out without Ray, whose own calls wait for minutes or end the process.

A driver lives by two others: the raylet of its own node, without which nothing it asks for is done any more, and the head, which may be
away for a while: nodes and leases go on without it, and know it again when it comes back.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from pathlib import Path

from harness.errors import FailureError

__all__ = ["Pulse"]

_KNOCK_S = 1.0
_EVERY_S = 1.0
_SILENT_MOST_S = 60.0  # after so long Ray's own parts give up, too
_ON_DISK = "what was measured is on disk"


class Pulse:
    """Feels for a cluster once a second, however often it is asked."""

    def __init__(self, head: str, raylet: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Take HOST:PORT of the head and the path of the socket of this node's raylet; one that is empty is not looked for."""
        self._head, self._raylet, self._clock = head, raylet, clock
        self._next_at = self._heard_at = clock()
        self._beats = True

    def beats(self) -> bool:
        """Return whether the head answers.

        Raises:
            FailureError: the cluster is lost to this process.
        """
        now = self._clock()
        if now < self._next_at:
            return self._beats
        self._next_at = now + _EVERY_S
        if self._raylet and not _listens(self._raylet):
            msg = f"Ray has ended on this node: {_ON_DISK}"
            raise FailureError(msg)
        self._beats = not self._head or _answers(self._head)
        if self._beats:
            self._heard_at = now
        elif now - self._heard_at > _SILENT_MOST_S:
            msg = (
                f"the head of the Ray cluster at {self._head!r} has not answered for {_SILENT_MOST_S:.0f} s: {_ON_DISK}"
            )
            raise FailureError(msg)
        return self._beats


def _listens(path: str) -> bool:
    """Tell whether a process holds the socket at a path. It is not connected to: a raylet takes that for a worker's visit."""
    return any(line.endswith(path) for line in Path("/proc/net/unix").read_text().splitlines())


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError), socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S):
        return True
    return False
