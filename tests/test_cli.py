"""The command line: what each command prints, and that every mistake is answered in one line."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest

import harness
from harness import codec, registry
from harness.cli import cli, main
from harness.cluster import session
from harness.cluster.plan import choose, deadline_s, effort_for, plan, seed_or_fresh
from harness.cluster.session import Finished, Progress
from harness.device.cuda import cuda_status
from harness.errors import MisuseError
from harness.model import Device, Failed, FailureKind, Job, Outcome, Report
from harness.proof.seal import seal
from harness.proof.verify import job_of

COMMANDS = sorted(cli.commands)
SHIPPED = next((Path(__file__).parent.parent / "results").glob("2*.json"))


class Said(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


Call = Callable[..., Said]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Return a function that runs the command line in this process."""
    monkeypatch.delenv("HARNESS_KEY", raising=False)

    def run(*args: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["harness", *map(str, args)])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        return Said(int(caught.value.code or 0), out, err)

    return run


def process(*args: object, **env: str) -> Said:
    """Run the command line in a process of its own, with nothing of this one's about colours and encodings."""
    kept = {k: v for k, v in os.environ.items() if k not in {"NO_COLOR", "FORCE_COLOR", "HARNESS_KEY"}}
    command = [sys.executable, "-m", "harness", *map(str, args)]
    done = subprocess.run(command, capture_output=True, env=kept | env, check=False)
    return Said(done.returncode, done.stdout.decode(), done.stderr.decode())


def only_line(said: Said, code: int = 2) -> str:
    """Return the one line that a refused command says."""
    assert said.code == code, said
    assert said.out == ""
    assert said.err.endswith("\n")
    assert said.err.count("\n") == 1, said.err
    assert said.err.startswith("harness: ")
    assert "Traceback" not in said.err
    return said.err.removeprefix("harness: ").rstrip("\n")


def document(said: Said) -> Any:
    """Return the JSON document that is the last line of stdout."""
    return json.loads(said.out.splitlines()[-1])


class Ran(NamedTuple):
    """A run that was really made, and its report."""

    said: Said
    path: Path
    report: Report


@pytest.fixture(scope="session")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    out = tmp_path_factory.mktemp("run") / "results"
    said = process("run", "launch", "--device", "cpu", "--preset", "quick", "--out", out, "--node", "test-node")
    (path,) = out.iterdir()
    return Ran(said, path, codec.read(path, Report))


def sealed(report: Report) -> Report:
    closed = seal(report, [codec.digest(o) for o in report.outcomes], None)
    return replace(closed, outcomes=report.outcomes)


def written(folder: Path, report: Report, name: str = "report.json") -> Path:
    """Write a report, sealed over whatever it holds."""
    path = folder / name
    path.write_bytes(codec.encode(sealed(report)))
    return path


# --- run --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_ends_with_its_table_score_quote_and_where_the_report_lies(ran: Ran) -> None:
    code, out, err = ran.said
    assert (code, "Traceback" in err) == (0, False), err
    assert re.search(r"^benchmark +parameters +value +unit +95 % interval +± +state", out, re.MULTILINE)
    assert re.search(r"^launch +launches=64 +[\d.]+ +[nµm]s/launch +[\d.]+ \.\. [\d.]+ +[\d.]+%", out, re.MULTILINE)
    assert "not measured: gemm_fp32, mem" in out
    assert re.search(r"USD/h, floor [\d.]+ USD/h", out)
    assert f"report {ran.path}  (unsigned: see `harness keygen`)" in out
    assert "2 jobs on cpu" in err
    assert "[2/2] launch launches=512: " in err


