"""How the congestion controller does beside others on a made-up market: `python benchmarks/controller.py`.

Demand has a constant elasticity, answers the price with a lag of some hours, wobbles by an AR(1) noise, and jumps by half on day 5.
The assumptions are ours; the comparison is what counts. Reported over days 5 to 30, over seeds and elasticities: mean utilisation, the
share of hours in which the market is full (demand above 98 % of supply), hours until the six-hour mean stays within 0.08 of the target for
a day, overshoot of the price over where it ends, and the standard deviation of hourly changes of the price when nothing happens.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Iterator
from decimal import Decimal
from itertools import pairwise
from typing import NamedTuple

from harness.scoring.controller import AT_REST, stepped

TARGET, JUMP_H, END_H = 0.70, 120, 720
ELASTICITIES = (0.5, 1.0, 2.0)
SEEDS = range(8)

Policy = Callable[[], Callable[[float], float]]  # utilisation of a step -> multiplier of the next


class Result(NamedTuple):
    """What one policy came to in one market."""

    utilisation: float
    full_percent: float
    settled_h: float
    overshoot_percent: float
    noise_percent: float


def ours() -> Callable[[float], float]:
    """Our controller, one step an hour."""
    state = AT_REST

    def next_price(utilisation: float) -> float:
        nonlocal state
        state = stepped(state, Decimal(f"{utilisation:.9f}"), 3600)
        return float(state.multiplier)

    return next_price


def proportional() -> Callable[[float], float]:
    """The plain one of the research: 10 % of the error an hour, 3 % an hour at most."""
    price = 1.0

    def next_price(utilisation: float) -> float:
        nonlocal price
        price = min(max(price * math.exp(max(min(0.10 * (utilisation - TARGET), 0.03), -0.03)), 0.5), 2)
        return price

    return next_price


def eip1559(fraction: float) -> Policy:
    """Ethereum's rule: the price moves by a fraction of the relative error at each step."""

    def policy() -> Callable[[float], float]:
        price = 1.0

        def next_price(utilisation: float) -> float:
            nonlocal price
            price = min(max(price * (1 + fraction * (utilisation - TARGET) / TARGET), 0.01), 100)
            return price

        return next_price

    return policy


def simulate(policy: Policy, elasticity: float, seed: int, steps: int = 1) -> Result:
    """Run thirty days, with so many steps of the policy an hour."""
    rng, next_price = random.Random(seed), policy()  # noqa: S311 - noise, no secret
    price, noise, felt = 1.0, 0.0, 1.0
    used, prices, wanted = [], [], []
    for hour in range(END_H):
        noise = 0.9 * noise + rng.gauss(0, 0.02)
        level = TARGET * (1.5 if hour >= JUMP_H else 1.0)
        within = []
        for _ in range(steps):
            felt += (price - felt) * (1 - (1 - 1 / 6) ** (1 / steps))  # who rents answers in hours
            demand = level * felt**-elasticity * math.exp(noise)
            within.append(demand)
            price = next_price(min(demand, 1.0))
        wanted.append(statistics.fmean(within))
        used.append(statistics.fmean(min(d, 1.0) for d in within))
        prices.append(price)
    after = slice(JUMP_H, END_H)
    end = statistics.median(prices[-168:])
    return Result(
        utilisation=statistics.fmean(used[after]),
        full_percent=100 * statistics.fmean(w > 0.98 for w in wanted[after]),
        settled_h=settled(used[after]),
        overshoot_percent=100 * (max(prices[after]) / end - 1),
        noise_percent=100 * statistics.pstdev(list(changes(prices[24:JUMP_H]))),
    )


def changes(prices: list[float]) -> Iterator[float]:
    yield from (math.log(b / a) for a, b in pairwise(prices))


def settled(used: list[float]) -> float:
    smooth = [statistics.fmean(used[max(0, i - 5) : i + 1]) for i in range(len(used))]
    for hour in range(len(smooth) - 24):
        if all(abs(u - TARGET) < 0.08 for u in smooth[hour : hour + 24]):
            return hour
    return len(smooth)


def main() -> None:
    policies: dict[str, tuple[Policy, int]] = {
        "ours": (ours, 1),
        "proportional, 10 %/h, cap 3 %/h": (proportional, 1),
        "EIP-1559, 1/8 every 12 s": (eip1559(1 / 8), 300),
        "EIP-1559, 1/8 every hour": (eip1559(1 / 8), 1),
        "EIP-1559, 1/50 every hour": (eip1559(1 / 50), 1),
    }
    print("| controller | elasticity | mean utilisation | full, % of hours | settles, h | overshoot, % | noise, %/h |")
    print("|---|---|---|---|---|---|---|")
    for name, (policy, steps) in policies.items():
        for elasticity in ELASTICITIES:
            runs = [simulate(policy, elasticity, seed, steps) for seed in SEEDS]
            mean = Result(*(statistics.fmean(column) for column in zip(*runs, strict=True)))
            cells = f"{mean.utilisation:.3f} | {mean.full_percent:.1f} | {mean.settled_h:.0f} | {mean.overshoot_percent:.0f} | {mean.noise_percent:.2f}"
            print(f"| {name} | {elasticity} | {cells} |")


if __name__ == "__main__":
    main()
