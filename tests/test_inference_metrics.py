"""What times amount to: definitions on replies made by hand, percentiles against the binomial itself, rates, money, SLOs."""

from __future__ import annotations

import asyncio
import hashlib
import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import MisuseError
from harness.inference import metrics
from harness.inference.exchange import Exchange, Usage, apportion
from harness.inference.loadgen import BusyClientError
from harness.inference.slo import SLOS, Search, Slo, Try, find_slo, good_fraction, is_good, search


def reply(
    *chunks_s: float,
    intended_s: float = 0.0,
    sent_s: float | None = None,
    tokens: tuple[int, ...] | None = None,
    failure: str | None = None,
    index: int = 0,
    inputs: int | None = 10,
) -> Exchange:
    """Return an exchange of which only the times matter."""
    return Exchange(
        index=index,
        intended_s=intended_s,
        sent_s=intended_s if sent_s is None else sent_s,
        chunks_s=chunks_s,
        chunk_tokens=tokens,
        ended_s=max(chunks_s, default=intended_s),
        asked_tokens=8,
        usage=None if inputs is None else Usage(input_tokens=inputs, output_tokens=None),
        finish="length",
        text_bytes=4,
        text_sha256=hashlib.sha256(b"text").hexdigest(),
        failure=failure,
    )


def failed(**changes: Any) -> Exchange:
    return reply(failure="HTTP 500", **changes)


# --- definitions ------------------------------------------------------------------------------------------------------


def test_each_definition_on_one_reply() -> None:
    seen = reply(1.5, 1.6, 1.9, intended_s=1.0, sent_s=1.2, tokens=(2, 1, 3))
    assert metrics.queue_delay(seen) == pytest.approx(0.2)
    assert metrics.ttft(seen) == pytest.approx(0.5)
    assert metrics.ttft_from_send(seen) == pytest.approx(0.3)
    assert metrics.e2e(seen) == pytest.approx(0.9)
    assert metrics.gaps(seen) == pytest.approx((0.1, 0.3))
    assert metrics.tpot(seen) == pytest.approx(0.4 / 4)
    assert metrics.ntpot(seen) == pytest.approx(0.9 / 6)


def test_a_reply_in_one_chunk_has_no_time_per_token() -> None:
    assert metrics.tpot(reply(0.5)) is None
    assert metrics.tpot(reply(0.5, tokens=(7,))) is None
    assert metrics.values([reply(0.5), reply(0.5, 0.7)], "tpot/1") == pytest.approx((0.2,))
    found = metrics.distribution([reply(0.5)] * 64, "tpot/1")
    assert (found.requests_count, found.values_count) == (64, 0)
    assert {p.state for p in found.percentiles} == {"too_few"}


@pytest.mark.parametrize("metric", sorted(metrics.DEFINITIONS.keys() - {"queue_delay/1"}))
def test_a_failure_took_forever_even_after_a_good_beginning(metric: str) -> None:
    assert math.inf in metrics.values([reply(0.1, 0.2, 0.3, failure="broke off")], metric)
    assert metrics.values([failed()], metric) == (math.inf,)


def test_what_became_of_a_request_does_not_change_when_it_was_sent() -> None:
    assert metrics.values([failed(sent_s=0.25)], "queue_delay/1") == (0.25,)


def test_a_request_that_was_never_sent_waited_forever() -> None:
    unsent = Exchange(
        index=0, intended_s=0.0, sent_s=None, chunks_s=(), chunk_tokens=None, ended_s=9.0, asked_tokens=8,
        usage=None, finish=None, text_bytes=0, text_sha256="", failure="no end within 9 s",
    )  # fmt: skip
    assert {metrics.values([unsent], m)[0] for m in metrics.DEFINITIONS} == {math.inf}


def test_a_metric_nobody_defined_is_refused() -> None:
    with pytest.raises(MisuseError, match="no metric 'ttft'; there are queue_delay/1, ttft/1"):
        metrics.values([], "ttft")


def test_every_definition_has_its_values() -> None:
    for metric in metrics.DEFINITIONS:
        assert metrics.values([reply(0.5, 0.6)], metric)


