"""What a report shows, before it is drawn: each sentence and number follows from the records, and a stranger's text stays text."""

from __future__ import annotations

import base64
import csv
import gzip
import hashlib
import io
import json
import random
import re
import sys
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from madeup import A100, RTX_4090, card, many, measurement, node, report_of, session
from test_scoring import failed

import harness
from harness import codec
from harness.cli import cli
from harness.errors import FailureError, MisuseError
from harness.model import Device, Measurement, Note, Outcome, Preflight, Report, TelemetrySample, Work
from harness.render.report import view
from harness.render.report.page import page_html
from harness.render.report.roof import roof
from harness.render.report.sheet import write_csv
from harness.render.report.trace import trace
from harness.render.report.views import DeviceView, FleetView
from harness.render.report.words import binary, tame

DICE = random.Random(1)  # noqa: S311 - made up, not secret
GOLDEN = Path(__file__).parent / "golden" / "reports"


def recorded(name: str) -> Report:
    """Return a report that a real run of this program wrote: `cpu` on two cores, `emulated` on two emulated GPUs and a CPU."""
    return codec.decode(gzip.decompress((GOLDEN / f"{name}.json.gz").read_bytes()), Report)


def shown(device: Device, *outcomes: Outcome, others: tuple[Report, ...] = (), **more: Any) -> DeviceView:
    """Return what is shown of one device, which may stand among others."""
    own = replace(report_of("node", (device, outcomes)), **more)
    return view(own, *others).nodes[0].devices[0]


def measured(outcome: Outcome) -> Measurement:
    assert outcome.measurement
    return outcome.measurement


def stream(device: Device, rate: float, **more: Any) -> Outcome:
    work = Work(bytes_moved=3 << 30)
    return measurement(device, "stream", work, "bandwidth", work.bytes_moved / rate, DICE, op="copy", n=1 << 28, **more)  # fmt: skip


def gemm(device: Device, rate: float, dtype: str = "float32", **more: Any) -> Outcome:
    work = Work(flops=2 * 8192**3, bytes_moved=12 * 8192**2)
    return measurement(device, "gemm", work, "compute", work.flops / rate, DICE, dtype=dtype, n=8192, **more)


# --- the verdict -------------------------------------------------------------------------------------------------------


def test_a_sound_card_among_its_kind_is_healthy_and_told_where_it_lies() -> None:
    device = card(RTX_4090, 900)
    others = (node(1, RTX_4090, card_count=2), node(2, RTX_4090, card_count=2))
    found = shown(device, gemm(device, 0.98 * 5.3e13), others=others)
    assert found.verdict.tone == "good"
    assert re.fullmatch(r"Healthy; \d(\.\d)? % under the median of its kind(; .*)?", found.verdict.headline)


def test_slow_memory_under_a_lowered_limit_sends_to_the_limit() -> None:
    device = card(RTX_4090, 1, power_limit_w=300.0)
    found = shown(device, stream(device, 8.2e11))
    assert found.verdict.tone == "fair"
    assert "memory 10 % slow: check the power limit, 300 of 450 W" in found.verdict.headline


def test_slow_memory_without_a_cause_is_told_to_have_none() -> None:
    device = card(RTX_4090, 1)
    found = shown(device, stream(device, 8.2e11))
    assert "memory 10 % slow: this report does not tell why" in found.verdict.headline


def test_wrong_answers_make_a_card_ill_before_all_else() -> None:
    device = card(RTX_4090, 1)
    found = shown(device, stream(device, 9.1e11), failed("wrong_answer", device))
    assert (found.verdict.word, found.verdict.tone) == ("Ill", "bad")
    assert found.verdict.headline.startswith("Ill; 1 wrong answer (sort n=8)")


def test_an_emulated_device_has_no_standing_and_says_so_first() -> None:
    device = card(RTX_4090, 1, emulated=True)
    found = shown(device, stream(device, 5e8), gemm(device, 1e9))
    assert found.verdict.headline.startswith("Emulated: ")
    assert not found.standings
    assert found.bill is not None
    assert found.bill.price_usd_per_hour is None


def test_a_note_of_the_preflight_comes_with_what_mends_it() -> None:
    device = card(RTX_4090, 1)
    note = Note(severity="tag", what="a display is active", advice="end the desktop session")
    found = shown(device, stream(device, 9.1e11), preflight=(Preflight(device_uuid=device.uuid, idle_power_w=20.0, notes=(note,)),))  # fmt: skip
    assert "A display is active. To mend it: end the desktop session." in [f.sentence for f in found.verdict.findings]


