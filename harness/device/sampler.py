"""Listen to a device's sensors while something else runs.

A sensor that will not answer is `None` in its sample; a device that is gone ends the samples. Neither ever raises into
the program that is being measured.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType, TracebackType
from typing import Any, Protocol, Self, TypeVar

from harness.errors import FailureError
from harness.model import Activity, SensorState, TelemetrySample

__all__ = ["FakeSensors", "Sampler", "Sensors", "SensorsLostError", "SilentSensors"]

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class SensorsLostError(FailureError):
    """The device fell off the bus or its driver is gone: it will not answer again."""


class Sensors(Protocol):
    """What one device says of itself while it works."""

    @property
    def capability(self) -> Mapping[str, SensorState]:
        """Which sensors answer, under stable short names: power, energy, temperature, ..."""

    def read(self, at_s: float) -> TelemetrySample:
        """Read what answers, stamped `at_s`. Raises `SensorsLostError`."""

    def note(self, at_s: float) -> Callable[[], TelemetrySample]:
        """Read what answers, and return what makes the sample of it: that can wait until nothing is timed. Raises `SensorsLostError`."""

    def counters(self) -> object | None:
        """Mark where the device's activity counters stand; None where there are none, or they do not answer."""

    def activity(self, first: Any, last: Any) -> Activity | None:
        """Return what was counted between two of its own marks; None where that cannot be told."""

    def close(self) -> None:
        """Let go of the device. Calling it again does nothing."""


class SilentSensors:
    """A device without sensors: no NVML where it runs. Every sample says that it knows nothing."""

    capability: Mapping[str, SensorState] = MappingProxyType({})

    def read(self, at_s: float) -> TelemetrySample:
        """Return an empty sample."""
        return TelemetrySample(at_s=at_s)

    def note(self, at_s: float) -> Callable[[], TelemetrySample]:
        """Return the empty sample."""
        return functools.partial(TelemetrySample, at_s=at_s)

    def counters(self) -> None:
        """Return nothing: nobody counts."""

    def activity(self, first: Any, last: Any) -> None:
        """Return nothing."""

    def close(self) -> None:
        """Do nothing."""


class FakeSensors:
    """Sensors that tell a given story: a function of time, or one sample a read, of which the last repeats.

    A replayed sample is stamped with the time at which it is read. After `lost_after_reads` reads the device is lost.
    Its counters, if `activity` is given, count this over any time, however short.
    """

    def __init__(
        self,
        story: Sequence[TelemetrySample] | Callable[[float], TelemetrySample],
        *,
        lost_after_reads: int | None = None,
        capability: Mapping[str, SensorState] = MappingProxyType({}),
        activity: Activity | None = None,
    ) -> None:
        """Take the story, and what `capability` is to say."""
        self.capability = capability
        self.reads = 0
        self.closed = False
        self._story = story
        self._lost_after_reads = lost_after_reads
        self._activity = activity

    def read(self, at_s: float) -> TelemetrySample:
        """Return the next sample of the story."""
        if self._lost_after_reads is not None and self.reads >= self._lost_after_reads:
            msg = f"the fake device was lost after {self.reads} reads"
            raise SensorsLostError(msg)
        self.reads += 1
        if callable(self._story):
            return self._story(at_s)
        if not self._story:
            return TelemetrySample(at_s=at_s)
        return replace(self._story[min(self.reads, len(self._story)) - 1], at_s=at_s)

    def note(self, at_s: float) -> Callable[[], TelemetrySample]:
        """Return the next sample of the story."""
        sample = self.read(at_s)
        return lambda: sample

    def counters(self) -> float | None:
        """Return the time, if the story has counters."""
        return time.perf_counter() if self._activity is not None else None

    def activity(self, first: float, last: float) -> Activity | None:
        """Return the story's activity over the time between two marks."""
        return replace(self._activity, window_s=last - first) if self._activity is not None else None

    def close(self) -> None:
        """Remember that it was called."""
        self.closed = True