# --- tokens of chunks -------------------------------------------------------------------------------------------------


def test_tokens_are_shared_out_by_size() -> None:
    assert apportion(8, [None] * 3, [6, 12, 6]) == (2, 4, 2)
    assert apportion(3, [None] * 3, [6, 12, 6]) is None
    assert apportion(None, [None] * 3, [6, 12, 6]) is None
    assert apportion(9, [2, 3, 4], [1, 1, 1]) == (2, 3, 4)
    assert apportion(9, [1, 1, 1], [1, 1, 1]) is None
    assert apportion(2, [None] * 3, [6, 6, 6]) is None  # fewer than chunks is not to be believed
    assert apportion(5, [], []) is None


@given(st.lists(st.integers(0, 40), min_size=1, max_size=30), st.integers(0, 300))
def test_what_is_shared_out_adds_up(sizes: list[int], total: int) -> None:
    shares = apportion(total, [None] * len(sizes), sizes)
    if total <= len(sizes):
        assert shares is None
    else:
        assert shares is not None
        assert sum(shares) == total
        assert min(shares) >= 1


# --- percentiles ------------------------------------------------------------------------------------------------------


def chance_of_at_most(over: int, n: int, above: Fraction) -> Fraction:
    """The binomial sum itself, in exact numbers."""
    return sum((math.comb(n, k) * above**k * (1 - above) ** (n - k) for k in range(over + 1)), Fraction(0))


@pytest.mark.parametrize(("percent", "floor"), [(90, 64), (95, 130), (99, 662), (99.9, 6636)])
def test_the_floors_are_those_of_early_stopping(percent: float, floor: int) -> None:
    assert metrics.floor_count(percent) == floor


@pytest.mark.parametrize(("percent", "floor"), [(50, 11), (90, 64), (95, 130), (99, 662)])
def test_below_the_floor_the_percentile_is_null(percent: float, floor: int) -> None:
    def found(n: int) -> metrics.Percentile:
        (only,) = metrics.distribution([reply(0.1 + i * 1e-3) for i in range(n)], "ttft/1", [percent]).percentiles
        return only

    below, at = found(floor - 1), found(floor)
    assert (below.value_s, below.bound_s, below.state) == (None, None, "too_few")
    assert at.state == "certified"
    assert at.value_s == pytest.approx(0.1 + (math.ceil(Fraction(str(percent)) / 100 * floor) - 1) * 1e-3)
    assert at.bound_s == pytest.approx(0.1 + (floor - 1) * 1e-3)  # one above is all that the floor allows for


@pytest.mark.parametrize(("n", "percent"), [(64, 90.0), (200, 90.0), (459, 99.0), (458, 99.0), (700, 99.0), (50, 50.0)])
def test_what_may_lie_above_follows_from_the_binomial(n: int, percent: float) -> None:
    over = metrics.over_count(n, percent)
    above = 1 - Fraction(str(percent)) / 100
    if over >= 0:
        assert chance_of_at_most(over, n, above) <= Fraction(1, 100)
    assert chance_of_at_most(over + 1, n, above) > Fraction(1, 100)


def test_none_above_takes_459_for_the_99th() -> None:
    assert (metrics.over_count(458, 99), metrics.over_count(459, 99)) == (-1, 0)


@pytest.mark.parametrize(("n", "discarded"), [(2000, 167), (661, 47), (662, 47), (5000, 449)])
def test_loadgen_discards_as_many_of_the_largest(n: int, discarded: int) -> None:
    """As mlcommons-loadgen 6.0.17 says of single-stream runs of so many queries; it then takes the largest of what is left."""
    assert metrics.over_count(n, 90) - 1 == discarded


@given(st.integers(1, 3000), st.sampled_from([50.0, 90.0, 95.0, 99.0]))
def test_more_requests_never_allow_fewer_above(n: int, percent: float) -> None:
    assert metrics.over_count(n, percent) <= metrics.over_count(n + 1, percent) <= metrics.over_count(n, percent) + 1


