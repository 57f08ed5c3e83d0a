"""From reports to capability, score and quote."""

from __future__ import annotations

import ast
import json
import math
import subprocess
import sys
from dataclasses import replace
from decimal import ROUND_UP, Decimal, localcontext
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

import harness.scoring
from harness.codec import decode, encode
from harness.errors import ForgeryError, MisuseError
from harness.model import (
    Device,
    Energy,
    Environment,
    Failed,
    Interval,
    Job,
    Measurement,
    Node,
    Outcome,
    Quote,
    Report,
    Round,
    Score,
    Seal,
    Skipped,
    TelemetrySample,
    Work,
)
from harness.scoring import Costs, Profile, capability, profiles, quote, score
from harness.scoring.cycles import harmonic_speed
from harness.scoring.devices import rating
from harness.scoring.frame import frame
from harness.scoring.tables import digest_of, table

if TYPE_CHECKING:
    from harness.model import Metric, Param, Regime, State

ROOM = Path(harness.scoring.__file__).parent
GIB = 1 << 30
H100 = "NVIDIA H100 80GB HBM3"


def energy(power_w: float) -> Energy:
    return Energy(
        joules=power_w * 8,
        window_s=8.0,
        run_count=100.0,
        source="counter",
        scope="gpu",
        integral_j=None,
        disputed=None,
        idle_power_w=None,
    )


def gpu(
    name: str = H100, *, memory_gib: int | None = None, sm_count: int | None = None, l2: int | None = None
) -> Device:
    memory_bytes = None if memory_gib is None else memory_gib * GIB
    return Device(
        uuid="GPU-1",
        name=name,
        kind="cuda",
        selector="cuda:0",
        memory_bytes=memory_bytes,
        sm_count=sm_count,
        l2_bytes=l2,
        sensors={},
    )


def cpu(core_count: int | None = 8) -> Device:
    return Device(uuid="CPU-1", name="Example CPU", kind="cpu", selector="cpu", core_count=core_count, sensors={})


def measured(
    benchmark: str,
    work: Work,
    metric: Metric,
    *,
    device: Device | None = None,
    time_s: float = 1.0,
    high_s: float | None = None,
    low_s: float | None = None,
    state: State = "valid",
    power_w: float | None = None,
    samples_w: tuple[float, ...] = (),
    regime: Regime = "sustained",
    **params: Param,
) -> Outcome:
    uuid = (device or gpu()).uuid
    job = Job(benchmark=benchmark, version=1, params=params, device_uuid=uuid, seed="0" * 16, regime=regime)
    measurement = Measurement(
        job=job,
        started_at="2026-11-24T12:00:00Z",
        elapsed_s=2.0,
        work=work,
        metric=metric,
        state=state,
        reason=f"it was {state}",
        time_s=time_s,
        interval=Interval(
            low_s=time_s if low_s is None else low_s,
            high_s=time_s if high_s is None else high_s,
            confidence_fraction=0.95,
        ),
        warmup_times_s=(),
        rounds=(Round(at_s=0.0, batch=1, times_s=(time_s, time_s * 2)),),
        telemetry=tuple(TelemetrySample(at_s=0.0, power_w=w) for w in samples_w),
        telemetry_lost=None,
        answer_digest="a" * 64,
        energy=None if power_w is None else energy(power_w),
    )
    return Outcome(measurement=measurement)


def gemm(rate: float = 1e12, dtype: str = "float32", **more: Any) -> Outcome:
    return measured("gemm", Work(flops=10**12), "compute", time_s=1e12 / rate, dtype=dtype, n=4096, **more)


def stream(rate: float = 1e12, op: str = "triad", n: int = 1 << 26, **more: Any) -> Outcome:
    return measured("stream", Work(bytes_moved=10**12), "bandwidth", time_s=1e12 / rate, op=op, n=n, **more)


def report(*outcomes: Outcome, device: Device | None = None, emulated: bool = False) -> Report:
    digests = tuple(f"{i:064x}" for i in range(len(outcomes)))
    return Report(
        schema="harness.report/2",
        created_at="2026-11-24T12:00:00Z",
        sealed_at="2026-11-24T12:05:00Z",
        node=Node(name="node"),
        environment=Environment(
            harness_version="0.1.0",
            python="3.11",
            os="Linux",
            packages={},
            cpu_limit_count=None,
            niceness=None,
            load_average_1min=None,
            memory_free_bytes=None,
            governor=None,
        ),
        devices=(device or gpu(),),
        preflight=(),
        emulated=emulated,
        preset="quick",
        seed="0" * 16,
        plan=(),
        outcomes=outcomes,
        previous=None,
        seal=Seal(outcomes=digests, digest="d" * 64, algorithm="unsigned", public_key=None, signature=None),
    )


