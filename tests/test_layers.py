"""The layering is checked by a machine; here the machine is checked, by breaking each rule once."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# `lint-imports` with the copy first on the path: an installed package must not be judged in its place.
LINT = "import sys; sys.path.insert(0, '.'); from importlinter.cli import lint_imports_command as run; run()"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Copy the package and its configuration."""
    shutil.copytree(ROOT / "harness", tmp_path / "harness", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint(folder: Path) -> tuple[int, set[str]]:
    """Return the exit code and the names of the contracts that are broken."""
    done = subprocess.run(
        [sys.executable, "-c", LINT, "--no-cache"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert re.search(r"Contracts: \d+ kept, \d+ broken", done.stdout), done.stdout + done.stderr
    return done.returncode, set(re.findall(r"^(.+?) BROKEN", done.stdout, re.MULTILINE))


def add(folder: Path, module: str, line: str) -> None:
    path = folder / "harness" / module
    with path.open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")


def test_the_package_as_it_is_keeps_every_contract(copy: Path) -> None:
    assert lint(copy) == (0, set())


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("scoring/price.py", "import ray", {"Scoring reaches no GPU, cluster or market library", "Ray has one door"}),
        (
            "codec.py",  # scoring reaches it through the codec
            "def f() -> None:\n    import numba",
            {"Scoring reaches no GPU, cluster or market library", "Numba is imported where kernels are compiled"},
        ),
        ("measure/runner.py", "import cupy", {"CuPy has one door"}),
        ("device/rapl.py", "import pynvml", {"NVML has one door"}),
        ("render/text.py", "import pandas", {"pandas has one door"}),
        ("model.py", "import harness.codec", {"Rooms import to the right only"}),
        ("device/cpu.py", "def f() -> None:\n    from harness.cluster import plan", {"Rooms import to the right only"}),
        ("kernels/fft.py", "from harness.kernels import gemm", {"Benchmarks do not know each other"}),
    ],
)
def test_a_forbidden_import_is_found(copy: Path, module: str, line: str, broken: set[str]) -> None:
    add(copy, module, line)
    code, found = lint(copy)
    assert code != 0
    assert broken <= found


def test_a_module_without_a_place_in_the_order_is_found(copy: Path) -> None:
    (copy / "harness" / "helpers.py").write_text('"""No place for this."""\n', encoding="utf-8")
    code, found = lint(copy)
    assert code != 0
    assert found == {"Rooms import to the right only"}
