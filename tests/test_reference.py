"""The documents and the program say the same: commands, options, examples, rooms, the workflow for CI, the version, completion."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import pytest
import yaml  # type: ignore[import-untyped]  # it comes with Ray
from click.shell_completion import BashComplete

from harness.cli import cli
from harness.cli.reference import command_markdown, reference, walk
from harness.cli.shape import EXAMPLES, SECTIONS, sections
from harness.cli.version import version_lines
from harness.measure.rounds import EFFORTS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_CUT = {"#", "|", "||", "&&", ";", ">", ">>", "<", "&"}


class NoSuchCallError(Exception):
    """An example names a command or an option that is not there."""


def check_call(text: str) -> str:
    """Hold one call against the program; return the command that it names."""
    words = cut(text)
    command: click.Command = cli
    path: list[str] = []
    for word in words[1:]:
        if isinstance(command, click.Group) and not word.startswith("-"):
            if word not in command.commands:
                msg = f"no command {word!r} in {text!r}"
                raise NoSuchCallError(msg)
            command = command.commands[word]
            path.append(word)
        elif word.startswith("-") and len(word) > 1 and not word.lstrip("-").replace(".", "").isdigit():
            known = {name for p in command.params for name in (*p.opts, *p.secondary_opts)} | {"--help", "-h"}
            if word.partition("=")[0] not in known:
                msg = f"{' '.join(path)!r} has no option {word!r}, as in {text!r}"
                raise NoSuchCallError(msg)
    return " ".join(path)


def cut(text: str) -> list[str]:
    """Return the words of a call up to whatever ends it in a shell, or to a comment."""
    lexer = shlex.shlex(re.split(r"\s#\s|\s{3,}", text)[0], posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    lexer.commenters = ""
    words: list[str] = []
    for word in lexer:
        if word in _CUT or set(word) <= set("|&;<>"):
            break
        words += [part for part in word.strip("[](),.:").split("|") if part]
    return words


def calls(page: str) -> Iterator[str]:
    """Yield the calls of the program in a page: those in indented or fenced blocks, and those between backticks."""
    fenced = False
    for line in page.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            found = re.match(r"\s*(?:\$ )?(?:pip install uv && )?(?:uv run )?(harness [a-z-].*)", line)
            if found:
                yield found[1]
        else:
            for span in re.findall(r"`([^`]+)`", line):
                found = re.match(r"(?:pip install uv && )?(?:uv run )?(harness(?: [a-z-].*|$))", span)
                if found:
                    yield found[1]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_call_in_the_documents_exists(page: Path) -> None:
    for call in calls(page.read_text()):
        check_call(call)


@pytest.mark.parametrize(
    "call", ["harness rum", "harness run --devise cpu", "harness fleet reports x", "harness verify --json --sign er"]
)
def test_a_call_that_does_not_exist_is_found(call: str) -> None:
    assert list(calls(f"see `{call}`")) == [call]
    with pytest.raises(NoSuchCallError):
        check_call(call)


def test_calls_are_found_in_blocks_and_between_backticks() -> None:
    page = "a `harness run --json` b\n\n    uv run harness list   # all\n\n```sh\nharness verify a && rm b\n```\n"
    assert [check_call(call) for call in calls(page)] == ["run", "list", "verify"]


def test_the_examples_of_the_help_exist_and_are_shown() -> None:
    for path, examples in EXAMPLES.items():
        for example in examples:
            assert check_call(example) == path
    shown = subprocess.run(
        [sys.executable, "-m", "harness", "run", "--help"], capture_output=True, text=True, check=True
    )
    assert EXAMPLES["run"][0] in shown.stdout


def test_the_table_of_commands_in_the_readme_is_the_one_that_list_prints() -> None:
    """Made anew by `harness list --commands --markdown`."""
    assert command_markdown(cli) in README


def test_the_page_of_commands_is_the_one_that_list_prints() -> None:
    """Made anew by `harness list --commands --markdown --full > docs/commands.md`."""
    assert (ROOT / "docs" / "commands.md").read_text() == reference(cli) + "\n"


def test_every_command_and_option_is_documented_and_explains_itself() -> None:
    page = (ROOT / "docs" / "commands.md").read_text()
    for path, command in walk(cli):
        (part,) = [p for p in page.split("\n## ") if p.startswith(f"`harness {path}`\n")]
        assert command.help, path
        for option in (p for p in command.params if isinstance(p, click.Option)):
            assert option.help, f"{path} {option.opts[0]} has no help"
            assert f"`{option.opts[0]}`" in part


def test_the_help_shows_every_command_in_a_section() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "harness", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for title, names in sections(sorted(cli.commands)).items():
        block = shown.split(f"\n{title}:\n")[1].split("\n\n")[0]
        assert [line.split()[0] for line in block.splitlines() if line.startswith("  ") and line[2] != " "] == names
    assert set(cli.commands) <= {name for names in sections(sorted(cli.commands)).values() for name in names}
    assert len({name for names in SECTIONS.values() for name in names}) == sum(map(len, SECTIONS.values()))


def test_a_command_that_no_section_names_is_shown_all_the_same() -> None:
    assert sections(["run", "unheard-of"]) == {"Measure": ["run"], "More": ["unheard-of"]}


# --- other documents ---------------------------------------------------------------------------------------------------


def test_the_rooms_of_the_architecture_are_those_of_the_layers() -> None:
    layers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]["layers"]
    table = re.findall(r"^\| (`[^|]+`) \|", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE)
    assert [re.findall(r"`([^`]+)`", row) for row in table] == [layer.split(" | ") for layer in layers]


def test_the_workflow_for_ci_is_valid_and_calls_what_exists() -> None:
    workflow: Any = yaml.safe_load((ROOT / "docs" / "ci" / "github-actions.yml").read_text())
    assert {"name", "env", "jobs"} <= workflow.keys()
    ran = []
    for job in workflow["jobs"].values():
        assert job["runs-on"]
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step), step
            lines = step.get("run", "").splitlines()
            ran += [check_call(line) for line in lines if line.startswith("harness ") and "--version" not in line]
    assert {"doctor", "run", "verify", "compare"} <= set(ran)


def test_what_a_newcomer_is_shown_is_what_the_gate_runs() -> None:
    sys.path.insert(0, str(ROOT / ".ci"))
    try:
        from check_package import newcomer  # type: ignore[import-not-found]
    finally:
        sys.path.pop(0)
    shown = newcomer(README)
    assert shown[0] == "harness --version"
    assert [check_call(call) for call in shown[1:]][:2] == ["doctor", "list"]
    assert re.search(r"^\.ci/newcomer$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)


# --- the version, and completion ---------------------------------------------------------------------------------------


def test_the_version_tells_what_a_report_of_a_defect_needs(tmp_path: Path) -> None:
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").write_text("NVRM version: NVIDIA Kernel Module  580.65.06  Sun\nGCC 12\n")
    (tmp_path / ".dockerenv").touch()
    said = "\n".join(version_lines(tmp_path))
    assert said.startswith(f"harness, version {metadata.version('gpu-assay')}\n")
    for name in ("numpy", "numba", "ray"):
        assert f"{name} {metadata.version(name)}" in said
    assert f"Python    {sys.version.split()[0]}" in said
    assert "in a container" in said
    assert "driver    NVIDIA Kernel Module  580.65.06" in said
    assert "GCC" not in said
    assert "driver    no NVIDIA driver loaded" in "\n".join(version_lines(tmp_path / "nowhere"))


def test_the_version_imports_nothing_that_it_tells_of() -> None:
    code = (
        "import sys; from harness.cli import cli; cli.main(['--version'], standalone_mode=False);"
        "print(sorted({'numpy', 'numba', 'ray', 'cupy', 'pandas', 'pynvml'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def completed(words: str) -> list[str]:
    """Return what a shell would offer for the last word."""
    *before, last = words.split(" ")[1:]
    shell = BashComplete(cli, {}, "harness", "_HARNESS_COMPLETE")
    return [item.value for item in shell.get_completions(before, last)]


def test_commands_options_and_benchmarks_are_completed() -> None:
    assert completed("harness doc") == ["doctor"]
    assert "--preset" in completed("harness run --pre")
    assert completed("harness run gem") == ["gemm", "gemv"]
    assert completed("harness run --preset ") == [*EFFORTS]


@pytest.mark.parametrize(
    ("shell", "line"), [("bash", "complete -o nosort"), ("zsh", "#compdef harness"), ("fish", "complete --no-files")]
)
def test_the_script_for_each_shell_is_made_as_documented(shell: str, line: str) -> None:
    assert f"_HARNESS_COMPLETE={shell}_source" in (ROOT / "docs" / "shell.md").read_text()
    code = "from harness.cli import main; import sys; sys.argv[0] = 'harness'; main()"
    env = os.environ | {"_HARNESS_COMPLETE": f"{shell}_source"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)
    assert line in done.stdout