def on_cpu(*, state: State = "valid", device: Device | None = None) -> Report:
    device = device or cpu()
    return report(
        gemm(5e11, device=device, state=state), stream(3e10, device=device, state=state, power_w=60.0), device=device
    )


def failed(kind: Literal["wrong_answer", "crashed"], device: Device | None = None) -> Outcome:
    job = Job(benchmark="sort", version=1, params={"n": 8}, device_uuid=(device or gpu()).uuid, seed="0" * 16)
    return Outcome(failed=Failed(job=job, started_at="", elapsed_s=0.0, outcome=kind, reason="unsorted"))


def rates_of(*outcomes: Outcome, device: Device | None = None) -> dict[str, float]:
    (seen,) = capability(report(*outcomes, device=device))
    return {r.work_class: r.low_per_s for r in seen.rates}


# --- capability -------------------------------------------------------------------------------------------------------


def test_a_rate_is_the_slow_end_of_the_interval() -> None:
    (seen,) = capability(report(gemm(1e12, high_s=2.0, low_s=0.5)))
    (rate,) = seen.rates
    assert (rate.work_class, rate.low_per_s, rate.high_per_s, rate.unit) == ("gemm_fp32", 5e11, 2e12, "FLOP/s")
    assert rate.evidence == f"{0:064x}"


@pytest.mark.parametrize(
    ("outcome", "work_class", "unit"),
    [
        (gemm(dtype="float16"), "gemm_fp16", "FLOP/s"),
        (gemm(dtype="float64"), "gemm_fp64", "FLOP/s"),
        (stream(), "mem", "B/s"),
        (stream(op="copy"), "mem", "B/s"),
        (measured("sha256", Work(items=5, item="hash"), "throughput", n=5), "hash", "hash/s"),
        (measured("fft", Work(flops=5, bytes_moved=9), "compute", n=5), "fft", "FLOP/s"),
        (measured("chase", Work(items=5, item="hop"), "latency", size_bytes=5), "latency", "hop/s"),
    ],
)
def test_each_class_of_work_has_its_benchmark_and_unit(outcome: Outcome, work_class: str, unit: str) -> None:
    (seen,) = capability(report(outcome))
    assert [(r.work_class, r.unit) for r in seen.rates] == [(work_class, unit)]


def test_the_best_lower_bound_of_several_points_counts() -> None:
    assert rates_of(gemm(1e12), gemm(3e12), gemm(9e12, high_s=1.0)) == {"gemm_fp32": 3e12}


def test_triad_comes_before_a_faster_copy() -> None:
    assert rates_of(stream(2e12, op="copy"), stream(1e12)) == {"mem": 1e12}


def test_a_small_stream_does_not_stand_for_memory() -> None:
    assert rates_of(stream(9e12, n=1 << 12), stream(1e12, n=1 << 26)) == {"mem": 1e12}


def test_a_bad_large_stream_does_not_promote_a_small_one() -> None:
    assert rates_of(stream(9e12, n=1 << 12), stream(1e12, n=1 << 26, state="throttled")) == {}


def test_a_stream_that_fits_the_l2_of_a_gpu_is_no_memory_rate() -> None:
    device = gpu(l2=10**12)
    (seen,) = capability(report(stream(), device=device))
    assert seen.rates == ()
    assert "not a memory rate" in seen.excluded[0]


def test_latency_is_taken_at_the_largest_working_set() -> None:
    hops = Work(items=1000, item="hop")
    near = measured("chase", hops, "latency", time_s=1e-6, size_bytes=1 << 10)
    far = measured("chase", hops, "latency", time_s=1e-4, size_bytes=1 << 28)
    assert rates_of(near, far) == {"latency": pytest.approx(1e7)}


@pytest.mark.parametrize("state", ["valid", "power_capped", "thermally_limited"])
def test_a_limited_state_counts_on_a_gpu(state: State) -> None:
    assert rates_of(gemm(state=state)) == {"gemm_fp32": 1e12}


