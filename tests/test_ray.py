"""Through Ray the same jobs give the same records, and what goes wrong in one stays there."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import harness
from harness.errors import MisuseError

SEED = "5eed"
PLUGIN = '''"""A benchmark that breaks its process."""
import os
from harness.registry import Case, Work, benchmark

@benchmark(version=1)
def crasher(backend, seed):
    """End the process in the middle of a run."""
    return Case(run=os.abort, work=Work(flops=1), check=lambda _: True)
'''


@pytest.fixture(scope="module")
def through_ray(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """One run through a cluster of this machine, in a process of its own: Ray leaves threads and handlers behind."""
    folder = tmp_path_factory.mktemp("ray")
    package = folder / "plugin" / "ray_plugin"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "crasher.py").write_text(PLUGIN)
    info = folder / "plugin" / "ray_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ray_plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[harness.benchmarks]\nray_plugin = ray_plugin\n")
    env = {**os.environ, "PYTHONPATH": str(folder / "plugin"), "RAY_ADDRESS": "127.0.0.1:1", "MARK_OF_THIS_TEST": "1"}
    names, out = ("launch", "chase", "crasher"), ("--out", str(folder / "out"), "--json")
    return subprocess.run(
        [sys.executable, "-m", "harness", "run", *names, "--ray", "local", "--device", "cpu", "--seed", SEED, *out],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def outcomes(document: dict[str, Any]) -> list[dict[str, Any]]:
    (entry,) = document["reports"]
    found: list[dict[str, Any]] = entry["report"]["outcomes"]
    return found


@pytest.mark.slow
def test_a_crash_on_ray_is_an_outcome_and_the_exit_code_says_so(
    through_ray: subprocess.CompletedProcess[str],
) -> None:
    assert through_ray.returncode == 1, through_ray.stderr
    failed = [o["failed"] for o in outcomes(json.loads(through_ray.stdout)) if o["failed"]]
    assert [f["job"]["benchmark"] for f in failed] == ["crasher"]
    assert failed[0]["outcome"] == "crashed"
    assert "SIGABRT" in failed[0]["reason"]


@pytest.mark.slow
def test_ray_and_this_process_give_the_same_records_but_for_time(
    through_ray: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    there = {key(o): o["measurement"] for o in outcomes(json.loads(through_ray.stdout)) if o["measurement"]}
    (finished,) = harness.run("launch", "chase", device="cpu", seed=SEED, out=tmp_path)
    here = json.loads(finished.path.read_bytes())["outcomes"]
    assert {key(o) for o in here} == set(there)
    for o in here:
        ours, theirs = o["measurement"], there[key(o)]
        assert ours.keys() == theirs.keys()
        for field in ("job", "work", "metric", "answer_digest"):
            assert ours[field] == theirs[field]


def key(outcome: dict[str, Any]) -> str:
    result = outcome["measurement"] or outcome["failed"] or outcome["skipped"]
    return json.dumps(result["job"], sort_keys=True)


@pytest.mark.slow
def test_ray_itself_says_nothing_and_leaves_nothing_behind(through_ray: subprocess.CompletedProcess[str]) -> None:
    assert len(through_ray.stdout.splitlines()) == 1
    assert "raylet" not in through_ray.stderr
    assert "Traceback" not in through_ray.stderr
    deadline = time.monotonic() + 20
    while left_behind() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left_behind()


def left_behind() -> list[str]:
    """Find live processes of that run, by the mark in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if b"MARK_OF_THIS_TEST=1" in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return [command for command in found if command]


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:notaport", "auto"])
def test_an_address_that_is_none_is_misuse(address: str, tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="HOST:PORT"):
        harness.run("launch", ray=address, out=tmp_path)


def test_an_address_where_nobody_listens_is_refused_before_ray_is_imported(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: a connection is refused
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(MisuseError, match=f"no Ray cluster answers at '{address}'"):
            harness.run("launch", ray=address, out=tmp_path)
    assert not list(tmp_path.iterdir())
