"""`harness serve-bench`: a whole benchmark in virtual time, and the command against a real server."""

from __future__ import annotations

import asyncio
import heapq
import json
import math
import re
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple, get_args

import aiohttp
import click
import pytest
from rich.console import Console
from scripted import SCRIPTS, Script, Simulated, served
from virtualtime import run_virtually

from harness import codec
from harness.cli import cli, main
from harness.cli.serve_bench import serve_bench
from harness.errors import FailureError, MisuseError
from harness.inference import loadgen, metrics
from harness.inference.audit import AuditName
from harness.inference.exchange import Event, Request, Usage
from harness.inference.serving import Plan, Prompts, ServeReport, _number, bench, make_ready
from harness.inference.slo import SLOS, find_slo
from harness.render.serving import serve_report


class Silent:
    """Progress nobody looks at; it counts."""

    def __init__(self) -> None:
        self.parts: list[tuple[str, int]] = []
        self.steps = 0

    def begins(self, what: str, steps: int) -> None:
        self.parts.append((what, steps))

    def step(self) -> None:
        self.steps += 1


PLAN = Plan(seed="5eed", users=(2,), requests_count=22, output_tokens=16, audits=False)


def benched(server: Any, plan: Plan = PLAN, **options: Any) -> ServeReport:
    return run_virtually(bench(server, plan, Silent(), name="simulated", **options))


def drawn(report: ServeReport) -> str:
    console = Console(width=400, color_system=None)
    with console.capture() as shown:
        console.print(serve_report(report))
    return shown.get()


# --- prompts ----------------------------------------------------------------------------------------------------------


def test_prompts_follow_from_the_seed_and_have_no_beginning_in_common() -> None:
    prompts = Prompts(seed="5eed", words_count=30, output_tokens=8)
    texts = [str(prompts.ask(part)(i).prompt) for part in ("a", "b") for i in range(200)]
    assert texts[:200] == [prompts.ask("a")(i).prompt for i in range(200)]
    assert len({t[:12] for t in texts}) == len(texts)
    other = Prompts(seed="5eee", words_count=30, output_tokens=8)
    assert not {t[:12] for t in texts} & {str(other.ask("a")(i).prompt)[:12] for i in range(200)}


@pytest.mark.parametrize("wanted", [30, 64, 1000])
def test_prompts_are_as_long_as_wanted_by_the_servers_own_count(wanted: int) -> None:
    ready = run_virtually(make_ready(Simulated(Script()), seed="1", input_tokens=wanted, output_tokens=4, timeout_s=60))
    assert ready.input_tokens == wanted
    assert ready.e2e_s == pytest.approx(0.08 + 3 * 0.015)


def test_a_server_that_counts_nothing_gets_as_many_words() -> None:
    ready = run_virtually(
        make_ready(Simulated(Script(usage_factor=None)), seed="1", input_tokens=50, output_tokens=4, timeout_s=60)
    )
    assert (ready.prompts.words_count, ready.input_tokens) == (50, None)


def test_what_a_server_counts_does_not_make_prompts_without_bound() -> None:
    server = Simulated(Script())
    counts = iter([1, 2, 3])
    server.player.usage = lambda *_: Usage(input_tokens=next(counts), output_tokens=4)  # type: ignore[method-assign]
    ready = run_virtually(make_ready(server, seed="1", input_tokens=256, output_tokens=4, timeout_s=60))
    assert ready.prompts.words_count == 512


def test_a_server_that_answers_nothing_is_a_failure_that_says_what_it_said() -> None:
    with pytest.raises(FailureError, match="does not answer a first request: HTTP 500"):
        benched(Simulated(Script(fail_every=1)))


# --- a whole benchmark in virtual time --------------------------------------------------------------------------------