@pytest.mark.parametrize("state", ["noisy", "drifting", "not_steady", "throttled", "invalid"])
def test_an_unsteady_state_is_excluded_on_a_gpu_with_its_reason(state: State) -> None:
    (seen,) = capability(report(gemm(state=state)))
    assert seen.rates == ()
    assert seen.excluded == (f"gemm dtype=float32 n=4096: {state}: it was {state}",)


@pytest.mark.parametrize("state", ["noisy", "drifting", "not_steady"])
def test_an_unsteady_state_counts_on_a_cpu(state: State) -> None:
    device = cpu()
    assert rates_of(gemm(state=state, device=device), device=device) == {"gemm_fp32": 1e12}


@pytest.mark.parametrize("state", ["throttled", "invalid"])
def test_a_broken_state_counts_nowhere(state: State) -> None:
    device = cpu()
    assert rates_of(gemm(state=state, device=device), device=device) == {}


def test_an_interval_open_at_its_slow_end_gives_no_rate() -> None:
    (seen,) = capability(report(gemm(high_s=math.inf)))
    assert seen.rates == ()
    assert "no slow end" in seen.excluded[0]


def test_an_interval_open_at_its_fast_end_is_closed_by_the_fastest_run() -> None:
    (seen,) = capability(report(gemm(1e12, low_s=0.0, high_s=2.0)))
    assert seen.rates[0].high_per_s == 1e12


def test_work_that_is_not_stated_gives_no_rate_and_not_zero() -> None:
    assert rates_of(measured("gemm", Work(bytes_moved=9), "bandwidth", dtype="float32")) == {}


def test_a_failure_is_listed_among_the_excluded() -> None:
    (seen,) = capability(report(gemm(), failed("wrong_answer")))
    assert seen.excluded == ("sort n=8: wrong_answer: unsorted",)


def test_a_device_that_was_only_skipped_has_no_capability() -> None:
    job = Job(benchmark="gemm", version=1, params={}, device_uuid="GPU-1", seed="0" * 16)
    assert capability(report(Outcome(skipped=Skipped(job=job, reason="needs 24 GB")))) == ()


def test_a_seal_that_does_not_name_each_outcome_is_refused() -> None:
    whole = report(gemm())
    with pytest.raises(ForgeryError, match=r"\$\.seal\.outcomes: names 0 outcomes; the report has 1"):
        capability(replace(whole, seal=replace(whole.seal, outcomes=())))


def test_watts_are_the_median_of_the_energy_counter_over_busy_results() -> None:
    hops = Work(items=1000, item="hop")
    idle = measured("chase", hops, "latency", power_w=5.0, size_bytes=64)
    (seen,) = capability(report(gemm(power_w=300.0), gemm(power_w=400.0), stream(power_w=350.0), idle))
    assert seen.power_w == 350.0


def test_watts_come_from_samples_where_there_is_no_counter() -> None:
    (seen,) = capability(report(gemm(samples_w=(100.0, 200.0))))
    assert seen.power_w == 150.0


def test_watts_nobody_read_are_none() -> None:
    (seen,) = capability(report(gemm()))
    assert seen.power_w is None


# --- score ------------------------------------------------------------------------------------------------------------


def reference_rate(work_class: str) -> float:
    value: float = table("reference")["rates"][work_class]["value"]
    return value


def test_the_reference_node_does_one_cu_an_hour() -> None:
    (own,) = score(report(gemm(reference_rate("gemm_fp32")), stream(reference_rate("mem"))))
    assert own.cu_per_hour == pytest.approx(1.0)
    assert own.unit == "CU-1"
    assert own.reference_digest == digest_of("reference")


def test_a_score_has_its_parts_with_their_evidence() -> None:
    (own,) = score(report(gemm(reference_rate("gemm_fp32") / 2), stream(reference_rate("mem"))))
    assert [(p.work_class, p.weight_fraction, p.evidence) for p in own.parts] == [
        ("gemm_fp32", 0.5, f"{0:064x}"),
        ("mem", 0.5, f"{1:064x}"),
    ]
    assert own.parts[0].relative_speed == pytest.approx(0.5)
    assert own.cu_per_hour == pytest.approx(2 / 3)


def test_a_class_not_measured_is_missing_and_not_zero() -> None:
    (own,) = score(report(gemm()))
    assert (own.cu_per_hour, own.high_cu_per_hour, own.missing) == (None, None, ("mem",))


def test_a_class_that_the_unit_has_no_constant_for_is_in_no_profile() -> None:
    with pytest.raises(MisuseError, match=r"no class of work 'fft'; there are gemm_bf16, "):
        Profile(name="mine", shares={"fft": Decimal(1)})


