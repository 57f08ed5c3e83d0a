"""Quotes through the command line, the table of well-known cards, and the documents about them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from standin import StandIn
from test_price import CLEAN, MARKET, ask, earlier, node
from test_scoring import report, stream

from harness import codec, stats
from harness.cli import cli
from harness.errors import ForgeryError, MisuseError
from harness.model import Outcome, Quote, Report
from harness.proof.seal import OPEN, seal
from harness.render.quotes import market_markdown, quote_card
from harness.scoring import price, profiles, quote, recompute
from harness.scoring.evidence import load
from harness.scoring.pricelist import CARDS, market_table
from harness.scoring.quick import _interval, load_fast
from harness.scoring.typical import typical_rates

ROOT = Path(__file__).parent.parent
DOCUMENT = (ROOT / "docs" / "pricing.md").read_text()
SHIPPED = next((ROOT / "results").glob("2*.json"))
WHOLE = codec.decode(SHIPPED.read_bytes(), Report)
MEASURED = [outcome for outcome in WHOLE.outcomes if outcome.measurement][:3]


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in args], catch_exceptions=True)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quotes")
    said = run("quote", SHIPPED, "--out", folder)
    (path,) = folder.iterdir()
    assert f"quote {path}" in said.output
    return path


def test_a_written_quote_is_recomputed_from_its_report(written: Path) -> None:
    said = run("verify", SHIPPED, written)
    assert said.exit_code == 0
    assert "follow from the report, the terms and the data, to the last digit" in said.output


def test_a_written_quote_that_was_changed_is_refused_with_exit_code_4(written: Path, tmp_path: Path) -> None:
    own = codec.decode(written.read_bytes(), Quote)
    path = tmp_path / "quote-x.json"
    path.write_bytes(codec.encode(replace(own, valid_for_s=10**6)))
    said = run("verify", SHIPPED, path)
    assert said.exit_code == 4
    assert "$.valid_for_s: says 1000000, computed again it is 600" in said.output


def test_a_quote_without_its_report_is_not_guessed_at(written: Path) -> None:
    said = run("verify", written)
    assert isinstance(said.exception, MisuseError)
    assert "was made from is not among the files" in str(said.exception)


def test_a_folder_of_reports_is_priced_as_its_files(tmp_path: Path) -> None:
    (tmp_path / SHIPPED.name).write_bytes(SHIPPED.read_bytes())
    (tmp_path / "schema.json").write_text("{}")
    whole, single = (run("quote", source, "--json") for source in (tmp_path, SHIPPED))
    assert json.loads(whole.stdout) == json.loads(single.stdout) != []
    (tmp_path / SHIPPED.name).unlink()
    assert "no report in" in str(run("quote", tmp_path).exception)


def test_the_derivation_can_be_followed_by_hand() -> None:
    said = run("quote", SHIPPED, "--explain").output
    for digest in (profiles()["general"].digest, WHOLE.seal.digest):
        assert digest in said
    speeds = [float(s) for s in re.findall(r"(\S+) of the reference node, 0.5 of the time", said)]
    cycles = int(re.findall(r"= (\d+) cycles/s", said)[0])
    assert int(1e6 / sum(0.5 / s for s in speeds)) == cycles
    lines = [Decimal(usd) for usd in re.findall(r"^ +(\d\.\d{6}) \w+: ", said, re.MULTILINE)]
    assert f"sum: {sum(lines)} USD/h" in said


def test_a_history_at_hand_is_checked_too() -> None:
    own, past = node(), earlier(node())
    made = ask(own, history=[past])
    assert made.terms.record is not None
    assert recompute(made, own, past, market=MARKET).accepted
    flattered = replace(made, terms=replace(made.terms, record=replace(made.terms.record, good_count=900)))
    paths = [fault.path for fault in recompute(flattered, own, past, market=MARKET).faults]
    assert paths[0] == "$.terms.record"
    assert any("history" in said for said in recompute(made, own, market=MARKET).not_proven)
    assert CLEAN.good_count > made.terms.record.good_count


@pytest.mark.parametrize(
    "args", [["--congestion", "3"], ["--congestion", "nan"], ["--interruptions", "5"], ["--profile", "nosuch"]]
)
def test_options_out_of_range_are_misuse(args: list[str]) -> None:
    assert isinstance(run("quote", SHIPPED, *args).exception, MisuseError)


def test_a_market_quote_is_drawn_with_its_interval_and_advice() -> None:
    from rich.console import Console

    console = Console(width=200)
    with console.capture() as drawn:
        console.print(quote_card(ask(node())))
    assert re.search(r"USD/h \(\d\.\d{4} to \d\.\d{4}\), \d+\.\d{4} USD per CU-1-hour of general", drawn.get())
    assert "advice to the owner, not a price" in drawn.get()


# --- well-known cards -------------------------------------------------------------------------------------------------


def test_the_going_rate_is_the_middle_one_so_that_half_of_the_cards_are_cheap() -> None:
    cards = ("NVIDIA H100 80GB HBM3", "NVIDIA GeForce RTX 4090", "NVIDIA B200")
    found = market_table(cards=cards, names=("decode", "hpc"), at=date(2026, 10, 10), market=StandIn())
    h100, rtx = found.lines  # the stand-in knows no B200
    assert (h100.name, rtx.name) == ("H100 80GB HBM3", "RTX 4090")
    assert h100.low_usd_per_hour < h100.usd_per_hour < h100.high_usd_per_hour
    assert h100.worths["decode"].difference_percent * rtx.worths["decode"].difference_percent < 0
    assert "hpc" not in h100.worths, "its float64 rate is not published: it is left out, not guessed"
    by_hand = found.going_usd_per_cu_hour["decode"] * Decimal("0.98")
    assert abs(h100.worths["decode"].usd_per_hour / by_hand - 1) < Decimal("0.03")
    assert market_markdown(found).splitlines()[0] == "| card | market, USD/h | interval | decode | hpc |"


def test_each_well_known_card_has_published_rates() -> None:
    assert len(CARDS) == 10
    assert all("gemm_fp16" in typical_rates(card) or "gemm_bf16" in typical_rates(card) for card in CARDS)


def test_a_market_that_knows_no_card_is_misuse() -> None:
    with pytest.raises(MisuseError, match="knows none of NVIDIA L4"):
        market_table(cards=("NVIDIA L4",), at=date(2026, 10, 10), market=StandIn())


# --- the documents ----------------------------------------------------------------------------------------------------


def test_the_examples_of_the_document_run() -> None:
    examples = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        ended = subprocess.run([sys.executable, "-c", example], cwd=ROOT, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.strip()


def test_the_table_of_profiles_is_the_one_that_is_shipped() -> None:
    for name, profile in profiles().items():
        shares = ", ".join(f"{w} {share:f}" for w, share in profile.shares.items())
        assert re.search(rf"^\| `{name}` \| .* \| {re.escape(shares)}", DOCUMENT, re.MULTILINE), name


def test_the_library_prices_bytes_without_loading_anything_heavy() -> None:
    program = (
        "import sys, pathlib; from harness.scoring import price; "
        f"price(pathlib.Path({str(SHIPPED)!r}).read_bytes()); "
        "print({'numpy', 'ray', 'pandas', 'numba', 'cupy', 'pynvml'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "set()"


def test_quotes_of_reports_without_memory_say_so() -> None:
    (own,) = quote(report(stream(power_w=300.0)), market=MARKET, profile="decode-70b-int4")
    assert any("how much the device has is not known" in reason for reason in own.reasons)


# --- read fast --------------------------------------------------------------------------------------------------------


def resealed(*outcomes: Outcome) -> bytes:
    """Return the shipped report with these outcomes alone, sealed anew."""
    jobs = (outcome.measurement or outcome.skipped for outcome in outcomes)
    whole = replace(WHOLE, outcomes=outcomes, plan=tuple(held.job for held in jobs if held), seal=OPEN)
    return codec.encode(replace(seal(whole, [codec.digest(o) for o in outcomes], None), outcomes=outcomes))


SMALL = resealed(*MEASURED)


@pytest.mark.parametrize("data", [SMALL, SHIPPED.read_bytes()], ids=["unsigned", "signed"])
def test_the_fast_way_and_the_long_one_read_the_same_report(data: bytes) -> None:
    assert load_fast(data) == load(data)


def test_a_byte_that_was_changed_anywhere_sends_a_report_the_long_way() -> None:
    signed = SHIPPED.read_bytes()
    assert load_fast(signed)
    for data, changes in ((SMALL, 300), (signed, 20)):
        for at in range(1, len(data), len(data) // changes):
            assert load_fast(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]) is None, at


def faster(outcome: Outcome) -> Outcome:
    m = outcome.measurement
    assert m is not None
    interval = replace(m.interval, low_s=m.interval.low_s / 2, high_s=m.interval.high_s / 2)
    return replace(outcome, measurement=replace(m, time_s=m.time_s / 2, interval=interval))


def surer(end: str, times: float) -> Any:
    """Return what moves one end of an interval, and nothing else."""

    def change(outcome: Outcome) -> Outcome:
        m = outcome.measurement
        assert m is not None
        interval = replace(m.interval, **{end: getattr(m.interval, end) * times})
        return replace(outcome, measurement=replace(m, interval=interval))

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (faster, "its raw times give"),
        (surer("high_s", 0.999), "its raw times give"),
        (surer("low_s", 0.999), "its raw times give"),
        (surer("confidence_fraction", 0.999), "its raw times give"),
        (lambda o: replace(o, measurement=None), "must hold exactly one of measurement, skipped and failed"),
    ],
)
def test_a_sealed_lie_is_found_by_the_fast_way_as_by_the_long_one(change: Any, says: str) -> None:
    lie = resealed(change(MEASURED[0]), *MEASURED[1:])
    assert load_fast(lie) is None
    with pytest.raises(ForgeryError, match=says):
        price(lie)


def test_a_job_that_was_planned_twice_or_not_at_all_is_found_by_the_fast_way_too() -> None:
    own = codec.decode(SMALL, Report)
    for plan in (own.plan[1:], (*own.plan, own.plan[0])):
        sealed = seal(replace(own, plan=plan, seal=OPEN), own.seal.outcomes, None)
        assert load_fast(codec.encode(replace(sealed, outcomes=own.outcomes))) is None


@given(st.lists(st.lists(st.floats(1e-9, 1e3), min_size=1, max_size=6).map(tuple), min_size=1, max_size=9))
def test_the_fast_interval_is_the_verifiers(times: list[tuple[float, ...]]) -> None:
    exact = stats.interval(stats.medians(times), stats.step(times))
    assert _interval(times) == pytest.approx(exact, rel=1e-9)


def test_the_table_in_the_readme_is_what_the_command_prints() -> None:
    """Made anew by `harness market table --at 2026-11-25 --markdown` where the model was fitted anew."""
    printed = market_markdown(market_table(at=date(2026, 11, 25))).splitlines()
    readme = (ROOT / "README.md").read_text().splitlines()
    assert [line for line in printed if line.rstrip() not in [r.rstrip() for r in readme]] == []
