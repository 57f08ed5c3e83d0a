"""What work cost in joules: told from traces whose exact integral is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.measure.energy import Mark, idle_power_w, spent
from harness.model import Energy, TelemetrySample

TICK_S = 0.1  # of the driver's counter
PERIOD_S = 0.05  # of our sampler
WINDOW_S = 4.0
LENGTH_S = 12.0  # of a trace; the load goes from 1 s to 11 s
BEGIN_S, END_S = 1.0, 11.0
RUNS_PER_S = 200

Floats = npt.NDArray[np.float64]
Power = Callable[[Floats], Floats]


def integral(power: Power, start_s: float, end_s: float) -> float:
    at = np.linspace(start_s, end_s, 20001)
    return float(np.trapezoid(power(at), at))


def trace(
    power: Power, *, counter: bool = True, told: bool = True, averaged_s: float = 0.0, offset_s: float = 0.013
) -> list[TelemetrySample]:
    """Return what a sampler sees of a device: a counter that ticks ten times a second, and power at the moment or as a mean."""
    fine = np.arange(0, LENGTH_S + 1e-9, 0.001)
    joules = np.concatenate([[0.0], np.cumsum(power(fine[:-1]) * 0.001)])
    at = np.arange(0, LENGTH_S, PERIOD_S)
    ticked = np.maximum(0, np.floor((at - offset_s) / TICK_S) * TICK_S + offset_s)
    counted = 1e6 + np.interp(ticked, fine, joules)
    watts = power(at)
    if averaged_s:
        watts = (np.interp(at, fine, joules) - np.interp(at - averaged_s, fine, joules)) / averaged_s
    return [
        TelemetrySample(at_s=float(t), power_w=float(w) if told else None, energy_j=float(j) if counter else None)
        for t, w, j in zip(at, watts, counted, strict=True)
    ]


def marks(step_s: float = 0.01) -> list[Mark]:
    """Return the count of runs under load, at moments that are no sample's."""
    count = round((END_S - BEGIN_S) / step_s)
    return [Mark(at_s=BEGIN_S + i * step_s, runs=round(RUNS_PER_S * i * step_s)) for i in range(count + 1)]


def measured(samples: Sequence[TelemetrySample], **more: Any) -> Energy:
    found = spent(samples, more.pop("marks", marks()), window_min_s=WINDOW_S, **more)
    assert found is not None
    return found


def steady(at_s: Floats) -> Floats:
    return np.full_like(at_s, 300.0)


def pulsed(at_s: Floats) -> Floats:
    """Change from 120 W to 420 W and back in four seconds."""
    return np.where(at_s % 4 < 2, 420.0, 120.0)


def swinging(at_s: Floats) -> Floats:
    return 250 + 100 * np.sin(at_s)


# --- the counter --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [steady, swinging, pulsed])
@pytest.mark.parametrize("offset_s", [0.0, 0.013, 0.049, 0.09])
def test_ticks_of_the_counter_give_the_exact_energy_of_a_run(power: Power, offset_s: float) -> None:
    found = measured(trace(power, offset_s=offset_s))
    assert (found.source, found.scope, found.disputed) == ("counter", "gpu", None)
    assert 9 < found.window_s < END_S - BEGIN_S
    exact_j = integral(power, BEGIN_S, END_S) / (END_S - BEGIN_S) / RUNS_PER_S
    # Each edge is seen up to a sampling period late, and pulses are cut off at another phase than the load's.
    assert found.joules / found.run_count == pytest.approx(exact_j, rel=0.012 if power is steady else 0.06)


def test_both_edges_are_moments_at_which_the_counter_moved() -> None:
    samples = trace(steady)
    found = measured(samples)
    values = {s.energy_j for s in samples}
    assert min(abs(found.joules - (a - b)) for a in values for b in values if a and b) < 1e-6
    steps = found.joules / (300 * TICK_S)
    assert steps == pytest.approx(round(steps), abs=1e-3)


def test_runs_are_counted_between_the_edges_and_interpolated_there() -> None:
    sparse = [Mark(at_s=BEGIN_S, runs=40), Mark(at_s=END_S, runs=2040)]
    for given_marks in (sparse, [replace(m, runs=m.runs + 40) for m in marks()]):
        found = measured(trace(steady), marks=given_marks)
        assert found.run_count == pytest.approx(RUNS_PER_S * found.window_s, abs=1)
        assert found.run_count < 2000