def test_an_unknown_profile_is_answered_with_the_known_ones() -> None:
    with pytest.raises(
        MisuseError, match=r"no profile 'decod'; did you mean 'decode'; there are bandwidth, decode, decode-70b"
    ):
        score(report(gemm()), profile="decod")
    with pytest.raises(MisuseError, match=r"no profile '!'; there are bandwidth"):
        score(report(gemm()), profile="!")


def test_several_reports_are_scored_in_their_order() -> None:
    names = [s.device_name for s in score(report(gemm()), on_cpu())]
    assert names == [H100, "Example CPU"]


def test_a_score_survives_the_wire() -> None:
    for own in score(report(gemm(), stream()), on_cpu()):
        assert decode(encode(own), Score) == own


speeds = st.floats(min_value=1e-3, max_value=1e3).map(Fraction)
pairs = st.fixed_dictionaries({"gemm_fp16": speeds, "mem": speeds})


@given(pairs, st.sampled_from(["gemm_fp16", "mem"]), st.fractions(min_value=1, max_value=10))
def test_a_better_rate_never_scores_lower(own: dict[str, Fraction], which: str, factor: Fraction) -> None:
    shares = profiles()["decode"].fractions
    better = harmonic_speed(shares, {**own, which: own[which] * factor})
    assert better >= harmonic_speed(shares, own)
    assert (better == harmonic_speed(shares, own)) == (factor == 1)


@given(pairs, st.fractions(min_value="0.001", max_value=1000))
def test_a_score_is_homogeneous_of_degree_one(own: dict[str, Fraction], factor: Fraction) -> None:
    shares = profiles()["decode"].fractions
    assert harmonic_speed(shares, {w: s * factor for w, s in own.items()}) == harmonic_speed(shares, own) * factor


@given(pairs)
def test_one_fast_class_cannot_buy_the_other(own: dict[str, Fraction]) -> None:
    shares = profiles()["decode"].fractions
    assert all(harmonic_speed(shares, own) <= own[w] / share for w, share in shares.items())


@given(pairs)
def test_the_order_of_classes_does_not_change_a_digit(own: dict[str, Fraction]) -> None:
    shares = profiles()["decode"].fractions
    assert harmonic_speed(dict(reversed(shares.items())), own) == harmonic_speed(shares, dict(reversed(own.items())))


@given(speeds, st.sampled_from(sorted(profiles())))
def test_equal_speed_in_every_class_is_that_speed(speed: Fraction, profile: str) -> None:
    shares = profiles()[profile].fractions
    assert harmonic_speed(shares, dict.fromkeys(shares, speed)) == speed


def test_a_workload_that_does_not_fit_is_not_scored() -> None:
    big = "decode-70b-int4"
    outcomes = gemm(dtype="float16"), stream()
    (small,) = score(report(*outcomes, device=gpu(memory_gib=24)), profile=big)
    assert (small.cu_per_hour, small.cycles_per_s) == (None, None)
    assert small.too_small == "decode-70b-int4 needs 40 GiB; it has 24 GiB"
    (unknown,) = score(report(*outcomes), profile=big)
    assert unknown.too_small == "decode-70b-int4 needs 40 GiB; how much the device has is not known"
    (large,) = score(report(*outcomes, device=gpu(memory_gib=80)), profile=big)
    assert large.too_small is None
    assert large.cycles_per_s


def test_cu_1_is_what_it_was_when_it_was_made() -> None:
    """Quotes are comparable because the unit never changes: other constants are CU-2, in a table of their own."""
    assert digest_of("reference") == "7b711115f1d4539daad022f0982a49e0e79afd180b680a7059373c48fdb1034e"


# --- quote ------------------------------------------------------------------------------------------------------------


def priced(costs: Costs | None = None, *, power_w: float | None = 300.0, device: Device | None = None) -> Quote:
    (own,) = quote(report(gemm(power_w=power_w), stream(), device=device), costs=costs, basis="cost")
    return own


def total(own: Quote) -> Decimal:
    return sum((line.usd_per_hour for line in own.breakdown), Decimal(0))