class Sampler:
    """Sample sensors in a thread: on entry, at each multiple of `period_s`, and on exit.

    Deadlines are counted from the start, so a slow read delays no later sample; those it overruns are left out. A read
    that raises something odd costs its own sample. The sensors stay open: who made them closes them.
    """

    def __init__(self, sensors: Sensors, *, period_s: float = 0.05, patience_s: float = 2.0) -> None:
        """Set up; `patience_s` is how long the exit waits for a driver that hangs in a read."""
        self.period_s = period_s
        self._sensors = sensors
        self._patience_s = patience_s
        self._notes: deque[Callable[[], TelemetrySample]] = (
            deque()
        )  # what is to be made a sample of, when somebody asks
        self._samples: list[TelemetrySample] = []
        self._reading = threading.Lock()
        self._turn = threading.Lock()
        self._lost: str | None = None
        self._odd: str | None = None  # the last read's error, if it was not a loss
        self._stop = (
            threading.Lock()
        )  # held until the exit: waiting for a lock costs less than for an event, which makes one a wait
        self._thread = threading.Thread(target=self._run, name="harness-sampler", daemon=True)
        self._start_s = time.perf_counter()

    @property
    def samples(self) -> tuple[TelemetrySample, ...]:
        """What was read so far, in order of time."""
        with self._reading:
            while self._notes:
                self._samples.append(self._notes.popleft()())
            return tuple(self._samples)

    def latest(self) -> TelemetrySample | None:
        """Return the last sample, and forget those before it: for who watches without end."""
        with self._reading:
            while self._notes:
                self._samples = [self._notes.popleft()()]
            return self._samples[-1] if self._samples else None

    @property
    def lost(self) -> str | None:
        """Why the sensors stopped answering, or None while they do."""
        return self._lost or self._odd

    def at_s(self) -> float:
        """Return the seconds since entry, on the samples' own clock."""
        return time.perf_counter() - self._start_s

    def take(self) -> float:
        """Read the sensors now, from the caller's own thread, and return when: what happens between two takes has samples at both ends."""
        return self._take()

    def between(self, start_s: float, end_s: float) -> tuple[TelemetrySample, ...]:
        """Return what was read from one moment to another."""
        return tuple(s for s in self.samples if start_s <= s.at_s <= end_s)

    def counters(self) -> object | None:
        """Mark where the device's activity counters stand; None where nobody counts. Raises nothing."""
        return self._harmless(self._sensors.counters)

    def activity(self, first: object | None, last: object | None) -> Activity | None:
        """Return what was counted between two marks; None where that cannot be told. Raises nothing."""
        if first is None or last is None:
            return None
        return self._harmless(lambda: self._sensors.activity(first, last))

    def __enter__(self) -> Self:
        """Take the first sample, before any work can start, and go on in a thread."""
        self._start_s = time.perf_counter()
        self._stop.acquire()
        self._take()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the last sample and stop."""
        self._stop.release()
        self._thread.join(self._patience_s)
        if self._thread.is_alive():
            self._lost = f"the driver did not answer within {self._patience_s:g} s"
        self._lost = self._lost or self._odd

    def _harmless(self, ask: Callable[[], _T]) -> _T | None:
        try:
            return ask() if self._lost is None else None
        except Exception:  # a measurement outlives any counter
            _log.warning("the activity counters failed", exc_info=True)
            return None

    def _run(self) -> None:
        tick = 0
        while self._lost is None:
            tick = max(tick + 1, int(self.at_s() / self.period_s) + 1)
            stopping = self._stop.acquire(timeout=max(0.0, tick * self.period_s - self.at_s()))
            self._take()
            if stopping:
                return

    def _take(self) -> float:
        with self._turn:
            at_s = self.at_s()
            self._read(at_s)
            return at_s

    def _read(self, at_s: float) -> None:
        if self._lost is not None:
            return
        try:
            note = self._sensors.note(at_s)
        except SensorsLostError as err:
            self._lost = str(err)
        except Exception as err:  # a measurement outlives any sensor
            if self._odd is None:
                _log.warning("a sensor reading failed", exc_info=True)
            self._odd = f"the sensors failed: {err!r}"
        else:
            self._odd = None
            if self._lost is None:  # a read that hung beyond the exit comes too late
                self._notes.append(note)
