"""The price by the market: what moves it and what must not, what is refused, and that anybody can recompute it."""

from __future__ import annotations

import hashlib
import itertools
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import date, timedelta
from decimal import Context, Decimal
from math import factorial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from standin import StandIn
from test_scoring import GIB, failed, gemm, gpu, measured, on_cpu, report, stream

from harness import codec
from harness.errors import ForgeryError, MisuseError
from harness.model import (
    Failed,
    Interval,
    Note,
    Outcome,
    Preflight,
    Quote,
    Record,
    Report,
    Round,
    TelemetrySample,
    Work,
)
from harness.proof.seal import OPEN, seal
from harness.proof.verify import verify
from harness.scoring import Costs, Deal, Profile, evidence, load_profile, parquet, price, recompute
from harness.scoring.breakdown import shapley
from harness.scoring.cycles import Window, cycles_of
from harness.scoring.exact import exponential, shared_out
from harness.scoring.quick import load_fast, spell
from harness.scoring.reliability import episodes, record_of, reliability, steadiness, useful_share
from harness.scoring.sheets import Sheet, sheets
from harness.scoring.tables import table
from harness.scoring.typical import sheet_rates, typical_rates

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.model import State

ROOT = Path(__file__).parent.parent
MARKET = StandIn()
FP16, FP32, MEM = 758e12, 51.9e12, 3026e9  # what an H100 is published to do
H100 = gpu(memory_gib=80)
STRANGER = gpu("NVIDIA Example 9000", memory_gib=80)
CLEAN = Record(report_digests=("a" * 64,), good_count=1000, bad_count=0, cycles_per_s=())


def node(
    fp16: float = FP16, fp32: float = FP32, mem: float = MEM, *, device: Any = H100, state: State = "valid", **more: Any
) -> Report:
    return report(
        gemm(fp16, "float16", power_w=300.0, state=state, device=device, **more),
        gemm(fp32, power_w=300.0, state=state, device=device, **more),
        stream(mem, power_w=300.0, state=state, device=device, **more),
        device=device,
    )


def sealed(own: Report) -> Report:
    """Return a report that verifies: its intervals follow from raw times, and its seal from what it holds."""

    def steady(outcome: Outcome) -> Outcome:
        m = outcome.measurement
        assert m
        rounds = tuple(Round(at_s=float(at), batch=1, times_s=(m.time_s, m.time_s)) for at in range(2))
        interval = Interval(low_s=m.time_s, high_s=m.time_s, confidence_fraction=0.95)
        return replace(outcome, measurement=replace(m, rounds=rounds, interval=interval))

    outcomes = tuple(map(steady, own.outcomes))
    plan = tuple(outcome.measurement.job for outcome in outcomes if outcome.measurement)
    bare = replace(own, plan=plan, outcomes=(), seal=OPEN)
    return replace(seal(bare, [codec.digest(o) for o in outcomes], None), outcomes=outcomes)


def earlier(own: Report, days: int = 1, digest: str = "") -> Report:
    """Return another report of the same device, sealed some days before."""
    outcomes = tuple(f"{days}{at:063x}" for at in range(len(own.outcomes)))
    digest = digest or f"{days}".ljust(64, "c")
    return replace(
        own,
        sealed_at=f"{date(2026, 11, 24) - timedelta(days)}T12:00:00Z",
        seal=replace(own.seal, outcomes=outcomes, digest=digest),
    )


def ask(own: Report, **more: Any) -> Quote:
    return price(own, market=more.pop("market", MARKET), **more)


def usd(own: Report, **more: Any) -> Decimal:
    found = ask(own, **more).price_usd_per_hour
    assert found is not None
    return found


def total(own: Quote) -> Decimal:
    return sum((line.usd_per_hour for line in own.breakdown), Decimal(0))


# --- what moves a price -----------------------------------------------------------------------------------------------

share = st.floats(min_value=0.05, max_value=4)
devices = st.sampled_from([H100, STRANGER])


@settings(max_examples=60)
@given(share, share, share, st.sampled_from(["fp16", "fp32", "mem"]), st.floats(min_value=1, max_value=5), devices)
def test_a_better_rate_is_never_cheaper(a: float, b: float, c: float, which: str, factor: float, device: Any) -> None:
    rates = {"fp16": FP16 * a, "fp32": FP32 * b, "mem": MEM * c}
    better = rates | {which: rates[which] * factor}
    priced = [usd(node(r["fp16"], r["fp32"], r["mem"], device=device)) for r in (rates, better)]
    assert priced[1] >= priced[0]


@settings(max_examples=40)
@given(share, share, share, st.booleans(), st.integers(0, 40), st.sampled_from(["0.5", "1", "1.7", "2"]))
def test_lines_sum_to_the_price_within_its_interval_and_never_below_the_floor(
    a: float, b: float, c: float, spot: bool, bad: int, congestion: str
) -> None:
    costs = Costs(electricity_usd_per_kwh=Decimal("0.9"))
    deal = Deal(spot=spot, congestion=Decimal(congestion), term_s=3600 * 24 * 90)
    past = [earlier(report(*[failed("crashed", H100)] * bad, gemm(device=H100), device=H100))]
    own = ask(node(FP16 * a, FP32 * b, MEM * c), costs=costs, deal=deal, history=past)
    assert own.price_usd_per_hour == total(own)
    assert own.floor_usd_per_hour is not None
    assert own.low_usd_per_hour is not None
    assert own.high_usd_per_hour is not None
    assert own.floor_usd_per_hour <= own.low_usd_per_hour <= total(own) <= own.high_usd_per_hour
    assert all(line.usd_per_hour.as_tuple().exponent == -6 for line in own.breakdown)


def test_a_price_below_the_floor_is_raised_to_it_and_says_so() -> None:
    own = ask(node(), costs=Costs(electricity_usd_per_kwh=Decimal(50)))
    assert own.price_usd_per_hour == own.floor_usd_per_hour
    assert own.breakdown[-1].name == "floor"
    assert own.reasons[0].startswith("raised to the floor")