def test_a_price_can_be_recomputed_by_hand() -> None:
    costs = Costs(
        electricity_usd_per_kwh=Decimal("0.10"),
        pue=Decimal("1.5"),
        capex_usd=Decimal(8760),
        life_years=Decimal(4),
        residual_fraction=Decimal("0.2"),
        capital_rate=Decimal("0.1"),
        utilisation=Decimal("0.5"),
        host_usd_per_hour=Decimal("0.015"),
        wear_usd_per_hour=Decimal("0.01"),
        fee_fraction=Decimal("0.2"),
        margin_fraction=Decimal("0.1"),
    )
    own = priced(costs, power_w=500.0)
    lines = {line.name: line.usd_per_hour for line in own.breakdown}
    assert lines == {
        "energy": Decimal("0.075"),
        "amortisation": Decimal("0.52"),  # (1752 wear + 525.60 interest) a year over 4380 hours
        "host": Decimal("0.015"),
        "wear": Decimal("0.01"),
        "margin": Decimal("0.062"),
        "fee": Decimal("0.1705"),
    }
    assert own.price_usd_per_hour == own.sustainable_usd_per_hour == Decimal("0.8525")
    assert own.floor_usd_per_hour == Decimal("0.125")  # (0.075 + 0.015 + 0.01) / 0.8


def test_a_gpu_is_priced_for_the_gpu_market_from_measured_watts() -> None:
    own = priced()
    assert (own.status, own.for_gpu_market, own.method, own.reasons) == ("priced", True, "cost", ())
    assert own.breakdown[0].basis.startswith("measured: ")
    assert "300.0 W" in own.breakdown[0].basis
    assert own.breakdown[1].basis.startswith("assumed: estimate, in the device table; 28000 USD")
    assert (own.issued_at, own.valid_for_s) == ("2026-11-24T12:05:00Z", 600)


def test_the_price_of_a_cu_hour_is_the_hour_over_the_score() -> None:
    own = priced()
    (scored,) = score(report(gemm(), stream()))
    assert own.price_usd_per_hour is not None
    assert scored.cycles_per_s is not None
    by_hand = own.price_usd_per_hour * 10**6 / scored.cycles_per_s
    assert own.price_usd_per_cu_hour == by_hand.quantize(Decimal("0.000001"))
    assert own.price_usd_per_mcycle == (by_hand / 3600).quantize(Decimal("0.000000000001"))


def test_an_unscored_device_has_a_price_an_hour_but_none_a_cu_hour() -> None:
    (own,) = quote(report(gemm(power_w=300.0)), basis="cost")
    assert own.price_usd_per_hour is not None
    assert own.price_usd_per_cu_hour is None
    assert own.reasons == ("no price per CU-hour: profile 'general' lacks mem",)


def test_evidence_names_the_outcomes_and_every_table() -> None:
    own = priced()
    assert own.evidence == (f"{0:064x}", f"{1:064x}")
    tables = ("cost_defaults", "devices", "pricing", "profiles", "public_ranges", "reference")
    assert own.digests == {t: digest_of(t) for t in tables} | {"profile": profiles()["general"].digest}


@pytest.mark.parametrize("state", ["valid", "noisy"])
def test_a_cpu_is_priced_by_cost_and_marked_as_not_for_a_gpu_market(state: State) -> None:
    (own,) = quote(on_cpu(state=state))
    assert (own.status, own.kind, own.for_gpu_market, own.method) == ("priced", "cpu", False, "cost")
    assert own.reasons[0] == "this is a CPU's cost floor: it is not for a GPU market"
    assert "assumed: 100 for each of 8 cores" in own.breakdown[1].basis


def test_a_cpu_that_no_sensor_measured_is_rated_by_its_cores_and_says_so() -> None:
    device = cpu()
    (own,) = quote(report(gemm(device=device), device=device))
    assert own.breakdown[0].basis.startswith("assumed: 5 for each of 8 cores")
    assert "40 W" in own.breakdown[0].basis


def test_a_cpu_of_unknown_size_gets_no_price() -> None:
    device = cpu(core_count=None)
    (own,) = quote(report(gemm(device=device), device=device))
    assert own.status == "withheld"


@pytest.mark.parametrize("by_report", [True, False])
def test_an_emulated_device_gets_no_price(by_report: bool) -> None:
    device = replace(gpu(), emulated=not by_report)
    (own,) = quote(report(gemm(), stream(), device=device, emulated=by_report), basis="cost")
    assert (own.status, own.emulated, own.for_gpu_market, own.breakdown) == ("withheld", True, False, ())
    assert (own.floor_usd_per_hour, own.price_usd_per_hour, own.price_usd_per_cu_hour) == (None, None, None)
    assert own.reasons[0].startswith("emulated: ")


