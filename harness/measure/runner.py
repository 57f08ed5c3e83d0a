"""Runs jobs on an opened device: set up, check, warm up, time in rounds, check again, judge.

Burst jobs that come together take turns, round by round in an order drawn from their seeds, so that a slow spell of the machine falls on
all of them and shows as spread between rounds. A sustained job has the device for itself and never lets it rest. The clock that times is
the device's; the host's clock is read beside it and must not contradict it.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Iterator, Sequence
from functools import partial

from harness.device.backend import Backend
from harness.device.sampler import Sampler, Sensors
from harness.measure.digests import answer_digest
from harness.measure.moment import Teller
from harness.measure.record import record
from harness.measure.rounds import Effort, enough
from harness.measure.seat import Seat, attempt, now, sit_down
from harness.measure.timing import Clockwork
from harness.measure.validity import RETRIES_MOST
from harness.model import Job, Measurement, Outcome

__all__ = ["answer_digest", "measure", "measure_together", "now"]


def measure(job: Job, backend: Backend, sensors: Sensors, effort: Effort) -> Outcome:
    """Carry out one job. Never raises for what the benchmark does."""
    (outcome,) = measure_together([job], backend, sensors, effort)
    return outcome


def measure_together(  # noqa: PLR0913 - what is told apart stays apart
    jobs: Sequence[Job],
    backend: Backend,
    sensors: Sensors,
    effort: Effort,
    *,
    idle_w: float | None = None,
    teller: Teller | None = None,
) -> Iterator[Outcome]:
    """Carry out jobs of one device, the burst ones in turns, and yield each outcome as it is known.

    An outcome is a measurement; `Skipped` where the device cannot run the point; or `Failed` with what went wrong. A point for which
    memory ran out while others held theirs has its turn after them, alone. `idle_w` is what the device takes at rest; `teller` hears
    between rounds what is being done.
    """
    teller = teller or Teller()
    together = [job for job in jobs if job.regime == "burst"]
    crowded: list[Job] = []
    seats: list[Seat] = []  # the one place that holds what is set up: emptied, it gives the memory back
    for job in together:
        teller.tell(job, "setting up")
        outcome = _seat(seats, job, backend)
        if outcome is not None and seats and _wants_room(outcome):
            crowded.append(job)
        elif outcome is not None:
            yield outcome
    yield from _in_turns(seats, backend, sensors, effort, teller)
    for job in [*crowded, *(j for j in jobs if j.regime == "sustained")]:
        seats.clear()
        gc.collect()  # a case whose parts refer to each other would stay
        teller.tell(job, "setting up")
        outcome = _seat(seats, job, backend, idle_w)
        if outcome is not None:
            yield outcome
            continue
        turns = _sustained if job.regime == "sustained" else _in_turns
        yield from turns(seats, backend, sensors, effort, teller)


def _seat(seats: list[Seat], job: Job, backend: Backend, idle_w: float | None = None) -> Outcome | None:
    """Set a job up among those that have a seat; return what became of it instead."""
    seat, outcome = sit_down(job, backend)
    if seat is not None:
        seat.idle_w = idle_w
        seats.append(seat)
    return outcome


def _wants_room(outcome: Outcome) -> bool:
    memory_ran_out = outcome.failed is not None and outcome.failed.outcome == "out_of_memory"
    return memory_ran_out or (outcome.skipped is not None and "memory" in outcome.skipped.reason)


def _in_turns(
    seats: Sequence[Seat], backend: Backend, sensors: Sensors, effort: Effort, teller: Teller
) -> Iterator[Outcome]:
    """Warm each job up, then take rounds in turns until all have enough."""
    if not seats:
        return
    order = random.Random("".join(seat.job.seed for seat in seats))  # noqa: S311 - to mix, not to hide
    with Sampler(sensors) as sampler:
        playing = []
        for seat in seats:
            teller.tell(seat.job, "warming up", sampler=sampler)
            outcome = attempt(seat, partial(_begin, seat, backend, sampler, effort, alone=len(seats) == 1))
            if outcome is None:
                playing.append(seat)
            else:
                yield outcome
        began_s = sampler.at_s()
        while playing:
            order.shuffle(playing)
            sweep_began = sampler.at_s()
            for seat in tuple(playing):
                outcome = attempt(seat, partial(_turn, seat, effort))
                teller.tell(seat.job, "measuring", round_count=len(seat.clock.rounds), sampler=sampler)
                # Its share of the wait counts, too: a quick job does not go on alone, mostly resting, when the slow ones are done.
                share_s = (sampler.at_s() - began_s) / len(seats)
                if outcome is not None or _has_enough(seat, effort, share_s):
                    playing.remove(seat)
                    yield outcome or _stand_up(seat, backend, sampler, effort)
            if playing:
                time.sleep(max(0.0, sweep_began + effort.sweep_s - sampler.at_s()))


def _sustained(
    seats: Sequence[Seat], backend: Backend, sensors: Sensors, effort: Effort, teller: Teller
) -> Iterator[Outcome]:
    """Load the device until it is as warm as it gets, then take rounds without ever letting it rest."""
    (seat,) = seats
    with Sampler(sensors) as sampler:
        yield attempt(seat, lambda: _endure(seat, backend, sampler, effort, teller)) or _stand_up(
            seat, backend, sampler, effort
        )


def _endure(seat: Seat, backend: Backend, sampler: Sampler, effort: Effort, teller: Teller) -> None:
    _begin(seat, backend, sampler, effort, alone=True)
    clockwork = seat.clock
    seat.soak = clockwork.soak(effort, lambda: teller.tell(seat.job, "soaking", sampler=sampler))
    began = sampler.at_s()
    while not (_has_enough(seat, effort) and sampler.at_s() - began >= effort.energy_s):
        _turn(seat, effort)
        teller.tell(seat.job, "measuring", round_count=len(clockwork.rounds), sampler=sampler)
        clockwork.load(effort.space_s)


def _begin(seat: Seat, backend: Backend, sampler: Sampler, effort: Effort, *, alone: bool) -> None:
    seat.clockwork = Clockwork(seat.case, backend, sampler, alone=alone)
    seat.clockwork.warm_up(effort)
    seat.reach_roof(backend)


def _turn(seat: Seat, effort: Effort) -> None:
    clockwork = seat.clock
    taken = clockwork.round(effort)
    if taken.discarded is not None:
        seat.discarded.append(taken.discarded)
        if len(seat.discarded) <= RETRIES_MOST:
            clockwork.cool_down(effort)


def _has_enough(seat: Seat, effort: Effort, share_s: float = 0.0) -> bool:
    if len(seat.discarded) > RETRIES_MOST:
        return True
    clockwork = seat.clock
    counted = [r.times_s for r in clockwork.rounds if r.discarded is None]
    return enough(counted, max(clockwork.timed_s, share_s), effort)


def _stand_up(seat: Seat, backend: Backend, sampler: Sampler, effort: Effort) -> Outcome:
    """Check the last answer and write down what was measured."""
    right: list[bool] = []
    broken = attempt(seat, lambda: right.append(bool(seat.case.check(seat.clock.answer))))
    if broken is not None:
        return broken
    if not all(right):
        reason = "the answer after the timed rounds, though not the first one, does not pass the benchmark's check"
        return seat.fail("wrong_answer", reason)
    made: list[Measurement] = []
    broken = attempt(seat, lambda: made.append(record(seat, backend, sampler, effort)))
    return broken or Outcome(measurement=made[0])