def test_a_card_at_60_percent_of_its_name_is_worth_60_percent_of_a_sound_one() -> None:
    """By name alone it would be sold as a sound one; by elasticities of 0.3 it would still be dear for the work it does."""
    slow, sound = usd(node(FP16 * 0.6, FP32 * 0.6, MEM * 0.6)), usd(node())
    assert Decimal("0.55") < slow / sound <= Decimal("0.601")
    by_work = ask(node(FP16 * 0.6, FP32 * 0.6, MEM * 0.6)).price_usd_per_cu_hour
    assert by_work is not None
    assert by_work <= ask(node()).price_usd_per_cu_hour * Decimal("1.0001")  # type: ignore[operator]


def test_a_measured_rate_goes_before_the_one_on_the_sheet() -> None:
    market = StandIn()
    ask(node(FP16 * 0.5), market=market)
    features = market.asked[-1]  # the one before is what its name promises
    assert (features.fp16_flops_per_s, features.memory_bytes_per_s) == (FP16 * 0.5, MEM)
    assert features.measured == {"fp16_flops_per_s", "fp32_flops_per_s", "memory_bytes_per_s"}


@pytest.mark.parametrize("state", ["invalid", "noisy", "drifting", "not_steady", "throttled"])
def test_a_bad_measurement_never_enters_a_gpus_price(state: State) -> None:
    """A result five times as fast that does not count must leave the price where it was."""
    sound = node()
    lie = gemm(FP16 * 5, "float16", state=state, device=H100, power_w=300.0)
    mixed = report(*sound.outcomes, lie, device=H100)
    assert usd(mixed) == usd(sound)
    alone = ask(node(state=state))
    assert (alone.status, alone.price_usd_per_hour) == ("withheld", None)


@pytest.mark.parametrize("which", ["fp16", "fp32", "mem"])
@pytest.mark.parametrize("state", ["invalid", "noisy", "drifting", "not_steady", "throttled", "crashed"])
def test_a_class_that_was_tried_and_does_not_count_is_never_priced_as_a_sound_one(state: Any, which: str) -> None:
    """Else a worse card would be dearer than a better one: the sheet of its name would stand in for what it failed at."""
    sound = dict(zip(("fp16", "fp32", "mem"), node().outcomes, strict=True))
    slow = dict(zip(("fp16", "fp32", "mem"), node(FP16 * 0.4, FP32 * 0.4, MEM * 0.4).outcomes, strict=True))
    bad = slow[which].measurement
    assert bad
    if state == "crashed":
        failure = Failed(job=bad.job, started_at="", elapsed_s=0.0, outcome="crashed", reason="gone")
        outcome = Outcome(failed=failure)
    else:
        outcome = Outcome(measurement=replace(bad, state=state))
    more = [stream(MEM, "copy", device=H100, power_w=300.0)] if which == "mem" else []
    own = shipped(report(*(sound | {which: outcome}).values(), *more, device=H100))
    valid = shipped(report(*(sound | {which: slow[which]}).values(), device=H100)).price_usd_per_hour
    assert valid is not None
    assert own.price_usd_per_hour is None or own.price_usd_per_hour <= valid
    assert not own.for_gpu_market
    name = {"fp16": "gemm_fp16", "fp32": "gemm_fp32", "mem": "mem"}[which]
    assert own.reasons == (
        f"withheld: no result of {name} counts, though it was tried: the sheet of its name does not stand in for it",
    )


def test_what_was_never_tried_is_still_taken_from_the_sheet_and_another_of_its_kind_stands_for_it() -> None:
    fp16, fp32, mem = node().outcomes
    assert ask(report(fp16, mem, device=H100)).status == "priced"
    bad = gemm(FP16, "bfloat16", state="throttled", device=H100)
    assert ask(report(fp16, bad, fp32, mem, device=H100)).status == "priced"
    assert ask(report(fp16, bad, fp32, mem, device=H100), profile="training").status == "withheld"
    in_cache = replace(H100, l2_bytes=10**13)
    assert ask(report(fp16, fp32, mem, device=in_cache)).status == "priced"


def test_a_burst_does_not_stand_in_for_what_was_not_sustained() -> None:
    token = Work(items=1000, item="token")
    slow = measured("sustained_decode", token, "throughput", time_s=25.0, state="throttled", device=H100)
    burst = measured("decode", token, "throughput", time_s=10.0, regime="burst", device=H100, depth=0)
    sold = {n.work_class for n in ask(report(*node().outcomes, slow, burst, device=H100)).native}
    assert "decode" not in sold
    assert "decode" in {n.work_class for n in ask(report(*node().outcomes, burst, device=H100)).native}


def test_a_cpu_and_an_emulated_card_get_no_market_price() -> None:
    market = StandIn()
    own = price(on_cpu(), market=market)
    assert (own.method, own.for_gpu_market, own.low_usd_per_hour) == ("cost", False, None)
    emulated = ask(replace(node(), emulated=True), market=market)
    assert (emulated.status, emulated.price_usd_per_hour) == ("withheld", None)
    assert market.asked == []


FAULTY = Preflight(
    device_uuid="GPU-1",
    idle_power_w=None,
    notes=(
        Note(severity="tag", what="PCIe x8 of x16", advice=""),
        Note(severity="refuse", what="it smells of smoke", advice=""),
    ),
)


@pytest.mark.parametrize(
    ("facts", "errors", "notes", "says"),
    [
        (
            {"remapping_failed": True},
            7,
            (),
            "7 uncorrected memory errors (ECC); a faulty row of memory could not be replaced",
        ),
        ({}, 7, (), "7 uncorrected memory errors (ECC)"),
        ({"unusable_reason": "its driver lost it"}, 0, (), "unusable: its driver lost it"),
        ({}, 0, (FAULTY,), "it smells of smoke"),
        ({}, 0, (), None),
    ],
)
def test_a_card_that_says_it_is_ill_has_no_price_from_json_and_from_parquet(
    tmp_path: Path, facts: dict[str, Any], errors: int, notes: tuple[Preflight, ...], says: str | None
) -> None:
    def seen(outcome: Outcome) -> Outcome:
        assert outcome.measurement
        looks = tuple(TelemetrySample(at_s=float(at), ecc_uncorrected_count=at * errors) for at in range(2))
        return replace(outcome, measurement=replace(outcome.measurement, telemetry=looks))

    device = replace(H100, **facts)
    own = sealed(replace(report(*map(seen, node().outcomes), device=device), preflight=notes))
    (tmp_path / "1.json").write_bytes(codec.encode(own))
    parquet.export(tmp_path / "1.json", out=tmp_path / "1.parquet")
    quotes = [evidence.quote(tmp_path / f"1.{kind}", market=MARKET) for kind in ("json", "parquet")]
    assert quotes[0] == quotes[1]
    ill = evidence.fleet(own).cards[0].ill
    if says is None:
        assert (quotes[0][0].status, ill) == ("priced", ())
        return
    assert (quotes[0][0].status, quotes[0][0].price_usd_per_hour) == ("withheld", None)
    assert quotes[0][0].reasons == (
        f"the card itself says that it is ill ({says}): it is worth nothing until it is mended",
    )
    assert "; ".join(ill) == says


