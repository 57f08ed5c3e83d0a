"""A fleet's reports together: who falls behind its own kind, who is ill and why; and the same through Parquet, number for number."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from test_scoring import failed, gemm, gpu, measured, report, stream

from harness import codec
from harness.cli import cli
from harness.errors import FailureError, ForgeryError, MisuseError
from harness.model import (
    Activity,
    Attempt,
    Ceiling,
    Device,
    Inputs,
    Note,
    Outcome,
    Preflight,
    Report,
    Skipped,
    Soak,
    TelemetrySample,
    Work,
)
from harness.proof.seal import OPEN, seal
from harness.scoring import evidence, parquet
from harness.scoring.fleet import Card, Fleet, fleet, outliers, sentence
from harness.scoring.parquet import export, read


def card(at: int, **facts: Any) -> Device:
    """Return one of several GPUs of a kind."""
    kind: dict[str, Any] = {"driver": "580.1", "power_limit_w": 450.0, "power_default_limit_w": 450.0} | facts
    return replace(gpu("NVIDIA RTX 4090"), uuid=f"GPU-0000-{at:08x}", selector=f"cuda:{at}", **kind)


def copy(device: Device, rate: float, **more: Any) -> Outcome:
    return stream(rate, op="copy", device=device, **more)


def on(node: str, *held: tuple[Device, Sequence[Outcome]], notes: Sequence[Preflight] = ()) -> Report:
    """Return a sealed report of one node's devices."""
    outcomes = [outcome for _, found in held for outcome in found]
    whole = replace(
        report(*outcomes),
        node=replace(report().node, name=node),
        devices=tuple(device for device, _ in held),
        preflight=tuple(notes),
        plan=tuple(o.job for x in outcomes if (o := x.measurement or x.skipped or x.failed)),
        seal=OPEN,
    )
    return replace(seal(whole, [codec.digest(o) for o in outcomes], None), outcomes=tuple(outcomes))


def of(found: Fleet, at: int) -> Card:
    return next(c for c in found.cards if c.device_uuid == card(at).uuid)


def sound(node: str, first: int, count: int) -> Report:
    """Return a node whose cards differ by a thousandth."""
    cards = [card(first + i) for i in range(count)]
    return on(node, *((c, [copy(c, 1e12 * (1 + i / 1000))]) for i, c in enumerate(cards)))


def with_one(device: Device, *outcomes: Outcome, notes: Sequence[Note] = ()) -> Fleet:
    """Return a fleet of six sound cards on node a, and one more on node b."""
    seen = Preflight(device_uuid=device.uuid, idle_power_w=None, notes=tuple(notes))
    return fleet([sound("a", 0, 6), on("b", (device, outcomes), notes=[seen])])


# --- one card against its kind -----------------------------------------------------------------------------------------


def test_a_card_far_below_its_kind_is_ill_and_told_by_how_much() -> None:
    found = with_one(card(7), copy(card(7), 0.89e12))
    assert [c.device_uuid for c in found.cards if c.ill] == [card(7).uuid]
    assert sentence(of(found, 7)) == (
        "GPU-…000007 on node b: memory copy n=67108864 sustained 11% under the median of its kind (7 cards)"
    )


def test_a_lowered_power_limit_is_the_cause_that_is_told_and_the_card_is_compared_with_its_model() -> None:
    lowered = card(7, power_limit_w=250.0)
    found = with_one(lowered, copy(lowered, 0.89e12))
    assert of(found, 7).causes == ("power limit 250 of 450 W",)
    assert sentence(of(found, 7)).endswith("11% under the median of its model (7 cards); power limit 250 of 450 W")


def test_a_lowered_power_limit_alone_is_no_illness() -> None:
    lowered = card(7, power_limit_w=250.0)
    assert with_one(lowered, copy(lowered, 1e12)).cards[-1].ill == ()


def test_three_cards_of_one_limit_are_compared_among_themselves() -> None:
    lowered = [card(7 + i, power_limit_w=250.0) for i in range(3)]
    found = fleet([sound("a", 0, 6), on("b", *((c, [copy(c, 0.7e12)]) for c in lowered))])
    assert not [c for c in found.cards if c.ill]
    assert {
        (s.power_limit_w, s.card_count, round(s.median_value / 1e12, 4)) for s in found.spreads if s.node is None
    } == {
        (450.0, 6, 1.0025),
        (250.0, 3, 0.7),
    }


def test_a_little_below_is_not_far_however_close_the_others_are() -> None:
    assert not with_one(card(7), copy(card(7), 0.975e12)).cards[-1].ill
    assert with_one(card(7), copy(card(7), 0.965e12)).cards[-1].ill


