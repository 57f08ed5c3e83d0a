"""Comparing two reports: decided is only what intervals, times and cycles agree on."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_cli import Call, call, only_line, written
from test_scoring import gemm, gpu, report, stream

import harness
from harness import codec, stats
from harness.measure.compare import Comparison, compare, regressed, remarks
from harness.model import Failed, Interval, Measurement, Outcome, Report, Round, Skipped

__all__ = ["call"]  # the fixture

MIRROR = {"faster": "slower", "slower": "faster", "broken": "mended", "mended": "broken"}


def timed(time_s: float = 1.0, half: float = 0.002, *, clock_mhz: float | None = None, **changes: Any) -> Outcome:
    """Return a measurement of that time with an interval of that relative half width."""
    interval = Interval(low_s=time_s * (1 - half), high_s=time_s * (1 + half), confidence_fraction=0.95)
    return changed(gemm(), time_s=time_s, interval=interval, clock_mhz=clock_mhz, **changes)


def changed(outcome: Outcome, **changes: Any) -> Outcome:
    assert outcome.measurement
    return Outcome(measurement=replace(outcome.measurement, **changes))


def with_job(outcome: Outcome, **changes: Any) -> Outcome:
    assert outcome.measurement
    return changed(outcome, job=replace(outcome.measurement.job, **changes))


def failed() -> Outcome:
    job = gemm().measurement
    assert job
    why = Failed(job=job.job, started_at="2026-11-24T12:00:00Z", elapsed_s=1.0, outcome="crashed", reason="signal 11")
    return Outcome(failed=why)


def skipped() -> Outcome:
    job = gemm().measurement
    assert job
    return Outcome(skipped=Skipped(job=job.job, reason="needs 24 GB"))


def one(before: Outcome, now: Outcome) -> Comparison:
    (found,) = compare(report(before), report(now))
    return found


@pytest.mark.parametrize(
    ("before", "now", "decision", "reason"),
    [
        (timed(1.0), timed(0.9), "faster", "the intervals part"),
        (timed(1.0), timed(1.1), "slower", "the intervals part"),
        (timed(1.0), timed(1.001), "same", "less than 1% apart for certain"),
        (timed(1.0, 0.005), timed(1.0045, 0.005), "same", "would have shown 1%"),
        (timed(1.0, 0.02), timed(1.01), "ambiguous", "too wide to show 1%"),
        (timed(1.0, 0.003), timed(1.009, 0.003), "ambiguous", "a change that may be under 1%"),
    ],
)
def test_time_alone_decides_where_no_clock_is_known(before: Outcome, now: Outcome, decision: str, reason: str) -> None:
    found = one(before, now)
    assert found.decision == decision
    assert reason in found.reason
    assert "time only" in found.reason
    assert (found.basis, found.cycles_change_fraction) == ("time only", None)


def test_a_change_is_one_of_speed() -> None:
    found = one(timed(1.0, 0.0), timed(0.8, 0.0))
    assert (found.change_fraction, found.low_fraction, found.high_fraction) == pytest.approx((0.25, 0.25, 0.25))


@pytest.mark.parametrize(
    ("now", "decision", "reason"),
    [
        (timed(0.9, clock_mhz=1000.0), "faster", "the intervals part"),
        (timed(0.9, clock_mhz=1111.1), "ambiguous", "faster in time, same in cycles (+0.0%): the clock was 1000 MHz"),
        (timed(1.0, clock_mhz=1100.0), "ambiguous", "same in time, slower in cycles (-9.1%)"),
        (timed(1.1, clock_mhz=1000.0), "slower", "the intervals part"),
        (timed(1.1, clock_mhz=800.0), "ambiguous", "slower in time, faster in cycles"),
        (timed(1.0, clock_mhz=1000.0), "same", "for certain"),
    ],
)
def test_time_and_cycles_must_agree(now: Outcome, decision: str, reason: str) -> None:
    found = one(timed(1.0, clock_mhz=1000.0), now)
    assert found.decision == decision
    assert reason in found.reason
    assert found.basis == "time and cycles"


@pytest.mark.parametrize("state", ["invalid", "throttled"])
def test_what_is_no_measurement_has_no_speed_and_is_a_fault_where_it_was_none(state: str) -> None:
    useless = timed(0.5, state=state, reason="too hot")
    found = one(timed(), useless)
    assert (found.decision, found.reason) == ("broken", f"B is {state}: too hot")
    assert found.change_fraction is None
    assert regressed([found])
    assert one(useless, timed()).decision == "mended"
    assert one(useless, useless).decision == "not_comparable"


@pytest.mark.parametrize("state", ["drifting", "not_steady"])
def test_what_had_not_settled_decides_nothing(state: str) -> None:
    found = one(timed(state=state), timed(0.5))
    assert found.decision == "ambiguous"
    assert found.reason == f"A was {state}: no interval can be vouched for"
    assert found.change_fraction == pytest.approx(1.0)


def test_versions_and_work_must_be_the_same() -> None:
    assert "version 1 of the benchmark against version 2" in one(timed(), with_job(timed(0.5), version=2)).reason
    assert one(timed(), with_job(timed(0.5), version=2)).decision == "not_comparable"
    assert stream().measurement
    other = changed(timed(0.5), work=stream().measurement.work)  # type: ignore[union-attr]
    assert one(timed(), other).reason == "the same parameters, but other work"
    assert "cache n/a against hot" in one(timed(), timed(cache="hot")).reason


def test_an_unbounded_interval_decides_nothing() -> None:
    endless = changed(timed(), interval=Interval(low_s=0.0, high_s=math.inf, confidence_fraction=0.95))
    found = one(timed(), endless)
    assert (found.decision, found.low_fraction, found.high_fraction) == ("ambiguous", -1.0, None)


def test_what_only_one_side_has_is_listed() -> None:
    (gone,) = compare(report(timed()), report())
    (new,) = compare(report(), report(timed()))
    assert (gone.decision, gone.reason) == ("missing", "B: not in the report")
    assert (new.decision, new.reason) == ("missing", "A: not in the report")
    assert one(timed(), skipped()).reason == "B: skipped: needs 24 GB"
    assert compare(report(skipped()), report(failed())) == ()


def test_a_new_failure_is_a_regression() -> None:
    broken, mended = one(timed(), failed()), one(failed(), timed())
    assert (broken.decision, broken.reason) == ("broken", "B: crashed: signal 11")
    assert (mended.decision, mended.reason) == ("mended", "A: crashed: signal 11")
    assert regressed([broken])
    assert not regressed([mended, one(timed(), timed(0.5))])
    assert regressed([one(timed(), timed(2.0))])


def test_regimes_and_parameters_are_compared_apart() -> None:
    points = (
        with_job(timed(1.0), regime="burst"),
        with_job(timed(2.0), regime="sustained"),
        with_job(timed(3.0), regime="burst", params={"n": 1}),
    )
    found = compare(report(*points), report(*reversed(points)))
    assert [c.decision for c in found] == ["same", "same", "same"]
    assert [c.regime for c in found] == ["burst", "sustained", "burst"]


def test_a_device_is_paired_by_identity_before_place() -> None:
    one_, two = replace(gpu(), uuid="GPU-1", selector="cuda:0"), replace(gpu(), uuid="GPU-2", selector="cuda:1")
    first, second = with_job(timed(1.0), device_uuid="GPU-1"), with_job(timed(2.0), device_uuid="GPU-2")
    before = replace(report(first, second), devices=(one_, two))
    swapped = (replace(one_, selector="cuda:1"), replace(two, selector="cuda:0"))
    assert {c.decision for c in compare(before, replace(report(second, first), devices=swapped))} == {"same"}


def test_another_card_in_the_same_place_is_compared_and_named() -> None:
    other = replace(gpu(), uuid="GPU-9", power_limit_w=300.0)
    a, b = report(timed()), report(with_job(timed(0.5), device_uuid="GPU-9"), device=other)
    (found,) = compare(a, b)
    assert (found.decision, found.device) == ("faster", "cuda:0")
    told = "\n".join(remarks(a, b))
    assert "cuda:0 is another device" in told
    assert "power_limit_w of cuda:0 was unknown, is 300.0" in told


def test_devices_without_a_counterpart_are_missing() -> None:
    elsewhere = replace(gpu(), uuid="GPU-9", selector="cuda:3")
    found = compare(report(timed()), report(with_job(timed(), device_uuid="GPU-9"), device=elsewhere))
    assert [(c.decision, c.device) for c in found] == [("missing", "cuda:0"), ("missing", "cuda:3")]


def test_emulated_times_are_not_compared() -> None:
    a, b = report(timed()), report(timed(0.5), emulated=True)
    (found,) = compare(a, b)
    assert (found.decision, found.reason) == ("not_comparable", "emulated: its times mean nothing")
    assert any(line.startswith("B was made on an emulated device") for line in remarks(a, b))


def test_a_report_against_itself_is_said_to_be() -> None:
    a = report(timed())
    assert remarks(a, a) == ("this is one report compared with itself: nothing can differ",)
    assert one(timed(), timed()).decision == "same"


def test_what_else_differs_is_told() -> None:
    a = report(timed())
    seal = replace(a.seal, digest="e" * 64)
    b = replace(a, preset="full", environment=replace(a.environment, python="3.13"), seal=seal)
    assert remarks(a, b) == ("python was 3.11, is 3.13", "preset was quick, is full")


times = st.floats(1e-6, 1e3)
halves = st.floats(0, 0.1)
clocks = st.none() | st.floats(100, 4000)


@given(times, st.floats(0.9, 1.1), halves, halves, clocks, clocks)
def test_exchanging_the_reports_mirrors_the_decision(
    time_s: float, ratio: float, half_a: float, half_b: float, clock_a: float | None, clock_b: float | None
) -> None:
    a = timed(time_s, half_a, clock_mhz=clock_a)
    b = timed(time_s * ratio, half_b, clock_mhz=clock_b)
    there, back = one(a, b), one(b, a)
    assert back.decision == MIRROR.get(there.decision, there.decision)
    assert there.change_fraction is not None
    assert back.change_fraction is not None
    assert (1 + there.change_fraction) * (1 + back.change_fraction) == pytest.approx(1)


@given(times, halves)
def test_nothing_changed_is_never_a_change(time_s: float, half: float) -> None:
    assert one(timed(time_s, half), timed(time_s, half)).decision in {"same", "ambiguous"}


# --- the command ------------------------------------------------------------------------------------------------------


def on_file(folder: Path, time_s: float, name: str) -> Path:
    """Write a report that verifies, of one measurement that takes so long."""
    times_s = tuple(time_s * (1 + 1e-4 * i) for i in (-1, 0, 1))
    rounds = tuple(Round(at_s=float(i), batch=1, times_s=tuple(t * (1 + 1e-5 * i) for t in times_s)) for i in range(5))
    centre, low, high = stats.interval(stats.medians([r.times_s for r in rounds]))
    interval = Interval(low_s=low, high_s=high, confidence_fraction=stats.CONFIDENCE)
    outcome = changed(timed(centre), rounds=rounds, interval=interval)
    assert isinstance(outcome.measurement, Measurement)
    return written(folder, replace(report(outcome), plan=(outcome.measurement.job,)), name)


def test_the_command_prints_a_table_and_exits_1_for_slower(tmp_path: Path, call: Call) -> None:
    a, b = on_file(tmp_path, 1.0, "a.json"), on_file(tmp_path, 1.1, "b.json")
    slower, faster, same = call("compare", a, b), call("compare", b, a), call("compare", a, a)
    assert (slower.code, faster.code, same.code) == (1, 0, 0)
    assert "-9.1%" in slower.out
    assert "slower  the intervals part; time only" in slower.out
    assert "+10.0%" in faster.out
    assert "! this is one report compared with itself" in same.out


def test_reports_with_nothing_in_common_do_not_pass(tmp_path: Path, call: Call) -> None:
    """As the gate of a CI job it must not be content with a run that measured nothing."""
    a, b = on_file(tmp_path, 1.0, "a.json"), on_file(tmp_path, 1.0, "b.json")
    job = gemm().measurement
    assert job
    left_out = replace(report(skipped()), plan=(job.job,))
    nothing = written(tmp_path, left_out, "nothing.json")
    for one_file, other in ((a, nothing), (nothing, a), (nothing, nothing)):
        said = call("compare", one_file, other)
        assert said.code == 1
        assert "nothing could be compared" in said.err
    assert call("compare", a, b).code == 0


def test_the_command_prints_json(tmp_path: Path, call: Call) -> None:
    a, b = on_file(tmp_path, 1.0, "a.json"), on_file(tmp_path, 1.1, "b.json")
    said = call("compare", a, b, "--json")
    document = json.loads(said.out.splitlines()[-1])
    assert set(document) == {"baseline", "report", "remarks", "comparisons"}
    assert document["comparisons"][0]["decision"] == "slower"
    assert document["baseline"] == codec.read(a, Report).seal.digest


def test_a_forged_file_is_named(tmp_path: Path, call: Call) -> None:
    a = on_file(tmp_path, 1.0, "a.json")
    forged = tmp_path / "forged.json"
    forged.write_bytes(a.read_bytes().replace(b'"preset":"quick"', b'"preset":"fulls"'))
    nonsense = tmp_path / "nonsense.json"
    nonsense.write_text("{")
    assert "forged.json" in only_line(call("compare", a, forged), 4)
    assert "nonsense.json" in only_line(call("compare", nonsense, a), 4)


def test_a_file_that_is_not_there_is_misuse(tmp_path: Path, call: Call) -> None:
    a = on_file(tmp_path, 1.0, "a.json")
    assert "nosuch.json" in only_line(call("compare", a, tmp_path / "nosuch.json"))
    only_line(call("compare", a))


def test_it_is_a_function_of_the_package() -> None:
    assert harness.compare is compare
