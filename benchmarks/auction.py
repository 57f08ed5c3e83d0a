"""How the call auction does: time for 10,000 orders, what it makes of the gains there are, and what lying wins: `python benchmarks/auction.py`.

Buyers' values and sellers' costs are drawn around a fair price of 1.00 USD a CU-hour, sizes from 1 to 20 CU-hours. Efficiency is the
surplus that trades, by true values, over the most that there is. Lying: each trader in turn shades his limit by 1 to 30 % while the others
tell the truth; reported is the best that it brings him, as a share of what the truth brings, on average over traders who trade.
"""

from __future__ import annotations

import random
import statistics
import time
from dataclasses import replace

from harness.scoring.auction import Bounds, Order, clear

FAIR = 10**6
BOUNDS = Bounds(
    fair_micro_usd=FAIR, low_micro_usd=FAIR * 100 // 152, high_micro_usd=FAIR * 152 // 100, reserve_micro_usd=FAIR // 10
)


def book(count: int, seed: int) -> list[Order]:
    rng = random.Random(seed)  # noqa: S311 - a load, no secret
    sides = ("bid", "ask")
    return [
        Order(
            id=f"{i:06}",
            side=sides[i % 2],
            milli_cu_hours=1000 * rng.randint(1, 20),
            limit_micro_usd=round(FAIR * rng.lognormvariate(0.05 if i % 2 == 0 else -0.05, 0.2)),
        )
        for i in range(count)
    ]


def surplus(orders: list[Order]) -> int:
    """Return the most surplus there is: the keenest buyers with the cheapest sellers, whatever the price."""
    bids = sorted((-o.limit_micro_usd, o.milli_cu_hours) for o in orders if o.side == "bid")
    asks = sorted((o.limit_micro_usd, o.milli_cu_hours) for o in orders if o.side == "ask")
    total = i = j = 0
    left_bid, left_ask = bids[0][1], asks[0][1]
    while i < len(bids) and j < len(asks) and -bids[i][0] >= asks[j][0]:
        size = min(left_bid, left_ask)
        total += size * (-bids[i][0] - asks[j][0])
        left_bid, left_ask = left_bid - size, left_ask - size
        if not left_bid:
            i, left_bid = i + 1, bids[i + 1][1] if i + 1 < len(bids) else 0
        if not left_ask:
            j, left_ask = j + 1, asks[j + 1][1] if j + 1 < len(asks) else 0
    return total


def gain(orders: list[Order], of: Order) -> int:
    """Return what an auction brings one trader, by his true limit."""
    found = clear(orders, BOUNDS)
    fill = next((f for f in found.fills if f.id == of.id), None)
    if fill is None or found.price_micro_usd is None:
        return 0
    sign = 1 if of.side == "bid" else -1
    return sign * (of.limit_micro_usd - found.price_micro_usd) * fill.milli_cu_hours


def lying(count: int, seed: int) -> float:
    orders, wins = book(count, seed), []
    for k in range(0, count, max(1, count // 20)):
        own = orders[k]
        truth = gain(orders, own)
        if truth <= 0:
            continue
        sign = -1 if own.side == "bid" else 1
        lies = [
            replace(own, limit_micro_usd=own.limit_micro_usd * (100 + sign * percent) // 100)
            for percent in (1, 3, 10, 30)
        ]
        best = max(gain([*orders[:k], lie, *orders[k + 1 :]], own) for lie in lies)
        wins.append(max(best / truth - 1, 0))
    return statistics.fmean(wins) if wins else 0.0


def main() -> None:
    print("| orders | ms | price, USD | CU-hours | efficiency | best lie brings |")
    print("|---|---|---|---|---|---|")
    for count in (20, 100, 1000, 10_000):
        orders = book(count, 1)
        times = []
        for _ in range(5):
            began = time.perf_counter()
            found = clear(orders, BOUNDS)
            times.append(time.perf_counter() - began)
        traded = {f.id: f.milli_cu_hours for f in found.fills}
        worth = sum((1 if o.side == "bid" else -1) * o.limit_micro_usd * traded.get(o.id, 0) for o in orders)
        best = statistics.fmean(lying(count, seed) for seed in range(4 if count <= 1000 else 1))
        price = (found.price_micro_usd or 0) / 1e6
        print(
            f"| {count} | {1000 * min(times):.1f} | {price:.4f} | {found.milli_cu_hours / 1000:.0f} | {worth / surplus(orders):.4f} | {best:+.2%} |"
        )


if __name__ == "__main__":
    main()