def test_missing_sensors_are_said_to_be_missing() -> None:
    sensors = {"power": "no_permission", "energy": "not_supported", "sm_clock": "ok"}
    found = shown(card(RTX_4090, 1, sensors=sensors), stream(card(RTX_4090, 1), 9.1e11))
    assert found.sensors == ("power: no permission", "energy: not supported")
    assert "power: no permission" in found.trace.missing
    assert found.no_energy == "No energy: neither the energy counter nor the power sensor can be read (not supported)."


# --- the drawings' numbers ---------------------------------------------------------------------------------------------


def test_the_roof_is_what_the_device_did_itself() -> None:
    device = card(RTX_4090, 1)
    half = Work(flops=1 << 30, bytes_moved=1 << 30)  # one operation a byte, at half of the bandwidth
    kernel = measurement(device, "softmax", half, "bandwidth", 2 * half.bytes_moved / 1e12, DICE, noise=0.0)
    cached = measured(measurement(device, "reduce", half, "bandwidth", half.bytes_moved / 4e12, DICE))
    seen = [measured(o) for o in (stream(device, 1e12, noise=0.0), gemm(device, 5e13, noise=0.0), kernel)]
    found = roof(device, [*seen, replace(cached, footprint_bytes=1 << 20)])
    assert found.bytes_per_s == pytest.approx(1e12)
    assert [p.dtype for p in found.peaks] == ["float32"]
    assert found.peaks[0].flops_per_s == pytest.approx(5e13)
    by_name = {p.label.split()[0]: p for p in found.points}
    assert [by_name[n].limit for n in ("softmax", "gemm")] == ["memory", "arithmetic"]
    assert by_name["softmax"].reached_fraction == pytest.approx(0.5)
    assert by_name["gemm"].reached_fraction == pytest.approx(1.0)
    assert (by_name["reduce"].limit, by_name["reduce"].reached_fraction) == ("a cache serves it", None)
    assert found.left_out == ("stream copy n=256 Mi: 1000 GB/s, 100 % of the memory roof; it calculates nothing",)


def test_a_result_that_cannot_be_true_sets_no_roof() -> None:
    device = card(RTX_4090, 1)
    found = roof(device, [measured(stream(device, 9e99, state="invalid")), measured(stream(device, 9e11))])
    assert found.bytes_per_s == pytest.approx(9e11, rel=0.01)


def test_the_lines_of_a_price_follow_on_each_other_and_end_at_it() -> None:
    device = card(RTX_4090, 1)
    bill = shown(device, *session(RTX_4090, device)).bill
    assert bill is not None
    at = Decimal(0)
    for line in bill.lines:
        assert line.start_usd_per_hour == at
        at += line.usd_per_hour
    assert at == bill.price_usd_per_hour
    assert len(bill.lines) > 5


def test_jobs_that_take_turns_share_a_clock_and_those_after_them_begin_later() -> None:
    device = card(RTX_4090, 1)
    first, second = measured(stream(device, 9e11, second=0)), measured(gemm(device, 5e13, second=2))
    alone = measured(gemm(device, 5e13, "float16", second=20))
    lanes = {
        lane.label.split()[0] + lane.label.split()[1]: lane for lane in trace(device, [alone, second, first]).lanes
    }
    # The clock of a group starts when its last job is set up, two seconds after the first: both have a round one second later.
    assert lanes["streamcopy"].rounds_s[0] == lanes["gemmfloat32"].rounds_s[0] == pytest.approx(1.0)
    assert lanes["gemmfloat16"].rounds_s[0] == pytest.approx(19.0)


def test_throttling_is_a_band_for_as_long_as_it_was_seen() -> None:
    device = card(RTX_4090, 1)
    reasons = [(), ("sw_power_cap",), ("sw_power_cap",), ("hw_thermal",), (), ("gpu_idle",)]
    samples = tuple(TelemetrySample(at_s=float(i), power_w=400.0, throttle_reasons=r) for i, r in enumerate(reasons))
    found = trace(device, [replace(measured(stream(device, 9e11)), telemetry=samples)])
    assert [(b.start_s, b.end_s, b.reasons, b.tone) for b in found.bands] == [
        (1.0, 3.0, "sw_power_cap", "fair"),
        (3.0, 4.0, "hw_thermal", "bad"),
    ]


def test_thinning_a_trace_keeps_its_peaks() -> None:
    device = card(RTX_4090, 1)
    samples = tuple(TelemetrySample(at_s=i / 10, power_w=999.0 if i == 4321 else 400.0) for i in range(9000))
    found = trace(device, [replace(measured(stream(device, 9e11)), telemetry=samples)])
    assert found.sample_count == 9000
    assert len(found.samples) <= 600
    assert max(s.power_w or 0 for s in found.samples) == 999.0


