"""Synthetic times of a device: what disturbs a measurement, and what its true time is.

Every model is relative to a run that takes 1 and yields one row of samples per trial, taken back to back, 10 ms each. Six are the usual
suspects, five are traces that hosts and cards are known for. They are models, not recordings: they say which method would be fooled
by what, not how often that happens.

A model states two truths. `mean` is the long-run mean of the steady process; a rule that averages samples is held to it. `middle` is
the time of the device itself: where the disturbance comes from outside (spikes, neighbours, jitter) the long-run median, else the
mean again. A rule made of medians is held to that. Nobody is blamed for what he does not claim.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["MODELS", "SAMPLE_S", "Model"]

Floats = npt.NDArray[np.float64]
Stream = Callable[[np.random.Generator, int, int], Floats]

SAMPLE_S = 0.01
_WARMING_S = 30  # time constant


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A noise process. Its stream is that of a warm device, before the timer rounds it to `tick`."""

    name: str
    says: str
    stream: Stream
    mean: float = 1.0
    middle: float = 1.0
    warming: float = 0.0  # how much faster it is when cold
    tick: float = 0.0
    promised: bool = True  # False where nothing settles, or where our rule is known to be fooled

    def times(self, rng: np.random.Generator, trials: int, samples: int, *, soaked: bool) -> Floats:
        """Return times as a timer reads them, (trials, samples); once `soaked`, what warming up changes has passed."""
        exact = self.stream(rng, trials, samples)
        if not soaked:
            exact -= self.warming * np.exp(-np.arange(samples) * SAMPLE_S / _WARMING_S)
        return np.round(exact / self.tick) * self.tick if self.tick else exact


def _white(sd: float, centre: float = 1.0) -> Stream:
    def stream(rng: np.random.Generator, trials: int, samples: int) -> Floats:
        return centre + sd * rng.standard_normal((trials, samples))

    return stream


def _spikes(rng: np.random.Generator, trials: int, samples: int) -> Floats:
    hit = rng.random((trials, samples)) < 0.02
    return 1 + 0.003 * rng.standard_normal((trials, samples)) + 0.2 * hit


def _clock_states(rng: np.random.Generator, trials: int, samples: int) -> Floats:
    """Two clocks 5 % apart, each kept for 2 s on average."""
    turns = np.cumsum(rng.random((trials, samples)) < SAMPLE_S / 2, axis=1)
    slow = (turns + rng.integers(0, 2, (trials, 1))) % 2
    return 0.975 + 0.05 * slow + 0.002 * rng.standard_normal((trials, samples))


def _autoregressive(rng: np.random.Generator, trials: int, samples: int) -> Floats:
    noise = rng.standard_normal((samples, trials))
    noise[1:] *= math.sqrt(1 - 0.9**2)
    for i in range(1, samples):
        noise[i] += 0.9 * noise[i - 1]
    return 1 + 0.004 * noise.T


def _neighbour(rng: np.random.Generator, trials: int, samples: int) -> Floats:
    """Somebody else's bursts of 0.6 s every 5 s on average, each 3 to 13 % of our time."""
    starts = rng.random((samples, trials)) < SAMPLE_S / 4.4
    ends = rng.random((samples, trials)) < SAMPLE_S / 0.6
    weights = rng.uniform(0.03, 0.13, (samples, trials))
    extra = np.where(rng.random(trials) < 0.12, weights[0], 0.0)
    rows = np.empty((samples, trials))
    for i in range(samples):
        extra = np.where(extra > 0, np.where(ends[i], 0.0, extra), np.where(starts[i], weights[i], 0.0))
        rows[i] = extra
    return 1 + rows.T + 0.002 * rng.standard_normal((trials, samples))


def _regulated(period_s: float) -> Stream:
    """Give a fan or a power regulator that swings the time by 1 % either way."""

    def stream(rng: np.random.Generator, trials: int, samples: int) -> Floats:
        phase = rng.uniform(0, 2 * np.pi, (trials, 1))
        swing = np.sin(phase + 2 * np.pi * SAMPLE_S / period_s * np.arange(samples))
        return 1 + 0.01 * swing + 0.002 * rng.standard_normal((trials, samples))

    return stream


_TAIL = 1.5  # of a Pareto: its mean exists, its variance does not


def _heavy_tail(rng: np.random.Generator, trials: int, samples: int) -> Floats:
    return 1 + 0.002 * rng.pareto(_TAIL, (trials, samples))


MODELS = (
    Model(name="iid", says="independent noise of 0.3 %", stream=_white(0.003)),
    Model(
        name="spikes",
        says="noise of 0.3 %, and 2 % of the samples 20 % longer",
        stream=_spikes,
        mean=1 + 0.02 * 0.2,
        middle=1 + 0.003 * 0.02558,  # the standard normal's quantile at 0.5 / 0.98
    ),
    Model(name="clock states", says=_clock_states.__doc__ or "", stream=_clock_states, promised=False),
    Model(name="AR(1)", says="noise of 0.4 %, correlated 0.9 from sample to sample", stream=_autoregressive),
    Model(
        name="thermal drift",
        says="noise of 0.3 %, and 5 % slower once warm, with a time constant of 30 s",
        stream=_white(0.003),
        warming=0.05,
    ),
    Model(
        name="quantised",
        says="noise of 0.3 %, read in steps of 0.5 %, the true time half-way between two",
        stream=_white(0.003, 1.0025),
        mean=1.0025,
        middle=1.0025,
        tick=0.005,
    ),
    Model(
        name="neighbour",
        says=_neighbour.__doc__ or "",
        stream=_neighbour,
        mean=1 + 0.12 * 0.08,
        promised=False,
    ),
    Model(name="swing 8 s", says="a regulator swings the time by 1 % either way in 8 s", stream=_regulated(8)),
    Model(name="swing 60 s", says="the same in 60 s", stream=_regulated(60), promised=False),
    Model(
        name="heavy tail",
        says="jitter without a variance: Pareto of exponent 1.5",
        stream=_heavy_tail,
        mean=1 + 0.002 / (_TAIL - 1),
        middle=1 + 0.002 * (2 ** (1 / _TAIL) - 1),
    ),
    Model(
        name="timer",
        says="noise of 0.02 %, read in steps of 0.05 %: an event timer of 0.5 µs at samples of 1 ms",
        stream=_white(0.0002, 1.0002),
        mean=1.0002,
        middle=1.0002,
        tick=0.0005,
    ),
)