@pytest.mark.slow
def test_a_run_as_json_ends_with_one_document(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = tmp_path / "key.pem"
    public = document(call("keygen", "--out", key, "--json"))["public_key"]
    monkeypatch.setenv("HARNESS_KEY", str(key))
    said = call("run", "launch", "--device", "cpu", "--budget", 1, "--out", tmp_path / "results", "--json")
    assert said.code == 0
    found = document(said)
    assert sorted(found) == ["quotes", "reports", "scores"]
    (entry,) = found["reports"]
    path = Path(entry["path"])
    assert json.loads(path.read_bytes()) == entry["report"]
    assert entry["report"]["seal"]["public_key"] == public
    again = call("verify", path, "--signer", public, "--json")
    assert (again.code, document(again)[0]["signed_by"]) == (0, public)


class Scripted:
    """Play a run: tell the follower its story, and return its report."""

    def __init__(self, ran: Ran, *outcomes: Outcome, already: int = 0) -> None:
        self._ran, self._outcomes, self._already = ran, outcomes, already

    def __call__(self, *names: str, progress: Progress, **options: object) -> tuple[Finished, ...]:
        progress.planned(self._ran.report.devices, [job_in(o) for o in self._outcomes], self._already)
        for outcome in self._outcomes:
            progress.started(job_in(outcome))
            progress.ended(outcome)
        return (Finished(path=self._ran.path, report=sealed(replace(self._ran.report, outcomes=self._outcomes))),)


def job_in(outcome: Outcome) -> Job:
    job = job_of(outcome)
    assert job is not None
    return job


def failed(ran: Ran, kind: FailureKind) -> Outcome:
    reason = f"it was {kind} [bold]"
    job = ran.report.plan[1]
    return Outcome(failed=Failed(job=job, started_at="", elapsed_s=0.0, outcome=kind, reason=reason))


@pytest.mark.parametrize(
    ("kinds", "code"),
    [
        ((), 0),
        (("failed",), 1),
        (("crashed", "timeout"), 1),
        (("out_of_memory",), 1),
        (("wrong_answer",), 3),
        (("crashed", "wrong_answer"), 3),
    ],
)
def test_a_run_exits_by_the_gravest_of_its_outcomes(
    call: Call, ran: Ran, monkeypatch: pytest.MonkeyPatch, kinds: tuple[FailureKind, ...], code: int
) -> None:
    outcomes = (ran.report.outcomes[0], *(failed(ran, kind) for kind in kinds))
    monkeypatch.setattr(session, "run", Scripted(ran, *outcomes))
    said = call("run")
    assert said.code == code
    for kind in kinds:
        assert f"launch launches=512: {kind} (it was {kind} [bold])" in said.err
        assert f"it was {kind} [bold]" in said.out


def test_a_resumed_run_counts_on_from_what_is_done(call: Call, ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "run", Scripted(ran, ran.report.outcomes[1], already=1))
    lines = call("run", "--resume", ran.path).err.splitlines()
    assert lines[0].endswith(", 1 already done")
    assert lines[1].startswith("[2/2] launch launches=512: ")


def test_what_a_worker_says_is_one_line_without_escapes(call: Call, ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = failed(ran, "failed")
    assert odd.failed
    odd = replace(odd, failed=replace(odd.failed, reason="two\nlines\x1b[31m in red"))
    monkeypatch.setattr(session, "run", Scripted(ran, odd))
    for terminal in ("0", "1"):
        monkeypatch.setenv("TTY_COMPATIBLE", terminal)
        said = call("run")
        assert "failed (two lines\N{REPLACEMENT CHARACTER}[31m in red)" in said.err
        assert "\x1b[31m" not in said.out + said.err


def test_progress_moves_on_a_terminal_and_its_results_stay(
    call: Call, ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(session, "run", Scripted(ran, ran.report.outcomes[0], failed(ran, "timeout")))
    said = call("run")
    assert "\x1b[2K" in said.err  # a line that is drawn over
    assert "launch launches=512: timeout (it was timeout [bold])" in said.err


# --- plan -------------------------------------------------------------------------------------------------------------

CPU = Device(uuid="CPU-1", name="Example CPU", kind="cpu", selector="cpu", sensors={})
OLD_GPU = replace(CPU, uuid="GPU-1", name="Old", kind="cuda", selector="cuda:0", unusable_reason="too old for CUDA 12")


def test_all_devices_are_those_that_can_be_used() -> None:
    assert choose((OLD_GPU, CPU), "all") == (CPU,)
    assert choose((OLD_GPU, CPU), "cpu") == (CPU,)


def test_a_device_that_cannot_be_used_is_refused_with_its_reason() -> None:
    with pytest.raises(MisuseError, match=r"device 'cuda:0' \(Old\) cannot be used: too old for CUDA 12"):
        choose((OLD_GPU, CPU), "cuda:0")


def test_a_run_that_is_cut_short_knows_a_little_of_every_benchmark() -> None:
    jobs = plan((CPU,), (), "standard", "00")
    names = [b.name for b in registry.find()]
    assert [job.benchmark for job in jobs[: len(names)]] == names
    assert len({codec.digest(job) for job in jobs}) == len(jobs)
    assert len({job.seed for job in jobs}) == len(jobs)


def test_the_same_seed_plans_the_same_jobs_and_another_other_inputs() -> None:
    assert plan((CPU,), ("launch",), "quick", "00") == plan((CPU,), ("launch",), "quick", "00")
    assert {j.seed for j in plan((CPU,), (), "full", "00")}.isdisjoint(j.seed for j in plan((CPU,), (), "full", "01"))


def test_a_seed_is_fresh_or_the_one_given_in_lower_case() -> None:
    assert seed_or_fresh("00FF") == "00ff"
    assert seed_or_fresh(None) != seed_or_fresh(None)


def test_a_budget_cuts_the_effort_and_never_adds_to_it() -> None:
    whole = effort_for("standard", None, 10)
    assert effort_for("standard", 1e6, 10) == whole
    short = effort_for("standard", 20.0, 10)
    assert 0 < short.budget_s < whole.budget_s
    assert short.warmup_s / whole.warmup_s == pytest.approx(short.budget_s / whole.budget_s)
    assert effort_for("standard", 1.0, 10).budget_s > 0
    assert deadline_s(short, CPU) < deadline_s(short, replace(CPU, emulated=True))


# --- documents --------------------------------------------------------------------------------------------------------


def test_list_as_json_has_one_object_a_benchmark(call: Call) -> None:
    found = document(call("list", "--json"))
    assert [entry["name"] for entry in found] == [b.name for b in registry.find()]
    assert all(set(e) == {"name", "version", "summary", "metric", "axes", "quick", "module"} for e in found)


def test_list_shows_every_benchmark_as_a_table_and_as_markdown(call: Call) -> None:
    table, markdown = call("list").out, call("list", "--markdown").out
    for bench in registry.find():
        assert re.search(rf"^{bench.name} +{bench.version} ", table, re.MULTILINE)
        assert f"| `{bench.name}` | {bench.summary} |" in markdown


@pytest.mark.slow
def test_devices_are_shown_and_told_as_json(call: Call) -> None:
    found = document(call("devices", "--json"))
    assert [d["selector"] for d in found if d["kind"] == "cpu"] == ["cpu"]
    assert found[0]["name"] in call("devices").out


def test_schema_prints_the_schema(call: Call) -> None:
    assert json.loads(call("schema").out) == codec.schema()


def test_a_report_is_verified_scored_and_quoted(call: Call, ran: Ran) -> None:
    verified = call("verify", ran.path)
    assert verified.code == 0
    assert f"{ran.path}: accepted  (unsigned)" in verified.out
    assert "proven: all 2 planned jobs have an outcome" in verified.out
    assert document(call("verify", ran.path, "--json"))[0]["accepted"] is True
    assert "not measured: gemm_fp32, mem" in call("score", ran.path).out
    (score,) = document(call("score", ran.path, "--json"))
    assert (score["profile"], score["missing"]) == ("general", ["gemm_fp32", "mem"])
    assert "USD/h" in call("quote", ran.path).out
    (quote,) = document(call("quote", ran.path, "--json"))
    assert quote["report_digest"] == ran.report.seal.digest
    assert isinstance(quote["price_usd_per_hour"], str)


def test_costs_and_profile_reach_the_quote(call: Call, ran: Ran, tmp_path: Path) -> None:
    costs = tmp_path / "costs.toml"
    costs.write_text("host_usd_per_hour = 7")
    (quote,) = document(call("quote", ran.path, "--costs", costs, "--profile", "hpc", "--json"))
    assert quote["profile"] == "hpc"
    assert {"7"} == {
        line["usd_per_hour"].rstrip("0").rstrip(".") for line in quote["breakdown"] if line["name"] == "host"
    }


def test_keygen_prints_the_public_key_and_the_next_step(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "key[red].pem"
    said = call("keygen", "--out", path)
    assert re.match(r"public key [0-9a-f]{64}\n", said.out)
    assert f"private key in {path}" in said.out
    assert path.stat().st_mode & 0o777 == 0o600


# --- forged files -----------------------------------------------------------------------------------------------------


def test_a_changed_report_is_refused_by_all_who_read_it(call: Call, ran: Ran, tmp_path: Path) -> None:
    forged = tmp_path / "forged.json"
    forged.write_bytes(ran.path.read_bytes().replace(b'"test-node"', b'"best-node"'))
    verdict = call("verify", forged)
    assert verdict.code == 4
    assert "REFUSED" in verdict.out
    assert "$.seal.digest: the head of the report" in verdict.out
    assert document(call("verify", ran.path, forged, "--json"))[1]["accepted"] is False
    for command in ("score", "quote"):
        assert "$.seal.digest: the head of the report" in only_line(call(command, forged), 4)
    assert "$.seal.digest" in only_line(call("run", "--resume", forged), 4)


@pytest.mark.parametrize("command", ["score", "quote"])
def test_a_file_that_is_no_report_is_refused_with_the_path_of_its_fault(
    call: Call, ran: Ran, tmp_path: Path, command: str
) -> None:
    junk = tmp_path / "junk.json"
    junk.write_bytes(ran.path.read_bytes().replace(b'"preset":"quick"', b'"preset":7'))
    assert "$.preset: expected `str`, got `int`" in only_line(call(command, ran.path, junk), 4)


def test_escape_sequences_in_a_strangers_report_do_not_reach_the_terminal(call: Call, ran: Ran, tmp_path: Path) -> None:
    device = replace(ran.report.devices[0], name="\x1b[2J\x1b]0;owned\x07 [bold]:smile:\x9b31m")
    hostile = written(tmp_path, replace(ran.report, devices=(device,)))
    for command in ("score", "quote", "verify"):
        said = call(command, hostile)
        assert said.code == 0
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", said.out + said.err)
        assert command == "verify" or "[bold]:smile:" in said.out
    job = replace(ran.report.plan[0], benchmark="\x1b[31m\nname")
    stranger = written(tmp_path, replace(ran.report, plan=(job, job)))
    assert "\x1b" not in call("verify", stranger).out
    assert "\x1b" not in only_line(call("score", stranger), 4)


# --- misuse -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "named", "right"),
    [
        (["run", "nosuch"], "no benchmark 'nosuch'", "; there are allreduce, "),
        (["run", "launch", "nosuch"], "no benchmark 'nosuch'", "launch"),
        (["run", "--preset", "qiuck"], "no preset 'qiuck'", "; there are quick, standard, full"),
        (["run", "--seed", "xyz"], "seed 'xyz'", "is not 1 to 64 hexadecimal digits, such as"),
        (["run", "--seed", ""], "seed ''", "is not 1 to 64 hexadecimal digits, such as"),
        (["run", "--seed", "0" * 65], "seed '000", "is not 1 to 64 hexadecimal digits, such as"),
        (["run", "--budget", "0"], "budget 0.0", "is not a positive number of seconds, such as 60"),
        (["run", "--budget", "nan"], "budget nan", "is not a positive number of seconds, such as 60"),
        (["run", "--budget", "inf"], "budget inf", "is not a positive number of seconds, such as 60"),
        (["run", "--budget", "-5"], "budget -5.0", "is not a positive number of seconds, such as 60"),
        (["run", "--budget", "soon"], "'--budget': 'soon'", "is not a valid float"),
        (
            ["run", "--out", "/proc/nosuch/results"],
            "'/proc/nosuch/results'",
            "name a folder you may write to with --out",
        ),
        (["run", "--out", __file__], "test_cli.py'", "name a folder you may write to with --out"),
        (["run", "--key", "/nosuch/key.pem"], "cannot read the key '/nosuch/key.pem'", "No such file"),
        (["run", "--key", __file__], "test_cli.py'", "chmod 600"),
        (["run", "--resume", "/nosuch.json"], "cannot read '/nosuch.json'", "No such file"),
        (["run", "--prest", "quick"], "No such option '--prest'", "--preset"),
        (["verify"], "Missing argument 'FILE...'", "See `harness verify --help`."),
        (["verify", "/nosuch.json"], "cannot read '/nosuch.json'", "No such file"),
        (["verify", "/proc"], "cannot read '/proc'", "Is a directory"),
        (["verify", "--signer", "me", __file__], "signer 'me'", "64 lower-case hex digits"),
        (["score", "/nosuch.json"], "cannot read '/nosuch.json'", "No such file"),
        (["quote"], "Missing argument 'REPORT...'", "See `harness quote --help`."),
        (["quote", "--costs", "/nosuch.toml", __file__], "'/nosuch.toml'", "No such file"),
        (["quote", "--costs", __file__, __file__], "test_cli.py'", "is not TOML"),
        (["keygen"], "Missing option '--out'", "See `harness keygen --help`."),
        (["keygen", "--out", "/proc/key.pem"], "'/proc/key.pem'", "cannot write a key to"),
        (["keygen", "--out", __file__], "test_cli.py'", "is not written over; choose another name"),
        (["devices", "extra"], "unexpected extra argument", "See `harness devices --help`."),
        (["nosuch"], "No such command 'nosuch'", "See `harness --help`."),
        (["--nosuch"], "No such option '--nosuch'", "See `harness --help`."),
    ],
    ids=lambda value: " ".join(value).replace(__file__, "FILE")[:60] if isinstance(value, list) else "",
)
def test_misuse_is_one_line_that_names_the_value_and_what_would_be_right(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], named: str, right: str
) -> None:
    monkeypatch.chdir(tmp_path)
    line = only_line(call(*args))
    assert named in line
    assert right in line
    assert not (tmp_path / "results").exists() or args[0] == "run"


@pytest.mark.skipif(cuda_status() is None, reason="there is a GPU")
def test_a_gpu_without_a_driver_is_misuse_that_says_what_there_is(call: Call, tmp_path: Path) -> None:
    line = only_line(call("run", "launch", "--device", "cuda:0", "--out", tmp_path))
    assert "no device 'cuda:0' on this machine; there are: cpu, all" in line


def test_a_device_that_cannot_be_is_misuse(call: Call, tmp_path: Path) -> None:
    line = only_line(call("run", "launch", "--device", "tpu:0", "--out", tmp_path))
    assert "no device 'tpu:0' on this machine; there are: cpu" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "named", "right"),
    [
        ("electricity_usd_per_kwh = -0.1", "electricity_usd_per_kwh is -0.1", "it should be 0 or more"),
        ("capex_usd = -1", "capex_usd is -1", "it should be 0 or more"),
        ("electricity_usd_per_kw = 0.1", "no cost 'electricity_usd_per_kw'", "did you mean 'electricity_usd_per_kwh'"),
        ("pue = '1.2'", "pue is '1.2'", "it should be a number, 1 or more"),
        ("pue = nan", "pue is NaN", "it should be 1 or more"),
        ("utilisation = 0", "utilisation is 0", "it should be more than 0, up to 1"),
        ("pue = ", "costs.toml'", "is not TOML"),
        ("[table]\nx = 1", "no cost 'table'", "there are capex_usd, "),
    ],
)
def test_a_costs_file_is_refused_with_its_key_and_what_would_be_right(
    call: Call, ran: Ran, tmp_path: Path, text: str, named: str, right: str
) -> None:
    costs = tmp_path / "costs.toml"
    costs.write_text(text)
    line = only_line(call("quote", ran.path, "--costs", costs))
    assert named in line
    assert right in line