def test_where_a_kind_strays_widely_little_is_far() -> None:
    cards = [card(i) for i in range(7)]
    rates = (0.8e12, 0.9e12, 0.95e12, 1e12, 1.05e12, 1.1e12, 0.7e12)
    found = fleet([on("a", *((c, [copy(c, rate)]) for c, rate in zip(cards, rates, strict=True)))])
    assert not [c for c in found.cards if c.ill]


def test_a_longer_latency_is_worse_and_a_shorter_one_is_only_remarked() -> None:
    def chase(device: Device, time_s: float) -> Outcome:
        return measured("chase", Work(items=1, item="hop"), "latency", device=device, time_s=time_s, size_bytes=5)

    cards = [card(i) for i in range(6)]
    times = (1e-7, 1e-7, 1e-7, 1e-7, 1.5e-7, 0.5e-7)
    found = fleet([on("a", *((c, [chase(c, t)]) for c, t in zip(cards, times, strict=True)))])
    assert [bool(c.ill) for c in found.cards] == [False] * 4 + [True, False]
    assert "50% over the median" in found.cards[4].ill[0]
    assert "50% under the median" in found.cards[5].remarks[0]


def test_a_card_that_is_alone_or_one_of_two_is_said_to_be_so() -> None:
    (only,) = fleet([on("a", (card(0), [copy(card(0), 1e12)]))]).cards
    assert (only.ill, only.remarks) == ((), ("the only NVIDIA RTX 4090: nothing to compare it with",))
    pair = fleet([on("a", *((card(i), [copy(card(i), 1e12 / (1 + i))]) for i in range(2)))])
    assert all(not c.ill and "nobody can say which is off" in c.remarks[0] for c in pair.cards)


def test_cards_of_other_models_memory_or_emulated_ones_are_not_its_kind() -> None:
    others = [card(7, name="NVIDIA H100"), card(7, memory_bytes=1), card(7, emulated=True), card(7, mig_enabled=True)]
    for other in others:
        assert not of(with_one(other, copy(other, 1.0)), 7).ill


def test_a_value_of_nothing_breaks_no_statistic() -> None:
    def nothing(device: Device) -> Outcome:
        return measured("x", Work(items=0, item="y"), "throughput", device=device)

    found = fleet([on("a", *((card(i), [nothing(card(i))]) for i in range(3))), on("b", (card(3), [nothing(card(3))]))])
    assert not [c for c in found.cards if c.ill]
    assert {line.deviation_fraction for line in found.nodes} == {None}


def test_a_card_measured_twice_stands_with_the_median_of_its_values() -> None:
    again = [on("b", (card(7), [copy(card(7), rate)])) for rate in (1e12, 1e12, 0.5e12)]
    found = fleet([sound("a", 0, 6), *again, again[0]])
    assert len(found.report_digests) == 3  # two of them say the same, to the digest
    assert found.cards[-1].measurement_count == 2
    spread = next(s for s in found.spreads if s.node == "b")
    assert spread.card_count == 1
    assert spread.median_value == pytest.approx(0.75e12)


@given(st.lists(st.floats(min_value=0, max_value=1e15), max_size=20), st.floats(min_value=0.5, max_value=2))
def test_an_outlier_is_one_in_any_unit_and_most_are_none(values: list[float], scale: float) -> None:
    far = outliers(values)
    assert len(far) == len(values)
    assert sum(far) * 2 <= len(values)
    powers_of_two = [v * 2.0 ** round(scale) for v in values]  # exact, so that no edge is crossed by rounding
    assert outliers(powers_of_two) == far


# --- what makes a card ill besides -------------------------------------------------------------------------------------


def test_wrong_answers_failures_throttling_and_impossible_results_make_a_card_ill() -> None:
    device = card(7)
    found = with_one(
        device,
        failed("wrong_answer", device),
        failed("crashed", device),
        copy(device, 1e12, state="throttled"),
        gemm(1e12, device=device, state="invalid"),
    )
    assert of(found, 7).ill == (
        "1 wrong answer (sort n=8)",
        "1 of 4 jobs failed: 1 crashed (sort n=8)",
        "throttled in 1 of 2 measurements (it was throttled)",
        "1 result that cannot be true (gemm dtype=float32 n=4096 sustained: it was invalid)",
    )
    assert of(found, 7).remarks == ("no result that counts: nothing to compare it by",)


