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

__all__ = [
    "CPU",
    "NOW",
    "alike",
    "answered",
    "coarse",
    "commit",
    "faults",
    "hankel",
    "issued",
    "narrow",
    "skipping",
    "zeroing",
]

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
        def step(self, state: Any, number: int, sums: Any = None) -> Any:
            after = super().step(state, number, sums)
            for step, row in false:
                if step == number - 1:
                    after[row] = np.random.default_rng(row).integers(0, 256, after.shape[1])
            return after

    return Skipping


class Counting(chain.Chain):
    """Counts the rows that are multiplied with B, in the class: whoever commits makes the object."""

    multiplied = 0

    def sums(self, rows: Any) -> Any:
        type(self).multiplied += len(rows)
        return super().sums(rows)

    def advanced(self, sums: Any, number: int, row: int) -> Any:
        return chain.advance(self._task.mode, sums, self._seed, number, row)


def alike() -> type[Counting]:
    """Return a chain that makes each state of one row: it computes that row, and copies it."""

    class Alike(Counting):
        def step(self, state: Any, number: int, sums: Any = None) -> Any:
            own = self.sums(state[:1])
            if sums is not None:
                sums[:] = own
            return np.repeat(self.advanced(own[0], number, 0)[None], len(state), axis=0)

    return Alike


def zeroing(false: set[tuple[int, int]]) -> type[Counting]:
    """Return a chain in which these rows of these steps give bytes of zero; what such a row gives is known from one product for all of them."""

    class Zeroing(Counting):
        def step(self, state: Any, number: int, sums: Any = None) -> Any:
            known = chain.Chain.sums(self, np.zeros_like(state[:1]))[0]  # not counted: once would do
            after = np.zeros_like(state)
            for row in range(len(state)):
                if (number - 1, row) not in false:
                    own = known if (number - 2, row) in false else self.sums(state[row : row + 1])[0]
                    after[row] = self.advanced(own, number, row)
            return after

    return Zeroing


def coarse(cut: Callable[[Any], Any], *, mended: bool) -> Work:
    """Return a chain that computes with the states cut to fewer bits; `mended`, it opens what exact work would have given."""

    class Coarse(chain.Chain):
        def step(self, state: Any, number: int, sums: Any = None) -> Any:
            return super().step(cut(state), number, sums)

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

        def step(self, state: Any, number: int, sums: Any = None) -> Any:
            y = self.cheap(state)
            if sums is not None:
                sums[:] = y
            return np.stack([chain.advance(self._task.mode, row, self._seed, number, i) for i, row in enumerate(y)])

        def cheap(self, rows: Any) -> Any:
            return (self.numbers[rows] @ self.b).astype(self._sum_type)

        def sums(self, rows: Any) -> Any:
            return super().sums(rows) if mended else self.cheap(rows)

    return Narrow


def hankel(n: int) -> Any:
    """Return a matrix whose entries depend on the sum of their indices alone: a generator seeded with seed + i + j."""
    line = np.random.default_rng(5).integers(0, 256, 2 * n, dtype=np.uint8)
    return line[np.add.outer(np.arange(n), np.arange(n))]