def test_what_was_spent_before_and_after_the_load_is_not_counted() -> None:
    found = measured(trace(lambda at_s: np.where((at_s >= BEGIN_S) & (at_s <= END_S), 300.0, 2000.0)))
    assert found.joules / found.window_s == pytest.approx(300, rel=0.03)
    assert found.disputed is None


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(20, 1000), min_size=3, max_size=20), st.floats(0, 0.099))
def test_any_power_curve_is_counted_to_within_what_fits_between_two_ticks(points: list[float], offset_s: float) -> None:
    def power(at_s: Floats) -> Floats:
        return np.interp(at_s, np.linspace(0, LENGTH_S, len(points)), points)

    found = measured(trace(power, offset_s=offset_s))
    exact_j = integral(power, BEGIN_S, BEGIN_S + found.window_s)
    assert found.joules == pytest.approx(exact_j, abs=3 * TICK_S * max(points) + 0.01 * exact_j)
    assert found.integral_j == pytest.approx(found.joules, abs=2 * TICK_S * max(points))


@pytest.mark.parametrize("drop_j", [1e6, 50.0])
def test_a_counter_that_went_backwards_is_disputed_and_power_stands_in(drop_j: float) -> None:
    samples = [replace(s, energy_j=(s.energy_j or 0) - (drop_j if s.at_s > 6 else 0)) for s in trace(steady)]
    found = measured(samples)
    assert found.source == "power"
    assert found.disputed == "the energy counter went backwards: it was reset, or it is another device's"
    assert found.joules == pytest.approx(300 * found.window_s)


def test_what_a_device_took_while_it_cooled_between_two_rounds_is_no_runs() -> None:
    """300 W and 200 runs a second, 60 W and none from 6 s to 8 s; the load before that is the longer one."""
    rest = (6.0, 8.0)
    samples = trace(lambda at_s: np.where((at_s > rest[0]) & (at_s < rest[1]), 60.0, 300.0))
    loaded = [m for m in marks() if not rest[0] < m.at_s < rest[1]]
    after = next(i for i, m in enumerate(loaded) if m.at_s > rest[0] + 1)
    lost = round(RUNS_PER_S * (rest[1] - rest[0]))
    told = [replace(m, runs=m.runs - lost * (i >= after), rested=i == after) for i, m in enumerate(loaded)]
    found = measured(samples, marks=told)
    assert found.joules / found.run_count == pytest.approx(300 / RUNS_PER_S, rel=0.03)
    assert 4 < found.window_s < rest[0] - BEGIN_S
    mixed = measured(samples, marks=[replace(m, rested=False) for m in told])
    assert mixed.joules / mixed.run_count > 1.04 * 300 / RUNS_PER_S


def test_a_reset_before_the_load_concerns_nobody() -> None:
    samples = [replace(s, energy_j=(s.energy_j or 0) + (1e9 if s.at_s < BEGIN_S else 0)) for s in trace(steady)]
    found = measured(samples)
    assert (found.source, found.disputed) == ("counter", None)


def test_a_counter_that_stands_still_yields_to_power() -> None:
    found = measured([replace(s, energy_j=5.0) for s in trace(steady)])
    assert (found.source, found.disputed, found.integral_j) == ("power", None, None)


def test_a_counter_that_misses_some_answers_is_used_all_the_same() -> None:
    samples = [replace(s, energy_j=None if i % 3 else s.energy_j) for i, s in enumerate(trace(steady))]
    found = measured(samples)
    assert (found.source, found.disputed) == ("counter", None)
    assert found.joules / found.window_s == pytest.approx(300, rel=0.03)


# --- power --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [steady, swinging])
def test_without_a_counter_power_over_time_stands_alone(power: Power) -> None:
    found = measured(trace(power, counter=False))
    assert (found.source, found.integral_j, found.disputed) == ("power", None, None)
    assert found.joules == pytest.approx(integral(power, BEGIN_S, BEGIN_S + found.window_s), rel=0.001)


def test_without_power_the_counter_stands_alone() -> None:
    found = measured(trace(steady, told=False))
    assert (found.source, found.integral_j, found.disputed) == ("counter", None, None)
    assert found.joules == pytest.approx(300 * found.window_s, rel=0.02)


def test_without_either_there_is_no_number() -> None:
    assert spent(trace(steady, counter=False, told=False), marks(), window_min_s=WINDOW_S) is None
    assert spent([], marks(), window_min_s=WINDOW_S) is None


