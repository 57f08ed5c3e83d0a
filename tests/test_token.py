"""Tokens: a rate that sources agree on or none, and amounts that are rounded once."""

from __future__ import annotations

from dataclasses import replace
from decimal import ROUND_UP, Decimal, localcontext
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import FailureError, MisuseError
from harness.scoring.token import (
    Limits,
    Observation,
    Source,
    TokenRate,
    amount_of,
    buffer_fraction,
    token_rate,
    usd_of,
)

NOW = 1_800_000_000


def source(name: str, *prices: str, every_s: int = 30, until: int = NOW) -> Source:
    """Return a source with prices at regular times, the last one at `until`; the first reaches back beyond the window."""
    first = until - every_s * (len(prices) - 1)
    seen = [Observation(at_s=first + every_s * i, usd_per_token=Decimal(p)) for i, p in enumerate(prices)]
    early = Observation(at_s=first - 3600, usd_per_token=Decimal(prices[0]))
    return Source(name=name, observations=(early, *seen))


def rate(usd: str) -> TokenRate:
    return TokenRate(usd_per_token=Decimal(usd), at_s=NOW, expires_s=NOW + 600, sources=("a", "b"))


def refusal(*sources: Source, limits: Limits | None = None) -> str:
    with pytest.raises(FailureError) as caught:
        token_rate(sources, NOW, limits)
    return str(caught.value)


def test_a_rate_is_the_time_weighted_average_in_logarithms() -> None:
    """Of 1800 s, 1350 at 1.00 and 450 at 1.04: 1.04 to the power of a quarter."""
    seen = tuple(
        Observation(at_s=NOW + at, usd_per_token=Decimal(p)) for at, p in ((-5000, "1"), (-450, "1.04"), (0, "1.03"))
    )
    found = token_rate([Source(name=n, observations=seen) for n in "ab"], NOW)
    assert abs(found.usd_per_token - Decimal("1.04") ** Decimal("0.25")) < Decimal("1e-16")
    assert (found.expires_s, found.sources) == (NOW + 600, ("a", "b"))


def test_of_three_sources_the_middle_one_counts_and_their_order_does_not() -> None:
    three = [source("a", "1.00", "1.00"), source("b", "1.01", "1.01"), source("c", "1.02", "1.02")]
    assert token_rate(three, NOW).usd_per_token == Decimal("1.01")
    assert token_rate(three[::-1], NOW) == token_rate(three, NOW)


near, anywhere = st.decimals("0.97", "1.03", places=3), st.decimals("0.01", "100", places=2)
paths = st.lists(near, min_size=2, max_size=40) | st.lists(near | anywhere, min_size=2, max_size=40)


@given(paths, st.sampled_from(["1", "1.005"]))
def test_abuse_a_manipulated_source_is_refused_or_moves_the_rate_by_no_more_than_the_bound(
    bad: list[Decimal], other: str
) -> None:
    """Whatever one source of two shows, the rate is 1 % off at most, or there is none; of three, it stays between the other two."""
    one, two, wild = source("a", "1", "1"), source("b", other, other), source("c", *map(str, bad))
    within = Limits().spread / 2
    for sources, low, high in (
        ((one, wild), 1 / (1 + within), 1 + within),
        ((one, two, wild), Decimal(1), Decimal(other)),
    ):
        try:
            found = token_rate(sources, NOW).usd_per_token
        except FailureError:
            continue
        assert low <= found <= high


@pytest.mark.parametrize(("wash", "moved"), [("1.0199", "1.0099"), ("0.9805", "0.9902")])
def test_abuse_what_one_of_two_sources_can_do_at_most_is_done(wash: str, moved: str) -> None:
    """The bound is no tighter than it is said to be; a third source takes it away."""
    two = source("a", "1", "1"), source("b", wash, wash)
    assert abs(token_rate(two, NOW).usd_per_token - Decimal(moved)) < Decimal("0.0001")
    assert token_rate((*two, source("c", "1", "1")), NOW).usd_per_token == 1


def test_abuse_a_price_that_is_pushed_at_the_last_moment_gives_no_rate() -> None:
    assert "stands at 1.5, away from its average" in refusal(source("a", "1", "1", "1.5"), source("b", "1", "1"))


@pytest.mark.parametrize(("age_s", "ok"), [(0, True), (60, True), (61, False), (86400, False)])
def test_a_stale_source_is_refused_at_the_second_it_becomes_stale(age_s: int, ok: bool) -> None:
    sources = source("a", "1", "1"), source("b", "1", "1", until=NOW - age_s)
    if ok:
        assert token_rate(sources, NOW).usd_per_token == 1
    else:
        assert f"source 'b' is {age_s} s old; 60 s are allowed" in refusal(*sources)