def test_a_score_stands_among_those_of_published_cards() -> None:
    device = card(RTX_4090, 1)
    general = next(s for s in shown(device, *session(RTX_4090, device)).standings if s.profile == "general")
    names = [p.name for p in general.peers]
    assert names.index("GeForce RTX 3090") < names.index("H200")
    assert general.own_kind == pytest.approx(general.cu_per_hour, rel=0.1)
    reference = next(p for p in general.peers if p.name == "H100 80GB HBM3")
    assert reference.cu_per_hour == pytest.approx(1.0, rel=0.01)  # the unit is that card


# --- many reports ------------------------------------------------------------------------------------------------------


def of_fleet(*reports: Report) -> FleetView:
    found = view(*reports).fleet
    assert found is not None
    return found


def test_a_fleet_names_the_node_to_look_at_first() -> None:
    found = of_fleet(*(node(at, RTX_4090, slow=2 if at == 5 else None, card_count=4) for at in range(8)))
    assert (found.card_count, found.ill_count) == (32, 1)
    assert found.nodes[0].node == found.ill[0].node == "madeup-005"
    memory = next(k for k in found.kinds if k.work == "memory")
    assert [(s.node, s.card) for s in memory.outliers] == [("madeup-005", f"GPU-0000-{42:08x}")]
    assert memory.outliers[0].deviation_fraction == pytest.approx(-0.13, abs=0.03)
    assert memory.low_fraction > -0.05  # the outlier is no part of the spread


def test_what_is_drawn_of_a_fleet_grows_with_its_models_not_with_its_reports() -> None:
    few, more = (page_html(view(*many(count, card_count=1))) for count in (12, 36))
    assert len(more) < len(few) * 1.02


def test_as_many_devices_as_are_shown_in_full_fit_into_a_page() -> None:
    cards = [card(RTX_4090, i) for i in range(8)]
    made = view(report_of("node", *((c, session(RTX_4090, c, i)) for i, c in enumerate(cards))))
    assert len(made.nodes[0].devices) == 8
    assert len(page_html(made).encode()) < 3_000_000


def test_two_reports_are_compared_point_by_point() -> None:
    device = card(A100, 1)
    before, after = (report_of("node", (device, [stream(device, rate, noise=0.0005)])) for rate in (1.7e12, 1.5e12))
    (change,) = of_fleet(before, after).comparisons
    assert change.decision == "slower"
    assert [n.node for n in view(before, after).nodes] == ["node, report 1", "node, report 2"]
    assert view(before, after).title == "2 reports: 1 device on 1 node"
    assert change.change_fraction == pytest.approx(1.5 / 1.7 - 1, abs=0.01)


def test_a_few_devices_stand_side_by_side_with_their_prices() -> None:
    held = [card(RTX_4090, 1), card(A100, 2)]
    found = of_fleet(report_of("node", *((d, [stream(d, 9e11 * (1 + i))]) for i, d in enumerate(held))))
    head, price, memory = found.side_by_side
    assert head == ("class of work", "node cuda:1", "node cuda:2")
    assert price[0] == "an hour of it"
    assert all(cell.endswith(" USD") for cell in price[1:])
    assert [cell.rpartition("(")[2] for cell in memory] == ["memory", "50 %)", "100 %)"]


def test_the_same_report_twice_is_one() -> None:
    device = card(A100, 1)
    one = report_of("node", (device, [stream(device, 1.7e12)]))
    assert view(one, one) == view(one)


