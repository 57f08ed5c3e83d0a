"""The call auction and the controller: invariants, by orders and loads of all kinds."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from decimal import Decimal
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import MisuseError
from harness.scoring.auction import Auction, Bounds, Order, clear
from harness.scoring.controller import AT_REST, Congestion, Gains, stepped

BOUNDS = Bounds(fair_micro_usd=50, low_micro_usd=20, high_micro_usd=80)


def order(id_: str, side: str, size: int, limit: int) -> Order:
    return Order(id=id_, side=side, milli_cu_hours=size, limit_micro_usd=limit)  # type: ignore[arg-type]


raw = st.lists(st.tuples(st.sampled_from(["bid", "ask"]), st.integers(1, 40), st.integers(0, 100)), max_size=25)
books = raw.map(lambda rows: [order(f"o{i:02}", *row) for i, row in enumerate(rows)])
bounds = st.tuples(st.lists(st.integers(0, 100), min_size=3, max_size=3).map(sorted), st.integers(0, 50)).map(
    lambda n: Bounds(low_micro_usd=n[0][0], fair_micro_usd=n[0][1], high_micro_usd=n[0][2], reserve_micro_usd=n[1])
)


def tradable(orders: list[Order], price: int) -> int:
    """Return what can change hands at a price, counted plainly."""
    wanted = sum(o.milli_cu_hours for o in orders if o.side == "bid" and o.limit_micro_usd >= price)
    offered = sum(o.milli_cu_hours for o in orders if o.side == "ask" and o.limit_micro_usd <= price)
    return min(wanted, offered)


@settings(max_examples=200)
@given(books, bounds)
def test_every_invariant_of_a_fair_auction(orders: list[Order], limits: Bounds) -> None:
    found = clear(orders, limits)
    low, high = max(limits.low_micro_usd, limits.reserve_micro_usd), limits.high_micro_usd
    most = max((tradable(orders, price) for price in range(low, high + 1)), default=0)
    assert found.milli_cu_hours == most, "more could be traded"
    if found.price_micro_usd is None:
        assert not most
        return
    price, by_id = found.price_micro_usd, {o.id: o for o in orders}
    assert low <= price <= high, "outside the bounds, or below the reserve"
    for fill in found.fills:
        own = by_id[fill.id]
        assert fill.side == own.side
        assert 0 < fill.milli_cu_hours <= own.milli_cu_hours
        assert fill.nano_usd == fill.milli_cu_hours * price
        assert price <= own.limit_micro_usd if own.side == "bid" else price >= own.limit_micro_usd, (
            "worse than its limit"
        )
    paid = {side: sum(f.nano_usd for f in found.fills if f.side == side) for side in ("bid", "ask")}
    assert paid["bid"] == paid["ask"], "the budget does not balance"


@given(books, bounds, st.randoms(use_true_random=False))
def test_the_order_of_submission_changes_nothing(orders: list[Order], limits: Bounds, rng: random.Random) -> None:
    turned = list(orders)
    rng.shuffle(turned)
    assert clear(turned, limits) == clear(orders, limits)


@given(books, bounds, st.data())
def test_a_better_limit_never_gets_less(orders: list[Order], limits: Bounds, data: st.DataObject) -> None:
    """At the same price, of two orders of one size the one that would have gone further gets no less."""
    got = Counter({f.id: f.milli_cu_hours for f in clear(orders, limits).fills})
    for side, sign in (("bid", 1), ("ask", -1)):
        ours = sorted((o for o in orders if o.side == side), key=lambda o: sign * o.limit_micro_usd)
        for worse, better in pairwise(ours):
            if better.limit_micro_usd != worse.limit_micro_usd and better.milli_cu_hours >= worse.milli_cu_hours:
                assert got[better.id] >= got[worse.id]


def test_a_unit_that_does_not_divide_goes_to_the_better_limit() -> None:
    book = [order("b", "bid", 1, 50), order("a", "ask", 2, 40), order("z", "ask", 2, 30)]
    assert fills(clear(book, replace(BOUNDS, low_micro_usd=50, fair_micro_usd=50))) == {"b": 1, "z": 1}


def fills(found: Auction) -> dict[str, int]:
    return {f.id: f.milli_cu_hours for f in found.fills}


def test_the_tie_rules_are_those_that_are_stated() -> None:
    one_each = [order("b", "bid", 10, 90), order("a", "ask", 10, 10)]
    assert clear(one_each, BOUNDS).price_micro_usd == 50  # anything from 20 to 80 trades 10: the fair price
    scarce = [order("b", "bid", 30, 60), order("a", "ask", 10, 30), order("c", "ask", 10, 70)]
    assert clear(scarce, BOUNDS).price_micro_usd == 50
    # 10 trade at 40 to 60 and 20 bid there, but above 55 only 10 do: the price that leaves the least unserved.
    pressed = [order("b", "bid", 10, 60), order("d", "bid", 10, 55), order("a", "ask", 10, 40)]
    assert clear(pressed, BOUNDS).price_micro_usd == 56
    # Three at the price share seven units by size 1:1:2, 1.75, 1.75, 3.5: remainders to those that come first by id.
    shared = [order(i, "bid", n, 50) for i, n in (("y", 4), ("x", 4), ("z", 8))] + [order("a", "ask", 7, 50)]
    assert fills(clear(shared, BOUNDS)) == {"a": 7, "x": 2, "y": 2, "z": 3}


def test_who_would_pay_more_than_the_price_is_served_before_who_would_just_pay_it() -> None:
    book = [order("keen", "bid", 10, 60), order("fair", "bid", 10, 50), order("a", "ask", 12, 50)]
    found = clear(book, replace(BOUNDS, fair_micro_usd=50))
    assert (found.price_micro_usd, fills(found)) == (50, {"a": 12, "keen": 10, "fair": 2})


def test_the_collar_holds_a_price_that_a_squeeze_would_drive_up() -> None:
    book = [order(f"b{i}", "bid", 10, 1000) for i in range(5)] + [order("a", "ask", 10, 10)]
    found = clear(book, BOUNDS)
    assert (found.price_micro_usd, found.milli_cu_hours) == (50, 10)
    assert all(n == 2 for i, n in fills(found).items() if i != "a")


def test_nothing_is_sold_below_the_reserve() -> None:
    book = [order("b", "bid", 10, 40), order("a", "ask", 10, 10)]
    assert clear(book, replace(BOUNDS, reserve_micro_usd=41)).fills == ()
    assert clear(book, replace(BOUNDS, reserve_micro_usd=40)).price_micro_usd == 40
    assert (
        clear(book, replace(BOUNDS, reserve_micro_usd=90)).reason == "the reserve of 90 is above the highest price, 80"
    )


@pytest.mark.parametrize(
    ("book", "says"),
    [
        ([order("a", "bid", 1, 1), order("a", "ask", 1, 1)], "order 'a' was given twice"),
        ([order("a", "bid", 0, 1)], "order 'a': 0 milli-CU-hours"),
        ([order("a", "bid", 1, -1)], "limit 0 or more"),
    ],
)
def test_orders_that_are_none_are_misuse(book: list[Order], says: str) -> None:
    with pytest.raises(MisuseError, match=says):
        clear(book, BOUNDS)


def test_bounds_out_of_order_are_misuse() -> None:
    with pytest.raises(MisuseError, match="0 <= low <= fair <= high"):
        clear([], replace(BOUNDS, low_micro_usd=60))


def test_ten_thousand_orders_clear_at_once() -> None:
    rng = random.Random(7)  # noqa: S311 - a load, no secret
    book = [
        order(f"{i:05}", rng.choice(["bid", "ask"]), rng.randint(1, 999), rng.randint(1, 10**9)) for i in range(10_000)
    ]
    found = clear(book, Bounds(fair_micro_usd=5 * 10**8, low_micro_usd=1, high_micro_usd=10**9))
    assert found.milli_cu_hours > 10**6
    assert sum(f.milli_cu_hours for f in found.fills if f.side == "bid") == found.milli_cu_hours


# --- the controller ---------------------------------------------------------------------------------------------------

loads = st.lists(st.decimals(min_value=0, max_value=1, places=3), min_size=1, max_size=40)


@given(loads)
def test_the_multiplier_stays_within_its_bounds_and_no_step_is_larger_than_the_cap(utilisations: list[Decimal]) -> None:
    state = AT_REST
    for utilisation in utilisations:
        after = stepped(state, utilisation, 3600)
        assert Decimal("0.5") <= after.multiplier <= 2
        assert abs(after.multiplier / state.multiplier - 1) <= Decimal("0.0305")
        state = after


@given(loads, st.integers(0, 39), st.decimals(min_value=0, max_value=1, places=3))
def test_a_fuller_hour_never_makes_that_hour_cheaper(utilisations: list[Decimal], which: int, more: Decimal) -> None:
    state = AT_REST
    for utilisation in utilisations:
        state = stepped(state, utilisation, 3600)
    one, other = sorted((utilisations[which % len(utilisations)], more))
    assert stepped(state, one, 3600).multiplier <= stepped(state, other, 3600).multiplier


def test_at_its_target_it_rests_and_away_from_it_it_goes_on() -> None:
    assert stepped(AT_REST, Decimal("0.7"), 3600).multiplier == 1
    full = idle = AT_REST
    for _ in range(300):
        full, idle = stepped(full, Decimal(1), 3600), stepped(idle, Decimal(0), 3600)
    assert [full.multiplier, idle.multiplier] == [Decimal(2), Decimal("0.5")]


def test_at_its_bound_it_does_not_wind_up() -> None:
    """After a week at the bound, as after a day, the first quiet hours bring the price down."""

    def hours_to_fall(full_hours: int) -> int:
        state = AT_REST
        for _ in range(full_hours):
            state = stepped(state, Decimal(1), 3600)
        assert state.multiplier == 2
        for hour in range(100):
            state = stepped(state, Decimal("0.3"), 3600)
            if state.multiplier < Decimal("1.9"):
                return hour
        return 100

    assert hours_to_fall(1000) == hours_to_fall(100) < 6


def test_a_step_is_a_pure_function_of_state_load_and_time() -> None:
    state = Congestion(multiplier=Decimal("1.2"), utilisation=Decimal("0.8"))
    assert stepped(state, Decimal("0.9"), 3600) == stepped(state, Decimal("0.9"), 3600)
    assert stepped(state, Decimal("0.9"), 3600, Gains(most_per_hour=Decimal(0))).multiplier == Decimal("1.2")
    for utilisation, elapsed_s in (
        (Decimal("1.1"), 3600),
        (Decimal("-0.1"), 3600),
        (Decimal("0.5"), 0),
        (Decimal("nan"), 3600),
    ):
        with pytest.raises(MisuseError):
            stepped(state, utilisation, elapsed_s)
