"""What a person sees: on terminals narrow and wide, without colour, at Ctrl-C, and where there is no terminal."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from terminal import Terminal, plain

import harness

FAKE = Path(__file__).parent / "fakerun.py"
COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-7]m")
SHOWN, HIDDEN = "\x1b[?25h", "\x1b[?25l"


@pytest.mark.slow  # a story of two seconds, and the imports of what measures
@pytest.mark.parametrize("columns", [60, 160])
def test_progress_moves_and_fits(columns: int) -> None:
    with Terminal([FAKE, "run"], columns=columns) as terminal:
        assert terminal.end() == 1  # the story ends with an error
        seen = plain(terminal.text)
    counts = [int(n) for n in re.findall(r"(\d+) of 6 saved  \d:\d\d", seen)]
    assert counts[0] == 0
    assert counts == sorted(counts)
    assert len(set(counts)) > 2, counts
    assert re.search(r"412 W +1755 MHz +84 \N{DEGREE SIGN}C +power cap", seen)
    assert "round 2" in seen
    assert "about" in seen
    assert (
        max(
            len(line.strip("\r"))
            for line in re.split(r"[\r\n]+", seen)
            if "chase" not in line or ": skipped" not in line
        )
        <= columns
    )
    assert seen.count(": skipped") == 6  # results stay
    assert COLOUR.search(terminal.text)
    assert terminal.text.rfind(SHOWN) > terminal.text.rfind(HIDDEN)
    assert seen.rstrip().endswith("harness: the story is over")


@pytest.mark.slow  # as above
def test_no_color_is_honoured_and_progress_still_moves() -> None:
    with Terminal([FAKE, "run"], NO_COLOR="1") as terminal:
        terminal.until("2 of 6")
        assert not re.search(r"\x1b\[[0-9;]+m", terminal.text)
        assert "\x1b[2K" in terminal.text


@pytest.mark.slow  # as above
def test_ctrl_c_in_the_middle_gives_the_terminal_back() -> None:
    with Terminal([FAKE, "run"], FAKE_STALL="1") as terminal:
        terminal.until("1 of 6")
        terminal.press("\x03")
        assert terminal.end() == 130
        assert plain(terminal.text).rstrip().endswith("harness: interrupted")
        assert terminal.text.rfind(SHOWN) > terminal.text.rfind(HIDDEN)


@pytest.mark.slow  # a real run: it starts the processes that measure
def test_ctrl_c_in_a_real_run_saves_what_was_measured(tmp_path: Path) -> None:
    command = ["-m", "harness", "run", "launch", "--device", "cpu", "--out", tmp_path]
    with Terminal(command, columns=100) as terminal:
        terminal.until(
            "0 of 2 saved"
        )  # stays on the screen for seconds: what a job does at a moment may pass between two looks
        terminal.press("\x03")
        assert terminal.end() == 130
        said = plain(terminal.text)
    (partial,) = tmp_path.glob("*-partial.json")
    assert f"finish it with `harness run --resume {partial}`" in "".join(said.split("\r\n")).replace("\n", "")
    (verdict,) = harness.verify(partial)
    assert (verdict.accepted, verdict.complete) == (True, False)


@pytest.mark.slow  # as above
def test_a_terminal_that_cannot_move_its_cursor_gets_lines() -> None:
    with Terminal([FAKE, "run"], TERM="dumb") as terminal:
        terminal.until("[2/6] chase")
        assert "\x1b" not in terminal.text


@pytest.mark.slow  # imports of what measures
def test_telemetry_moves_on_a_terminal_and_ends_at_ctrl_c() -> None:
    command = ["-m", "harness", "watch", "--device", "cpu", "--every", "0.1"]
    with Terminal(command, columns=60) as terminal:
        terminal.until("Ctrl-C ends it")
        first = len(terminal.text)
        terminal.until("Ctrl-C ends it" if first == 0 else "cpu")
        terminal.press("\x03")
        assert terminal.end() == 0
        assert max(map(len, re.split(r"[\r\n]+", plain(terminal.text)))) <= 60


@pytest.mark.slow  # imports of what measures
def test_telemetry_is_a_line_of_json_a_look_elsewhere() -> None:
    command = [sys.executable, "-m", "harness", "watch", "--device", "cpu", "--every", "0.05", "--count", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    looks = [json.loads(line) for line in done.stdout.splitlines()]
    assert [look["device"] for look in looks] == ["cpu"] * 3
    assert sorted(looks[0]) == ["at", "device", "lost", "name", "sample", "uuid"]
    assert looks[0]["sample"]["at_s"] < looks[-1]["sample"]["at_s"]
    assert done.stderr == ""