@pytest.mark.parametrize(
    ("sources", "says"),
    [
        ((source("a", "1", "1"),), "1 sources given; at least 2"),
        ((source("a", "1", "1"), source("a", "1", "1")), "2 sources given; at least 2 of different names"),
        ((source("a", "1", "1"), source("b", "1.03", "1.03")), "the sources differ by 0.0300, more than 0.02"),
        ((source("a", "1", "1.06"), source("b", "1", "1")), "source 'a' stands at 1.06, away from its average"),
        ((source("a", "1", "0.94"), source("b", "1", "1")), "source 'a' stands at 0.94, away from its average"),
        ((source("a", "1", "1"), Source(name="b", observations=())), "source 'b' is empty"),
        ((source("a", "1", "1", until=NOW + 1), source("b", "1", "1")), "after 1800000000"),
        (
            (source("a", "1", "1"), replace(source("b", "1"), observations=source("b", "1").observations[1:])),
            "source 'b' goes back 0 s, not the 1800 s of the window",
        ),
    ],
)
def test_what_cannot_be_trusted_is_refused_and_nothing_stands_in_for_it(sources: tuple[Source, ...], says: str) -> None:
    assert says in refusal(*sources)


@pytest.mark.parametrize("price", ["0", "-1", "NaN", "Infinity"])
def test_a_price_that_is_none_is_misuse(price: str) -> None:
    broken = Source(name="a", observations=(Observation(at_s=NOW, usd_per_token=Decimal(price)),))
    with pytest.raises(MisuseError, match="it should be more than 0"):
        token_rate([broken, source("b", "1")], NOW)


def test_observations_out_of_order_are_misuse() -> None:
    with pytest.raises(MisuseError, match="not in order of time"):
        token_rate(
            [replace(source("a", "1", "1"), observations=source("a", "1", "1").observations[::-1]), source("b", "1")],
            NOW,
        )


money = st.decimals(min_value=0, max_value=10**9, places=6)
rates = st.decimals(min_value="0.000001", max_value=10**6, places=9).filter(bool)


@given(money, rates, st.sampled_from([0, 6, 9, 18, 36]))
def test_dollars_survive_the_way_to_a_token_and_back_but_for_one_base_unit(
    usd: Decimal, of: Decimal, decimals: int
) -> None:
    own = replace(rate("1"), usd_per_token=of)
    amount = amount_of(usd, own, decimals, now_s=NOW)
    back = usd_of(amount, own, decimals)
    assert 0 <= back - Fraction(usd) < Fraction(of) / 10**decimals
    assert amount_of(usd, own, decimals, now_s=NOW) == amount
    assert amount >= 0


@given(money, money, rates)
def test_more_dollars_are_never_fewer_tokens_and_one_settlement_never_dearer_than_two(
    a: Decimal, b: Decimal, of: Decimal
) -> None:
    own = replace(rate("1"), usd_per_token=of)
    one, other, both = (amount_of(x, own, 6, now_s=NOW) for x in (a, b, a + b))
    assert max(one, other) <= both <= one + other


def test_a_token_of_18_decimals_is_exact_where_a_float_is_not() -> None:
    assert amount_of(Decimal("1.000001"), rate("3"), 18, now_s=NOW) == 333_333_666_666_666_667


@pytest.mark.parametrize(("now_s", "ok"), [(NOW - 1, False), (NOW, True), (NOW + 600, True), (NOW + 601, False)])
def test_a_rate_holds_until_it_expires_and_not_a_second_longer(now_s: int, ok: bool) -> None:
    if ok:
        assert amount_of(Decimal(1), rate("2"), 6, now_s=now_s) == 500_000
    else:
        with pytest.raises(FailureError, match="holds until 1800000600"):
            amount_of(Decimal(1), rate("2"), 6, now_s=now_s)


@pytest.mark.parametrize(
    ("volatility", "locked_s", "percent"),
    [("0.8", 60, "0.18"), ("0.8", 600, "0.57"), ("0.8", 3600, "1.41"), ("0.8", 86400, "6.89"), ("1.2", 86400, "10.33")],
)
def test_the_buffer_is_that_of_a_normal_move_over_the_time_of_the_lock(
    volatility: str, locked_s: int, percent: str
) -> None:
    found = buffer_fraction(Decimal(volatility), locked_s)
    assert abs(found * 100 - Decimal(percent)) < Decimal("0.005")
    assert amount_of(Decimal(1), rate("1"), 6, now_s=NOW, buffer=found) == 1_000_000 + int(found * 10**6)


@pytest.mark.parametrize(("usd", "decimals"), [("-1", 6), ("NaN", 6), ("1", -1), ("1", 37)])
def test_amounts_and_tokens_that_cannot_be_are_misuse(usd: str, decimals: int) -> None:
    with pytest.raises(MisuseError):
        amount_of(Decimal(usd), rate("1"), decimals, now_s=NOW)


def test_the_callers_context_changes_no_rate() -> None:
    sources = source("a", "1.0001", "1.0002"), source("b", "1.0003", "1.0007")
    usual = token_rate(sources, NOW)
    with localcontext(prec=4, rounding=ROUND_UP):
        assert token_rate(sources, NOW) == usual