def test_bursts_are_not_for_the_market() -> None:
    assert not ask(node(regime="burst")).for_gpu_market
    assert ask(node()).for_gpu_market


def test_what_the_model_withholds_is_withheld_with_its_reason_and_the_floor() -> None:
    own = ask(node(), market=StandIn(withheld=("only 2 providers ask for such a card",)))
    assert (own.status, own.price_usd_per_hour) == ("withheld", None)
    assert own.reasons == ("withheld: only 2 providers ask for such a card",)
    assert own.floor_usd_per_hour is not None


def test_an_unknown_card_is_priced_by_its_rates_and_withheld_without_them() -> None:
    assert ask(node(device=STRANGER)).status == "priced"
    part = report(gemm(FP16, "float16", device=STRANGER, power_w=300.0), device=STRANGER)
    assert "lack gemm_fp32, mem" in ask(part).reasons[0]


def test_a_year_old_model_gives_a_wider_interval() -> None:
    def width(at: date) -> Decimal:
        own = ask(node(), deal=Deal(at=at))
        assert own.low_usd_per_hour is not None
        assert own.high_usd_per_hour is not None
        return own.high_usd_per_hour / own.low_usd_per_hour

    assert width(date(2027, 10, 10)) > width(date(2026, 10, 10)) * Decimal("1.1")


def test_the_order_of_results_and_of_files_changes_nothing() -> None:
    """Each outcome keeps its digest, so that only the order differs."""
    own, past = node(), [node(device=H100), report(failed("crashed", H100), device=H100)]
    past = [earlier(p, i + 1) for i, p in enumerate(past)]
    turned = replace(own, outcomes=own.outcomes[::-1], seal=replace(own.seal, outcomes=own.seal.outcomes[::-1]))
    one, other = ask(own, history=past), ask(turned, history=past[::-1] + past[:1])
    assert one == other


@settings(max_examples=25)
@given(st.integers(0, 12), st.integers(0, 12), share)
def test_how_long_a_run_was_and_in_what_it_was_counted_changes_nothing(more: int, other: int, a: float) -> None:
    """A rate is work over time: 2^k times the work in 2^k times the time is the same rate, to the bit."""

    def run(outcome: Outcome, k: int) -> Outcome:
        m = outcome.measurement
        assert m
        times = {name: getattr(m.interval, name) * 2**k for name in ("low_s", "high_s")}
        work = replace(m.work, flops=m.work.flops << k, bytes_moved=m.work.bytes_moved << k)
        return replace(outcome, measurement=replace(m, work=work, interval=replace(m.interval, **times)))

    own = node(FP16 * a, FP32 * a, MEM * a)
    longer = tuple(run(outcome, k) for outcome, k in zip(own.outcomes, (more, other, more), strict=True))
    assert ask(replace(own, outcomes=longer)) == ask(own)


@given(st.integers(1, 10**9), st.lists(st.integers(0, 10**9), min_size=1, max_size=20))
def test_many_windows_hold_what_one_does(cycles_per_s: int, spans: list[int]) -> None:
    cut = [Window(cycles_per_s=cycles_per_s, duration_us=span) for span in spans]
    assert cycles_of(cut) == cycles_of([Window(cycles_per_s=cycles_per_s, duration_us=sum(spans))])


def test_a_price_in_native_units_is_the_hour_over_what_an_hour_does() -> None:
    own = ask(node())
    tera = next(n for n in own.native if n.work_class == "mem")
    assert (tera.unit, tera.batch_count) == ("B", 10**12)
    by_hand = usd(node()) / 3600 / Decimal(3026) * 1000
    assert abs(tera.usd_per_batch - by_hand) < Decimal("1e-11")


# --- the deal ---------------------------------------------------------------------------------------------------------


def test_hiding_a_history_pays_less_than_a_clean_one_and_failures_cost() -> None:
    def factor(good: int, bad: int) -> Decimal:
        return reliability(replace(CLEAN, good_count=good, bad_count=bad)).times

    unknown = reliability(None).times
    assert unknown < factor(20, 0) < factor(200, 0) < 1
    assert factor(200, 0) / unknown > Decimal("1.3")
    assert factor(100, 100) < unknown
    for good, bad in itertools.product((0, 5, 500), repeat=2):
        assert factor(good + 1, bad) > factor(good, bad) > factor(good, bad + 1)


def test_a_swinging_speed_costs_what_time_lost_by_it_costs() -> None:
    steady, swinging = (replace(CLEAN, cycles_per_s=speeds) for speeds in ((100, 100, 100), (50, 100, 150)))
    assert steadiness(steady).times == 1
    # harmonic 300 / (2 + 1 + 2/3) / 100 against the plain mean of 100
    assert abs(steadiness(swinging).times - Decimal(9) / 11) < Decimal("1e-20")
    assert steadiness(replace(CLEAN, cycles_per_s=(0, 100))).times == 0


def test_a_record_counts_failures_tries_and_each_report_once() -> None:
    past = [earlier(report(gemm(), stream(), failed("crashed"), gemm(state="noisy")))]
    told = episodes(past * 3, Profile(name="m", shares={"mem": Decimal(1)}))
    record = record_of(report(), told["GPU-1"])
    assert record is not None
    assert (record.good_count, record.bad_count, len(record.cycles_per_s)) == (2, 2, 1)
    assert "GPU-2" not in told