def test_an_unknown_card_is_withheld_with_what_to_give() -> None:
    own = priced(device=gpu("NVIDIA Example 9000"), power_w=None)
    assert own.status == "withheld"
    assert len(own.reasons) == 2
    assert "give capex_usd in a costs file" in own.reasons[1]


def test_an_unknown_card_with_measured_watts_and_a_given_purchase_is_priced() -> None:
    own = priced(Costs(capex_usd=Decimal(1000)), device=gpu("NVIDIA Example 9000"))
    assert own.status == "priced"
    assert own.breakdown[1].basis.startswith("given; 1000 USD")


def test_watts_are_rated_by_the_power_limit_and_then_by_the_table() -> None:
    limited = priced(device=replace(gpu(), power_limit_w=500.0), power_w=None)
    assert limited.breakdown[0].basis.startswith("rated: the device's power limit; 500.0 W")
    assert priced(power_w=None).breakdown[0].basis.startswith("rated: the maker's figure in the device table; 700 W")


def test_a_device_on_which_nothing_counts_gets_no_price() -> None:
    for outcome in (failed("crashed"), gemm(state="throttled")):
        (own,) = quote(report(outcome), basis="cost")
        assert (own.status, len(own.reasons)) == ("withheld", 1)


def test_a_quote_survives_the_wire_and_is_the_same_twice() -> None:
    for own in quote(report(gemm(power_w=300.0), stream()), on_cpu(), report(gemm(), emulated=True), basis="cost"):
        assert decode(encode(own), Quote) == own
    assert encode(priced()) == encode(priced())


def money(most: str) -> st.SearchStrategy[Decimal]:
    return st.decimals(min_value=0, max_value=Decimal(most), places=4)


costs_of_all_kinds = st.builds(
    Costs,
    electricity_usd_per_kwh=money("2"),
    pue=st.decimals(min_value=1, max_value=3, places=3),
    capex_usd=money("100000"),
    life_years=st.decimals(min_value="0.1", max_value=20, places=2),
    residual_fraction=money("0.99"),
    capital_rate=money("0.99"),
    utilisation=st.decimals(min_value="0.0001", max_value=1, places=4),
    host_usd_per_hour=money("10"),
    wear_usd_per_hour=money("10"),
    fee_fraction=money("0.99"),
    margin_fraction=money("0.99"),
)
watts = st.floats(min_value=1e-3, max_value=1e5)


@given(costs_of_all_kinds, watts)
def test_the_lines_sum_to_the_price_and_the_floor_is_never_above_it(costs: Costs, power_w: float) -> None:
    own = priced(costs, power_w=power_w)
    assert own.price_usd_per_hour == total(own)
    assert own.floor_usd_per_hour is not None
    assert own.floor_usd_per_hour <= own.price_usd_per_hour
    assert all(line.usd_per_hour >= 0 and line.usd_per_hour.as_tuple().exponent == -6 for line in own.breakdown)


@given(costs_of_all_kinds, watts, watts)
def test_more_watts_are_never_cheaper(costs: Costs, one: float, other: float) -> None:
    less, more = sorted((one, other))
    assert total(priced(costs, power_w=less)) <= total(priced(costs, power_w=more))


@given(costs_of_all_kinds, money("100000"))
def test_a_dearer_purchase_is_never_a_cheaper_hour(costs: Costs, added: Decimal) -> None:
    assert costs.capex_usd is not None
    dearer = replace(costs, capex_usd=costs.capex_usd + added)
    assert total(priced(costs)) <= total(priced(dearer))
    assert priced(costs).floor_usd_per_hour == priced(dearer).floor_usd_per_hour


@given(costs_of_all_kinds)
def test_after_the_fee_the_owner_has_costs_and_margin(costs: Costs) -> None:
    own = priced(costs)
    fee = own.breakdown[-1]
    assert costs.fee_fraction is not None
    assert abs(total(own) * costs.fee_fraction - fee.usd_per_hour) <= Decimal("0.000001")


def test_a_price_does_not_depend_on_the_callers_decimal_context() -> None:
    usual = encode(priced())
    with localcontext(prec=3, rounding=ROUND_UP):
        assert encode(priced()) == usual


