"""Ask what a cartel of validators gains for its own providers, aggregator by aggregator.

    uv run python benchmarks/cartel.py [--trials 20] [--keys 4] [--markdown]

32 validators with Pareto(1.2) stakes judge 64 providers, each with its own error of 7 %. Four validators (`--keys`) and six providers are one
cartel, whose stake is scaled to a share of all. A number is the cartel's share of the pay over what it would be by the truth, the mean of
all trials.

inflate   the cartel reports ten times the truth of its own providers
zero      it reports nothing of all others
stall     it lets its clock run on for all others: true transcripts that show a thousandth. No replay contradicts these

`evidence first` is `harness.scoring.consensus.agree`: claims without a transcript, and those that say more than theirs, weigh nothing; each
key of the cartel has an owner of its own, so that the cap does not know them to be one.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import fmean

from harness.scoring.consensus import Claim, Validator, agree, capped, mean_shares, median_shares, yuma_shares

__all__ = ["AGGREGATORS", "ATTACKS", "STAKES", "Market", "gain", "main"]

VALIDATORS, PROVIDERS = 32, 64
KEYS, THEIRS = 4, 6
ERROR = 0.07
HONEST_FRACTION = 0.0806  # what the cartel's providers deliver of all, so that all there is would be 12.4 times it
STAKES = (0.10, 0.30, 0.49, 0.51)
ATTACKS = ("inflate", "zero", "stall")

Rows = list[list[float]]


@dataclass(frozen=True, slots=True)
class Market:
    """What is true of each provider, what each validator measured, and its stake. The first of each are the cartel's."""

    truth: list[float]
    seen: Rows
    stakes: list[float]
    keys: int


def market(seed: int, cartel_fraction: float, keys: int = KEYS) -> Market:
    """Draw a market whose cartel has this share of the stake."""
    rng = random.Random(seed)  # noqa: S311 - a simulation
    raw = [rng.lognormvariate(0, 0.5) for _ in range(PROVIDERS)]
    lift = HONEST_FRACTION / (1 - HONEST_FRACTION) * sum(raw[THEIRS:]) / sum(raw[:THEIRS])
    truth = [x * lift if j < THEIRS else x for j, x in enumerate(raw)]
    seen = [[x * max(rng.gauss(1, ERROR), 0.1) for x in truth] for _ in range(VALIDATORS)]
    stakes = [rng.paretovariate(1.2) for _ in range(VALIDATORS)]
    theirs, others = sum(stakes[:keys]), sum(stakes[keys:])
    scale = cartel_fraction / (1 - cartel_fraction) * others / theirs
    stakes = [s * scale if i < keys else s for i, s in enumerate(stakes)]
    return Market(truth=truth, seen=seen, stakes=stakes, keys=keys)


def said(drawn: Market, attack: str) -> Rows:
    """Return what the validators report: the others what they measured, the cartel what serves it."""
    own = {"inflate": 10.0}.get(attack, 1.0)
    rest = {"zero": 0.0, "stall": 0.001}.get(attack, 1.0)
    factors = [own if j < THEIRS else rest for j in range(PROVIDERS)]
    return [
        [x * f for x, f in zip(row, factors, strict=True)] if i < drawn.keys else row
        for i, row in enumerate(drawn.seen)
    ]


def _weights(stakes: Sequence[float], cap_fraction: float = 1.0) -> list[Fraction]:
    return [*capped(_validators(stakes), cap_fraction).values()]


def _validators(stakes: Sequence[float]) -> list[Validator]:
    return [Validator(key=str(i), owner=str(i), stake=stake) for i, stake in enumerate(stakes)]


def _evidence_first(drawn: Market, rows: Rows, attack: str) -> list[float]:
    """A lie has no transcript that shows it, but for one that stalled, which shows less than the provider can."""
    shown = rows if attack == "stall" else drawn.seen
    claims = [
        Claim(validator=str(i), provider=f"{j:02}", low_per_s=x, transcript=f"{i}/{j}" if x else None)
        for i, row in enumerate(rows)
        for j, x in enumerate(row)
    ]
    agreed = agree(_validators(drawn.stakes), claims, lambda claim: shown[int(claim.validator)][int(claim.provider)])
    return [one.low_per_s or 0.0 for one in agreed]


Aggregator = Callable[[Market, Rows, str], Sequence[float]]
AGGREGATORS: dict[str, Aggregator] = {
    "mean": lambda m, rows, _: mean_shares(rows, _weights(m.stakes)),
    "median": lambda m, rows, _: median_shares(rows, _weights(m.stakes)),
    "Yuma, kappa 0.5": lambda m, rows, _: yuma_shares(rows, _weights(m.stakes)),
    "Yuma, kappa 0.66": lambda m, rows, _: yuma_shares(rows, _weights(m.stakes), Fraction(2, 3)),
    "median, 5 % cap": lambda m, rows, _: median_shares(rows, _weights(m.stakes, 0.05)),
    "Yuma, 5 % cap": lambda m, rows, _: yuma_shares(rows, _weights(m.stakes, 0.05)),
    "evidence first": _evidence_first,
}


def gain(aggregator: str, attack: str, cartel_fraction: float, trials: int, keys: int = KEYS) -> float:
    """Return the cartel's share over its honest share, the mean of so many markets."""
    gains = []
    for seed in range(trials):
        drawn = market(seed, cartel_fraction, keys)
        paid = AGGREGATORS[aggregator](drawn, said(drawn, attack), attack)
        gains.append(sum(paid[:THEIRS]) / sum(paid) / (sum(drawn.truth[:THEIRS]) / sum(drawn.truth)))
    return fmean(gains)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--keys", type=int, default=KEYS)
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args()
    rows = [["aggregator", "attack", *(f"{stake:.0%} of stake" for stake in STAKES)]]
    rows += [
        [name, attack, *(f"{gain(name, attack, stake, args.trials, args.keys):.2f}" for stake in STAKES)]
        for attack in ATTACKS
        for name in AGGREGATORS
    ]
    if args.markdown:
        rows.insert(1, ["---", "---", *("---:" for _ in STAKES)])
    for row in rows:
        print("| " + " | ".join(row) + " |" if args.markdown else "".join(f"{cell:>18}" for cell in row))


if __name__ == "__main__":
    main()
