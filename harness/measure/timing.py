"""The clockwork of one job: it runs the case under stopwatch, stamp and sampler, and remembers all they said."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from statistics import median
from typing import Any

from harness import registry
from harness.device.backend import Backend
from harness.device.sampler import Sampler
from harness.errors import FailureError
from harness.measure.counters import Witness
from harness.measure.energy import Mark
from harness.measure.rounds import Effort, batch_for, samples_for
from harness.measure.validity import hard_throttle, timers_differ
from harness.measure.warmth import Reading, settled, soak, soaked
from harness.model import Activity, Round, Soak, TelemetrySample

__all__ = ["Clockwork"]

_HELD_MOST = 256  # runs behind a waiting kernel; a stream takes about a thousand launches before it blocks the host
_WINDOWS = 5
_SPAN_S = 0.01  # of load between two looks at the clock on the wall
_SOAK_READING_S = 1.0
_TOLD_S = 1.0  # between the samples kept of a load that is not measured
_LOAD_KEPT_MOST = 120  # of these
_KEPT_MOST = 32  # samples of the rounds, unless they have more ends: 20 a second would fill a report of eight GPUs
_COOL_C = 5.0
_COOL_POLL_S = 0.5
_BELIEVED_FRACTION = 0.01  # of the host's time of a run, what its launch may leave to the run itself
_SHORTEST_S = 1e-9  # an event pair may read 0 for a kernel below its resolution


class Clockwork:
    """Times one case. Its methods are called in the order warm_up, then soak or not, then round after round."""

    def __init__(self, case: registry.Case, backend: Backend, sampler: Sampler, *, alone: bool = False) -> None:
        """Begin with nothing known; `alone` if no other job has rounds between this one's."""
        self.answer: Any = None
        self.rounds: list[Round] = []
        self.marks: list[Mark] = []
        self.held = False
        self.timed_s = 0.0
        self.loaded_s = 0.0
        self.timers_disagree: str | None = None
        self.warmup_times_s: tuple[float, ...] = ()
        self._case = case
        self._backend = backend
        self._sampler = sampler
        self._witness = Witness(sampler, alone=alone)
        self._spans: list[tuple[float, float]] = []  # of each round
        self._runs = 0
        self._batch = 1
        self._sample_s = _SHORTEST_S
        self._cool_c: float | None = None
        self._rested = False  # since the last mark

    def _time(self, batch: int, *, hold: bool = False) -> tuple[float, float, bool]:
        """Run a batch; return its time by the device and by the host, and whether it was held back as asked."""
        run = self._case.run
        with self._backend.stopwatch(hold=hold) as watch:
            for _ in range(batch):
                self.answer = run()
        self._runs += batch
        self.loaded_s += watch.host_s
        return watch.device_s, watch.host_s, watch.held and not watch.expired

    def _mark(self, at_s: float) -> float:
        self.marks.append(Mark(at_s=at_s, runs=self._runs, rested=self._rested))
        self._rested = False
        return at_s

    def load(self, for_s: float) -> None:
        """Keep the device busy for a time, and count what it did."""
        end_s = self._sampler.at_s() + for_s
        batch = max(1, int(self._batch * min(_SPAN_S / self._sample_s, 1e6)))
        while True:
            self._time(batch)
            at_s = self._mark(self._sampler.at_s())
            if at_s >= end_s:
                return

    def warm_up(self, effort: Effort) -> None:
        """Run until the time is up and the clock has settled; find the size of a sample on the way."""
        first = self._sampler.samples
        self._cool_c = next((s.temperature_c for s in reversed(first) if s.temperature_c is not None), None)
        self._witness.begin("warmup", self._runs)
        began, times, clocks, batch = time.perf_counter(), list[float](), list[float | None](), 1
        while True:
            before, window_began = self._backend.stamp(), time.perf_counter()
            while True:
                device_s, host_s, _ = self._time(batch)
                # A device's timer that stands still must not make batches without end: the host's bounds them.
                times.append(max(device_s / batch, host_s / batch * _BELIEVED_FRACTION, _SHORTEST_S))
                if device_s < _SPAN_S and host_s < _SPAN_S / _BELIEVED_FRACTION:
                    batch *= 2
                if time.perf_counter() - window_began >= effort.warmup_s / _WINDOWS:
                    break
            clocks.append(self._backend.clock_mhz(before, self._backend.stamp()))
            spent_s = time.perf_counter() - began
            if spent_s >= max(effort.warmup_max_s, effort.warmup_s):
                break
            if spent_s >= effort.warmup_s and settled(clocks):
                break
        self._witness.end(self._runs)
        self.warmup_times_s = tuple(times)
        self._choose_batch(min(times), effort)

    def _choose_batch(self, run_s: float, effort: Effort) -> None:
        """Hide launches where runs are shorter than they; else time a batch that a launch more or less does not matter to."""
        if run_s < effort.hold_below_s and self._case.hide_launches:
            probe = min(batch_for(run_s, effort), _HELD_MOST)
            device_s, _, self.held = self._time(probe, hold=True)
            if self.held:
                run_s = max(device_s / probe, _SHORTEST_S)
        self._batch = batch_for(run_s, effort, _HELD_MOST) if self.held else batch_for(run_s, effort)
        self._sample_s = self._batch * run_s

    def soak(self, effort: Effort, each: Callable[[], None] = lambda: None) -> Soak:
        """Load the device until temperature and clock have come to rest, or the patience has; call `each` once a reading."""
        began, readings = self._sampler.at_s(), list[Reading]()
        while not soaked(readings, effort):
            each()
            before = self._backend.stamp()
            self.load(min(_SOAK_READING_S, max(effort.soak_min_s / _WINDOWS, _SPAN_S)))
            clock_mhz = self._backend.clock_mhz(before, self._backend.stamp())
            told = self._sampler.samples[-1:]
            readings.append(
                Reading(
                    at_s=self._sampler.at_s() - began,
                    temperature_c=told[0].temperature_c if told else None,
                    clock_mhz=clock_mhz or (told[0].sm_clock_mhz if told else None),
                )
            )
        return soak(readings)

    def round(self, effort: Effort) -> Round:
        """Take one round of samples between two looks at the sensors and two stamps of the clock."""
        samples = samples_for(self._sample_s, effort)
        start_s = self._sampler.take()
        self._witness.begin("rounds", self._runs)
        before = self._backend.stamp()
        device, host = list[float](), list[float]()
        for _ in range(samples):
            device_s, host_s, held = self._time(self._batch, hold=self.held)
            if self.held and not held:  # it waited in vain: this case cannot be held, so the round begins anew without
                if self.rounds:
                    msg = "launches could be hidden at first and then not: its rounds cannot be compared"
                    raise FailureError(msg)
                self.held = False
                return self.round(effort)
            device.append(max(device_s, _SHORTEST_S))
            host.append(host_s)
        clock_mhz = self._backend.clock_mhz(before, self._backend.stamp())
        end_s = self._sampler.take()
        self._mark(end_s)
        # Of one sample the host may have slept through the end; of most of them only a false timer makes it so.
        self.timers_disagree = self.timers_disagree or timers_differ(median(device), median(host))
        taken = Round(
            at_s=start_s,
            batch=self._batch,
            times_s=tuple(t / self._batch for t in device),
            host_time_s=median(host) / self._batch,
            clock_mhz=clock_mhz,
            discarded=hard_throttle(self._sampler.between(start_s, end_s)),
        )
        if taken.discarded is None:
            self._witness.end(self._runs)
        self.rounds.append(taken)
        self._spans.append((start_s, end_s))
        self.timed_s += sum(host)
        return taken

    def cool_down(self, effort: Effort) -> None:
        """Rest until the device is nearly as cool as before the work, or for as long as may be."""
        end_s = self._sampler.at_s() + effort.cool_max_s
        while self._sampler.at_s() < end_s:
            told = [s.temperature_c for s in self._sampler.samples[-1:] if s.temperature_c is not None]
            if not told or self._cool_c is None or told[0] <= self._cool_c + _COOL_C:
                return
            self._rested = True
            time.sleep(min(_COOL_POLL_S, effort.cool_max_s))

    def activity(self, time_s: float) -> Activity | None:
        """Return what the device's counters say of its rounds, of which one run took `time_s`, or else of its warm-up."""
        return self._witness.activity(time_s)

    def spans(self, rounds: Sequence[Round]) -> list[tuple[TelemetrySample, ...]]:
        """Return what the sensors said during each of these of its rounds."""
        chosen = [span for taken, span in zip(self.rounds, self._spans, strict=True) if taken in rounds]
        return [self._sampler.between(start_s, end_s) for start_s, end_s in chosen]

    def telemetry(self, rounds: Sequence[Round]) -> tuple[TelemetrySample, ...]:
        """Return the same of all these rounds together."""
        return tuple(s for span in self.spans(rounds) for s in span)

    def told(self) -> tuple[TelemetrySample, ...]:
        """Return what is worth keeping, which is less than what was judged: a report has room for the jobs of many devices.

        That is the first sample, both ends of each round, whatever names a cause of slowness first in its round, some more spread evenly
        over the rounds, and one a second of the load before and between.
        """
        samples, ends = self._sampler.samples, {at_s for span in self._spans for at_s in span}
        kept = {id(s) for s in samples if s.at_s in ends} | {id(s) for s in samples[:1]}
        within = self.spans(self.rounds)
        for span in within:
            kept |= {id(s) for s in _first_of_each_cause(span, kept)}
        room = max(0, _KEPT_MOST - len(ends))
        kept |= {id(s) for s in _evenly([s for span in within for s in span if id(s) not in kept], room)}
        if len(self.marks) > len(self.rounds):
            loaded = self._sampler.between(self.marks[0].at_s, self.marks[-1].at_s)
            span_s = self.marks[-1].at_s - self.marks[0].at_s
            kept |= {id(s) for s in _evenly(loaded, min(_LOAD_KEPT_MOST, int(span_s / _TOLD_S)))}
        return tuple(s for s in samples if id(s) in kept)


def _evenly(samples: Sequence[TelemetrySample], most: int) -> Sequence[TelemetrySample]:
    """Return at most so many samples, as evenly spread as may be."""
    if len(samples) <= most:
        return samples
    return [samples[(2 * i + 1) * len(samples) // (2 * most)] for i in range(most)]


def _first_of_each_cause(span: Sequence[TelemetrySample], kept: Collection[int]) -> Iterator[TelemetrySample]:
    """Yield of a round the first sample with each cause of slowness that none of those kept names."""
    named = {cause for s in span if id(s) in kept for cause in s.throttle_reasons or ()}
    for sample in span:
        fresh = set(sample.throttle_reasons or ()) - named
        if fresh:
            named |= fresh
            yield sample
