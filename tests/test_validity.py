"""What a measurement is called: the order of gravity, and each reason why a number may not be believed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.device.sensors import throttle_names
from harness.measure.rounds import EFFORTS
from harness.measure.validity import RETRIES_MOST, hard_throttle, judge, objections, throttle_shares, timers_differ
from harness.model import Ceiling, Device, Metric, Soak, State, TelemetrySample

EFFORT = EFFORTS["standard"]
STEADY = [(1.000, 1.001), (1.001, 1.002), (1.000, 1.000), (1.001, 1.000), (1.000, 1.001), (1.001, 1.001), (1.0, 1.0)]
NOISY = [(1.0,), (1.1,), (0.95,), (1.05,), (0.9,), (1.08,), (1.0,)]
RAMP = [(1 + i / 50,) for i in range(7)]
MOVING = Soak(elapsed_s=300.0, steady=False, temperature_c_per_min=0.81, clock_fraction_per_min=-0.0062)
HARD = ("hw_slowdown", "hw_thermal", "hw_power_brake")
SOFT = ("gpu_idle", "applications_clocks", "sw_power_cap", "sync_boost", "sw_thermal", "display_clocks")
GPU = Device(uuid="GPU-1", name="GPU", kind="cuda", selector="cuda:0", l2_bytes=50 << 20, sensors={})


def seen(*reasons: str, **fields: Any) -> TelemetrySample:
    return TelemetrySample(at_s=0.0, throttle_reasons=reasons, **fields)


def masked(mask: int) -> TelemetrySample:
    return seen(*throttle_names(mask))


def counted(seconds: Mapping[str, float] | None) -> TelemetrySample:
    return TelemetrySample(at_s=0.0, throttle_s=seconds)


# --- the state ----------------------------------------------------------------------------------------------------

# From the gravest on: what is found, the state it makes, and words of its reason.
FINDINGS: tuple[tuple[dict[str, Any], State, str], ...] = (
    ({"lost": "Xid 79"}, "invalid", "the sensors were lost while it ran: Xid 79"),
    ({"timers_disagree": "2 s passed at the host"}, "invalid", "2 s passed at the host"),
    ({"objections": ("130% of what is physically possible",)}, "invalid", "130% of what is physically possible"),
    ({"discarded": ("hw_thermal in a round",) * 3}, "throttled", "hw_thermal in a round, again after cooling down 2 times"),
    ({"telemetry": [seen("hw_slowdown"), seen()]}, "throttled", "hw_slowdown in 50% of the samples"),
    ({"telemetry": [seen("sw_thermal"), seen()]}, "thermally_limited", "for its temperature in 50% of the samples"),
    ({"telemetry": [seen("sw_power_cap"), seen()]}, "power_capped", "at the power limit in 50% of the samples"),
    ({"soak": MOVING}, "not_steady", "still moving after 300 s of load: +0.81 degC a minute, clock -0.62% a minute"),
    ({"rounds": RAMP}, "drifting", "from the first to the last round"),
    ({"rounds": NOISY}, "noisy", "after 7 rounds, wanted ±0.5%"),
    ({}, "valid", "over 7 rounds"),
)  # fmt: skip


def judged(*findings: Mapping[str, Any]) -> tuple[State, str]:
    """Judge a measurement of which all of this was found; of two findings of one kind the first counts."""
    together: dict[str, Any] = {"rounds": STEADY, "telemetry": []}
    for finding in reversed(findings):
        together |= finding
    return judge(together.pop("rounds"), together.pop("telemetry"), effort=EFFORT, **together)


@pytest.mark.parametrize(("finding", "state", "reason"), FINDINGS, ids=[f"{s}: {w[:20]}" for _, s, w in FINDINGS])
def test_each_finding_by_itself_has_its_state_and_its_reason(
    finding: dict[str, Any], state: State, reason: str
) -> None:
    found, said = judged(finding)
    assert found == state
    assert reason in said


def test_every_state_there_is_can_be_reached() -> None:
    assert {state for _, state, _ in FINDINGS} == set(get_args(State))


@pytest.mark.parametrize("first", range(len(FINDINGS)))
def test_the_gravest_finding_wins_over_all_that_are_less_grave(first: int) -> None:
    state, reason = judged(*(finding for finding, _, _ in FINDINGS[first:]))
    assert state == FINDINGS[first][1]
    assert FINDINGS[first][2] in reason


def test_all_that_makes_a_number_invalid_is_said_at_once() -> None:
    assert judged(*(finding for finding, state, _ in FINDINGS if state == "invalid"))[1] == (
        "the sensors were lost while it ran: Xid 79; 2 s passed at the host; 130% of what is physically possible"
    )


@pytest.mark.parametrize(
    ("limit_w", "default_w", "words"),
    [
        (None, 450.0, "at the power limit in 100%"),
        (450.0, None, "at the power limit of 450 W in 100%"),
        (450.0, 450.0, "at the power limit of 450 W in 100%"),
        (500.0, 450.0, "at the power limit of 500 W in 100%"),
        (449.9, 450.0, "at the power limit of 450 W in 100%"),
        (250.0, 450.0, "at the power limit of 250 W, lowered from 450 W, in 100%"),
    ],
)
def test_a_power_limit_that_somebody_lowered_is_named(
    limit_w: float | None, default_w: float | None, words: str
) -> None:
    said = judge(STEADY, [seen("sw_power_cap")], effort=EFFORT, power_limit_w=limit_w, power_default_limit_w=default_w)
    assert said == ("power_capped", f"{words} of the samples")


@pytest.mark.parametrize("count", [1, RETRIES_MOST])
def test_rounds_that_were_taken_again_are_mentioned(count: int) -> None:
    state, reason = judge(STEADY, [], effort=EFFORT, discarded=["hw_thermal in a round"] * count)
    assert state == "valid"
    assert reason.endswith(f"over 7 rounds; {count} more discarded: hw_thermal in a round")


def test_a_soak_that_came_to_rest_or_had_no_sensor_is_no_finding() -> None:
    for steady in (True, None):
        rest = Soak(elapsed_s=30.0, steady=steady, temperature_c_per_min=None, clock_fraction_per_min=None)
        assert judge(STEADY, [], effort=EFFORT, soak=rest)[0] == "valid"


def test_a_soak_that_a_clock_alone_shows_to_move_names_the_clock_alone() -> None:
    moving = Soak(elapsed_s=300.0, steady=False, temperature_c_per_min=None, clock_fraction_per_min=-0.01)
    assert judge(STEADY, [], effort=EFFORT, soak=moving)[1].endswith("of load: clock -1.00% a minute")


def test_one_round_alone_is_noisy_without_end() -> None:
    state, reason = judge([(1.0, 1.0)], [], effort=EFFORT)
    assert (state, reason) == ("noisy", "interval of ±inf% after 1 rounds, wanted ±0.5%")


def test_an_interval_is_not_called_narrower_than_the_timers_step() -> None:
    """Medians on one step of the timer are equal, and say no more than that the truth is within half a step."""
    coarse = [(1.00, 1.02, 1.00)] * 7
    state, reason = judge(coarse, [], effort=EFFORT)
    assert (state, reason.split(" after")[0]) == ("noisy", "interval of ±1.0%")


# --- what the hardware did by force ---------------------------------------------------------------------------------


@given(st.sets(st.sampled_from(HARD)), st.sets(st.sampled_from(SOFT)))
def test_a_forced_slowdown_is_seen_whatever_other_reasons_stand_beside_it(hard: set[str], soft: set[str]) -> None:
    found = hard_throttle([seen(), seen(*sorted(hard | soft)), seen()])
    assert found == (f"{' and '.join(sorted(hard))} in a round" if hard else None)


@given(st.integers(0, 0x1FF))
def test_a_bit_counts_in_whatever_mask_it_stands(mask: int) -> None:
    forced = bool(mask & (0x8 | 0x40 | 0x80))
    assert (hard_throttle([masked(mask)]) is not None) is forced
    state, _ = judge(STEADY, [masked(mask)] * 2, effort=EFFORT)
    expected = (
        "throttled" if forced else "thermally_limited" if mask & 0x20 else "power_capped" if mask & 0x4 else "valid"
    )
    assert state == expected


@pytest.mark.parametrize(
    ("counters", "found"),
    [
        ([{"hw_thermal": 5.0}, {"hw_thermal": 5.2}], "hw_thermal in a round"),
        ([{"hw_thermal": 5.0, "hw_power_brake": 1.0}, {"hw_thermal": 5.2, "hw_power_brake": 1.1}],
         "hw_power_brake and hw_thermal in a round"),
        ([{"hw_thermal": 5.0}, {"hw_thermal": 5.0}], None),  # what happened before the round
        ([{"sw_power_cap": 5.0, "sw_thermal": 0.0}, {"sw_power_cap": 9.0, "sw_thermal": 2.0}], None),  # no force
        ([{"hw_thermal": 5.0}], None),  # one look shows no difference
        ([{"hw_thermal": 5.0}, None, {"hw_thermal": 6.0}], "hw_thermal in a round"),
        ([None, {"hw_thermal": 5.0}, None], None),
        ([{"hw_thermal": 5.0}, {"hw_thermal": 0.1}], None),  # the driver was reloaded
        ([{"hw_thermal": 5.0, "hw_power_brake": 3.0}, {"hw_thermal": 0.1, "hw_power_brake": 3.5}],
         "hw_power_brake in a round"),
        ([{"hw_thermal": 5.0}, {}], None),
        ([{}, {"hw_thermal": 5.0}], None),
        ([], None),
    ],
)  # fmt: skip
def test_a_counter_that_grew_in_a_round_tells_of_what_no_sample_caught(
    counters: Sequence[Mapping[str, float] | None], found: str | None
) -> None:
    assert hard_throttle([counted(c) for c in counters]) == found


def test_counters_and_reasons_are_one_testimony() -> None:
    samples = [
        seen("hw_slowdown", throttle_s={"hw_thermal": 1.0}),
        seen("sw_power_cap", throttle_s={"hw_thermal": 1.5}),
    ]
    assert hard_throttle(samples) == "hw_slowdown and hw_thermal in a round"


# --- what cannot be -----------------------------------------------------------------------------------------------


def against(**change: Any) -> list[str]:
    whole: dict[str, Any] = {
        "cache": "n/a", "footprint_bytes": None, "metric": "compute", "ceiling": None, "telemetry": ()
    }  # fmt: skip
    return list(objections(change.pop("device", GPU), **(whole | change)))


@pytest.mark.parametrize(
    ("cache", "footprint_mib", "is_refused"),
    [
        ("cold", 10, True),
        ("cold", 100, True),
        ("cold", 101, False),
        ("cold", 4096, False),
        ("cold", None, False),
        ("hot", 10, False),
        ("n/a", 10, False),
    ],
)
def test_what_claims_to_come_from_memory_must_not_fit_the_cache(
    cache: str, footprint_mib: int | None, *, is_refused: bool
) -> None:
    footprint = None if footprint_mib is None else footprint_mib << 20
    found = against(cache=cache, footprint_bytes=footprint, metric="bandwidth")
    assert bool(found) is is_refused
    if is_refused:
        assert found[0].endswith("MB stay in a cache of 52.4 MB: not a memory rate")


def test_a_cache_of_unknown_size_is_taken_for_a_large_one() -> None:
    unknown = Device(uuid="GPU-1", name="GPU", kind="cuda", selector="cuda:0", sensors={})
    assert against(device=unknown, cache="cold", footprint_bytes=256 << 20)
    assert not against(device=unknown, cache="cold", footprint_bytes=(256 << 20) + 1)


def test_a_rate_above_its_ceiling_is_refused_with_the_arithmetic() -> None:
    for reached, is_refused in ((0.99, False), (1.02, False), (1.021, True)):
        found = against(ceiling=Ceiling(rate_per_s=1e12, reached_fraction=reached, basis="8 x 2 x 1000 MHz measured"))
        assert bool(found) is is_refused
    assert found == ["102% of what is physically possible (8 x 2 x 1000 MHz measured)"]


@pytest.mark.parametrize(
    ("samples", "metric", "is_refused"),
    [
        ([seen("gpu_idle")] * 3, "compute", True),
        ([seen("gpu_idle", "sw_power_cap")] * 30, "bandwidth", True),
        ([*[seen("gpu_idle")] * 30, seen()], "compute", False),
        ([seen("gpu_idle")] * 2, "compute", False),  # both may have been taken before the load was seen
        ([seen("gpu_idle")] * 30, "latency", False),  # a launch now and then does not keep a GPU busy
        ([seen("gpu_idle")] * 30, "throughput", False),
        ([TelemetrySample(at_s=0.0)] * 30, "compute", False),
        ([seen()] * 30, "compute", False),
    ],
)
def test_a_gpu_that_was_idle_all_the_while_did_not_do_the_work(
    samples: list[TelemetrySample], metric: Metric, *, is_refused: bool
) -> None:
    assert bool(against(telemetry=samples, metric=metric)) is is_refused


# --- two clocks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device_s", "host_s", "words"),
    [
        (0.010, 0.010, None),
        (0.010, 0.0104, None),  # the host has to wake up
        (0.010, 0.0115, None),
        (0.010, 0.012, "the device's timer says only 0.010000 s"),
        (1.0, 1.09, None),
        (1.0, 1.11, "1.110000 s passed at the host"),
        (1.0, 0.995, None),  # quartzes differ
        (1.0, 0.98, "the device's timer says 1.000000 s, but only 0.980000 s passed at the host"),
        (5e-7, 1e-7, None),  # an event's resolution
        (1e-9, 4e-4, None),  # an event pair that reads 0
        (1e-9, 6e-4, "says only 0.000000 s"),  # other work than was timed
    ],
)
def test_a_span_by_the_devices_clock_fits_inside_the_hosts_and_nearly_fills_it(
    device_s: float, host_s: float, words: str | None
) -> None:
    found = timers_differ(device_s, host_s)
    assert (found is None) == (words is None)
    assert words is None or words in str(found)


@given(st.floats(1e-6, 100))
def test_a_timer_that_runs_at_another_speed_is_found_in_either_direction(span_s: float) -> None:
    assert timers_differ(span_s, span_s) is None
    assert timers_differ(2 * span_s + 1e-5, span_s)
    assert timers_differ(span_s / 2, span_s + 1e-3)


def capped(at_s: float, capped_s: float | None, *reasons: str) -> TelemetrySample:
    told = None if capped_s is None else {"sw_power_cap": capped_s}
    return TelemetrySample(at_s=at_s, throttle_reasons=reasons, throttle_s=told)


def test_shares_by_counters_add_up_over_the_rounds_and_leave_out_what_lies_between() -> None:
    first = [capped(0.0, 5.0), capped(1.0, 5.5, "sw_power_cap")]
    later = [capped(9.0, 12.0), capped(10.0, 12.25, "sw_power_cap")]  # 6.5 s at the cap meanwhile: somebody else's
    assert throttle_shares([first, later]) == {"sw_power_cap": pytest.approx(0.375)}


@pytest.mark.parametrize("capped_s", [4.0, 1e9])  # it fell: a reset; it moved by more than any unit explains
def test_a_counter_that_makes_no_sense_tells_no_share(capped_s: float) -> None:
    assert throttle_shares([[capped(0.0, 5.0), capped(1.0, capped_s)]]) == {}


def test_counters_are_believed_before_samples() -> None:
    told = [capped(t / 10, None, "sw_power_cap") for t in range(10)]
    state, reason = judge(STEADY, told, effort=EFFORT, shares={"sw_power_cap": 0.25}, power_limit_w=300.0)
    assert (state, reason) == ("power_capped", "at the power limit of 300 W in 25% of the time")
    assert judge(STEADY, told, effort=EFFORT, shares={"sw_power_cap": 0.0})[0] == "valid"