@pytest.mark.parametrize("command", ["score", "quote"])
def test_a_misspelt_profile_is_refused_with_the_nearest(call: Call, ran: Ran, command: str) -> None:
    line = only_line(call(command, ran.path, "--profile", "genral"))
    assert "no profile 'genral'; did you mean 'general'; there are " in line


def test_a_report_that_is_complete_is_not_resumed(call: Call, ran: Ran) -> None:
    assert "is complete: there is nothing to resume" in only_line(call("run", "--resume", ran.path))


def test_a_name_with_a_line_break_still_makes_one_line(call: Call) -> None:
    assert "no such" not in only_line(call("verify", "/two\nlines\x1b[31m"))


# --- help -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_says_what_it_does_and_names_every_option(call: Call, command: str) -> None:
    said = call(command, "--help")
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith(f"Usage: harness {command} ")
    for parameter in cli.commands[command].params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{command} {parameter.name} has no help"
            assert parameter.opts[0] in said.out


def test_help_of_the_whole_lists_every_command(call: Call) -> None:
    for flag in ("--help", "-h"):
        said = call(flag)
        assert said.code == 0
        assert all(re.search(rf"^  {name} ", said.out, re.MULTILINE) for name in COMMANDS)


def test_nothing_asked_is_answered_with_the_help(call: Call) -> None:
    said = call()
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("Usage: harness ")