def test_no_report_vouches_for_itself_and_one_run_sealed_anew_is_one_run() -> None:
    """Else whoever seals files has any history he likes."""
    own, other = node(), earlier(node())
    alone = ask(own)
    assert ask(own, history=[own]) == alone
    before = replace(other, seal=replace(other.seal, outcomes=own.seal.outcomes))
    assert ask(own, history=[before]) == alone  # its own outcomes under an earlier date
    assert ask(own, history=[replace(other, sealed_at="2027-01-01T00:00:00Z")]) == alone
    assert ask(own, history=[replace(other, emulated=True)]) == alone
    once = ask(own, history=[other])
    assert once.terms.record
    assert (once.terms.record.good_count, len(once.terms.record.cycles_per_s)) == (3, 1)
    anew = [replace(earlier(node(), days), seal=replace(other.seal, digest=f"{days:064x}")) for days in range(2, 20)]
    assert ask(own, history=[*anew, other]).terms.record == replace(once.terms.record, report_digests=(f"{19:064x}",))
    both = ask(own, history=[other, earlier(node(), 2)]).terms.record
    assert both
    assert (both.good_count, len(both.report_digests)) == (6, 2)
    forged = replace(once, terms=replace(once.terms, record=replace(once.terms.record, report_digests=("d" * 64,))))
    assert [fault.path for fault in recompute(forged, own, market=MARKET).faults] == ["$.terms"]


def test_spot_is_paid_by_the_work_that_survives_it() -> None:
    assert useful_share(Decimal("0.5"), 1200, 120).times == Decimal("0.9")  # 0.5 x 720 s of 3600
    assert useful_share(Decimal(100), 1200, 120).times == 0
    usual, spot = usd(node()), usd(node(), deal=Deal(spot=True))
    assert abs(spot / usual - Decimal("0.42")) < Decimal("0.001")
    rare = usd(node(), deal=Deal(spot=True, interruptions_per_hour=Decimal("0.01")))
    assert spot < rare < usual


@pytest.mark.parametrize(
    ("given_", "says"),
    [
        ({"congestion": Decimal(3)}, "congestion is Decimal('3'); it should be a Decimal from 0.5 to 2"),
        ({"congestion": 1.0}, "congestion is 1.0; it should be a Decimal"),
        ({"segment": "cloud"}, "segment is 'cloud'; it should be one of hyperscaler, neocloud, marketplace"),
        ({"term_s": -1}, "term_s is -1"),
        ({"interruptions_per_hour": Decimal(-1)}, "interruptions_per_hour is Decimal('-1')"),
        ({"interruptions_per_hour": Decimal(5)}, "interruptions_per_hour is 5, and spot is not set"),
        ({"congestion": Decimal("nan")}, "congestion is Decimal('NaN'); it should be a Decimal from 0.5 to 2"),
    ],
)
def test_a_deal_out_of_range_is_refused(given_: dict[str, Any], says: str) -> None:
    with pytest.raises(MisuseError) as caught:
        Deal(**given_)
    assert says in str(caught.value)


# --- the breakdown ----------------------------------------------------------------------------------------------------


def by_permutations(base: Decimal, factors: dict[str, Decimal]) -> dict[str, Decimal]:
    """Return Shapley values by their definition: over every order in which the factors could come."""
    parts = dict.fromkeys(factors, Decimal(0))
    for order in itertools.permutations(factors):
        value = base
        for name in order:
            parts[name] += value * factors[name] - value
            value *= factors[name]
    return {name: part / factorial(len(factors)) for name, part in parts.items()}


factor_lists = st.lists(st.decimals(min_value="0.01", max_value=20, places=3), min_size=1, max_size=5)


@settings(max_examples=40)
@given(factor_lists)
def test_a_breakdown_is_the_shapley_value_by_its_definition(values: list[Decimal]) -> None:
    factors = {f"f{i}": value for i, value in enumerate(values)}
    exact, quick = by_permutations(Decimal("0.6"), factors), shapley(Decimal("0.6"), factors)
    assert all(abs(exact[name] - quick[name]) < Decimal("1e-15") for name in factors)


@given(st.dictionaries(st.text(max_size=3), st.decimals(-100, 100, places=8), min_size=1))
def test_parts_are_rounded_so_that_they_sum_to_the_whole(parts: dict[str, Decimal]) -> None:
    exact = sum(parts.values(), Decimal(0))
    whole = exact.quantize(Decimal("0.000001"), rounding="ROUND_CEILING")
    shown = shared_out(whole, parts | {"rest": whole - exact})
    assert sum(shown.values()) == whole
    assert all(abs(shown[name] - part) < Decimal("0.000001") for name, part in parts.items() if name != "rest")


# --- anybody can recompute it -----------------------------------------------------------------------------------------


def test_a_quote_is_recomputed_to_the_last_digit() -> None:
    own = node()
    deal = Deal(segment="neocloud", spot=True, congestion=Decimal("1.25"))
    mine = Profile(name="mine", shares={"gemm_fp16": Decimal("0.3"), "mem": Decimal("0.7")}, memory_bytes=GIB)
    made = ask(own, deal=deal, profile=mine, costs=Costs(pue=Decimal("1.3")), history=[earlier(own)])
    verdict = recompute(codec.encode(made), own, market=MARKET)
    assert verdict.accepted, verdict.faults
    assert verdict.digest == codec.digest(made)


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"price_usd_per_hour": Decimal("0.01")}, "$.price_usd_per_hour"),
        ({"valid_for_s": 10**6}, "$.valid_for_s"),
        ({"device_name": "NVIDIA B200"}, "$.device_name"),
        ({"report_digest": "e" * 64}, "$.report_digest"),
        ({"device_uuid": "GPU-2"}, "$.terms"),
    ],
)
def test_a_changed_quote_is_refused_where_it_was_changed(change: dict[str, Any], path: str) -> None:
    own = node()
    verdict = recompute(replace(ask(own), **change), own, market=MARKET)
    assert not verdict.accepted
    assert [fault.path for fault in verdict.faults] == [path]


def again(own: Quote, **terms: Any) -> Quote:
    """Forge a quote on other terms, priced as this package would price them if it asked nothing."""
    return replace(own, terms=replace(own.terms, **terms))