def test_a_report_holds_every_time_and_what_they_come_to() -> None:
    report = benched(
        Simulated(SCRIPTS["exact"]), replace(PLAN, rates_per_s=(5.0,), offline=True, usd_per_hour=Decimal("0.36"))
    )
    assert [level.mode for level in report.levels] == ["closed", "poisson", "offline"]
    for level in report.levels:
        assert [len(run.exchanges) for run in level.runs] == [22, 22, 22]
        ttft = next(d for d in level.distributions if d.metric == "ttft/1")
        assert ttft.requests_count == 66
        assert {p.percent: p.state for p in ttft.percentiles} == {
            50: "certified", 90: "certified", 95: "too_few", 99: "too_few", 99.9: "too_few",
        }  # fmt: skip
        assert ttft.percentiles[0].value_s == pytest.approx(0.08)
        assert level.good_fraction == 1.0
    users, rate, together = report.levels
    assert (users.window, rate.window, together.window) == ("steady", "steady", "whole")
    tokens_per_s = 2 * 16 / 0.305
    assert users.spread("output_tokens_per_s").value == pytest.approx(tokens_per_s, rel=0.02)
    assert users.usd_per_million_output is not None
    assert float(users.usd_per_million_output) == pytest.approx(100 / tokens_per_s, rel=0.02)
    assert users.usd_per_million_split is not None
    assert together.spread("requests_per_s").value == pytest.approx(22 / 0.305)


def test_repetitions_are_independent_and_a_seed_repeats_them_all() -> None:
    plan = replace(PLAN, users=(), rates_per_s=(5.0,))
    first, second = (benched(Simulated(SCRIPTS["exact"]), plan) for _ in range(2))
    (level,) = first.levels
    starts = [[x.intended_s for x in run.exchanges] for run in level.runs]
    assert starts[0] != starts[1] != starts[2]
    assert starts == [[x.intended_s for x in run.exchanges] for run in second.levels[0].runs]
    replies = [x.text_sha256 for run in level.runs for x in run.exchanges]
    assert len(set(replies)) == len(replies)


def test_the_record_survives_the_wire() -> None:
    report = benched(
        Limited(SCRIPTS["noisy"]),
        replace(PLAN, audits=True, search=True, slo=find_slo("e2e=0.5"), repetitions_count=1, usd_per_hour=Decimal(1)),
    )
    data = codec.encode(report)
    assert codec.decode(data, ServeReport) == report


def test_fewer_than_three_repetitions_have_no_interval() -> None:
    report = benched(Simulated(SCRIPTS["exact"]), replace(PLAN, repetitions_count=2))
    spread = report.levels[0].spread("output_tokens_per_s")
    assert spread.value is not None
    assert (spread.low, spread.high) == (None, None)
    assert "no range: that takes three repetitions" in drawn(report)


class Limited(Simulated):
    """Serves so many at a time; the others wait."""

    def __init__(self, script: Script, places: int = 4) -> None:
        super().__init__(script)
        self._slots = asyncio.Semaphore(places)

    async def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        async with self._slots:
            async for event in super().stream(request):
                yield event


@pytest.mark.parametrize(
    ("places", "slo", "told"),
    [
        (64, "ttft=0.06", "ttft=0.06"),
        (4, "batch", "batch,ttft=0.8"),
    ],  # which limits no waiting: then ten requests alone
)
def test_a_rate_is_tried_for_as_long_as_a_queue_needs_to_show(places: int, slo: str, told: str) -> None:
    """Each place is taken for 0.08 s. A burst of 66 requests finds 64 places nearly all free, whatever its rate."""
    server = Limited(Script(first_s=0.01, gap_s=0.07, bundle=8, role_first=False), places)
    plan = Plan(
        seed="5eed", search=True, repetitions_count=1, input_tokens=8, output_tokens=16, slo=find_slo(slo), audits=False
    )
    (found,) = benched(server, plan).searches
    assert found.slo == told
    assert found.passed_rate_per_s is not None
    few = 0.1 if places == 4 else 0.0  # some 400 arrivals of one draw may be a tenth sparser than their rate
    assert 0.9 - few < found.passed_rate_per_s / (places / 0.08) < 1.1 + few
    assert found.failed_rate_per_s is not None


def test_a_search_ends_where_a_try_would_take_more_requests_than_a_run_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loadgen, "REQUESTS_MOST", 100)
    report = benched(
        Simulated(Script(first_s=0.1, gap_s=0.0)), replace(PLAN, users=(), search=True, slo=find_slo("e2e=1"))
    )
    (found, *_) = report.searches
    assert found.passed_rate_per_s is not None
    assert found.passed_rate_per_s <= 10 < 2 * found.passed_rate_per_s
    assert found.failed_rate_per_s is None
    assert found.ended == "20 requests/s were not tried: long enough to tell would be 200 requests"
    assert f"10/s passed, none failed, in 1 tries; {found.ended}" in drawn(report)


