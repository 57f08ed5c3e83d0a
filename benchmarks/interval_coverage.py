"""Ask how often the interval of each stopping rule holds the truth, on noise whose truth is known.

    uv run python benchmarks/interval_coverage.py [--trials 300] [--markdown]

Ours is not imitated: `harness.measure.rounds.enough` decides when to stop, `harness.stats` makes the interval and
`harness.measure.validity.judge` names the state, on samples of a synthetic trace instead of a stopwatch. The other rules are written
after their descriptions and see the same trace, back to back from its first sample, as they do in life. Where a tool gives a mean and a
spread but no interval, it is mean ± 1.96 standard errors.

Assumed: a sample lasts 10 ms. In turns, our rounds of 30 lie 1.8 to 3.6 s apart, because about nine other benchmarks have their round
in between; sustained, they lie as far apart as `Effort.space_s` says, and there are as many as fill `Effort.energy_s`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from traces import MODELS, SAMPLE_S, Model

from harness import stats
from harness.measure.rounds import EFFORTS, enough, samples_for
from harness.measure.validity import judge

__all__ = ["RULES", "Cell", "cell", "main"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_EFFORT = EFFORTS["full"]
_TURNS_S = (1.8, 3.6)
_LENGTH = _EFFORT.rounds_max * (_EFFORT.samples + round(max(*_TURNS_S, _EFFORT.space_s) / SAMPLE_S))
_ROUNDING = 1e-9  # relative: an interval of no width may lie on the truth but for the last digits
_Z975 = 1.959964


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What a rule said in each trial: an interval, whether it calls that settled or refuses to vouch for it, and what it took."""

    low: Floats
    high: Floats
    converged: npt.NDArray[np.bool_]
    refused: npt.NDArray[np.bool_]
    samples: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One rule on one model. `coverage_fraction` is over the trials not refused; None where all were."""

    coverage_fraction: float | None
    converged_fraction: float
    misleading_fraction: float  # called settled, and wrong
    refused_fraction: float
    samples: float  # median


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A way to stop and to say how sure one is."""

    name: str
    answer: Callable[[Floats, np.random.Generator], Answers]
    of_medians: bool = False
    soaked: bool = False


def _cumulative(times: Floats) -> tuple[Floats, Floats]:
    """Return mean and standard deviation of the first n samples, for every n, the first of which has none."""
    count = np.arange(1, times.shape[1] + 1)
    shifted = times - 1  # near 1 the difference of two sums would lose all digits
    mean = np.cumsum(shifted, axis=1) / count
    squares = np.cumsum(shifted**2, axis=1) - count * mean**2
    return mean + 1, np.sqrt(np.maximum(squares, 0) / np.maximum(count - 1, 1))


def _stopped(times: Floats, done: npt.NDArray[np.bool_]) -> Answers:
    """Take mean ± 1.96 standard errors at the first sample where a rule is done, at the last one where it never is."""
    last = times.shape[1] - 1
    converged = done.any(axis=1)
    at = np.where(converged, done.argmax(axis=1), last)[:, None]
    mean, deviation = (np.take_along_axis(a, at, axis=1)[:, 0] for a in _cumulative(times))
    samples = at[:, 0] + 1
    half = _Z975 * deviation / np.sqrt(samples)
    return Answers(
        low=mean - half, high=mean + half, converged=converged, refused=np.zeros_like(converged), samples=samples
    )


def _fixed(times: Floats, _: np.random.Generator) -> Answers:
    """Always 100 samples, as do_bench's 100 ms make of a kernel of 1 ms."""
    times = times[:, :100]
    return _stopped(times, np.arange(100) == np.full((len(times), 1), 99))


def _standard_error(times: Floats, _: np.random.Generator) -> Answers:
    """At least 3 samples, until the standard error is below 0.1 % of the mean, 1000 samples at most."""
    mean, deviation = _cumulative(times[:, :1000])
    count = np.arange(1, mean.shape[1] + 1)
    return _stopped(times[:, :1000], (count >= 3) & (deviation / np.sqrt(count) < 0.001 * mean))


def _relative_deviation(times: Floats, _: np.random.Generator) -> Answers:
    """At least 0.5 s, until the deviation is below 0.5 % of the mean or has varied by under 5 % for 512 samples; at most 15 s."""
    times = times[:, : int(15 / SAMPLE_S)]
    mean, deviation = _cumulative(times)
    noise = deviation / mean
    count = np.arange(1, mean.shape[1] + 1)
    window = 512
    stable = np.zeros(noise.shape, dtype=bool)
    sums, squares = (np.cumsum(a, axis=1) for a in (noise, noise**2))
    average = (sums[:, window:] - sums[:, :-window]) / window
    variance = (squares[:, window:] - squares[:, :-window]) / window - average**2
    stable[:, window:] = np.sqrt(np.maximum(variance, 0)) < 0.05 * average
    return _stopped(times, (count >= max(10, 0.5 / SAMPLE_S)) & ((noise < 0.005) | stable))