@given(st.lists(st.floats(0, 100) | st.just(math.inf), min_size=1, max_size=200), st.sampled_from([50, 90, 99, 99.9]))
def test_nearest_rank_is_a_value_of_the_sample_and_enough_lie_at_or_below(sample: list[float], percent: float) -> None:
    value = metrics.nearest_rank(sample, percent)
    share = Fraction(str(percent)) / 100
    assert value in sample
    assert sum(v <= value for v in sample) >= share * len(sample)
    assert sum(v < value for v in sample) < share * len(sample)


def test_the_rank_of_a_tenth_of_a_percent_is_exact() -> None:
    assert metrics.nearest_rank(range(1000), 99.9) == 998  # 0.999 * 1000 in floats is a little more than 999


@pytest.mark.parametrize("percent", [0, 100, -1, 101])
def test_a_percentile_outside_is_refused(percent: float) -> None:
    with pytest.raises(MisuseError, match="is not between 0 and 100"):
        metrics.nearest_rank([1.0], percent)


def test_failures_count_in_every_percentile() -> None:
    good = [reply(0.1) for _ in range(95)]
    for count, state in ((5, "certified"), (15, "failures")):
        found = metrics.distribution([*good, *(failed() for _ in range(count))], "ttft/1", [90])
        (p90,) = found.percentiles
        assert (found.infinite_count, p90.state) == (count, state)
        assert p90.value_s == (pytest.approx(0.1) if state == "certified" else None)


def test_a_bound_among_the_failures_is_no_number() -> None:
    (p90,) = metrics.distribution(
        [*(reply(0.1) for _ in range(92)), *(failed() for _ in range(8))], "ttft/1", [90]
    ).percentiles
    assert p90.value_s == pytest.approx(0.1)
    assert (p90.bound_s, p90.state) == (None, "certified")


def test_gaps_are_certified_by_requests_not_by_their_number() -> None:
    many = reply(*(0.1 + 0.01 * i for i in range(1000)))
    (few,) = metrics.distribution([many] * 10, "itl/1", [50]).percentiles
    (enough,) = metrics.distribution([many] * 11, "itl/1", [50]).percentiles
    assert few.state == "too_few"
    assert enough.value_s == pytest.approx(0.01)
    assert (enough.state, enough.bound_s) == ("certified", None)


# --- rates and money --------------------------------------------------------------------------------------------------


def steady_users() -> list[Exchange]:
    """One request a second, each of four tokens at 0.25 s from one another."""
    return [reply(*(i + 0.25 * k for k in range(1, 5)), intended_s=float(i), index=i) for i in range(11)]


def test_rates_of_a_steady_stream() -> None:
    exchanges = steady_users()
    steady, whole = metrics.steady_window(exchanges), metrics.whole_window(exchanges)
    assert steady == metrics.Window(kind="steady", start_s=1.0, end_s=10.0)
    assert whole == metrics.Window(kind="whole", start_s=0.0, end_s=11.0)
    for window in (steady, whole):
        found = metrics.rates(exchanges, window)
        assert found is not None
        assert found.requests_per_s == pytest.approx(1)
        assert found.output_tokens_per_s == pytest.approx(4)
        assert found.input_tokens_per_s == pytest.approx(10)


def test_goodput_counts_good_replies_and_their_tokens_alone() -> None:
    exchanges = [
        x if x.index % 2 else reply(*x.chunks_s, intended_s=x.intended_s - 5, index=x.index) for x in steady_users()
    ]
    found = metrics.rates(
        exchanges, metrics.steady_window(exchanges), lambda x: is_good(x, Slo(name="own", ttft_s=1.0))
    )
    assert found is not None
    assert found.good_requests_per_s < found.requests_per_s
    assert found.good_requests_per_s == pytest.approx(4 / 8)  # the window ends with the last arrival, at 9 s
    assert found.good_output_tokens_per_s == pytest.approx(16 / 8)


def test_tokens_of_failed_replies_are_not_delivered() -> None:
    exchanges = [*steady_users(), reply(0.5, 5.0, failure="broke off")]
    found = metrics.rates(exchanges, metrics.steady_window(exchanges))
    assert found is not None
    assert found.output_tokens_per_s == pytest.approx(4)