def good_by_hand(rate_per_s: float, requests: int, seed: int) -> int:
    """How many of these arrivals find one of four places, each taken for 0.3 s, so soon that they have a token within 0.5 s."""
    free_s, good = [0.0] * 4, 0
    for at in loadgen.arrivals(loadgen.poisson(rate_per_s, requests, seed)):
        start = max(at, heapq.heappop(free_s))
        heapq.heappush(free_s, start + 0.3)
        good += start + 0.29 - at <= 0.5
    return good


def test_the_highest_rate_within_an_slo_is_the_one_that_a_queue_worked_out_by_hand_gives() -> None:
    plan = replace(PLAN, users=(), search=True, slo=find_slo("ttft=0.5"), output_tokens=2)
    report = benched(Limited(Script(first_s=0.29, gap_s=0.01)), plan)
    assert len(report.searches) == 3
    for i, found in enumerate(report.searches):
        assert found.passed_rate_per_s is not None
        assert found.failed_rate_per_s is not None
        assert 5 < found.passed_rate_per_s < 4 / 0.3
        assert found.failed_rate_per_s < 1.06 * found.passed_rate_per_s
        for tried in found.tries:
            count = tried.requests_count
            assert count == max(66, math.ceil(tried.rate_per_s * 5.0))
            good = good_by_hand(tried.rate_per_s, count, _number(plan.seed, f"search/{i}"))
            assert tried.passed == (good >= 0.95 * count)
            assert tried.good_count == good if tried.passed else tried.good_count < 0.95 * count
    assert report.max_rate
    assert report.max_rate.value in {s.passed_rate_per_s for s in report.searches}
    assert "highest rate within the SLO: " in drawn(report)


def test_goodput_and_price_count_what_kept_the_slo() -> None:
    strict = replace(PLAN, users=(8,), slo=find_slo("ttft=0.2"), usd_per_hour=Decimal(1))
    (level,) = benched(Limited(SCRIPTS["exact"]), strict).levels
    good, every = level.spread("good_output_tokens_per_s").value, level.spread("output_tokens_per_s").value
    assert good is not None
    assert every is not None
    assert good < every / 2  # eight users, four at a time: most wait for a whole reply before theirs
    assert level.good_fraction is not None
    assert level.good_fraction < 0.5
    (lenient,) = benched(Limited(SCRIPTS["exact"]), replace(strict, slo=SLOS["batch"])).levels
    assert lenient.usd_per_million_output is not None
    assert level.usd_per_million_output is None or level.usd_per_million_output > 2 * lenient.usd_per_million_output


def test_tokens_per_joule_need_a_counter_and_20_seconds() -> None:
    async def measured(requests: int) -> ServeReport:
        now = asyncio.get_running_loop().time
        plan = replace(PLAN, requests_count=requests)
        return await bench(Simulated(SCRIPTS["exact"]), plan, Silent(), name="s", joules=lambda: 50.0 * now())

    long, short = (run_virtually(measured(n)).levels[0] for n in (140, 30))
    assert long.spread("tokens_per_joule").value == pytest.approx(2 * 16 / 0.305 / 50, rel=0.01)
    assert short.spread("tokens_per_joule").value is None
    assert all(run.joules for run in short.runs)


def test_failures_are_shown_as_never_with_their_reason() -> None:
    shown = drawn(benched(Simulated(Script(fail_every=4))))
    row = next(line for line in shown.splitlines() if line.startswith("2 users"))
    assert row.split()[2:5] == ["66", "17", "80"]  # every fourth of these, and of three asked before
    assert "never" in row
    assert "! failed: HTTP 500 Internal Server Error" in shown


def test_a_percentile_without_its_sample_is_a_dash() -> None:
    shown = drawn(benched(Simulated(Script()), replace(PLAN, requests_count=6)))
    row = next(line for line in shown.splitlines() if line.startswith("2 users"))
    assert row.split()[2:7] == ["18", "0", "80", "-", "-"]
    assert "it takes 11 for p50, 64 for p90, 662 for p99" in shown


