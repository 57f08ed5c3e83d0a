"""Monte Carlo: random numbers, logarithms, exponentials and sines with no memory traffic, as in finance and physics."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from harness.registry import Case, Sized, Work, benchmark, require_memory

if TYPE_CHECKING:
    from harness.device.backend import Array, Backend

_PATHS = 256  # added up to one element of the answer, always in the same order
_CALLS = _PATHS // 4  # of the generator, which gives four words
_SPOT, _STRIKE, _RATE, _VOLATILITY = 100.0, 105.0, 0.05, 0.2  # of a European call that runs for a year
_LOW, _HALF, _EIGHT = np.uint64(0xFFFFFFFF), np.uint64(32), np.uint64(8)
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)


def payoffs(lane, first, count, step, seed, terms, out):  # type: ignore[no-untyped-def]
    """Add up what the call pays on the paths of each index, in the type of `terms`.

    The normals are Box and Muller's, the words those of stream 0 of the seed (Philox4x32-10, as in `device.philox`).
    """
    unit, turn, middle, volatility, strike, zero, minus_two = (
        terms[0], terms[1], terms[2], terms[3], terms[4], terms[5], terms[6]
    )  # fmt: skip
    for k in range(count):
        i = first + k * step
        total = zero
        for call in range(_CALLS):
            counter = i * np.uint64(_CALLS) + np.uint64(call)
            c0, c1, c2, c3 = counter & _LOW, counter >> _HALF, np.uint64(0), np.uint64(0)
            k0, k1 = seed & _LOW, seed >> _HALF
            for _ in range(10):
                p0, p1 = _M0 * c0, _M1 * c2
                c0, c1, c2, c3 = (p1 >> _HALF) ^ c1 ^ k0, p1 & _LOW, (p0 >> _HALF) ^ c3 ^ k1, p0 & _LOW
                k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
            for _ in range(2):
                u = unit * np.float32((c0 >> _EIGHT) + np.uint64(1))  # in (0, 1]: it has a logarithm
                angle = turn * np.float32(c1 >> _EIGHT)
                radius = volatility * math.sqrt(minus_two * math.log(u))
                total += max(middle * math.exp(radius * math.cos(angle)) - strike, zero)
                total += max(middle * math.exp(radius * math.sin(angle)) - strike, zero)
                c0, c1 = c2, c3
        out[i] = total


def _terms(xp: Array, dtype: str) -> Array:
    middle = _SPOT * math.exp(_RATE - _VOLATILITY**2 / 2)
    return xp.asarray([2.0**-24, 2.0**-23 * math.pi, middle, _VOLATILITY, _STRIKE, 0, -2], dtype=dtype)


def _by_numpy(words: Array) -> float:
    """Add up the payoffs of one index, from its words, in float64."""
    u, v = (words >> np.uint32(8)).reshape(-1, 2).T * 2.0**-24
    radius, angle = np.sqrt(-2 * np.log(u + 2.0**-24)), 2 * np.pi * v
    bells = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    ends = _SPOT * np.exp(_RATE - _VOLATILITY**2 / 2 + _VOLATILITY * bells)
    return float(np.maximum(ends - _STRIKE, 0).sum())


def _mean_and_deviation() -> tuple[float, float]:
    """Return those of one path's payoff, by Black and Scholes's formula and its like for the square."""
    below, growth = NormalDist().cdf, _SPOT * math.exp(_RATE)
    d = (math.log(growth / _STRIKE) - _VOLATILITY**2 / 2) / _VOLATILITY
    mean = growth * below(d + _VOLATILITY) - _STRIKE * below(d)
    square = (
        growth**2 * math.exp(_VOLATILITY**2) * below(d + 2 * _VOLATILITY)
        - 2 * _STRIKE * growth * below(d + _VOLATILITY)
        + _STRIKE**2 * below(d)
    )
    return mean, math.sqrt(square - mean**2)


@benchmark(version=1, metric="throughput", quick=False, paths=Sized(check=1 << 14, cpu=1 << 20, cuda=1 << 30))
def montecarlo(backend: Backend, seed: int, *, paths: int) -> Case:
    """Paths that price a European call in float32, a multiple of 256; every sum of 256 payoffs is checked in float64."""
    n = paths // _PATHS
    require_memory(backend, 40 * n)
    xp = backend.xp
    terms, exact_terms = _terms(xp, "float32"), _terms(xp, "float64")
    out = xp.zeros(n, dtype=np.float32)
    launch = backend.compile(payoffs, fuse=True)

    def run() -> Array:
        launch(n, np.uint64(seed), terms, out)
        return out

    def check(answer: Array) -> bool:
        # The kernel in float64 judges every sum; NumPy, by three of them, and the closed form, by the mean, judge that kernel.
        exact = xp.zeros(n, dtype=np.float64)
        launch(n, np.uint64(seed), exact_terms, exact)
        for i in (0, n // 2, n - 1):
            sample = _by_numpy(backend.to_host(backend.rng(seed).words(4 * _CALLS, start=i * _CALLS)))
            if abs(float(exact[i]) - sample) > 1e-9 * sample:
                return False
        mean, deviation = _mean_and_deviation()
        if abs(float(exact.sum()) / paths - mean) > 6 * deviation / math.sqrt(paths):
            return False
        # A payoff is the small difference of two large prices, each rounded a few times; the sum at each step.
        allowed = float(np.finfo(np.float32).eps) * _PATHS * (8 * _SPOT + exact / 2)
        return bool((xp.abs(answer - exact) <= allowed).all())

    return Case(run=run, work=Work(items=paths, item="path", counting="payoffs drawn and added"), check=check)