def test_windows_of_no_length_give_no_rates() -> None:
    assert metrics.steady_window([]) is None
    assert metrics.whole_window([]) is None
    assert metrics.steady_window([reply(0.5)]) is None  # it had ended when nothing more arrived
    assert metrics.whole_window([failed()]) is None
    assert metrics.steady_window([failed(), failed(intended_s=4.0)]) is None
    assert metrics.rates([reply(0.5)], None) is None


def test_uncounted_prompts_are_unknown_not_none() -> None:
    exchanges = [reply(0.5, 1.0, inputs=None)]
    found = metrics.rates(exchanges, metrics.whole_window(exchanges))
    assert found is not None
    assert found.input_tokens_per_s is None


def test_money_scales_as_it_should() -> None:
    base = metrics.usd_per_million(Decimal("0.36"), 100.0)
    assert base == Decimal("1.000000")
    assert metrics.usd_per_million(Decimal("0.72"), 100.0) == 2 * base
    assert metrics.usd_per_million(Decimal("0.36"), 50.0) == 2 * base
    assert metrics.usd_per_million(Decimal("0.36"), 0.0) is None
    assert metrics.usd_per_million(Decimal("0.36"), None) is None


def test_what_prompt_and_reply_cost_adds_up_to_the_price() -> None:
    window = metrics.Window(kind="whole", start_s=0.0, end_s=1.0)
    seen = metrics.Rates(
        window=window, requests_per_s=1.0, good_requests_per_s=1.0, input_tokens_per_s=400.0,
        output_tokens_per_s=100.0, good_output_tokens_per_s=100.0,
    )  # fmt: skip
    split = metrics.usd_per_million_split(Decimal(36), seen, input_s_per_token=0.001, output_s_per_token=0.004)
    assert split is not None
    inputs, outputs = split
    assert inputs * 4 == outputs
    paid_per_s = (inputs * 400 + outputs * 100) / 10**6
    assert float(paid_per_s) == pytest.approx(36 / 3600)
    assert metrics.usd_per_million_split(Decimal(36), seen, input_s_per_token=0.0, output_s_per_token=0.004) is None


def test_tokens_per_joule_needs_joules() -> None:
    assert metrics.tokens_per_joule([reply(0.1, 0.2), failed()], 4.0) == pytest.approx(0.5)
    assert metrics.tokens_per_joule([reply(0.1)], None) is None
    assert metrics.tokens_per_joule([reply(0.1)], 0.0) is None


# --- repetitions ------------------------------------------------------------------------------------------------------


def test_three_repetitions_are_no_more_than_their_range() -> None:
    assert metrics.bootstrap([3.0, 1.0, 2.0], seed=1) == (1.0, 3.0)
    assert metrics.bootstrap([3.0, 1.0], seed=1) is None


def test_an_interval_narrows_with_repetitions_and_holds_the_median() -> None:
    few = metrics.bootstrap([float(i % 5) for i in range(10)], seed=1)
    many = metrics.bootstrap([float(i % 5) for i in range(200)], seed=1)
    assert few
    assert many
    assert few[0] <= 2.0 <= few[1]
    assert many[1] - many[0] < few[1] - few[0]


# --- SLOs -------------------------------------------------------------------------------------------------------------


def test_the_classes_are_those_of_mlperf_and_of_who_reads_at_home() -> None:
    assert (SLOS["interactive"].ttft_s, SLOS["interactive"].tpot_s) == (0.5, 0.03)
    assert (SLOS["standard"].ttft_s, SLOS["standard"].tpot_s) == (2.0, 0.1)
    assert SLOS["local"].tpot_s == 1 / 50
    assert is_good(reply(1e6, 2e6), SLOS["batch"])