@pytest.mark.parametrize(
    ("terms", "says"),
    [
        ({"record": replace(CLEAN, good_count=100, bad_count=-119)}, "100 good and -119 bad jobs"),
        ({"record": replace(CLEAN, cycles_per_s=(-10,))}, "speeds (-10,)"),
        ({"record": replace(CLEAN, cycles_per_s=(19, 19))}, "more speeds than reports"),
        ({"record": replace(CLEAN, report_digests=("a" * 64,) * 2)}, "each report once"),
        ({"congestion": "1000"}, "congestion is Decimal('1000')"),
        ({"congestion": "NaN"}, "congestion is Decimal('NaN')"),
        ({"congestion": "1.0"}, "congestion is '1.0'; asked for as it should be, it is '1'"),
        ({"congestion": "one"}, "congestion is 'one'"),
        ({"shares": {"mem": "1"}}, "profile 'general' has the name of one of ours"),
        ({"profile": "mine.toml"}, "profile is 'mine.toml'; without shares"),
        ({"profile_memory_bytes": 10**15}, "profile_memory_bytes is 1000000000000000"),
        ({"spot": True, "interruptions_per_hour": "-1"}, "interruptions_per_hour is Decimal('-1')"),
        ({"term_s": -(10**9)}, "term_s is -1000000000"),
        ({"checkpoint_s": None}, "checkpoint_s is None"),
        ({"segment": "shop"}, "segment is 'shop'"),
        ({"at": "soon"}, "at is 'soon'"),
        ({"costs": {"pue": "1E+3"}}, "costs is"),
    ],
)
def test_terms_that_nobody_could_have_asked_for_are_refused(terms: dict[str, Any], says: str) -> None:
    """Each would be a price of the forger's own making, under this package's name."""
    own = node()
    verdict = recompute(again(ask(own), **terms), own, market=MARKET)
    assert [fault.path for fault in verdict.faults] == ["$.terms"]
    assert says in verdict.faults[0].what


def test_a_cpu_is_not_priced_by_the_market_whatever_its_quote_says() -> None:
    own = on_cpu()
    verdict = recompute(again(price(own), basis="market"), own)
    assert [fault.path for fault in verdict.faults] == ["$.terms"]
    with pytest.raises(MisuseError, match="has the name of one of ours"):
        ask(node(), profile=Profile(name="decode", shares={"mem": Decimal(1)}))


def test_a_quote_made_with_other_data_is_refused_by_the_name_of_the_data() -> None:
    own = node()
    verdict = recompute(ask(own, market=StandIn(digest="6" * 64, premium=0.2)), own, market=MARKET)
    assert [fault.path for fault in verdict.faults] == ["$.digests.market_model"]
    assert "made with market_model 666666666666..., this package has 555555555555..." in verdict.faults[0].what


def test_a_damaged_quote_is_refused_and_not_raised() -> None:
    data = codec.encode(ask(node()))
    assert recompute(data[:-1], node(), market=MARKET).faults
    with pytest.raises(ForgeryError):
        price(data)


QUOTE = """
import hashlib, sys
sys.path[:0] = {paths!r}
from test_price import MARKET, node, ask
from harness import codec
print(hashlib.sha256(codec.encode(ask(node(123e12, 45e12, 0.987e12)))).hexdigest())
"""


# Of forty quotes, made by the code of 2026-11-25, before any of it was made fast. It changes where a price, a reason or a line changes.
SLOW_DIGEST = "700357eb915c8b50127b48e3445920b980d559731faecd5573551e8c5f5d9560"


def test_prices_are_those_of_the_slow_way_to_the_byte() -> None:
    deals = (
        Deal(),
        Deal(segment="hyperscaler", spot=True, term_s=86400 * 200, congestion=Decimal("1.3")),
        Deal(segment="neocloud", at=date(2027, 3, 1)),
    )
    found = hashlib.sha256()
    for at in range(40):
        scale = 1 - at / 50
        rates = FP16 * scale * 0.987654321, FP32 * scale**2, MEM * (1 + at / 70) * 0.123456789
        own = node(*rates, device=(H100, STRANGER)[at % 2])
        own = replace(own, seal=replace(own.seal, digest="e" * 64))  # in those days a report was its own history
        made = ask(
            own,
            deal=deals[at % 3],
            profile=("general", "decode")[at % 2],
            costs=Costs(electricity_usd_per_kwh=Decimal(at) / 10) if at % 4 else None,
            history=[earlier(own, digest="d" * 64)] if at % 5 else [],
        )
        found.update(codec.encode(replace(made, digests={}, report_digest="d" * 64)))  # tables may be made anew
    assert found.hexdigest() == SLOW_DIGEST


@given(st.decimals(-30, 30, places=9) | st.decimals(-30, 30, places=14))
def test_a_power_of_e_put_together_of_parts_is_the_power(log: Decimal) -> None:
    exact = log.exp(Context(prec=60))
    assert abs(exponential(log) / exact - 1) < Decimal("1e-38")