MONEY = (
    "auction", "breakdown", "controller", "costs", "cycles", "derivation", "devices", "price", "pricelist", "product", "profiles",
    "recompute", "reliability", "terms", "token", "typical", "worth",
)  # fmt: skip
DOORS = {"exact"}  # where a measured float becomes exact
NO_MONEY = {
    "anchor",
    "brief",
    "capability",
    "consensus",
    "evidence",
    "fleet",
    "frame",
    "governance",
    "health",
    "market_model",
    "parquet",
    "piecework",
    "placement",
    "quick",
    "score",
} | {
    "sheets",
    "tables",
}


def floats_in(source: str) -> list[str]:
    """Return what in a source makes, names or turns money into floats."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Constant(value=float()):
                found.append(f"line {node.lineno}: {node.value!r}")
            case ast.Name(id="float" | "math" | "fsum" | "statistics"):
                found.append(f"line {node.lineno}: {node.id}")
            case ast.Attribute(attr="fsum" | "fmean" | "mean" | "from_float" | "__float__"):
                found.append(f"line {node.lineno}: {node.attr}")
    return found


@pytest.mark.parametrize("module", MONEY)
def test_no_float_is_made_where_money_is_computed(module: str) -> None:
    source = (ROOM / f"{module}.py").read_text(encoding="utf-8")
    assert floats_in(source.replace("math.floor(", "(")) == []  # of a fraction it is an integer


@pytest.mark.parametrize(
    "source", ["x = 0.1", "float(x)", "def f(x: float): ...", "math.exp(x)", "import math; math.fsum(x)"]
)
def test_a_float_where_money_is_computed_would_be_found(source: str) -> None:
    assert floats_in(source)


def test_each_module_of_the_room_either_computes_money_or_is_known_not_to() -> None:
    ours = {path.stem for path in ROOM.glob("*.py") if not path.stem.startswith("market_")} - {"__init__"}
    assert ours <= {*MONEY, *DOORS, *NO_MONEY}, "say of a new module whether it computes money"


# --- the device table -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "memory_gib", "tdp_w"),
    [
        ("NVIDIA H100 80GB HBM3", 80, 700),
        ("NVIDIA H100 PCIe", 80, 350),
        ("NVIDIA H100 NVL", 94, 400),
        ("NVIDIA H200", 141, 700),
        ("NVIDIA A100-SXM4-80GB", 80, 400),
        ("NVIDIA A100-SXM4-40GB", 40, 400),
        ("A100-SXM4-40GB", 40, 400),
        ("NVIDIA A100 80GB PCIe", 80, 300),
        ("NVIDIA L4", 24, 72),
        ("NVIDIA L40", 48, 300),
        ("NVIDIA L40S", 45, 350),
        ("Tesla T4", 15, 70),
        ("NVIDIA GeForce RTX 4090", 24, 450),
        ("NVIDIA GeForce RTX 4090 D", 24, 425),
        ("GeForce RTX 3060 Ti", 8, 200),
        ("NVIDIA GeForce RTX 3060", 12, 170),
        ("NVIDIA GeForce RTX 4060 Ti", 8, 160),
        ("NVIDIA GeForce RTX 4060 Ti", 16, 165),
        ("NVIDIA RTX A6000", 48, 300),
        ("NVIDIA RTX 6000 Ada Generation", 48, 300),
        ("Quadro RTX 6000", 24, 260),
    ],
)
def test_a_card_is_found_by_its_name_and_memory(name: str, memory_gib: int, tdp_w: int) -> None:
    found = rating(gpu(name, memory_gib=memory_gib))
    assert found is not None
    assert found.tdp_w == tdp_w


@pytest.mark.parametrize(
    "device",
    [
        gpu("NVIDIA GeForce RTX 4090 Laptop GPU"),
        gpu("NVIDIA GeForce RTX 4090 Ti"),
        gpu("NVIDIA L40G"),
        gpu("NVIDIA H100"),
        gpu("NVIDIA RTX 6000"),
        gpu("NVIDIA A100-SXM4-80GB MIG 1g.10gb"),
        gpu("NVIDIA A100-SXM4-80GB", sm_count=14),
        gpu("NVIDIA GeForce RTX 3060", memory_gib=8),
        gpu("NVIDIA GeForce RTX 3080", memory_gib=12),
        gpu("NVIDIA GeForce RTX 4060 Ti"),  # 8 or 16 GB?
        gpu(""),
    ],
    ids=lambda d: f"{d.name}/{d.memory_bytes}/{d.sm_count}",
)
def test_a_near_match_is_no_match(device: Device) -> None:
    assert rating(device) is None


def test_every_row_of_the_device_table_finds_itself_and_nothing_else() -> None:
    for row in table("devices")["devices"]:
        device = gpu(row["name"], memory_gib=row["memory_gib"], sm_count=row["sm_count"])
        assert rating(device) == (row["tdp_w"], Decimal(row["capex_usd"]), row["capex_basis"])
        assert row["capex_basis"] in table("devices")["sources"]


# --- data -------------------------------------------------------------------------------------------------------------


def test_every_reference_rate_is_a_published_number_with_its_source() -> None:
    scales = {"TFLOP/s": ("FLOP/s", 10**12), "GB/s": ("B/s", 10**9)}
    document = table("reference")
    for work_class, row in document["rates"].items():
        published = row["published"]
        unit, scale = scales[published["unit"]]
        assert published["gpu"] == document["node"]
        share = Decimal(str(row.get("share_of_published", 1)))
        assert (row["unit"], Decimal(row["value"])) == (unit, Decimal(str(published["low"])) * scale * share), (
            work_class
        )
        assert published["low"] <= published["high"]
        assert "@" in row["source"], "a source names its commit"


def test_every_profile_shares_out_one_whole() -> None:
    for name, profile in profiles().items():
        assert sum(profile.fractions.values()) == 1, name
        assert all(share > 0 for share in profile.shares.values())


@pytest.mark.parametrize("name", ["cost_defaults", "devices", "pricing", "profiles", "reference"])
def test_every_table_has_a_version_and_a_note(name: str) -> None:
    assert isinstance(table(name)["version"], int)
    assert table(name)["note"]


def test_no_money_is_written_as_a_float() -> None:
    for name in ("cost_defaults", "devices"):
        text = (ROOM / "data" / f"{name}.json").read_text(encoding="utf-8")
        json.loads(text, parse_float=pytest.fail)


# --- the room ---------------------------------------------------------------------------------------------------------


def test_a_frame_has_one_typed_row_a_measurement() -> None:
    table_ = frame(report(gemm(1e12, high_s=2.0), failed("crashed"), gemm(low_s=0.0)), on_cpu())
    assert table_.columns.to_list() == [
        "node",
        "device",
        "device_name",
        "kind",
        "benchmark",
        "version",
        "params",
        "value",
        "unit",
        "low",
        "high",
        "state",
        "reason",
        "digest",
    ]
    assert len(table_) == 4
    first = table_.iloc[0]
    assert (first["value"], first["low"], first["unit"]) == (1e12, 5e11, "FLOP/s")
    assert json.loads(first["params"]) == {"dtype": "float32", "n": 4096}
    assert table_["digest"].to_list()[1] == f"{2:064x}"
    assert table_["high"].to_list()[1] == math.inf
    assert (str(table_["value"].dtype), str(table_["version"].dtype)) == ("float64", "int64")


def test_an_empty_frame_keeps_its_columns() -> None:
    assert len(frame().columns) == 14


def test_scoring_loads_no_heavy_library() -> None:
    heavy = {"cupy", "numba", "numpy", "pandas", "ray"}
    program = f"import sys, harness.scoring, harness.scoring.frame; print({heavy!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_public_names_are_sorted_and_exist() -> None:
    assert harness.scoring.__all__ == sorted(harness.scoring.__all__)
    assert all(callable(getattr(harness.scoring, name)) for name in harness.scoring.__all__)


def test_a_sustained_result_stands_for_its_class_and_not_a_faster_burst() -> None:
    burst, soaked = gemm(9e12, regime="burst"), gemm(7e12)
    (seen,) = capability(report(burst, soaked, stream()))
    (rate,) = [r for r in seen.rates if r.work_class == "gemm_fp32"]
    assert rate.regime == "sustained"
    assert rate.low_per_s == pytest.approx(7e12)


def test_a_bad_sustained_result_does_not_promote_the_burst() -> None:
    (seen,) = capability(report(gemm(9e12, regime="burst"), gemm(7e12, state="invalid"), stream()))
    assert "gemm_fp32" not in {r.work_class for r in seen.rates}


def test_a_price_of_bursts_is_not_for_the_market_and_says_so() -> None:
    (own,) = quote(report(gemm(power_w=300.0, regime="burst"), stream()), basis="cost")
    assert (own.status, own.for_gpu_market) == ("priced", False)
    assert "gemm_fp32 measured in bursts" in own.reasons[0]