def test_a_good_reply_keeps_every_limit() -> None:
    own = find_slo("ttft=0.5,tpot=0.1,e2e=0.9")
    assert is_good(reply(0.5, 0.6), own)
    assert not is_good(reply(0.51, 0.6), own)
    assert not is_good(reply(0.5, 0.61), own)
    assert not is_good(reply(0.5, 0.6, 0.7, 0.8, 0.9, 0.95), own)
    assert not is_good(failed(), own)
    assert not is_good(failed(), SLOS["batch"])
    assert is_good(reply(0.4), own)  # one token: no time per token to miss
    assert good_fraction([reply(0.1, 0.2), failed()], own) == 0.5
    assert good_fraction([], own) is None


def test_a_reply_held_back_does_not_keep_a_limit_on_its_pace() -> None:
    own = find_slo("tpot=0.02")
    assert not is_good(reply(60.0, tokens=(64,)), own)
    assert not is_good(reply(60.0, 60.01, tokens=(63, 1)), own)
    assert not is_good(reply(60.0, 60.01, tokens=(33, 31)), own)
    assert is_good(reply(60.0, 60.6, tokens=(32, 32)), own)  # a late beginning is TTFT's to limit
    assert is_good(reply(1.2, tokens=(64,)), own)  # 1.2 s for 64 tokens: as soon as a stream would have had it
    assert not is_good(reply(*(0.1 + 0.025 * i for i in range(64))), own)
    assert is_good(reply(*(0.1 + 0.015 * i for i in range(64))), own)
    assert is_good(reply(60.0), own)  # one token


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fast", "no SLO 'fast'; there are standard, interactive, local, batch, or seconds"),
        ("ttft", "no SLO 'ttft'"),
        ("ttft=0.5,otps=3", "no SLO 'ttft=0.5,otps=3'"),
        ("ttft=soon", "the limit 'ttft=soon' is not a positive number of seconds"),
        ("ttft=-1", "the limit 'ttft=-1'"),
        ("ttft=inf", "the limit 'ttft=inf'"),
        ("ttft=nan", "the limit 'ttft=nan'"),
    ],
)
def test_an_slo_that_is_none_is_refused(text: str, said: str) -> None:
    with pytest.raises(MisuseError, match=said):
        find_slo(text)


def searched(capacity_per_s: float, start_per_s: float, **options: Any) -> Search:
    async def attempt(rate_per_s: float) -> Try:
        return Try(rate_per_s=rate_per_s, requests_count=100, good_count=100, passed=rate_per_s <= capacity_per_s)

    return asyncio.run(search(attempt, SLOS["standard"], start_per_s=start_per_s, **options))


@pytest.mark.parametrize("start_per_s", [0.1, 1.0, 7.3, 64.0, 1000.0])
def test_the_search_ends_around_the_capacity_wherever_it_begins(start_per_s: float) -> None:
    found = searched(7.3, start_per_s)
    assert found.passed_rate_per_s is not None
    assert found.failed_rate_per_s is not None
    assert found.passed_rate_per_s <= 7.3 < found.failed_rate_per_s
    assert found.failed_rate_per_s / found.passed_rate_per_s < 1.06
    assert len(found.tries) <= 16


def test_a_search_that_the_client_cannot_follow_ends_with_what_passed() -> None:
    async def attempt(rate_per_s: float) -> Try:
        if rate_per_s > 5:
            msg = "this client's event loop was late"
            raise BusyClientError(msg)
        return Try(rate_per_s=rate_per_s, requests_count=100, good_count=100, passed=True)

    found = asyncio.run(search(attempt, SLOS["standard"], start_per_s=1.0))
    assert (found.passed_rate_per_s, found.failed_rate_per_s) == (4.0, None)
    assert found.ended == "this client's event loop was late"
    assert searched(7.3, 1.0).ended is None


def test_a_search_that_never_fails_or_never_passes_says_so() -> None:
    never_fails = searched(math.inf, 1.0, doublings=3)
    assert (never_fails.passed_rate_per_s, never_fails.failed_rate_per_s) == (8.0, None)
    never_passes = searched(0.0, 1.0, doublings=3)
    assert (never_passes.passed_rate_per_s, never_passes.failed_rate_per_s) == (None, 0.125)
    with pytest.raises(MisuseError, match="the first rate 0 is not a positive number"):
        searched(1.0, 0)