def test_another_process_gives_the_same_bytes() -> None:
    """With other hashes of strings, which orders of sets would show."""
    paths = [str(ROOT / "tests"), str(ROOT), *(p for p in sys.path if "site-packages" in p)]
    here, there = ask(node(123e12, 45e12, 0.987e12)), [sys.executable, "-c", QUOTE.format(paths=paths)]
    again = subprocess.run(there, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"})
    assert again.stdout.strip() == codec.digest(codec.encode(here))


# What money is computed with, without the packages that read reports, which another Python need not have.
ARITHMETIC = """
import hashlib, sys, types
from decimal import Decimal
from fractions import Fraction
for name in ("harness", "harness.scoring"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [{root!r} + "/" + name.replace(".", "/")]
from harness.scoring.auction import Bounds, Order, clear
from harness.scoring.breakdown import shapley
from harness.scoring.controller import AT_REST, stepped
from harness.scoring.cycles import harmonic_speed
from harness.scoring.exact import decimal_of, exponential, fraction_of, precise, rounded, shared_out
from harness.scoring.market_curves import Curves
from harness.scoring.market_document import Curve
from harness.scoring.token import Observation, Source, amount_of, buffer_fraction, token_rate
said = []
with precise():
    logs = [decimal_of(x / 7).quantize(Decimal("1e-9")) for x in range(-9, 9)]
    factors = {{str(i): exponential(log) for i, log in enumerate(logs)}}
    parts = shapley(Decimal("0.6"), factors)
    total = (Decimal("0.6") + sum(parts.values())).quantize(Decimal("1e-6"))
    said += [parts, shared_out(total, parts | {{"base": Decimal("0.6")}})]
steps = [Curve(on={{"a": 0.7, "b": 0.7}}, weight=0.1 + i / 7, knot=i / 3) for i in range(6)]
model = types.SimpleNamespace(axes={{"a": 0, "b": 0}}, curves=(Curve(on={{"a": 1.0}}, weight=0.3), *steps), curve_width=0.7)
parts = Curves(model, "neocloud").parts({{"a": 0.123, "b": -1.7}})
said.append([decimal_of(x).quantize(Decimal("1e-9")) for x in parts.values()])  # as `worth` takes them
shares = {{"a": Fraction(1, 3), "b": Fraction(2, 3)}}
said.append(rounded(harmonic_speed(shares, {{"a": fraction_of(0.1), "b": fraction_of(1e-300)}})))
seen = tuple(Observation(at_s=60 * t, usd_per_token=Decimal(9000 + t) / 77) for t in range(40))
rate = token_rate([Source(name=n, observations=seen) for n in "ab"], 2350)
said += [rate, amount_of(total, rate, 18, now_s=2400, buffer=buffer_fraction(Decimal("0.8"), 600))]
state = AT_REST
for hour in range(50):
    state = stepped(state, Decimal(hour % 11) / 11, 3600)
said.append(state)
orders = [Order(id=str(i), side="bid" if i % 2 else "ask", milli_cu_hours=7 + i, limit_micro_usd=i * i % 97) for i in range(60)]
said.append(clear(orders, Bounds(fair_micro_usd=40, low_micro_usd=20, high_micro_usd=70)))
print(hashlib.sha256(repr(said).encode()).hexdigest())
"""


def other_pythons() -> list[str]:
    """Return interpreters of other versions that this package supports, where there are any."""
    names = [shutil.which(f"python3.{minor}") for minor in range(11, 20)]
    places = [*filter(None, names), *map(str, Path.home().glob(".pyenv/versions/3.*/bin/python"))]
    ask_ = "import sys; print(*sys.version_info[:2])"
    found: dict[str, str] = {}
    for place in places:
        said = subprocess.run([place, "-c", ask_], capture_output=True, text=True, check=False).stdout.split()
        version = tuple(map(int, said)) if len(said) == 2 else (0, 0)
        if version >= (3, 11) and version != sys.version_info[:2]:
            found.setdefault(" ".join(said), place)
    return sorted(found.values())


def test_money_is_the_same_to_the_last_digit_in_another_python() -> None:
    others = other_pythons()
    if not others:
        pytest.skip("no other Python of 3.11 or newer on this machine")
    script = ARITHMETIC.format(root=str(ROOT))
    runs = [
        subprocess.run([p, "-c", script], capture_output=True, text=True, check=True) for p in (sys.executable, *others)
    ]
    assert len({run.stdout for run in runs}) == 1
    assert len(runs[0].stdout) == 65


# --- the library ------------------------------------------------------------------------------------------------------


def test_a_report_with_several_devices_is_asked_which() -> None:
    other = replace(gpu(), uuid="GPU-2")
    both = report(gemm(), gemm(device=other))
    both = replace(both, devices=(gpu(), other))
    with pytest.raises(MisuseError, match="device None; the report has GPU-1, GPU-2: name one"):
        price(both, market=MARKET)
    assert price(both, device="GPU-2", market=MARKET).device_uuid == "GPU-2"


def test_bytes_are_verified_before_they_are_priced() -> None:
    with pytest.raises(ForgeryError):
        price(codec.encode(node()), market=MARKET)  # its seal is made up


def with_energy(own: Report, **change: Any) -> Report:
    outcome = own.outcomes[0]
    assert outcome.measurement
    assert outcome.measurement.energy
    energy = replace(outcome.measurement.energy, **change)
    return replace(
        own, outcomes=(replace(outcome, measurement=replace(outcome.measurement, energy=energy)), *own.outcomes[1:])
    )


def with_power(own: Report, power_w: float) -> Report:
    outcome = own.outcomes[0]
    assert outcome.measurement
    looks = (TelemetrySample(at_s=0.0, power_w=power_w),)
    return replace(
        own, outcomes=(replace(outcome, measurement=replace(outcome.measurement, telemetry=looks)), *own.outcomes[1:])
    )


@pytest.mark.parametrize(
    ("own", "path"),
    [
        (replace(node(), sealed_at="yesterday"), "$.sealed_at"),
        (replace(node(), sealed_at="20261124T120000Z"), "$.sealed_at"),
        (replace(node(), created_at="2026-13-24T12:00:00Z"), "$.created_at"),
        (with_energy(node(), window_s=0.0), "$.outcomes[0].measurement.energy.window_s"),
        (with_energy(node(), joules=1e300), "$.outcomes[0].measurement.energy.joules"),
        (with_energy(node(), joules=-1.0), "$.outcomes[0].measurement.energy.joules"),
        (with_power(node(), -1000.0), "$.outcomes[0].measurement.telemetry[0].power_w"),
        (with_power(node(), 1e300), "$.outcomes[0].measurement.telemetry[0].power_w"),
        (replace(node(), devices=(replace(H100, memory_bytes=0),)), "$.devices[0].memory_bytes"),
        (replace(node(), devices=(replace(H100, core_count=-8),)), "$.devices[0].core_count"),
        (replace(node(), devices=(replace(H100, power_limit_w=-700.0),)), "$.devices[0].power_limit_w"),
        (replace(node(), devices=(replace(H100, power_default_limit_w=1e300),)), "$.devices[0].power_default_limit_w"),
    ],
)
def test_numbers_that_nobody_can_have_measured_are_refused_by_file_and_place(
    tmp_path: Path, own: Report, path: str
) -> None:
    """Each crashed a fleet's quotes without naming its file, or made a price of less than nothing."""
    (tmp_path / "1.json").write_bytes(codec.encode(sealed(node())))
    (tmp_path / "2.json").write_bytes(codec.encode(sealed(own)))
    assert load_fast(tmp_path / "1.json")
    assert load_fast(tmp_path / "2.json") is None
    with pytest.raises(ForgeryError, match=r"2\.json\)") as caught:
        evidence.quote(tmp_path, market=MARKET)
    assert caught.value.path == path


def hostile(head: Callable[[Report], Report], outcome: Callable[[Outcome], Outcome]) -> bytes:
    """Return a sealed report with something in it that no document may hold, spelled as the fast way takes it, which our own codec will not."""
    own = sealed(node())
    first = spell(outcome(own.outcomes[0]))
    digests = (hashlib.sha256(first).hexdigest(), *own.seal.outcomes[1:])
    bare = head(replace(own, outcomes=(), seal=replace(own.seal, outcomes=digests, digest="")))
    whole = replace(bare, seal=replace(bare.seal, digest=hashlib.sha256(spell(bare)).hexdigest()))
    outcomes = b",".join([first, *map(codec.encode, own.outcomes[1:])])
    return spell(whole).replace(b'"outcomes":[]', b'"outcomes":[' + outcomes + b"]", 1)


def measured_as(**change: Any) -> Callable[[Outcome], Outcome]:
    return lambda one: replace(one, measurement=replace(one.measurement, **change))  # type: ignore[type-var]


def same(one: Any) -> Any:
    return one


@pytest.mark.parametrize(
    ("head", "outcome", "is_sound"),
    [
        (same, same, True),
        (same, measured_as(footprint_bytes=2**53 - 1), True),
        (same, measured_as(footprint_bytes=2**53), False),
        (same, measured_as(footprint_bytes=-(2**60)), False),
        (same, measured_as(warmup_times_s=(0.5,) * codec.MAX_ELEMENTS), True),
        (same, measured_as(warmup_times_s=(0.5,) * (codec.MAX_ELEMENTS + 1)), False),
        (lambda r: replace(r, devices=(replace(H100, sm_count=10**20),)), same, False),
        (lambda r: replace(r, devices=(replace(H100, isa=("a",) * (codec.MAX_ELEMENTS + 1)),)), same, False),
    ],
)
def test_what_no_document_may_hold_is_not_read_fast_either(
    tmp_path: Path, head: Callable[[Report], Report], outcome: Callable[[Outcome], Outcome], *, is_sound: bool
) -> None:
    """Else a report would be priced that `harness verify` refuses."""
    file = tmp_path / "1.json"
    file.write_bytes(hostile(head, outcome))
    assert verify(file)[0].accepted is is_sound
    if not is_sound:
        assert load_fast(file) is None
    elif outcome is same:
        assert load_fast(file)


def test_what_is_no_reading_of_power_makes_no_floor() -> None:
    own = [node(), with_energy(node(), joules=0.0), with_energy(node(), window_s=0.0)]
    assert len({ask(one).floor_usd_per_hour for one in own}) == 1
    sampled = (
        report(stream(MEM, samples_w=(300.0, *more), device=H100), device=H100) for more in ((), (-5.0,), (0.0,))
    )
    assert len({ask(one).floor_usd_per_hour for one in sampled}) == 1


def test_a_profile_of_ones_own_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\nmemory_gib = 24\n[shares]\ngemm_fp16 = 0.7\nmem = 0.3\n')
    mine = load_profile(path)
    assert mine == Profile(
        name="mine", shares={"gemm_fp16": Decimal("0.7"), "mem": Decimal("0.3")}, memory_bytes=24 * GIB
    )
    own = ask(node(), profile=str(path))
    assert (own.profile, own.terms.shares) == ("mine", {"gemm_fp16": "0.7", "mem": "0.3"})
    assert recompute(own, node(), market=MARKET).accepted


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('name = "m"\n[shares]\nmem = 0.9', "the shares sum to 0.9; they should sum to 1"),
        ('name = "m"\n[shares]\nmen = 1', "no class of work 'men'; did you mean 'mem'"),
        ('name = "m"\n[shares]\nmem = "1"', "the share of mem is '1'; it should be a number"),
        ('name = "m"\n[shares]\nmem = 2\ngemm_fp16 = -1', "the share of mem is 2; it should be more than 0, up to 1"),
        ('name = "m"', "shares is None; it should be a table"),
        ('name = "decode"\n[shares]\nmem = 1', "name is 'decode'; it should be a text of your own, not one of ours"),
        ('name = "m"\nmemory = 3\n[shares]\nmem = 1', "no key 'memory'; did you mean 'memory_gib'"),
        ('name = "m"\nmemory_gib = -3\n[shares]\nmem = 1', "memory_gib is -3; it should be a number, 0 or more"),
        (
            'name = "m"\nmemory_gib = nan\n[shares]\nmem = 1',
            "memory_gib is Decimal('NaN'); it should be a number, 0 or more",
        ),
        (
            'name = "m"\nmemory_gib = inf\n[shares]\nmem = 1',
            "memory_gib is Decimal('Infinity'); it should be a number, 0 or",
        ),
        ('name = "m"\nmemory_gib = 1e20\n[shares]\nmem = 1', "it should be 0 or more, up to 9007199254740991"),
        ("name = ", "is not TOML"),
    ],
)
def test_a_bad_profile_is_refused_with_what_would_be_right(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(MisuseError) as caught:
        load_profile(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)


# --- with the model that is shipped -----------------------------------------------------------------------------------


def shipped(own: Report, **more: Any) -> Quote:
    return price(own, **more)


@settings(max_examples=30, deadline=None)
@given(share, share, st.sampled_from(["fp16", "mem"]), st.floats(min_value=1, max_value=5))
def test_by_the_shipped_model_too_a_better_rate_is_never_cheaper(a: float, b: float, which: str, factor: float) -> None:
    rates = {"fp16": FP16 * a, "mem": MEM * b}
    better = rates | {which: rates[which] * factor}
    worse, dearer = (shipped(node(r["fp16"], FP32, r["mem"])) for r in (rates, better))
    if worse.price_usd_per_hour is not None and dearer.price_usd_per_hour is not None:
        assert dearer.price_usd_per_hour >= worse.price_usd_per_hour


def test_the_shipped_model_prices_a_slow_h100_as_slow_and_an_old_day_with_a_wider_interval() -> None:
    sound, slow = shipped(node()), shipped(node(FP16 * 0.6, FP32 * 0.6, MEM * 0.6))
    assert sound.price_usd_per_hour is not None
    assert slow.price_usd_per_hour is not None
    assert slow.price_usd_per_hour <= sound.price_usd_per_hour * Decimal("0.601")
    assert sound.price_usd_per_hour == total(sound)
    assert recompute(sound, node()).accepted
    year = shipped(node(), deal=Deal(at=date(2027, 10, 10)))
    assert year.high_usd_per_hour / year.low_usd_per_hour > sound.high_usd_per_hour / sound.low_usd_per_hour  # type: ignore[operator]
    assert any("older than the day asked for" in reason for reason in year.reasons)
    old = shipped(node(), deal=Deal(at=date(2029, 10, 10)))
    assert (old.status, old.price_usd_per_hour) == ("withheld", None)
    assert "too old" in old.reasons[0]


FREE = Costs(
    **dict.fromkeys(("electricity_usd_per_kwh", "host_usd_per_hour", "wear_usd_per_hour"), Decimal(0))
)  # no floor
NAMED = {row["names"][0]: sheets()[row["key"]] for row in table("cards")["cards"] if row["names"]}


def as_promised(name: str, sheet: Sheet, times: float = 1.0) -> Report:
    """Return a report of a card that does what its name promises, or a part of it."""
    device = gpu(name, memory_gib=round(sheet.memory_bytes / GIB))
    published = typical_rates(name, device.memory_bytes)
    told = {**sheet_rates(name, device.memory_bytes), "gemm_fp32": sheet.fp32_flops_per_s * 0.8} | published  # type: ignore[operator]
    fp16 = published.get("gemm_fp16") or published.get("gemm_bf16") or told["gemm_fp16"]
    return node(*(float(rate) * times for rate in (fp16, told["gemm_fp32"], told["mem"])), device=device)


def test_a_card_at_40_percent_of_what_its_name_promises_is_worth_40_percent_whoever_published_of_it() -> None:
    dearer = {}
    for name, sheet in NAMED.items():
        sound, slow = (shipped(as_promised(name, sheet, times), costs=FREE) for times in (1.0, 0.4))
        assert sound.price_usd_per_hour is not None
        assert slow.price_usd_per_hour is not None
        dearer[name] = slow.price_usd_per_hour / sound.price_usd_per_hour
    assert len(dearer) > 60
    assert {name: share for name, share in dearer.items() if share > Decimal("0.401")} == {}


@pytest.mark.parametrize("name", ["NVIDIA H100 80GB HBM3", "NVIDIA GeForce RTX 4080"])
def test_how_a_name_is_spelled_moves_no_price(name: str) -> None:
    spellings = (name, name.lower(), name.replace(" ", "-"), f" {name} ", name.removeprefix("NVIDIA "), NAMED[name].key)
    usd_ = {
        shipped(node(*rates, device=gpu(spelling, memory_gib=round(NAMED[name].memory_bytes / GIB)))).price_usd_per_hour
        for spelling in spellings
        for rates in [(4e13, 2e13, 3e11)]
    }
    assert len(usd_) == 1


def test_a_sheet_caps_only_who_falls_below_it() -> None:
    """What sound cards reach of their sheet is their middle: who is above it is priced by what he does, and is told nothing else."""
    name = "NVIDIA GeForce RTX 4080"
    better = as_promised(name, NAMED[name], 1.1)
    assert "below its name" not in {factor.name for factor in shipped(better).factors}
    assert shipped(better).price_usd_per_hour > shipped(as_promised(name, NAMED[name])).price_usd_per_hour  # type: ignore[operator]


def test_the_shipped_model_knows_that_a_5090_is_dearer_than_a_4090() -> None:
    """A list of prices by name that is in use has it the other way round."""
    rtx = {
        "NVIDIA GeForce RTX 4090": (165e12, 50e12, 0.92e12, 24),
        "NVIDIA GeForce RTX 5090": (225e12, 66e12, 1.53e12, 32),
    }
    older, newer = (usd(node(*r[:3], device=gpu(n, memory_gib=r[3])), market=None) for n, r in rtx.items())
    assert newer > older


def test_a_seller_that_nobody_knows_is_priced_as_any_of_its_kind_and_that_is_told() -> None:
    any_, typo = shipped(node()), shipped(node(), deal=Deal(provider="vastia"))
    assert typo.price_usd_per_hour == any_.price_usd_per_hour
    assert "no price of a seller 'vastia' is known: it is priced as any marketplace" in typo.reasons
    assert not any("no price of a seller" in reason for reason in shipped(node(), deal=Deal(provider="vastai")).reasons)


def test_an_h200_is_worth_more_than_an_h100_for_decode_and_hardly_for_prefill() -> None:
    """Its compute is the same. A table in use scores an H100 at 80 % of it for its TFLOP/s, which were counted with sparsity."""
    h200 = gpu("NVIDIA H200", memory_gib=141)
    asked = {"H100": node(), "H200": node(FP16, FP32, 4.2e12, device=h200)}
    for profile, least, most in (("decode", "1.25", "1.40"), ("prefill", "1.00", "1.08")):
        made = {name: shipped(own, profile=profile) for name, own in asked.items()}
        speeds = {name: Decimal(own.cycles_per_s or 0) for name, own in made.items()}
        assert Decimal(least) < speeds["H200"] / speeds["H100"] < Decimal(most)
        assert made["H200"].price_usd_per_hour > made["H100"].price_usd_per_hour  # type: ignore[operator]


def test_a_t4_is_never_above_a_4090() -> None:
    """A score in use gives it 1.2 of one."""
    t4 = node(52e12, 7.2e12, 0.26e12, device=gpu("Tesla T4", memory_gib=15))
    rtx = node(148e12, 56e12, 0.94e12, device=gpu("NVIDIA GeForce RTX 4090", memory_gib=24))
    for segment in ("hyperscaler", "neocloud", "marketplace"):
        cheap, dear = (usd(own, market=None, deal=Deal(segment=segment)) for own in (t4, rtx))
        assert cheap < dear
