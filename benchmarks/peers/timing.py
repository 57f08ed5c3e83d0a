"""Time two programs that do the same work so that whatever else the machine does meets both alike, and judge the ratio."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

from harness import stats
from harness.measure.rounds import Effort, batch_for
from harness.registry import Case

__all__ = ["PAUSE_S", "SAMPLES", "SAMPLE_S", "Pair", "Row", "Run", "compare"]

SAMPLES = 4  # of each side in a round; even, so that each side goes first equally often
SAMPLE_S = 0.02
PAUSE_S = 0.04  # OpenMP's and OpenBLAS's threads go on spinning for so long, and would take the other side's CPUs
_SAMPLE = Effort(warmup_s=0.0, budget_s=0.0, sample_s=SAMPLE_S)
_WARMUP_S = 0.2
_ATTEMPTS = 5  # at one sample
_WAITED_FRACTION = 0.01  # of a sample's time, that our threads may have waited for a CPU in all
_UNTIMED_S = 0.1  # a shorter run is made once more than timed, to wake what slept
_BAND = 0.95, 1.05

Run = Callable[[], object]
Verdict = Literal["within 5 %", "faster", "slower", "unclear"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A benchmark's case and a peer's run, which do the same work."""

    peer: str
    case: Case
    peer_run: Run
    unit: str
    value: Callable[[float], float]  # seconds of one run -> in the unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What the comparison of one pair gave. A ratio is the peer's time to ours: above 1, ours is faster."""

    benchmark: str
    peer: str
    unit: str
    ours: float
    peers: float
    ratio: float
    ratio_low: float
    ratio_high: float
    rounds: int
    samples_repeated: int
    samples_disturbed: int
    verdict: Verdict


def compare(benchmark: str, pair: Pair, rounds: int) -> Row:
    """Time both sides in rounds of alternating samples; the interval is over the ratios of the rounds, one each."""
    batches = _warm(pair.case.run), _warm(pair.peer_run)
    clock = _Clock()
    ours: list[float] = []
    peers: list[float] = []
    ratios: list[float] = []
    for _ in range(rounds):
        mine, theirs = _round(pair, batches, clock)
        ours += mine
        peers += theirs
        ratios.append(median(theirs) / median(mine))
    ratio, low, high = stats.interval(ratios)
    return Row(
        benchmark=benchmark,
        peer=pair.peer,
        unit=pair.unit,
        ours=pair.value(median(ours)),
        peers=pair.value(median(peers)),
        ratio=ratio,
        ratio_low=low,
        ratio_high=high,
        rounds=rounds,
        samples_repeated=clock.repeated,
        samples_disturbed=clock.disturbed,
        verdict=_verdict(low, high),
    )


def _round(pair: Pair, batches: tuple[int, int], clock: _Clock) -> tuple[list[float], list[float]]:
    """Take samples in the order ours, peer, peer, ours, ..."""
    times: tuple[list[float], list[float]] = [], []
    sides = list(zip(times, (pair.case.run, pair.peer_run), batches, strict=True))
    for i in range(SAMPLES):
        for found, run, batch in sides if i % 2 == 0 else reversed(sides):
            found.append(clock.undisturbed(run, batch))
    return times


def _verdict(low: float, high: float) -> Verdict:
    """Judge by the interval: a side is faster if all of it says so by 5 %. One that reaches beyond both limits says nothing."""
    least, most = _BAND
    if high < least:
        return "slower"
    if low > most:
        return "faster"
    return "unclear" if low < least and high > most else "within 5 %"


def _warm(run: Run) -> int:
    """Run for a while and return how many runs make one sample."""
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 2 or time.perf_counter() - began < _WARMUP_S:
        times.append(_sample(run, 1))
    return batch_for(min(times), _SAMPLE)


def _sample(run: Run, batch: int) -> float:
    start = time.perf_counter()
    run()
    if batch == 1 and time.perf_counter() - start > _UNTIMED_S:
        return time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(batch):
        run()
    return (time.perf_counter() - start) / batch


class _Clock:
    """Takes samples, and takes them again if another process had our CPUs: the kernel says how long our threads stood in line.

    What decides is never the time itself, and it decides for both sides alike.
    """

    def __init__(self) -> None:
        self.repeated = 0  # samples taken again
        self.disturbed = 0  # samples kept though disturbed, after so many attempts

    def undisturbed(self, run: Run, batch: int) -> float:
        for _ in range(_ATTEMPTS):
            time.sleep(PAUSE_S)
            waited, began = _waited_s(), time.perf_counter()
            sample_s = _sample(run, batch)
            if _waited_s() - waited <= _WAITED_FRACTION * (time.perf_counter() - began):
                return sample_s
            self.repeated += 1
        self.disturbed += 1
        return sample_s


def _waited_s() -> float:
    """Return how long the threads of this process were ready to run and had no CPU, all together; 0 where the kernel does not count."""
    total_ns = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        with suppress(OSError):  # the thread has ended
            total_ns += int(path.read_text().split()[1])
    return total_ns / 1e9
