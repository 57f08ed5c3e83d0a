"""Adding a benchmark is one new file: here it is written into a package of its own, installed by its metadata alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

GOOD = '''"""Doubling."""
from harness.registry import Case, Work, benchmark

@benchmark(version=1, n=(1 << 8, 1 << 12))
def doubling(backend, seed, *, n):
    """Double n random numbers, which rounds nothing."""
    x = backend.rng(seed).uniform(n, "float64")
    work = Work(flops=n, bytes_moved=16 * n, counting="read + written")
    return Case(run=lambda: 2 * x, work=work, check=lambda y: bool(((y - x) == x).all()))
'''
GULLIBLE = GOOD.replace("bool(((y - x) == x).all())", "True").replace("doubling", "gullible")
CONSTANT = GOOD.replace("backend.rng(seed)", "backend.rng(1)").replace("doubling", "constant")


def install(folder: Path, package: str, **modules: str) -> dict[str, str]:
    """Write a package and the metadata that an installer would; return the environment that finds it."""
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").write_text("")
    for name, text in modules.items():
        (folder / package / f"{name}.py").write_text(text)
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[harness.benchmarks]\n{package} = {package}\n")
    return {**os.environ, "PYTHONPATH": str(folder), "NUMBA_CACHE_DIR": str(folder / "cache")}


def harness(env: dict[str, str], *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "harness", *args], env=env, capture_output=True, text=True, check=False, timeout=120
    )


def judge(env: dict[str, str], name: str) -> subprocess.CompletedProcess[str]:
    """Run the conformance suite over one benchmark, as `pytest tests/test_kernels.py -k NAME` does."""
    suite = Path(__file__).parent / "test_kernels.py"
    command = [sys.executable, "-m", "pytest", str(suite), "-q", "-n", "0", "-k", name, "-p", "no:cacheprovider"]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("plugin")
    return install(folder, "some_plugin", doubling=GOOD, gullible=GULLIBLE, constant=CONSTANT)


def test_a_new_file_is_listed(plugin: dict[str, str]) -> None:
    listed = json.loads(harness(plugin, "list", "--json").stdout.splitlines()[-1])
    (entry,) = [b for b in listed if b["name"] == "doubling"]
    assert entry["axes"] == {"n": [256, 4096]}
    assert entry["module"] == "some_plugin.doubling"
    assert {"stream", "gemm"} < {b["name"] for b in listed}


@pytest.mark.slow
def test_a_new_file_runs(plugin: dict[str, str], tmp_path: Path) -> None:
    ended = harness(plugin, "run", "doubling", "--device", "cpu", "--out", str(tmp_path), "--json")
    assert ended.returncode == 0, ended.stderr
    (entry,) = json.loads(ended.stdout.splitlines()[-1])["reports"]
    measured = [o["measurement"] for o in entry["report"]["outcomes"]]
    assert [m["job"]["params"] for m in measured] == [{"n": 256}, {"n": 4096}]
    assert [m["metric"] for m in measured] == ["compute", "compute"]


@pytest.mark.slow
def test_a_new_file_is_judged_and_a_sound_one_passes(plugin: dict[str, str]) -> None:
    ended = judge(plugin, "doubling")
    assert ended.returncode == 0, ended.stdout
    assert " passed" in ended.stdout


@pytest.mark.slow
def test_a_check_that_accepts_everything_is_found_out(plugin: dict[str, str]) -> None:
    ended = judge(plugin, "gullible")
    assert ended.returncode == 1
    assert "FAILED" in ended.stdout
    assert "test_a_wrong_answer_is_refused" in ended.stdout


@pytest.mark.slow
def test_inputs_that_do_not_follow_from_the_seed_are_found_out(plugin: dict[str, str]) -> None:
    ended = judge(plugin, "constant")
    assert ended.returncode == 1
    assert "test_the_same_seed_gives_the_same_answer_and_another_seed_another" in ended.stdout


def test_two_benchmarks_of_one_name_are_refused(tmp_path: Path) -> None:
    env = install(tmp_path, "rival", stream=GOOD.replace("doubling", "stream"))
    ended = harness(env, "list")
    assert ended.returncode == 1
    assert "two benchmarks are called 'stream': in harness.kernels.stream and rival.stream" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_plugin_that_does_not_import_is_named(tmp_path: Path) -> None:
    env = install(tmp_path, "broken", thing="import no_such_module_anywhere\n")
    ended = harness(env, "list")
    assert ended.returncode == 1
    assert "'broken'" in ended.stderr
    assert "no_such_module_anywhere" in ended.stderr
    assert "Traceback" not in ended.stderr