def _ours(between_s: tuple[float, float], least_s: float = 0.0) -> Callable[[Floats, np.random.Generator], Answers]:
    """Return rounds with so much time between them, stopped, judged and enclosed by the harness itself."""
    low_gap, high_gap = (round(s / SAMPLE_S) for s in between_s)
    samples = samples_for(SAMPLE_S, _EFFORT)

    def answer(times: Floats, rng: np.random.Generator) -> Answers:
        gaps = rng.integers(low_gap, high_gap, (len(times), _EFFORT.rounds_max), endpoint=True)
        starts = np.cumsum(gaps + samples, axis=1) - gaps[:, :1] - samples
        rounds = np.take_along_axis(times[:, None, :], starts[:, :, None] + np.arange(samples), axis=2)
        ends_s = (starts + samples + gaps) * SAMPLE_S
        said = [_one_of_ours(t, e, least_s) for t, e in zip(rounds.tolist(), ends_s.tolist(), strict=True)]
        low, high, states, counts = zip(*said, strict=True)
        return Answers(
            low=np.array(low),
            high=np.array(high),
            converged=np.array([s == "valid" for s in states]),
            refused=np.array([s == "drifting" for s in states]),
            samples=np.array(counts) * samples,
        )

    return answer


def _one_of_ours(
    rounds: Sequence[Sequence[float]], ends_s: Sequence[float], least_s: float
) -> tuple[float, float, str, int]:
    taken, timed_s = _EFFORT.rounds_min, len(rounds[0]) * SAMPLE_S
    while taken < len(rounds) and (ends_s[taken - 1] < least_s or not enough(rounds[:taken], taken * timed_s, _EFFORT)):
        taken += 1
    _, low, high = stats.interval(stats.medians(rounds[:taken]), stats.step(rounds[:taken]))
    return low, high, judge(rounds[:taken], (), effort=_EFFORT)[0], taken


RULES = (
    Rule(name="fixed 100, mean ± SEM", answer=_fixed),
    Rule(name="SEM below 0.1 %", answer=_standard_error),
    Rule(name="deviation below 0.5 % or stable", answer=_relative_deviation),
    Rule(name="ours, in turns", answer=_ours(_TURNS_S), of_medians=True),
    Rule(name="ours, in turns, warm", answer=_ours(_TURNS_S), of_medians=True, soaked=True),
    Rule(
        name="ours, sustained",
        answer=_ours((_EFFORT.space_s, _EFFORT.space_s), _EFFORT.energy_s),
        of_medians=True,
        soaked=True,
    ),
)


def cell(rule: Rule, model: Model, trials: int, seed: int = 1) -> Cell:
    """Try a rule on a model. All rules see the same trace of a seed."""
    times = model.times(np.random.default_rng([seed, *model.name.encode()]), trials, _LENGTH, soaked=rule.soaked)
    said = rule.answer(times, np.random.default_rng(seed))
    truth = model.middle if rule.of_medians else model.mean
    holds = (said.low <= truth * (1 + _ROUNDING)) & (said.high >= truth * (1 - _ROUNDING))
    kept = ~said.refused
    return Cell(
        coverage_fraction=float(holds[kept].mean()) if kept.any() else None,
        converged_fraction=float(said.converged.mean()),
        misleading_fraction=float((said.converged & ~holds).mean()),
        refused_fraction=float(said.refused.mean()),
        samples=float(np.median(said.samples)),
    )


_IN_TURNS = next(i for i, rule in enumerate(RULES) if rule.soaked)


def _text(found: Cell) -> str:
    if found.coverage_fraction is None:
        return f"refused, {found.samples:.0f}"
    return f"{found.coverage_fraction:.0%} ({found.converged_fraction:.0%}), {found.samples:.0f}".replace("%", "")


def _rows(trials: int) -> list[list[str]]:
    rows = [["noise", *(rule.name for rule in RULES), "in turns, warm: settled and wrong"]]
    for model in MODELS:
        print(f"{model.name} ...", file=sys.stderr)
        cells = [cell(rule, model, trials) for rule in RULES]
        rows.append([model.name, *map(_text, cells), f"{cells[_IN_TURNS].misleading_fraction:.1%}"])
    return rows


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    ruled = [rows[0], ["---", *["---:"] * (len(rows[0]) - 1)], *rows[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in ruled)


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in rows)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Ask how often the interval of each stopping rule holds the truth.")
    parser.add_argument("--trials", type=int, default=300, help="of each rule on each model (default 300)")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    args = parser.parse_args(argv)
    if args.trials < 1:
        parser.error(f"--trials {args.trials} is less than 1")
    rows = _rows(args.trials)
    print((_markdown if args.markdown else _aligned)(rows))
    print("\nEach cell: % of intervals that hold the truth (% of trials called settled), median number of samples.")
    for model in MODELS:
        print(f"{model.name}: {model.says.rstrip('.')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
