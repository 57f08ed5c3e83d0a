"""A child does the work: however it ends, whoever stands by tells it in one line and an exit code, and neither outlives the other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid

from test_isolate import marked, wait_for

SCRIPT = """
import ctypes, os, signal, sys, time
from harness.cli.standby import stand_by
from harness.errors import FailureError

def told(number, frame):
    os.write(1, b"told" + bytes([10]))  # it may come in the middle of a print

try:
    code = stand_by()
except FailureError as err:
    sys.exit(f"harness: {err}")
if code is not None:
    print("code", code)
    sys.exit(0)
signal.signal(signal.SIGINT, told)
print("at work", flush=True)
exec(sys.argv[1])
"""


def run(work: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", SCRIPT, work], capture_output=True, text=True, check=False, timeout=60)


def test_the_code_of_the_child_is_handed_on() -> None:
    assert run("sys.exit(3)").stdout == "at work\ncode 3\n"


def test_a_child_that_is_aborted_is_told_in_one_line() -> None:
    ended = run("os.abort()")
    assert ended.returncode == 1
    assert ended.stderr.startswith("harness: the run was ended by SIGABRT, which Ray may do")
    assert len(ended.stderr.splitlines()) == 1


def test_ctrl_c_reaches_the_child_once() -> None:
    """A terminal sends it to all of the foreground group, of which the child is not."""
    work = "[time.sleep(0.05) for _ in range(20)]"
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, work], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "at work\n"
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout.read() == "told\ncode 0\n"


def test_a_child_ends_with_who_stands_by() -> None:
    mark = f"HARNESS_TEST_MARK={uuid.uuid4()}"
    environment = os.environ | dict([mark.split("=")])
    command = [sys.executable, "-c", SCRIPT, "time.sleep(1000)"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "at work\n"
        assert len(marked(mark)) == 2
        process.kill()
    wait_for(lambda: not marked(mark), 20)