def test_memory_errors_make_a_card_ill_and_are_told_once() -> None:
    device = card(7, remapping_failed=True)
    outcome = copy(device, 1e12)
    assert outcome.measurement
    samples = tuple(TelemetrySample(at_s=0.0, ecc_uncorrected_count=n) for n in (None, 0, 2))
    outcome = replace(outcome, measurement=replace(outcome.measurement, telemetry=samples))
    whats = ("2 uncorrected memory errors since the driver was loaded", "a faulty row of memory could not be replaced")
    grave = [Note(severity="refuse", what=what, advice="") for what in (*whats, "compute mode prohibited")]
    slot = Note(severity="tag", what="PCIe x8 of x16", advice="")
    found = of(with_one(device, outcome, notes=[*grave, slot]), 7)
    assert found.ill == (
        "2 uncorrected memory errors (ECC)",
        "a faulty row of memory could not be replaced",
        "compute mode prohibited",
    )
    assert found.causes == ("PCIe x8 of x16",)


def test_an_unusable_card_and_another_driver_than_the_others_have_are_told() -> None:
    device = card(7, driver="535.2", unusable_reason="fell off the bus")
    found = of(with_one(device), 7)
    assert found.ill == ("unusable: fell off the bus",)
    assert found.causes == ("driver 535.2, where 6 of 7 have 580.1",)


def test_tries_that_came_to_nothing_are_remarked() -> None:
    tries = tuple(Attempt(number=i, started_at="", elapsed_s=1.0, ended="lost", reason="") for i in (1, 2))
    found = of(with_one(card(7), replace(copy(card(7), 1e12), attempts=tries)), 7)
    assert (found.ill, found.remarks) == ((), ("2 of its tries came to nothing: 2 lost",))


# --- nodes -------------------------------------------------------------------------------------------------------------


def test_a_node_whose_cards_are_all_slow_shows_against_its_model() -> None:
    slow = [card(7 + i) for i in range(2)]
    found = fleet([sound("a", 0, 6), on("b", *((c, [copy(c, 0.9e12)]) for c in slow))])
    assert [(n.node, n.card_count, n.ill_count) for n in found.nodes] == [("a", 6, 0), ("b", 2, 2)]
    assert found.nodes[1].deviation_fraction == pytest.approx(-0.1, abs=0.003)
    assert {(s.node, s.card_count) for s in found.spreads} == {(None, 8), ("a", 6), ("b", 2)}


def test_one_card_in_the_reports_of_two_nodes_is_told() -> None:
    found = fleet([sound("a", 0, 2), sound("b", 1, 1)])
    assert len(found.cards) == 3
    assert f"{card(1).uuid} is in the reports of several nodes (a, b)" in found.remarks[0]


def test_a_short_name_that_two_cards_share_is_spelled_out() -> None:
    one, other = (of(with_one(card(7), failed("crashed", card(7))), 7) for _ in range(2))
    other = replace(other, device_uuid="GPU-1111-00000007")
    assert sentence(one, [one]).startswith("GPU-…000007 on")
    assert sentence(one, [one, other]).startswith("GPU-0000-00000007 on")
    assert sentence(replace(one, device_uuid="GPU-1")).startswith("GPU-1 on")


# --- Parquet -----------------------------------------------------------------------------------------------------------


def rich(device: Device) -> tuple[Outcome, ...]:
    """Return outcomes that fill every kind of column."""
    m = copy(device, 1e12, power_w=100.0, low_s=0.1, high_s=2.7).measurement
    assert m
    sample = TelemetrySample(at_s=0.1, power_w=1 / 3, throttle_reasons=("a",), throttle_s={"b": 0.5})
    full = replace(
        m,
        job=replace(m.job, params={"n": 1 << 40, "x": 0.1, "op": "copy"}),
        telemetry=(sample, TelemetrySample(at_s=1.0)),
        warmup_times_s=(0.1, 0.2),
        soak=Soak(elapsed_s=3.0, steady=None, temperature_c_per_min=None, clock_fraction_per_min=0.0),
        inputs=Inputs(distribution="uniform", entropy_bits_per_byte=7.9),
        ceiling=Ceiling(rate_per_s=1e13, reached_fraction=0.1, basis="a clock"),
        activity=Activity(window_s=1.0, sm_fraction=0.5),
    )
    tries = (Attempt(number=1, started_at="then", elapsed_s=0.25, ended="lost", reason="gone", place="p"),)
    skipped = Skipped(job=replace(m.job, benchmark="p2p", params={}), reason="one GPU")
    return (
        Outcome(measurement=full, attempts=tries),
        failed("crashed", device),
        Outcome(skipped=skipped),
        gemm(1e12, device=device),
    )


