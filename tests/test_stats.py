"""The statistics of a measurement, when to stop timing, and what may be believed of the result."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import stats
from harness.measure.rounds import EFFORTS, Effort, batch_for, enough, samples_for
from harness.measure.validity import judge
from harness.model import State, TelemetrySample

QUICK = EFFORTS["quick"]
times = st.lists(st.floats(1e-6, 1e3), min_size=2, max_size=40)
scales = st.floats(1e-3, 1e3)


def close(a: Sequence[float], b: Sequence[float], tolerance: float = 1e-9) -> bool:
    scale = max(map(abs, (*a, *b)))
    return all(math.isclose(x, y, rel_tol=tolerance, abs_tol=tolerance * scale) for x, y in zip(a, b, strict=True))


# --- interval ---------------------------------------------------------------------------------------------------------


def t_below(t: float, freedom: int, steps: int = 4000) -> float:
    """Return the share of Student's t distribution below t, by Simpson's rule over its density."""
    norm: float = math.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))

    def density(x: float) -> float:
        return norm * math.pow(1 + x * x / freedom, -(freedom + 1) / 2)

    width = t / steps
    inner = sum(density(i * width) * (4 if i % 2 else 2) for i in range(1, steps))
    return 0.5 + (density(0.0) + inner + density(t)) * width / 3


def quantile_used(count: int) -> float:
    values = [1.0 + i * 1e-3 for i in range(count)]
    centre, low, high = stats.interval(values)
    assert math.isclose(high - centre, centre - low)
    return (high - centre) * math.sqrt(count) / stdev(values)


def test_the_integration_knows_a_distribution_in_closed_form() -> None:
    assert t_below(1.0, 1) == pytest.approx(0.75, abs=1e-9)  # Cauchy: 1/2 + atan(t)/pi
    assert t_below(math.sqrt(2), 2) == pytest.approx(0.5 + math.sqrt(2) / (2 * math.sqrt(4)), abs=1e-9)


@pytest.mark.parametrize("count", range(2, 32))
def test_each_quantile_leaves_one_and_a_half_percent_above(count: int) -> None:
    assert t_below(quantile_used(count), count - 1) == pytest.approx(0.985, abs=1e-6)


def test_beyond_the_table_the_last_quantile_is_kept_which_is_wide_enough() -> None:
    assert quantile_used(100) == pytest.approx(quantile_used(31))
    assert t_below(quantile_used(100), 99) > 0.985


def test_one_value_has_an_unbounded_interval() -> None:
    assert stats.interval([2.5]) == (2.5, 0.0, math.inf)


def test_equal_values_have_an_interval_without_width() -> None:
    assert stats.interval([2.5] * 5) == (2.5, 2.5, 2.5)


def test_an_interval_of_times_does_not_reach_below_zero() -> None:
    assert stats.interval([1e-6, 1.0])[1] == 0.0


@given(times)
def test_an_interval_holds_its_mean(values: list[float]) -> None:
    centre, low, high = stats.interval(values)
    assert 0 <= low <= centre <= high
    assert centre == fmean(values)


@given(times, scales)
def test_an_interval_scales_with_its_values(values: list[float], scale: float) -> None:
    expected = [scale * x for x in stats.interval(values)]
    assert close(stats.interval([scale * v for v in values]), expected)


@given(st.lists(st.floats(100, 101), min_size=2, max_size=40), st.floats(0, 1000))
def test_an_interval_moves_with_its_values(values: list[float], shift: float) -> None:
    centre, low, high = stats.interval([v + shift for v in values])
    before = stats.interval(values)
    assert close((centre - shift, high - centre), (before[0], before[2] - before[0]), 1e-6)
    assert low >= before[1] + shift - 1e-6


@given(times, st.randoms(use_true_random=False))
def test_an_interval_does_not_know_the_order(values: list[float], dice: random.Random) -> None:
    shuffled = dice.sample(values, len(values))
    assert close(stats.interval(shuffled), stats.interval(values))


@given(times)
def test_more_of_the_same_narrows_the_interval(values: list[float]) -> None:
    centre, _, high = stats.interval(values)
    centre2, _, high2 = stats.interval(values * 2)
    assert high2 - centre2 <= (high - centre) * (1 + 1e-9)


@pytest.mark.slow
def test_the_interval_covers_the_truth_although_it_is_looked_at_after_every_round() -> None:
    dice = random.Random(20261124)  # noqa: S311 - a simulation
    effort = replace(QUICK, rounds_max=15, budget_s=math.inf)
    covered, trials = 0, 1500
    for _ in range(trials):
        rounds: list[tuple[float]] = []
        while not enough(rounds, 0.0, effort):
            rounds.append((dice.gauss(1.0, 0.012),))
        _, low, high = stats.interval(stats.medians(rounds))
        covered += low <= 1.0 <= high
    assert covered / trials >= stats.CONFIDENCE - 0.01


# --- medians and drift ------------------------------------------------------------------------------------------------


@given(st.lists(times, min_size=1, max_size=5), scales)
def test_a_median_lies_within_its_round_and_scales_with_it(rounds: list[list[float]], scale: float) -> None:
    found = stats.medians(rounds)
    assert all(min(r) <= m <= max(r) for m, r in zip(found, rounds, strict=True))
    assert close(stats.medians([[scale * t for t in r] for r in rounds]), [scale * m for m in found])


def test_a_median_shrugs_off_a_spike() -> None:
    assert stats.medians([(1.0, 1.0, 99.0)]) == (1.0,)


@given(times, scales)
def test_drift_is_free_of_scale(values: list[float], scale: float) -> None:
    assert close([stats.drift([scale * v for v in values]), 1.0], [stats.drift(values), 1.0])


@given(times)
def test_drift_backwards_is_drift_with_the_other_sign(values: list[float]) -> None:
    assert close([stats.drift(values[::-1]), 1.0], [-stats.drift(values), 1.0])


@given(st.floats(0.1, 10), st.floats(-0.05, 0.05), st.integers(2, 30))
def test_drift_of_a_ramp_is_its_change_from_end_to_end(start: float, step: float, count: int) -> None:
    ramp = [start * (1 + step * i / count) for i in range(count)]
    assert stats.drift(ramp) == pytest.approx((ramp[-1] - ramp[0]) / fmean(ramp), abs=1e-9)


@pytest.mark.parametrize("values", [[3.0], [0.0, 0.0], [2.0] * 7])
def test_what_does_not_change_does_not_drift(values: list[float]) -> None:
    assert stats.drift(values) == 0.0


# --- when to stop -----------------------------------------------------------------------------------------------------

EFFORT = Effort(warmup_s=0.1, budget_s=1.0, rounds_min=5, rounds_max=10, half_width_fraction=0.01, drift_fraction=0.01)
STEADY = [(1.0,), (1.001,), (0.999,), (1.0,), (1.001,), (0.999,)]
NOISY = [(1.0,), (1.2,), (0.9,), (1.1,), (0.8,), (1.0,)]
RAMP = [(1.0 + 0.02 * i,) for i in range(8)]


@pytest.mark.parametrize(
    ("rounds", "spent_s", "stop"),
    [
        ([], 0.0, False),
        ([], 99.0, False),  # a measurement has its least number of rounds, whatever the time
        (STEADY[:4], 99.0, False),
        (STEADY[:5], 0.0, True),
        (NOISY, 0.0, False),
        (NOISY, 0.999, False),
        (NOISY, 1.0, True),
        (NOISY[:1] * 2 + NOISY * 2, 0.0, True),  # more rounds than the most
        (RAMP, 0.0, False),
        ([(1.0 + 0.003 * i,) for i in range(6)], 0.0, False),  # narrow, but on its way
        ([(1.0,)] * 5, 0.0, True),
    ],
)
def test_timing_stops_when_it_is_narrow_and_steady_or_out_of_rounds_or_time(
    rounds: list[tuple[float]], spent_s: float, stop: bool
) -> None:
    assert enough(rounds, spent_s, EFFORT) is stop


@given(st.floats(0, 10), st.floats(1e-6, 1.0))
def test_a_batch_is_the_least_power_of_two_that_lasts(run_s: float, sample_s: float) -> None:
    effort = replace(EFFORT, sample_s=sample_s)
    batch = batch_for(run_s, effort)
    assert batch.bit_count() == 1
    assert batch <= 1 << 20
    assert batch * run_s >= sample_s or batch == 1 << 20
    assert batch == 1 or batch // 2 * run_s < sample_s


@given(st.floats(0, 100))
def test_the_least_number_of_rounds_fits_the_budget_or_has_one_sample_each(sample_s: float) -> None:
    samples = samples_for(sample_s, EFFORT)
    assert 1 <= samples <= EFFORT.samples
    assert samples == 1 or EFFORT.rounds_min * samples * sample_s <= EFFORT.budget_s * (1 + 1e-9)


def test_a_longer_preset_tries_harder() -> None:
    quick, standard, full = EFFORTS["quick"], EFFORTS["standard"], EFFORTS["full"]
    assert quick.budget_s < standard.budget_s < full.budget_s
    assert quick.half_width_fraction > standard.half_width_fraction >= full.half_width_fraction


# --- what may be believed ---------------------------------------------------------------------------------------------


def seen(*reasons: str, at_s: float = 0.0) -> TelemetrySample:
    return TelemetrySample(at_s=at_s, power_w=300.0, throttle_reasons=reasons)


CLEAN = seen()


@pytest.mark.parametrize(
    ("rounds", "telemetry", "state", "reason"),
    [
        (STEADY, [], "valid", "±0.11% over 6 rounds"),
        (STEADY, [CLEAN] * 4, "valid", "±0.11% over 6 rounds"),
        (STEADY, [TelemetrySample(at_s=0.0, power_w=9.0)], "valid", "±0.11% over 6 rounds"),
        (STEADY, [seen("gpu_idle"), CLEAN], "valid", "±0.11% over 6 rounds"),
        (NOISY, [], "noisy", "interval of ±17.3% after 6 rounds, wanted ±1.0%"),
        (RAMP, [], "drifting", "+13.1% from the first to the last round"),
        (RAMP[::-1], [], "drifting", "-13.1% from the first to the last round"),
        (STEADY, [seen("sw_power_cap"), CLEAN], "power_capped", "at the power limit of 350 W in 50% of the samples"),
        (
            STEADY,
            [seen("sw_thermal"), CLEAN, CLEAN, CLEAN],
            "thermally_limited",
            "the driver slowed it for its temperature in 25% of the samples",
        ),
        (STEADY, [seen("hw_slowdown"), CLEAN], "throttled", "hw_slowdown in 50% of the samples"),
        (
            STEADY,
            [seen("hw_thermal"), seen("hw_slowdown")],
            "throttled",
            "hw_slowdown and hw_thermal in 100% of the samples",
        ),
        (STEADY, [seen("hw_power_brake")], "throttled", "hw_power_brake in 100% of the samples"),
    ],
)
def test_each_state_has_its_trace_and_its_reason(
    rounds: list[tuple[float]], telemetry: list[TelemetrySample], state: State, reason: str
) -> None:
    assert judge(rounds, telemetry, effort=EFFORT, power_limit_w=350.0) == (state, reason)


def test_a_power_limit_that_nobody_read_is_not_named() -> None:
    assert judge(STEADY, [seen("sw_power_cap")], effort=EFFORT)[1] == "at the power limit in 100% of the samples"


def test_lost_sensors_make_it_invalid_whatever_the_times_say() -> None:
    state, reason = judge(STEADY, [seen("hw_slowdown")], effort=EFFORT, lost="the GPU fell off the bus")
    assert (state, reason) == ("invalid", "the sensors were lost while it ran: the GPU fell off the bus")


def test_timers_that_contradict_each_other_make_it_invalid() -> None:
    assert judge(STEADY, [], effort=EFFORT, timers_disagree="2 s in 1 s") == ("invalid", "2 s in 1 s")


def test_the_gravest_finding_wins() -> None:
    gravest_first: list[tuple[str, State]] = [
        ("hw_slowdown", "throttled"),
        ("sw_thermal", "thermally_limited"),
        ("sw_power_cap", "power_capped"),
    ]
    for i, (_, state) in enumerate(gravest_first):
        rest = [reason for reason, _ in gravest_first[i:]]
        together = seen("gpu_idle", *rest)
        apart = [seen(reason) for reason in reversed(rest)]
        assert judge(NOISY, [together, CLEAN], effort=EFFORT)[0] == state
        assert judge(RAMP, [*apart, CLEAN], effort=EFFORT)[0] == state


def test_one_sample_in_many_is_enough_to_be_throttled() -> None:
    assert judge(STEADY, [*[CLEAN] * 99, seen("hw_slowdown", "sw_power_cap")], effort=EFFORT) == (
        "throttled",
        "hw_slowdown in 1% of the samples",
    )


def test_scatter_is_noise_and_not_drift() -> None:
    scattered = [(1.0,), (1.0,), (1.0,), (1.0,), (1.2,)]  # its fitted slope is 8 %, its interval wider
    assert judge(scattered, [], effort=EFFORT)[0] == "noisy"


@given(st.lists(st.tuples(st.floats(1e-9, 10)), min_size=5, max_size=20))
def test_any_times_have_a_state_with_a_reason_in_words(rounds: list[tuple[float]]) -> None:
    state, reason = judge(rounds, [], effort=EFFORT)
    assert state in {"valid", "noisy", "drifting"}
    assert "round" in reason
    assert "nan" not in reason
