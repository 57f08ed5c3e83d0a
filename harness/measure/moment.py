"""What a device is doing at this moment, for whoever watches a run.

It is told between rounds, when nothing is timed, with what the sampler had heard anyway: no sensor is asked for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from harness.device.sampler import Sampler
from harness.model import Job, TelemetrySample

__all__ = ["Moment", "Phase", "Teller"]

Phase = Literal["setting up", "warming up", "soaking", "measuring"]

_EVERY_S = 0.25  # a person reads no faster


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """One look at a device at work."""

    at_s: float  # of `time.monotonic`, which all processes of a machine share
    job: Job
    phase: Phase
    round_count: int = 0  # that this job has behind it
    done_count: int = 0  # of the jobs that were asked for together
    sample: TelemetrySample | None = None  # the last that the sampler took; None before its first


class Teller:
    """Hands moments on: each new one of a job or a phase, and else no more than four a second. Never raises."""

    def __init__(
        self, write: Callable[[Moment], None] | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Take who is told; without anybody, nothing is even looked at."""
        self.done_count = 0
        self._write = write
        self._clock = clock
        self._last: tuple[Job, Phase] | None = None
        self._next_s = float("-inf")

    def tell(self, job: Job, phase: Phase, *, round_count: int = 0, sampler: Sampler | None = None) -> None:
        """Tell what a job does now, and the sampler's last sample."""
        now_s = self._clock()
        if self._write is None or ((job, phase) == self._last and now_s < self._next_s):
            return
        self._last, self._next_s = (job, phase), now_s + _EVERY_S
        heard = sampler.samples[-1:] if sampler else ()
        moment = Moment(
            at_s=now_s,
            job=job,
            phase=phase,
            round_count=round_count,
            done_count=self.done_count,
            sample=heard[0] if heard else None,
        )
        try:
            self._write(moment)
        except OSError:  # nobody can be told any more, which is no reason to stop measuring
            self._write = None
