"""Challenges that are answered honestly, and by every cheat we know: as small as they can be, on a CPU."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from harness.device.cpu import CpuDevice
from harness.model import Challenge, Device, Transcript
from harness.proof import chain, challenge, prover, verifier
from harness.proof.prover import Held

__all__ = ["CPU", "NOW", "answered", "coarse", "commit", "faults", "hankel", "issued", "narrow", "skipping"]

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
CPU = CpuDevice(Device(uuid="CPU-test", name="test", kind="cpu", selector="cpu", sensors={}))
Work = type[chain.Chain]


def issued(
    *,
    provider: str = "p",
    device: str = "CPU-test",
    epoch: int = 1,
    beacon: str | None = "drand 1",
    nonce: str = "ab" * 32,
    **params: Any,
) -> Challenge:
    whole = {"mode": "int8", "n": 16, "steps": 2, "openings": 4, "scans": 0, "scan_openings": 0, **params}
    return challenge.issue(
        provider=provider, device_uuid=device, epoch=epoch, params=whole, now=NOW, beacon=beacon, nonce=nonce
    )


def commit(asked: Challenge, work: Work = chain.Chain) -> Held:
    """Do a challenge's work, honestly or in the way of a cheat."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prover, "Chain", work)
        return prover.commit(asked, CPU)


def answered(held: Held, asked: str | None = "ef" * 32) -> tuple[Transcript, bytes]:
    return held.transcript(asked)


def faults(answer: tuple[Transcript, bytes]) -> list[str]:
    """Return what a verifier finds wrong with an answer."""
    return [fault.what for fault in verifier.faults_of(answer[0], io.BytesIO(answer[1]))]


def skipping(false: set[tuple[int, int]]) -> Work:
    """Return a chain that makes up these rows of these steps instead of computing them, and goes on from there."""

    class Skipping(chain.Chain):
        at = 0

        def step(self, state: Any, sums: Any = None) -> Any:
            after = super().step(state, sums)
            for step, row in false:
                if step == self.at:
                    after[row] = np.random.default_rng(row).integers(0, 256, after.shape[1])
            self.at += 1
            return after

    return Skipping


def coarse(cut: Callable[[Any], Any], *, mended: bool) -> Work:
    """Return a chain that computes with the states cut to fewer bits; `mended`, it opens what exact work would have given."""

    class Coarse(chain.Chain):
        def step(self, state: Any, sums: Any = None) -> Any:
            return super().step(cut(state), sums)

        def sums(self, rows: Any) -> Any:
            return super().sums(rows if mended else cut(rows))

    return Coarse


def narrow(cut: Callable[[Any], Any], *, mended: bool) -> Work:
    """Return a chain whose operands are numbers cut to a narrower type; `mended`, it opens what exact work would have given."""

    class Narrow(chain.Chain):
        def __init__(self, backend: Any, seed: bytes, task: Any) -> None:
            super().__init__(backend, seed, task)
            numbers = cut(chain.numbers(task.mode))
            self.b, self.numbers = numbers[self._drawn("B")], numbers

        def step(self, state: Any, sums: Any = None) -> Any:
            y = self.cheap(state)
            if sums is not None:
                sums[:] = y
            return chain.advance(self._task.mode, self._task.n, y)

        def cheap(self, rows: Any) -> Any:
            return (self.numbers[rows] @ self.b).astype(self._sum_type)

        def sums(self, rows: Any) -> Any:
            return super().sums(rows) if mended else self.cheap(rows)

    return Narrow


def hankel(n: int) -> Any:
    """Return a matrix whose entries depend on the sum of their indices alone: a generator seeded with seed + i + j."""
    line = np.random.default_rng(5).integers(0, 256, 2 * n, dtype=np.uint8)
    return line[np.add.outer(np.arange(n), np.arange(n))]