def written(folder: Path, *reports: Report) -> list[Path]:
    paths = [folder / f"{i}.json" for i in range(len(reports))]
    for path, one in zip(paths, reports, strict=True):
        path.write_bytes(codec.encode(one))
    return paths


@pytest.fixture
def two() -> tuple[Report, Report]:
    return on("a", (card(0), rich(card(0))), (card(1), rich(card(1)))), on("b", (card(2), rich(card(2))))


def test_what_is_read_back_is_what_was_written_to_the_bit(tmp_path: Path, two: tuple[Report, Report]) -> None:
    out = tmp_path / "fleet.parquet"
    assert export(*two, two[0], out=out) == 12
    assert list(tmp_path.iterdir()) == [out]
    back = list(read(out))
    assert back == [replace(one, plan=()) for one in two]
    assert fleet(back) == fleet(two)


def test_another_program_reads_columns_with_units_and_raw_times(tmp_path: Path, two: tuple[Report, Report]) -> None:
    from pyarrow import parquet as pq

    export(*two, out=tmp_path / "fleet.parquet")
    table = pq.read_table(tmp_path / "fleet.parquet").to_pylist()
    assert [row["ended"] for row in table[:4]] == ["measured", "crashed", "skipped", "measured"]
    first = table[0]
    assert (first["value"], first["unit"], first["work_bytes_moved"]) == (1e12, "B/s", 10**12)
    assert (first["node"], first["device_uuid"], first["report_digest"]) == ("a", card(0).uuid, two[0].seal.digest)
    assert json.loads(first["params"]) == {"n": 1 << 40, "op": "copy", "x": 0.1}
    assert first["rounds"][0]["times_s"] == [1.0, 2.0]
    assert (first["energy_joules"], first["soak_steady"], first["interval_high_s"]) == (800.0, None, 2.7)
    assert first["attempts"][0]["ended"] == "lost"
    codecs = {pq.ParquetFile(tmp_path / "fleet.parquet").metadata.row_group(0).column(i).compression for i in range(10)}
    assert codecs == {"ZSTD"}