def test_the_version_is_told(call: Call) -> None:
    assert re.match(r"harness, version \d+\.\d+\.\d+\S*\nPython ", call("--version").out)


def test_an_interrupt_is_one_line(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(registry, "find", interrupt)
    code, out, err = call("list")
    assert (code, out) == (130, "")
    assert err == "\nharness: interrupted\n"  # the first line is the one that shows ^C


# --- streams ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("args", [["list"], ["list", "--json"], ["schema"], ["list", "--markdown"]])
def test_a_reader_that_has_had_enough_is_no_error_to_speak_of(args: Sequence[str]) -> None:
    command = [sys.executable, "-m", "harness", *args]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        assert child.stderr.read() == b""


def test_a_pipe_into_head_is_quiet() -> None:
    line = f"{sys.executable} -m harness list | head -1"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("benchmark ")
    assert done.stderr == ""


def on_a_terminal(*args: object, **env: str) -> str:
    """Run a command with a terminal for its output, and return what arrived there."""
    ours, theirs = pty.openpty()
    kept = {k: v for k, v in os.environ.items() if k not in {"NO_COLOR", "FORCE_COLOR"}} | {"TERM": "xterm-256color"}
    command = [sys.executable, "-m", "harness", *map(str, args)]
    with subprocess.Popen(command, stdout=theirs, stderr=subprocess.DEVNULL, env=kept | env) as child:
        os.close(theirs)
        received = b""
        while True:
            try:
                chunk = os.read(ours, 1 << 16)
            except OSError:  # how Linux ends a terminal
                break
            if not chunk:
                break
            received += chunk
        child.wait()
    os.close(ours)
    return received.decode()


def test_colour_is_for_terminals_only(ran: Ran) -> None:
    assert "\x1b[" in on_a_terminal("verify", ran.path)
    assert "\x1b" not in on_a_terminal("verify", ran.path, NO_COLOR="1")
    assert "\x1b" not in process("verify", ran.path).out
    assert "\x1b" not in ran.said.out + ran.said.err


def test_a_terminal_without_unicode_gets_escapes_instead_of_a_crash(ran: Ran, tmp_path: Path) -> None:
    said = process("list", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (said.code, said.err) == (0, "")
    odd = os.fsdecode(bytes(tmp_path) + b"/\xff.json")
    Path(odd).write_bytes(ran.path.read_bytes())
    said = process("verify", odd)
    assert said.code == 0
    assert "\\udcff.json: accepted" in said.out


def test_verifying_scoring_and_quoting_a_true_report_loads_no_numeric_library(ran: Ran) -> None:
    code = (
        "import sys, harness.cli\n"
        "try: harness.cli.main()\n"
        "except SystemExit as end: assert not end.code\n"
        "print({'numpy', 'numba', 'ray', 'pandas', 'cupy', 'pynvml', 'pyarrow'} & set(sys.modules), file=sys.stderr)"
    )
    for command in ("verify", "score", "quote"):
        args = [sys.executable, "-c", code, command, str(ran.path)]
        done = subprocess.run(args, capture_output=True, text=True, check=True)
        assert done.stderr == "set()\n"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["verify", "."], "cannot read '.'"),
        (["verify", ""], "cannot read '.'"),
        (["compare", ".", "."], "cannot read '.'"),
        (["report", SHIPPED, "--html", "."], "'.' is a folder: name a file in it"),
        (["report", SHIPPED, "--csv", ""], "'.' is a folder: name a file in it"),
        (["report", SHIPPED, "--parquet", "."], "'.' is a folder: name a file in it"),
        (["fleet", "export", SHIPPED, "--out", "."], "'.' is a folder: name a file in it"),
        (["challenge", "new", "--device", "CPU-1", "--out", "c.json", "--valid", 10**14], "valid for 1 to 86400 s"),
        (["verifier", "serve", "--port", 99999], "65535"),
    ],
)
def test_ordinary_mistakes_are_one_line(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[object], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in only_line(call(*args))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow  # runs of the story that others tell, in processes of their own
@pytest.mark.parametrize("gone", ["2>&1 >/dev/null | head -n 1", "2>/dev/full >/dev/null", "2>&- >/dev/null"])
def test_a_run_does_not_depend_on_who_follows_it(gone: str, tmp_path: Path) -> None:
    """Progress is no result: where nobody hears it, or nothing can be written, the run goes on to its end."""
    command = f"{sys.executable} -m harness run launch --device cpu --budget 1 --out {tmp_path} {gone}"
    subprocess.run(["bash", "-c", command], check=False, env=os.environ | {"HARNESS_KEY": ""})
    (whole,) = tmp_path.glob("*.json")
    (verdict,) = harness.verify(whole)
    assert (verdict.accepted, verdict.complete) == (True, True)


def test_what_cannot_be_printed_is_told_and_fails() -> None:
    command = f"{sys.executable} -m harness list > /dev/full"
    ended = subprocess.run(["bash", "-c", command], check=False, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (1, "harness: cannot write: No space left on device\n")