# --- a stranger's text -------------------------------------------------------------------------------------------------

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u202eGPU\x1b[2J"


def hostile() -> Report:
    """Return a report whose every text is an attack."""
    device = card(
        RTX_4090, 1, name=EVIL, driver=EVIL, vbios=EVIL, uuid=f"GPU-{EVIL}", selector=EVIL, unusable_reason=EVIL
    )
    work, params = Work(items=1, item=EVIL), dict[str, Any]({EVIL: EVIL})
    bad = measurement(device, EVIL, work, "throughput", 1.0, DICE, state="noisy", reason=EVIL, **params)
    note = Note(severity="tag", what=EVIL, advice=EVIL)
    made = report_of(EVIL, (device, [bad, *session(RTX_4090, device)[:6], failed("crashed", device)]))
    preflight = (Preflight(device_uuid=device.uuid, idle_power_w=None, notes=(note,)),)
    environment = replace(made.environment, os=EVIL, packages={EVIL: EVIL})
    return replace(made, preflight=preflight, environment=environment, preset=EVIL, created_at=EVIL)


def test_a_hostile_report_runs_nothing_and_ends_no_element() -> None:
    page = page_html(view(hostile()))
    ours = page[page.rindex("<script>") + len("<script>") : page.rindex("</script>")]
    assert re.findall(r"<script[^>]*>", page.replace(ours, "")) == [
        '<script type="application/json" id="config">',
        '<script type="application/json" id="specs">',
        "<script>",
    ]
    assert "<img" not in page.replace(ours, "")
    assert "\u202e" not in page
    assert "\x1b" not in page
    digest = base64.b64encode(hashlib.sha256(ours.encode()).digest()).decode()
    assert (
        f"default-src &#39;none&#39;; script-src 'sha256-{digest}'" in page or f"script-src 'sha256-{digest}'" in page
    )
    assert "&lt;img src=x" in page  # it is shown, as what it is


def test_the_drawings_data_is_json_that_ends_nothing() -> None:
    page = page_html(view(hostile()))
    data = page.split('id="specs">', 1)[1].split("</script>", 1)[0]
    assert "<" not in data
    assert any("onerror" in json.dumps(spec) for _, spec in json.loads(data))


def test_markdown_makes_no_markup_of_a_strangers_text() -> None:
    device = card(RTX_4090, 1, name="[x](http://evil) <b> | @all `")
    text = harness.report(report_of("node", (device, [stream(device, 9e11)])))
    assert "\\[x\\](http://evil) \\<b\\> \\| \\@all \\`" in text
    assert "<b>" not in text.replace("\\<b\\>", "")


def test_a_spreadsheet_gets_no_formula_and_no_invented_number() -> None:
    device = card(RTX_4090, 1, name="=HYPERLINK(A1)")
    made = report_of("+cmd", (device, [stream(device, 9.0e11), failed("crashed", device)]))
    file = io.StringIO()
    assert write_csv([made], file) == 2
    first, second = csv.DictReader(io.StringIO(file.getvalue()))
    assert (first["node"], first["device_name"]) == ("'+cmd", "'=HYPERLINK(A1)")
    assert float(first["value"]) == pytest.approx(9.0e11, rel=0.01)
    assert (first["unit"], first["ended"], second["ended"], second["value"]) == ("B/s", "valid", "crashed", "")


@pytest.mark.parametrize(
    ("text", "told"),
    [("a\u202eb", "a\N{REPLACEMENT CHARACTER}b"), ("a\nb\t c", "a b c"), ("x" * 999, "x" * 299 + "…")],
)
def test_text_is_tamed(text: str, told: str) -> None:
    assert tame(text) == told


def test_sizes_are_told_as_people_tell_them() -> None:
    assert [binary(v) for v in (4096, 8192, 1 << 14, 1 << 20, 3 << 20, 1 << 30, 1000)] == ["4096", "8192", "16 Ki", "1 Mi", "3 Mi", "1 Gi", "1000"]  # fmt: skip


# --- proofs ------------------------------------------------------------------------------------------------------------


def test_a_transcript_is_judged_and_laid_to_its_device(tmp_path: Path) -> None:
    from proofs import answered, commit, issued

    from harness.proof import transcript

    device = replace(card(RTX_4090, 1), uuid="CPU-test")
    one, file = report_of("node", (device, [stream(device, 9e11)])), tmp_path / "proof"
    transcript.write(file, *answered(commit(issued()), asked=None))
    (proof,) = view(one, proofs=[file]).nodes[0].proofs
    assert (proof.tone, proof.device) == ("good", "cuda:1 · NVIDIA GeForce RTX 4090")
    assert proof.headline == "The work of a challenge was done, by nobody knows whom: it is unsigned"
    assert proof.proven
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    (broken,) = view(one, proofs=[file]).nodes[0].proofs
    assert (broken.tone, broken.proven) == ("bad", ())
    other = report_of("node", (card(RTX_4090, 2), []))
    with pytest.raises(MisuseError, match="about device 'CPU-test'; the reports have GPU-"):
        view(other, proofs=[file])


# --- odd reports -------------------------------------------------------------------------------------------------------


def odd() -> dict[str, Report]:
    """Return reports that are whole, and that nobody would expect."""
    device = card(RTX_4090, 1)
    usual = measured(gemm(device, 5e13))
    no_date = replace(usual, started_at="yesterday")
    first_year = replace(usual, started_at="0001-01-01T00:00:00Z")
    giant = measured(
        measurement(device, "gemm", Work(flops=2**53 - 1, bytes_moved=1), "compute", 1e-15, DICE, dtype="?")
    )
    bare = Device(uuid="", name="", kind="cuda", selector="", sensors={})
    chase = measured(measurement(device, "chase", Work(items=1, item="hop"), "latency", 1e-12, DICE, size_bytes=1))
    return {
        "nothing was planned": report_of("", (device, [])),
        "no device": report_of("node"),
        "nothing is known": report_of("node", (bare, [])),
        "all failed": report_of("node", (device, [failed("crashed", device)])),
        "no date": report_of("node", (device, [Outcome(measurement=no_date)])),
        "first year": report_of("node", (device, [Outcome(measurement=first_year)])),
        "giant": report_of("node", (device, [Outcome(measurement=giant)])),
        "smallest walk": report_of("node", (device, [Outcome(measurement=chase)])),
    }


@pytest.mark.parametrize("name", odd())
def test_an_odd_report_is_shown_all_the_same(name: str) -> None:
    one = odd()[name]
    page = page_html(view(one))
    assert "Seal and proof" in page
    assert harness.report(one).startswith("# ")
    specs = json.loads(page.split('id="specs">', 1)[1].split("</script>", 1)[0])
    assert len({place for place, _ in specs}) == len(specs)


# --- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Two recorded reports as files."""
    paths = (tmp_path / "cpu.json", tmp_path / "emulated.json")
    for path in paths:
        path.write_bytes(gzip.decompress((GOLDEN / f"{path.stem}.json.gz").read_bytes()))
    return paths


def test_the_command_writes_each_file_and_markdown_where_it_is_asked_for(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    out = {name: tmp_path / f"out.{name}" for name in ("html", "csv", "parquet")}
    options = [part for name, path in out.items() for part in (f"--{name}", str(path))]
    ended = CliRunner().invoke(cli, ["report", str(files[0]), *options, "--markdown"], catch_exceptions=False)
    assert ended.exit_code == 0
    assert ended.stdout.startswith("# AMD EPYC: GPU assay")
    assert len(out["html"].read_bytes()) < 3_000_000
    assert len(out["csv"].read_text().splitlines()) == len(recorded("cpu").outcomes) + 1
    from harness.scoring.parquet import read

    (back,) = read(out["parquet"])
    assert back.outcomes == recorded("cpu").outcomes


def test_a_forged_report_is_refused_and_no_file_is_left(files: tuple[Path, Path], tmp_path: Path) -> None:
    files[0].write_bytes(files[0].read_bytes().replace(b'"name":"bench-01"', b'"name":"bench-02"'))
    ended = CliRunner().invoke(cli, ["report", str(files[0]), "--html", str(tmp_path / "x.html")])
    assert type(ended.exception).__name__ == "ForgeryError"
    assert not (tmp_path / "x.html").exists()


def test_a_place_that_cannot_be_written_is_an_error_in_one_line(files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(FailureError, match=r"cannot write .*nowhere/x.html"):
        harness.report(files[0], html=tmp_path / "nowhere" / "x.html")


def test_without_the_extra_the_page_is_refused_and_the_rest_works(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(FailureError, match=r"pip install 'gpu-assay\[report\]'"):
        harness.report(files[0], html=tmp_path / "x.html")
    assert harness.report(files[0], csv=tmp_path / "x.csv").startswith("# AMD EPYC")


def test_a_folder_of_reports_is_read(files: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    files[0].rename(folder / "20261125T000000Z-a.json")
    assert view(folder).nodes[0].node == "bench-01"


def test_a_report_of_a_real_run_says_who_sealed_it_and_what_nobody_proved() -> None:
    (seen,) = view(recorded("cpu")).nodes
    assert seen.seal.tone == "good"
    assert seen.seal.headline == "Whole and unchanged, signed by 5c6965f8e914bc06…"
    assert any("takes a challenge" in said for said in seen.seal.not_proven)
    tampered = replace(recorded("cpu"), preset="full")
    assert view(tampered).nodes[0].seal.headline.startswith("Refused: $.seal.digest")


def test_a_report_from_a_parquet_file_is_neither_forged_nor_planned(tmp_path: Path) -> None:
    from harness.scoring import parquet

    (shipped,) = (Path(__file__).parent.parent / "results").glob("2*.json")
    parquet.export(shipped, out=tmp_path / "fleet.parquet")
    page = view(tmp_path / "fleet.parquet")
    (seen,) = page.nodes
    assert seen.seal.tone == "fair"
    assert seen.seal.headline.startswith("Rows of a Parquet file")
    drawn = page_html(page)
    assert "Refused" not in drawn
    assert "of 0 planned" not in drawn
