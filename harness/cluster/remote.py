"""A lease on another machine: the actor that Ray starts next to a device. It imports no Ray."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from harness import codec
from harness.cluster import board
from harness.cluster.lease import Lease, Order
from harness.model import DeviceKind

__all__ = ["Remote"]


class Remote:
    """A lease as an actor. It speaks canonical bytes, so that nothing it returns is ever unpickled into an object of ours."""

    def __init__(self, kinds: tuple[DeviceKind, ...], lease: Callable[[Sequence[DeviceKind]], Lease]) -> None:
        self._lease = lease(kinds)
        self._one = threading.Lock()  # calls come side by side, and a device does one thing at a time
        self._moment: Path | None = None  # where the device's last moment is pinned up

    def inspect(self, idle_s: float) -> bytes:
        """Return what the node has."""
        with self._one:
            return codec.encode(self._lease.inspect(idle_s))

    def collect(self, run: str, uuid: str, have: tuple[str, ...]) -> bytes:
        """Return what was measured and never acknowledged."""
        return codec.encode(self._lease.collect(run, uuid, have))

    def acknowledge(self, have: tuple[str, ...]) -> bytes:
        """Forget replies that have arrived."""
        self._lease.acknowledge(have)
        return b""

    def ping(self) -> bytes:
        """Answer."""
        return b""

    def measure(self, order: bytes, have: tuple[str, ...]) -> bytes:
        """Make one try at a batch."""
        if b"OMP_NUM_THREADS=" not in Path("/proc/self/environ").read_bytes():
            os.environ.pop("OMP_NUM_THREADS", None)  # before each call Ray sets it to 1: BLAS would use one core
        with self._one:
            self._lease.acknowledge(have)
            asked = codec.decode(order, Order)
            if asked.live == "":
                self._moment = board.own_place(asked.device)
                asked = replace(asked, live=str(self._moment))
            return codec.encode(self._lease.carry_out(asked))

    def glance(self) -> bytes:
        """Return the device's last moment, or nothing."""
        try:
            return self._moment.read_bytes() if self._moment else b""
        except OSError:
            return b""