def test_rows_are_read_in_batches_and_a_report_may_span_several(
    tmp_path: Path, two: tuple[Report, Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    export(*two, out=tmp_path / "fleet.parquet")
    monkeypatch.setattr(parquet, "_ROWS", 3)
    assert [len(one.outcomes) for one in read(tmp_path / "fleet.parquet")] == [8, 4]


def test_a_fleet_is_scored_and_priced_from_parquet_holding_one_report_at_a_time(
    tmp_path: Path, two: tuple[Report, Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, as_it_is, at_once = tmp_path / "fleet.parquet", parquet.report_of, list[int]()
    export(*two, out=out)

    def report(head: bytes, rows: Any, where: str, **how: bool) -> Report:
        at_once.append(len(rows))
        return as_it_is(head, rows, where, **how)

    monkeypatch.setattr(parquet, "report_of", report)
    assert evidence.score(out) == evidence.score(*two) != ()
    assert evidence.quote(out, two[0]) == evidence.quote(*two, two[0]) != ()
    assert at_once == [8, 4] * 2


def test_a_price_from_parquet_is_that_of_the_whole_outcome_where_the_fast_end_is_a_raw_time(tmp_path: Path) -> None:
    """Raw times are passed over where a price is asked for, but where noise pushed an interval's fast end down to zero."""
    open_ended = on("a", (card(0), [copy(card(0), 1e12, power_w=100.0, low_s=0.0), gemm(1e12, device=card(0))]))
    out = tmp_path / "fleet.parquet"
    export(open_ended, out=out)
    (whole,), (short,) = read(out), read(out, for_price=True)
    assert whole.outcomes[0] == short.outcomes[0]
    assert not hasattr(short.outcomes[1].measurement, "rounds")
    assert evidence.quote(out) == evidence.quote(open_ended) != ()


def test_a_row_that_was_changed_is_refused(tmp_path: Path, two: tuple[Report, Report]) -> None:
    import pyarrow as pa
    from pyarrow import parquet as pq

    out = tmp_path / "fleet.parquet"
    export(*two, out=out)
    table = pq.read_table(out)
    at = table.schema.get_field_index("outcome")
    faster = [row.replace(b'"high_s":2.7', b'"high_s":2.6') for row in table.column("outcome").to_pylist()]
    pq.write_table(table.set_column(at, table.schema.field(at), pa.array(faster, pa.binary())), out)
    with pytest.raises(ForgeryError, match="a row does not give the outcome that it names"):
        list(read(out))
    pq.write_table(table.drop_columns(["time_s"]), out)
    with pytest.raises(ForgeryError, match="its columns are not those"):
        list(read(out))
    out.write_bytes(out.read_bytes()[:-9])
    with pytest.raises(ForgeryError, match="not a whole Parquet file"):
        list(read(out))
    with pytest.raises(MisuseError, match="cannot read"):
        list(read(tmp_path / "none.parquet"))


def test_an_export_that_fails_leaves_the_file_that_was_there(tmp_path: Path, two: tuple[Report, Report]) -> None:
    out = tmp_path / "fleet.parquet"
    export(*two, out=out)
    kept = out.read_bytes()
    with pytest.raises(ForgeryError):
        export(two[0], replace(two[1], seal=replace(two[1].seal, outcomes=())), out=out)
    assert out.read_bytes() == kept
    assert list(tmp_path.iterdir()) == [out]
    with pytest.raises(FailureError, match="cannot write"):
        export(*two, out=tmp_path / "nowhere" / "fleet.parquet")


def test_pyarrow_is_loaded_on_the_first_call_only() -> None:
    program = "import sys, harness.scoring.parquet; print({'pandas', 'numpy', 'pyarrow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# --- the commands ------------------------------------------------------------------------------------------------------


def run(*args: object) -> Any:
    return CliRunner().invoke(cli, ["fleet", *map(str, args)])


def verified(*cards: tuple[int, float], node: str = "a") -> Report:
    """Return a report whose intervals follow from its raw times."""

    def exact(outcome: Outcome) -> Outcome:
        assert outcome.measurement
        m = outcome.measurement
        times = tuple(replace(m.rounds[0], times_s=(m.time_s,) * 3) for _ in range(2))
        return Outcome(measurement=replace(m, rounds=times))

    return on(node, *((card(i), [exact(copy(card(i), rate))]) for i, rate in cards))


def test_the_command_says_which_cards_are_ill_and_ends_with_1(tmp_path: Path) -> None:
    files = written(tmp_path, verified((0, 1e12), (1, 1e12), (2, 1e12)), verified((3, 0.8e12), node="b"))
    done = run("report", *files)
    assert done.exit_code == 1, done.output
    assert "! GPU-…000003 on node b: memory copy n=67108864 sustained 20% under the median" in done.stdout
    assert "4 cards in 2 reports: 1 ill" in done.stdout
    done = run("report", "--json", *files)
    assert done.exit_code == 1
    assert [bool(c["ill"]) for c in json.loads(done.stdout.splitlines()[-1])["cards"]] == [False] * 3 + [True]
    done = run("report", files[0])
    assert (done.exit_code, "3 cards in 1 report: none ill" in done.stdout) == (0, True)


def test_the_command_exports_and_reads_what_it_exported(tmp_path: Path) -> None:
    files = written(tmp_path, verified((0, 1e12), (1, 1e12), (2, 1e12)), verified((3, 0.8e12), node="b"))
    out = tmp_path / "fleet.parquet"
    done = run("export", *files, "--out", out)
    assert (done.exit_code, done.stdout) == (0, f"4 rows in {out}\n")
    assert json.loads(run("export", *files, "--out", out, "--json").stdout) == {"path": str(out), "row_count": 4}
    from_parquet, from_reports = run("report", out, "--json"), run("report", *files, "--json")
    assert from_parquet.stdout == from_reports.stdout
    for command in ("score", "quote"):
        told = [CliRunner().invoke(cli, [command, *map(str, given), "--json"]) for given in ([out], files)]
        assert told[0].stdout == told[1].stdout != ""
    files[0].write_bytes(files[0].read_bytes().replace(b'"b"', b'"c"').replace(b"GPU-0000", b"GPU-0001"))
    assert isinstance(run("report", *files).exception, ForgeryError)


def test_a_head_with_a_date_that_is_none_is_no_reports(tmp_path: Path) -> None:
    """A file that another hand made: what is concluded from its dates must not crash."""
    shipped = next((Path(__file__).parent.parent / "results").glob("2*.json"))
    parquet.export(shipped, out=tmp_path / "fleet.parquet")
    ((head, rows),) = parquet.pieces(tmp_path / "fleet.parquet")
    assert parquet.report_of(head, rows, "there").outcomes
    wrong = re.sub(rb'"sealed_at":"[^"]*"', b'"sealed_at":"yesterday"', head)
    with pytest.raises(ForgeryError, match=r"sealed_at: 'yesterday' is no time"):
        parquet.report_of(wrong, rows, "there")
