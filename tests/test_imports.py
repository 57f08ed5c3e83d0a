"""What is loaded when: counted in modules, in a fresh interpreter, never timed. And the public names."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import harness

HEAVY = ("cupy", "numba", "numpy", "pandas", "pyarrow", "pynvml", "ray")
NOT_OURS = ("cryptography", "msgspec", "rfc8785", "rich", "click")  # light, but not free either
REPORT = """
import json, sys
first = len(sys.modules)
{code}
found = {{name.partition(".")[0] for name in sys.modules}}
print(json.dumps({{"count": len(sys.modules) - first, "roots": sorted(found)}}))
"""


def loaded(code: str) -> tuple[int, set[str]]:
    """Run code in a fresh interpreter; return how many modules it loaded, and the top-level names of all."""
    done = subprocess.run([sys.executable, "-c", REPORT.format(code=code)], capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout.splitlines()[-1])
    return answer["count"], set(answer["roots"])


def command(*args: str) -> str:
    """Return code that runs a command to its end, with its output thrown away."""
    return (
        f"import contextlib, io, harness.cli\n"
        f"sys.argv = ['harness', *{list(args)!r}]\n"
        f"with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):\n"
        f"    with contextlib.suppress(SystemExit):\n"
        f"        harness.cli.main()\n"
    )


def test_the_package_alone_loads_a_handful_of_modules_and_none_that_is_not_pythons() -> None:
    count, roots = loaded("import harness")
    assert not roots & {*HEAVY, *NOT_OURS}
    assert count < 40


@pytest.mark.parametrize(
    ("code", "most"),
    [
        ("import harness.scoring", 250),
        ("import harness.codec", 200),
        ("import harness.registry", 250),
        ("import harness.proof.verify", 300),
        ("import harness; harness.score, harness.quote, harness.verify, harness.keygen, harness.schema", 320),
        ("import harness.cli", 600),
    ],
)
def test_a_room_that_only_reads_loads_nothing_heavy(code: str, most: int) -> None:
    count, roots = loaded(code)
    assert roots.isdisjoint(HEAVY), roots.intersection(HEAVY)
    assert count < most


@pytest.mark.parametrize(
    "args",
    [
        ("--help",),
        ("run", "--help"),
        ("verify", __file__),
        ("score", __file__),
        ("quote", __file__),
        ("schema",),
        ("keygen", "--out", "/proc/nosuch"),
    ],
    ids=" ".join,
)
def test_a_command_that_only_reads_loads_nothing_heavy(args: tuple[str, ...]) -> None:
    _, roots = loaded(command(*args))
    assert "harness" in roots
    assert roots.isdisjoint(HEAVY), roots.intersection(HEAVY)


def test_listing_benchmarks_compiles_none_and_asks_no_device() -> None:
    _, roots = loaded(command("list"))
    assert roots.isdisjoint({*HEAVY} - {"numpy"}), roots.intersection(HEAVY)


def test_a_misspelt_name_is_found_without_a_device() -> None:
    _, roots = loaded(command("run", "nosuch"))
    assert roots.isdisjoint({"cupy", "numba", "pandas", "pynvml", "ray"}), roots.intersection(HEAVY)


# --- public names -----------------------------------------------------------------------------------------------------

SOURCE = ast.parse(Path(harness.__file__).read_text(encoding="utf-8"))


def names_for_type_checkers() -> set[str]:
    """Return the names imported under `if TYPE_CHECKING`, which is what editors and mypy see."""
    (block,) = [node for node in SOURCE.body if isinstance(node, ast.If)]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name for node in imports for alias in node.names}


def test_public_names_are_sorted_and_all_there() -> None:
    assert harness.__all__ == sorted(set(harness.__all__))
    for name in harness.__all__:
        assert getattr(harness, name) is not None
    assert set(dir(harness)) == set(harness.__all__)


def test_what_is_public_at_run_time_is_public_to_type_checkers() -> None:
    assert names_for_type_checkers() == set(harness.__all__)


@pytest.mark.parametrize("name", ["list", "run", "score", "quote", "verify", "devices", "keygen", "schema"])
def test_every_command_is_a_function_of_the_package(name: str) -> None:
    from harness.cli import cli

    assert name in cli.commands
    assert callable(getattr(harness, name))


def test_every_command_has_its_function() -> None:
    from harness.cli import cli

    functions = {"market": "market_table"}  # `harness.market` is a room
    assert {functions.get(name, name.replace("-", "_")) for name in cli.commands} <= set(harness.__all__)


def test_a_name_that_is_not_there_is_said_as_python_says_it() -> None:
    with pytest.raises(AttributeError, match="module 'harness' has no attribute 'scoer'"):
        importlib.import_module("harness").scoer  # noqa: B018


def test_a_name_stays_what_it_was_whatever_module_is_imported() -> None:
    code = "import harness; f = harness.score; import harness.scoring.score, harness.cluster.session; assert harness.score is f"
    loaded(code)
