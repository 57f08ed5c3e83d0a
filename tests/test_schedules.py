"""No answer depends on the order in which blocks and threads run, on when queued work is done, or on how memory was handed out.

A GPU promises no order, so a missing barrier can stay hidden for years. The emulator runs every small cell in several orders, each in
a process of its own, in which two GPUs are visible so that the benchmarks between GPUs run too. Not covered: what only threads that
run at the same time can show.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import recording

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.xdist_group("schedules"),  # they share what each way to run answered
    pytest.mark.timeout(900),  # the first test that asks for a way waits for all of its cells
    pytest.mark.skipif(recording.emulator() is None, reason="only the emulator can choose the order of threads"),
]

Answers = dict[str, dict[str, Any]]

# Each way to run, as the emulator's variables; in the reverse order also without a pool, which hides accesses out of bounds.
WAYS: dict[str, dict[str, str]] = {
    "forward": {},
    "reverse": {"EMU_SCHED": "reverse", "ARGUMENT": "pool-off"},
    "random": {"EMU_SCHED": "7", "EMU_ASYNC": "1"},
    "unfused": {"EMU_FMAD": "0"},
}
# Counting stays as it is: with another, all kernels would be compiled once more.
_FIXED = {"EMU_SCHED": "", "EMU_ASYNC": "0", "EMU_FMAD": "1", "EMU_STICKY": "0", "EMU_GPUS": "2"}


def _run(way: str) -> Answers:
    script = Path(__file__).with_name("answers.py")
    variables = {**os.environ, **_FIXED, **WAYS[way]}
    variables.pop("CUDA_VISIBLE_DEVICES", None)
    command = [sys.executable, str(script), variables.pop("ARGUMENT", "")]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: Answers = json.loads(done.stdout.splitlines()[-1])
    return found


@functools.cache
def _started() -> dict[str, Future[Answers]]:
    """Start all the ways, two at a time."""
    pool = ThreadPoolExecutor(2)
    return {way: pool.submit(_run, way) for way in WAYS}


def answers(way: str) -> Answers:
    """What each cell and each broken kernel answered in one of the ways."""
    return _started()[way].result()


def of_benchmarks(way: str) -> Answers:
    return {name: answer for name, answer in answers(way).items() if not name.startswith("broken ")}


def wrong(found: Answers) -> list[str]:
    """Name the cells that failed or whose check refused the answer."""
    return [f"{name}: {a}" for name, a in found.items() if "skipped" not in a and not a.get("right")]


def different(found: Answers, reference: Answers, *, exact_only: bool) -> list[str]:
    """Name the cells whose answers are not the same bits."""
    return [
        name
        for name, a in found.items()
        if "digest" in a and a["digest"] != reference[name].get("digest") and (a["exact"] or not exact_only)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_every_answer_is_right(way: str) -> None:
    found = of_benchmarks(way)
    assert any("right" in answer for answer in found.values())
    assert not wrong(found)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["reverse", "random"])
def test_every_answer_is_the_same_bits_in_any_order(way: str) -> None:
    assert not different(of_benchmarks(way), of_benchmarks("forward"), exact_only=False)


@pytest.mark.slow
def test_answers_in_integers_do_not_depend_on_fused_multiply_adds() -> None:
    assert not different(of_benchmarks("unfused"), of_benchmarks("forward"), exact_only=True)


def broken_kernel(name: str) -> dict[str, Answers]:
    name = f"broken {name}"
    return {way: {name: answers(way)[name]} for way in WAYS}


@pytest.mark.slow
def test_a_missing_barrier_is_found() -> None:
    found = broken_kernel("missing_barrier")
    assert not wrong(found["reverse"]), "one order hides it, hence the others"
    assert wrong(found["random"])
    assert different(found["random"], found["reverse"], exact_only=False)


@pytest.mark.slow
def test_a_lost_update_is_found() -> None:
    assert all(wrong(found) for found in broken_kernel("lost_update").values())


@pytest.mark.slow
def test_a_read_before_its_write_is_done_is_found() -> None:
    found = broken_kernel("early_read")
    assert not wrong(found["forward"])
    assert wrong(found["random"])


@pytest.mark.slow
def test_an_access_behind_an_array_is_found_without_the_pool() -> None:
    found = broken_kernel("overrun")
    assert not wrong(found["forward"])
    assert any("IllegalAddress" in message for message in wrong(found["reverse"]))