@pytest.mark.parametrize("power", [steady, swinging])
def test_power_that_is_a_mean_over_the_last_second_does_not_contradict_the_counter(power: Power) -> None:
    found = measured(trace(power, averaged_s=1.0))
    assert found.disputed is None
    assert found.integral_j == pytest.approx(found.joules, rel=0.05)


def test_power_is_not_carried_on_beyond_its_last_reading() -> None:
    samples = [replace(s, power_w=s.power_w if s.at_s < 8 else None) for s in trace(steady)]
    found = measured(samples)
    assert (found.source, found.integral_j) == ("counter", None)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0.02, 1), st.floats(1, 1000)), min_size=20, max_size=40))
def test_any_trace_of_power_has_the_integral_of_the_line_through_it(steps: list[tuple[float, float]]) -> None:
    at = np.cumsum([s for s, _ in steps])
    watts = np.array([w for _, w in steps])
    samples = [TelemetrySample(at_s=float(t), power_w=float(w)) for t, w in zip(at, watts, strict=True)]
    ends = [Mark(at_s=0.0, runs=0), Mark(at_s=float(at[-1]) + 1, runs=1000)]
    found = spent(samples, ends, window_min_s=0.1)
    assert found is not None
    assert found.joules == pytest.approx(float(np.trapezoid(watts, at)))
    assert found.window_s == pytest.approx(float(at[-1] - at[0]))
    assert min(watts) * found.window_s * 0.999 <= found.joules <= max(watts) * found.window_s * 1.001


# --- what may not be believed -------------------------------------------------------------------------------------


def test_two_witnesses_that_differ_by_more_than_a_twentieth_are_both_given() -> None:
    for factor, disputed in ((1.04, False), (0.96, False), (1.06, True), (0.93, True), (327 / 187, True)):
        found = measured([replace(s, power_w=300 * factor) for s in trace(steady)])
        assert (found.disputed is not None) is disputed, factor
        assert found.source == "counter"
        assert found.integral_j == pytest.approx(300 * factor * found.window_s)
        if found.disputed:
            assert f"{found.joules:.0f} J" in found.disputed
            assert f"{found.integral_j:.0f} J" in found.disputed


@pytest.mark.parametrize(
    ("limit_w", "idle_w", "words"),
    [
        (None, None, None),
        (300.0, 60.0, None),
        (280.0, 60.0, None),  # a regulator overshoots
        (270.0, 60.0, "a mean of 300 W is more than the power limit of 270 W allows"),
        (350.0, 310.0, "a mean of 300 W under load is less than the 310 W at rest"),
        (0.0, None, "more than the power limit of 0 W"),
    ],
)
@pytest.mark.parametrize("counter", [True, False])
def test_a_mean_power_has_to_be_possible(
    limit_w: float | None, idle_w: float | None, words: str | None, *, counter: bool
) -> None:
    found = measured(trace(steady, counter=counter), power_limit_w=limit_w, idle_w=idle_w)
    assert found.idle_power_w == idle_w
    assert (found.disputed is None) == (words is None)
    assert words is None or words in str(found.disputed)


def test_a_window_that_is_too_short_gives_no_number() -> None:
    samples, whole = trace(steady), marks()
    assert spent(samples, whole, window_min_s=9.5) is not None
    assert spent(samples, whole, window_min_s=10.5) is None
    assert (
        spent(samples, whole[:400], window_min_s=WINDOW_S) is None
    )  # the load of 4 s holds less than that between ticks
    assert spent(samples, whole[:1], window_min_s=0.0) is None
    assert spent(samples, [], window_min_s=0.0) is None


def test_a_window_of_few_ticks_is_no_longer_than_its_own_error() -> None:
    assert spent(trace(steady, told=False), marks()[:80], window_min_s=0.1) is None  # eight ticks
    assert spent(trace(steady, told=False), marks()[:140], window_min_s=0.1) is not None


def test_whose_energy_it_is_stays_with_the_number() -> None:
    assert measured(trace(steady), scope="module").scope == "module"
    assert measured(trace(steady), scope="package").scope == "package"


def test_the_power_at_rest_is_a_mean_of_what_was_told() -> None:
    told = [TelemetrySample(at_s=i, power_w=w) for i, w in enumerate([20.0, None, 22.0, 24.0])]
    assert idle_power_w(told) == 22
    assert idle_power_w(told[1:2]) is None
    assert idle_power_w([]) is None
