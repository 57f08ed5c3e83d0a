"""A call auction: all orders at once, one price for everybody, between two bounds that the fair price sets.

The price is the one that trades most; of those, the one that leaves the least unserved; of those, the nearest to the fair price; of two
as near, the lower. Orders with room to spare at that price are served whole, and those just at it share what is left in proportion to
their size, whole units only; units that do not divide go to the largest remainders, of equal ones to the better limit, and then to the id that
comes first.
Nothing depends on the order of submission.

Covers: no order trades beyond its limit, no more can be traded at any price within the bounds, what buyers pay is what sellers get, and
no price is below the reserve.
Does not cover: orders under false names, bundles, or truthfulness in a thin market: a trader who is a large part of it can move the price.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal

from harness.errors import MisuseError

__all__ = ["Auction", "Bounds", "Fill", "Order", "clear"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A wish to buy or to sell some work at a limit or better."""

    id: str
    side: Literal["bid", "ask"]
    milli_cu_hours: int
    limit_micro_usd: int  # of one CU-hour


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Between what the price is kept: the ends of the fair price's interval, and the sellers' floor."""

    fair_micro_usd: int
    low_micro_usd: int
    high_micro_usd: int
    reserve_micro_usd: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fill:
    """What one order got. Nano-dollars are the product of the two units of an order: nothing is rounded."""

    id: str
    side: Literal["bid", "ask"]
    milli_cu_hours: int
    nano_usd: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Auction:
    """What an auction came to: no price where nothing trades."""

    price_micro_usd: int | None
    milli_cu_hours: int
    fills: tuple[Fill, ...]  # of those that got something, by id
    reason: str


class _Curve:
    """How much is wanted or offered at a price."""

    def __init__(self, orders: Sequence[Order]) -> None:
        ordered = sorted((o.limit_micro_usd, o.milli_cu_hours) for o in orders)
        self.limits = [limit for limit, _ in ordered]
        self._sums = [0, *accumulate(size for _, size in ordered)]

    def offered(self, price: int) -> int:
        """Return what asks up to a price offer."""
        return self._sums[bisect_right(self.limits, price)]

    def wanted(self, price: int) -> int:
        """Return what bids from a price on want."""
        return self._sums[-1] - self._sums[bisect_left(self.limits, price)]


def clear(orders: Sequence[Order], bounds: Bounds) -> Auction:
    """Clear an auction.

    Raises:
        MisuseError: two orders have one id, an order is not of a positive size and price, or the bounds are not in order.
    """
    _check(orders, bounds)
    low, high = max(bounds.low_micro_usd, bounds.reserve_micro_usd), bounds.high_micro_usd
    if low > high:
        return _nothing(f"the reserve of {bounds.reserve_micro_usd} is above the highest price, {high}")
    # The better limit first, then the id: so are units shared out that do not divide.
    bids = sorted((o for o in orders if o.side == "bid"), key=lambda o: (-o.limit_micro_usd, o.id))
    asks = sorted((o for o in orders if o.side == "ask"), key=lambda o: (o.limit_micro_usd, o.id))
    demand, supply = _Curve(bids), _Curve(asks)

    def worth(price: int) -> tuple[int, int, int, int]:
        wanted, offered = demand.wanted(price), supply.offered(price)
        return -min(wanted, offered), abs(wanted - offered), abs(price - bounds.fair_micro_usd), price

    price = min(_candidates(demand.limits, supply.limits, bounds, low, high), key=worth)
    volume = -worth(price)[0]
    if not volume:
        return _nothing("no bid within the bounds reaches an ask")
    bought = _served([o for o in bids if o.limit_micro_usd >= price], volume, lambda o: o.limit_micro_usd > price)
    sold = _served([o for o in asks if o.limit_micro_usd <= price], volume, lambda o: o.limit_micro_usd < price)
    sides: dict[str, Literal["bid", "ask"]] = {o.id: o.side for o in orders}
    filled = sorted({**bought, **sold}.items())
    fills = tuple(Fill(id=i, side=sides[i], milli_cu_hours=n, nano_usd=n * price) for i, n in filled if n)
    return Auction(price_micro_usd=price, milli_cu_hours=volume, fills=fills, reason="")


def _candidates(bids: Sequence[int], asks: Sequence[int], bounds: Bounds, low: int, high: int) -> set[int]:
    """Return prices among which the best one is: between two neighbours nothing changes but the distance to the fair price."""
    steps = {*bids, *(limit + 1 for limit in bids), *asks, *(limit - 1 for limit in asks)}
    within = {price for price in steps if low <= price <= high}
    return within | {low, high, max(low, min(bounds.fair_micro_usd, high))}


def _served(orders: Sequence[Order], volume: int, is_better: Callable[[Order], bool]) -> dict[str, int]:
    """Share out a volume: first those with room to spare, then those at the price. If the first alone are too many, they share."""
    better = {o.id: o.milli_cu_hours for o in orders if is_better(o)}
    at_price = {o.id: o.milli_cu_hours for o in orders if not is_better(o)}
    first = min(volume, sum(better.values()))
    return {**_in_proportion(better, first), **_in_proportion(at_price, volume - first)}


def _in_proportion(sizes: Mapping[str, int], volume: int) -> dict[str, int]:
    """Share out a volume by size; of equal remainders, the one that stands first in `sizes` gets the unit."""
    total = sum(sizes.values())
    if volume >= total:
        return dict(sizes)
    shares = {name: divmod(size * volume, total) for name, size in sizes.items()}
    left = volume - sum(whole for whole, _ in shares.values())
    first = sorted(shares, key=lambda name: -shares[name][1])[:left]  # stable
    return {name: whole for name, (whole, _) in shares.items()} | {name: shares[name][0] + 1 for name in first}


def _nothing(reason: str) -> Auction:
    return Auction(price_micro_usd=None, milli_cu_hours=0, fills=(), reason=reason)


def _check(orders: Sequence[Order], bounds: Bounds) -> None:
    if len({o.id for o in orders}) != len(orders):
        ids = sorted(o.id for o in orders)
        twice = next(a for a, b in pairwise(ids) if a == b)
        message = f"order {twice!r} was given twice; each order has an id of its own"
        raise MisuseError(message)
    for o in orders:
        if o.milli_cu_hours <= 0 or o.limit_micro_usd < 0:
            message = f"order {o.id!r}: {o.milli_cu_hours} milli-CU-hours at {o.limit_micro_usd}; size more than 0, limit 0 or more"
            raise MisuseError(message)
    if not 0 <= bounds.low_micro_usd <= bounds.fair_micro_usd <= bounds.high_micro_usd or bounds.reserve_micro_usd < 0:
        message = f"{bounds}; it should be 0 <= low <= fair <= high, and a reserve of 0 or more"
        raise MisuseError(message)