def objecting(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    left = iter([*["its loop was late"] * times, *[None] * 99])
    monkeypatch.setattr(loadgen, "objection", lambda _: next(left))


def test_what_a_busy_client_measured_is_measured_again_and_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    objecting(monkeypatch, 2)
    report = benched(Simulated(SCRIPTS["exact"]))
    assert report.levels[0].discarded_count == 2
    assert "2 repetitions were done again because it had been the bottleneck" in drawn(report)


def test_a_client_that_stays_busy_reports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    objecting(monkeypatch, 3)
    with pytest.raises(loadgen.BusyClientError, match="no result for 2 users, repetition 1, try 3: its loop was late"):
        benched(Simulated(SCRIPTS["exact"]))


def test_a_plan_without_a_load_is_refused() -> None:
    with pytest.raises(MisuseError, match="puts no load on the server"):
        benched(Simulated(Script()), replace(PLAN, users=()))


def test_a_plan_of_longer_replies_than_can_be_recorded_is_refused() -> None:
    with pytest.raises(MisuseError, match="output_tokens is 65537; a reply of 1 to 65536 tokens can be recorded"):
        benched(Simulated(Script()), replace(PLAN, output_tokens=65_537))


def test_progress_hears_of_every_request() -> None:
    progress = Silent()
    run_virtually(bench(Simulated(Script()), replace(PLAN, audits=True), progress, name="s"))
    assert [p for p, _ in progress.parts] == [
        "making ready",
        "probing",
        *(f"2 users, repetition {i}" for i in (1, 2, 3)),
    ]
    assert progress.steps == 12 + 66


# --- the command ------------------------------------------------------------------------------------------------------


class Said(NamedTuple):
    """What the command left behind."""

    code: int
    out: str
    err: str


Call = Callable[..., Said]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """Return a function that runs the command in this process. This machine may be as busy as it likes, unless a test says otherwise."""
    monkeypatch.delenv("HARNESS_API_KEY", raising=False)
    monkeypatch.setitem(cli.commands, "serve-bench", serve_bench)
    monkeypatch.setattr(loadgen, "LAG_MOST_S", 10.0)
    monkeypatch.setattr(loadgen, "CPU_MOST_FRACTION", 10.0)
    monkeypatch.chdir(tmp_path)

    def run(*args: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["harness", "serve-bench", *map(str, args)])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        return Said(int(caught.value.code or 0), out, err)

    return run


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(tmp_path_factory.mktemp("scripted")) as address:
        yield address


SMALL = ("--output-tokens", 8, "--requests", 6, "--repeat", 2, "--users", "2")


def test_a_benchmark_ends_with_its_table_its_audits_and_where_the_report_lies(
    call: Call, url: str, tmp_path: Path
) -> None:
    said = call(url, "--model", "fast", *SMALL, "--rate", "40", "--price", "0.4", "--seed", "abc")
    assert said.code == 0, said
    assert re.search(r"^http://127.0.0.1:\d+/v1  fast  chat completions$", said.out, re.MULTILINE)
    assert re.search(r"^load +requests +failed +TTFT ms +p90 +p99 +TPOT ms ", said.out, re.MULTILINE)
    assert re.search(r"^2 users +12 +0 +[\d.]+ +- +- ", said.out, re.MULTILINE)
    assert re.search(r"^40/s +12 +0 +[\d.]+ +- +- ", said.out, re.MULTILINE)
    assert said.out.count("\naudit ") == 6
    assert said.out.count(": clear ") == 5
    assert "audit same reply: unknown  0 replies of 32 tokens or more are too few to tell" in said.out
    assert "2 users, repetition 2 (6)" in said.err
    (path,) = (tmp_path / "results" / "serving").iterdir()
    data = path.read_bytes()
    assert f"report results/serving/{path.name}  (SHA-256 {codec.digest(data)})" in said.out
    report = codec.decode(data, ServeReport)
    assert (report.model, report.plan.seed, report.input_tokens) == ("fast", "abc", 256)


def test_as_json_it_is_one_document(call: Call, url: str) -> None:
    said = call(url, "--model", "fast", *SMALL, "--no-audit", "--json")
    found = json.loads(said.out)
    assert said.code == 0
    assert json.loads(Path(found["path"]).read_bytes()) == found["report"]
    assert found["report"]["findings"] == []


def test_a_flagged_server_is_exit_code_3(call: Call, url: str) -> None:
    said = call(url, "--model", "burst-after-first", *SMALL)
    assert said.code == 3
    assert re.search(r"^audit buffered: flagged .*a burst at the end", said.out, re.MULTILINE)


def test_a_client_that_lags_reports_nothing(
    call: Call, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loadgen, "LAG_MOST_S", -1.0)
    said = call(url, "--model", "fast", *SMALL, "--no-audit")
    assert (said.code, said.out) == (1, "")
    assert "harness: no result for 2 users, repetition 1, try 3: this client's event loop was late by" in said.err
    assert list((tmp_path / "results" / "serving").iterdir()) == []


def log_of(url: str) -> list[dict[str, Any]]:
    async def fetch() -> list[dict[str, Any]]:
        async with aiohttp.ClientSession() as session:
            found: list[dict[str, Any]] = await (await session.get(f"{url}/log")).json()
            return found

    return asyncio.run(fetch())


def test_a_server_that_knows_no_ignore_eos_is_asked_without(call: Call, url: str) -> None:
    log_of(url)
    said = call(url, "--model", "strict", *SMALL, "--no-audit", "--json")
    assert (said.code, json.loads(said.out)["report"]["ignore_eos"]) == (0, False)
    assert {"ignore_eos" in e["body"] for e in log_of(url)} == {False}
    assert "(it refuses ignore_eos: a reply may end before)" in call(url, "--model", "strict", *SMALL, "--no-audit").out


@pytest.mark.parametrize("model", ["fast", "busy"])  # one is busy at first, which says nothing of the word
def test_a_server_that_knows_ignore_eos_is_asked_with_it(call: Call, url: str, model: str) -> None:
    log_of(url)
    said = call(url, "--model", model, *SMALL, "--no-audit", "--json")
    assert (said.code, json.loads(said.out)["report"]["ignore_eos"]) == (0, True), said
    assert {e["body"].get("ignore_eos") for e in log_of(url)} == {True}


def test_a_server_that_refuses_for_another_reason_is_not_asked_again(call: Call, url: str) -> None:
    log_of(url)
    said = call(url, "--model", "locked", *SMALL)
    assert (said.code, said.out, len(log_of(url))) == (1, "", 1)
    assert "does not answer a first request: HTTP 401 Unauthorized" in said.err


@pytest.mark.parametrize("how", ["file", "environment"])
def test_a_key_is_sent_and_nowhere_written(
    call: Call, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    log_of(url)
    file = tmp_path / "key"
    file.write_text("sk-very-secret\n")
    given = ("--api-key", file) if how == "file" else ()
    if not given:
        monkeypatch.setenv("HARNESS_API_KEY", "sk-very-secret\n")
    said = call(url, "--model", "fast", *SMALL, "--no-audit", *given)
    assert {e["authorization"] for e in log_of(url)} == {"Bearer sk-very-secret"}
    (path,) = (tmp_path / "results" / "serving").iterdir()
    assert "very-secret" not in path.read_text() + said.out + said.err


def test_a_key_in_the_environment_is_held_to_what_one_in_a_file_is(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_API_KEY", "two\nlines")
    said = call("http://127.0.0.1:9", "--model", "m", *SMALL)
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "HARNESS_API_KEY holds no key: it should be one line of printable characters" in said.err
    assert "two" not in said.err


def test_a_server_that_does_not_say_its_models_is_given_up(call: Call) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        said = call(f"http://127.0.0.1:{silent.getsockname()[1]}", *SMALL, "--timeout", "0.3")
    assert (said.code, said.err.count("\n")) == (1, 1)
    assert "/v1/models did not answer within 0.3 s; name a model with --model" in said.err


def test_plain_completions_are_another_interface(call: Call, url: str) -> None:
    log_of(url)
    said = call(url, "--model", "fast", *SMALL, "--no-audit", "--completions")
    assert said.code == 0
    assert "  fast  completions" in said.out
    assert all("prompt" in e["body"] and "messages" not in e["body"] for e in log_of(url))


def test_several_models_must_be_told_apart(call: Call, url: str) -> None:
    said = call(url, *SMALL)
    assert said.code == 2
    assert f"serves {len(SCRIPTS)} models; name one with --model: exact, bundled" in said.err


@pytest.mark.parametrize(
    ("args", "named", "right"),
    [
        ((), "Missing argument 'URL'", "serve-bench --help`."),
        (("localhost:8000",), "'localhost:8000' is not the address", "such as http://127.0.0.1:8000"),
        (("http://me:pw@h",), "the address of 'h'", "a key goes into a file (--api-key)"),
        (("http://h", "--users", "0"), "'0' is not positive numbers", "such as 1,4,16"),
        (("http://h", "--users", "1,x"), "'1,x' is not positive numbers", "such as 1,4,16"),
        (("http://h", "--rate", "-1"), "'-1' is not positive numbers", "such as 0.5,2"),
        (("http://h", "--rate", "nan"), "'nan' is not positive numbers", "such as 0.5,2"),
        (("http://h", "--requests", "0"), "'--requests': 0 is not in the range", "1<=x<="),
        (("http://h", "--requests", "65537"), "'--requests': 65537 is not in the range", "1<=x<=65536"),
        (("http://h", "--output-tokens", "65537"), "'--output-tokens': 65537 is not in the range", "1<=x<=65536"),
        (
            ("http://h", "--model", "m", "--users", "30000"),
            "a run of 90000 requests",
            "the 65536 that its record can hold",
        ),
        (("http://h", "--slo", "fast"), "no SLO 'fast'", "there are standard, interactive, local, batch"),
        (("http://h", "--timeout", "nan"), "timeout nan", "is not a positive number of seconds"),
        (("http://h", "--price", "cheap"), "price 'cheap'", "is not a positive number of USD per hour"),
        (("http://h", "--price", "-1"), "price '-1'", "such as 0.40"),
        (("http://h", "--seed", "xyz"), "seed 'xyz'", "is not 1 to 64 hexadecimal digits"),
        (("http://h", "--api-key", "/nosuch"), "cannot read the key '/nosuch'", "No such file"),
        (("http://h", "--api-key", __file__), "holds no key", "one line of printable characters"),
        (("http://h", "--out", "/proc/nosuch/x"), "'/proc/nosuch/x'", "name a folder you may write to with --out"),
        pytest.param(
            ("http://h", "--energy", "tpu:0"),
            "no device 'tpu:0' on this machine",
            "there are: cpu",
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else "",
)
def test_misuse_is_one_line_that_names_the_value_and_what_would_be_right(
    call: Call, args: tuple[str, ...], named: str, right: str
) -> None:
    said = call(*args)
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1), said
    assert named in said.err
    assert right in said.err


def test_a_server_that_is_not_there_is_a_failure_in_one_line(call: Call) -> None:
    said = call("http://127.0.0.1:9", "--model", "m", *SMALL)
    assert (said.code, said.out) == (1, "")
    assert "does not answer a first request: " in said.err
    assert "Traceback" not in said.err


def test_its_help_names_every_option(call: Call) -> None:
    said = call("--help")
    assert said.code == 0
    for parameter in serve_bench.params:
        assert parameter.opts[0].replace("url", "URL") in said.out
        assert not isinstance(parameter, click.Option) or parameter.help


def test_the_command_brings_no_library_of_numbers_before_it_is_used() -> None:
    heavy = "{'numpy', 'numba', 'ray', 'pandas', 'cupy', 'pynvml', 'pyarrow', 'aiohttp'}"
    code = f"import sys, harness.cli.serve_bench, harness.render.serving; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# --- its page ---------------------------------------------------------------------------------------------------------

PAGE = (Path(__file__).parent.parent / "docs" / "serving.md").read_text()


def test_the_page_names_every_definition_audit_and_floor() -> None:
    for metric in metrics.DEFINITIONS:
        assert f"| `{metric}` |" in PAGE
    for audit in get_args(AuditName):
        assert f"| {audit.replace('_', ' ')} |" in PAGE
    for percent in (50, 90, 95, 99, 99.9):
        assert f"{metrics.floor_count(percent):,} for p{percent:g}" in PAGE.replace("\n", " ")
    for name in SLOS:
        assert f"`{name}`" in PAGE


def test_the_page_names_only_options_that_there_are() -> None:
    options = {name for parameter in serve_bench.params for name in parameter.opts}
    assert set(re.findall(r"`(--[a-z-]+)", PAGE)) <= options
