"""When a device counts as warm: told from traces of clocks and thermometers whose truth is known."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.measure.rounds import EFFORTS, adapted
from harness.measure.warmth import Reading, settled, soak, soaked

EFFORT = EFFORTS["standard"]
LIMITS = (EFFORT.soak_min_s, EFFORT.soak_max_s)
CLOCKS = st.lists(st.one_of(st.none(), st.floats(200, 3000)), max_size=12)


def readings(
    temperature_c: Callable[[float], float | None], clock_mhz: Callable[[float], float | None], until_s: float = 1e9
) -> Iterator[Reading]:
    """Look once a second, from the first second on."""
    at_s = 1.0
    while at_s <= until_s:
        yield Reading(at_s=at_s, temperature_c=temperature_c(at_s), clock_mhz=clock_mhz(at_s))
        at_s += 1.0


def nothing(_: float) -> None:
    return None


def endured(
    temperature_c: Callable[[float], float | None], clock_mhz: Callable[[float], float | None]
) -> list[Reading]:
    """Return what is seen until the soak ends."""
    seen = list[Reading]()
    for reading in readings(temperature_c, clock_mhz):
        seen.append(reading)
        if soaked(seen, EFFORT):
            return seen
    raise AssertionError


def whole(exact: Callable[[float], float]) -> Callable[[float], float]:
    """Read a temperature as NVML gives it."""
    return lambda at_s: float(round(exact(at_s)))


# --- burst: the clock has stopped climbing ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clocks", "is_settled"),
    [
        ([], True),  # a device that tells no clock cannot be waited for
        ([None] * 9, True),
        ([1900.0] * 4, False),  # too few windows
        ([1900.0] * 5, True),
        ([1410.0, 1200.0, 1900.0, 1900.0, 1900.0], False),
        ([300.0, 900.0, 1900.0, 1905.0, 1910.0, 1905.0, 1900.0], True),  # what came before the last five is past
        ([1980.0, 1990.0, 1985.0, 1995.0, 2000.0], False),  # 1 % from lowest to highest
        ([1981.0, 1990.0, 1985.0, 1995.0, 2000.0], True),
        ([1900.0, None, 1900.0, 1900.0, None, 1900.0, 1900.0], True),  # five that are known
        ([1900.0, None, 1900.0, 1900.0, None, 1900.0], False),
        ([1980.0, 1755.0] * 5, False),  # two clock states in turn
    ],
)
def test_a_clock_has_settled_when_five_windows_agree_to_a_hundredth(
    clocks: list[float | None], is_settled: bool
) -> None:
    assert settled(clocks) is is_settled


@given(CLOCKS, st.sampled_from([0.25, 0.5, 2.0, 1024.0]))
def test_whether_a_clock_has_settled_does_not_depend_on_its_unit(clocks: list[float | None], scale: float) -> None:
    assert settled(clocks) == settled([None if c is None else c * scale for c in clocks])


@given(CLOCKS)
def test_a_window_without_a_reading_changes_nothing(clocks: list[float | None]) -> None:
    assert settled(clocks) == settled([c for c in clocks if c is not None])


# --- sustained: neither temperature nor clock moves any more ------------------------------------------------------


@pytest.mark.parametrize("rise_c", [10, 25, 40])
@pytest.mark.parametrize("time_constant_s", [10, 30, 60])
@pytest.mark.parametrize("phase_c", [0.0, 0.3, 0.5])
def test_a_soak_judged_by_a_thermometer_of_whole_degrees_ends_within_a_degree_of_the_end(
    rise_c: float, time_constant_s: float, phase_c: float
) -> None:
    def exact(at_s: float) -> float:
        return 35 + phase_c + rise_c * (1 - math.exp(-at_s / time_constant_s))

    seen = endured(whole(exact), lambda _: 1900.0)
    assert soak(seen).steady
    assert LIMITS[0] <= seen[-1].at_s < LIMITS[1]
    assert exact(math.inf) - exact(seen[-1].at_s) < 1


def test_a_thermometer_that_flickers_between_two_degrees_is_at_rest() -> None:
    dice = random.Random(5)  # noqa: S311 - a thermometer, not a secret
    seen = endured(lambda _: 70.0 + dice.randrange(2), lambda _: 1900.0)
    assert soak(seen).steady
    assert seen[-1].at_s < 120


def test_a_device_that_never_comes_to_rest_is_left_at_the_most_and_its_soak_says_so() -> None:
    seen = endured(whole(lambda at_s: 40 + at_s / 20), lambda _: 1900.0)  # 3 degrees a minute
    ended = soak(seen)
    assert ended.steady is False
    assert ended.elapsed_s == LIMITS[1]
    assert ended.temperature_c_per_min == pytest.approx(3, rel=0.1)
    assert ended.clock_fraction_per_min == 0


def test_a_clock_that_sinks_at_an_even_temperature_is_not_at_rest() -> None:
    """A fan that is regulated by temperature has none to give away."""
    ended = soak(endured(lambda _: 83.0, lambda at_s: 1900 - at_s / 4))
    assert ended.steady is False
    assert ended.temperature_c_per_min == 0
    assert ended.clock_fraction_per_min == pytest.approx(-15 / 1832, rel=0.01)


def test_two_clock_states_in_turn_are_at_rest_once_a_minute_has_been_seen() -> None:
    seen = endured(lambda _: 83.0, lambda at_s: 1900.0 if int(at_s) % 4 < 2 else 1800.0)
    assert soak(seen).steady
    assert seen[-1].at_s < 120


def test_what_moved_more_than_a_minute_ago_is_past() -> None:
    seen = list(readings(lambda at_s: min(70.0, 40 + at_s), lambda at_s: max(1800.0, 2000 - 5 * at_s), 101))
    assert soak(seen[:60]).steady is False
    assert soak(seen).steady
    assert soak(seen).temperature_c_per_min == pytest.approx(0)


@pytest.mark.parametrize(
    ("temperature_c", "clock_mhz", "steady"),
    [
        (nothing, nothing, None),
        (lambda _: 70.0, nothing, True),
        (nothing, lambda _: 1900.0, True),
        (lambda at_s: 40 + at_s, nothing, False),
        (nothing, lambda at_s: 2000 - at_s, False),
        (lambda at_s: 70.0 if at_s < 4 else None, lambda _: 1900.0, True),  # three readings make no slope
    ],
)
def test_a_sensor_that_says_nothing_decides_nothing(
    temperature_c: Callable[[float], float | None], clock_mhz: Callable[[float], float | None], steady: bool | None
) -> None:
    assert soak(list(readings(temperature_c, clock_mhz, 40))).steady is steady


def test_without_sensors_a_soak_takes_its_least_time_and_claims_nothing() -> None:
    ended = soak(endured(nothing, nothing))
    assert (ended.elapsed_s, ended.steady) == (LIMITS[0], None)
    assert (ended.temperature_c_per_min, ended.clock_fraction_per_min) == (None, None)


def test_a_steady_device_is_soaked_for_the_least_time_all_the_same() -> None:
    assert soak(endured(lambda _: 70.0, lambda _: 1900.0)).elapsed_s == LIMITS[0]


def test_nothing_seen_yet_is_neither_steady_nor_the_end() -> None:
    assert not soaked([], EFFORT)
    assert soak([]).steady is None
    assert soak([]).elapsed_s == 0


def test_a_clock_that_reads_zero_has_no_slope_to_judge() -> None:
    assert soak(list(readings(nothing, lambda _: 0.0, 40))).clock_fraction_per_min is None


@pytest.mark.parametrize("steady", [True, False])
def test_the_end_of_patience_ends_a_soak_steady_or_not(steady: bool) -> None:
    seen = list(readings(lambda at_s: 70.0 if steady else at_s, nothing, 20))
    assert not soaked(seen, EFFORT)
    assert soaked(seen, replace(EFFORT, soak_max_s=20.0))
    assert soaked(seen, replace(EFFORT, soak_min_s=20.0)) is steady


def test_a_cpu_is_soaked_for_a_shorter_time_and_a_gpu_as_the_preset_says() -> None:
    assert adapted(EFFORT, "cuda") is EFFORT
    assert adapted(EFFORT, "cpu").soak_min_s == 5
    assert adapted(replace(EFFORT, soak_min_s=1.0, space_s=0.1), "cpu") == replace(EFFORT, soak_min_s=1.0, space_s=0.1)
