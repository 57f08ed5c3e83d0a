"""The documents say what is so: their tables are generated, their examples run, their commands exist."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from test_plugin import install, judge

from harness import registry
from harness.cli import cli
from harness.render.text import benchmark_markdown

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def commands() -> dict[str, click.Command]:
    context = click.Context(cli)
    found = {name: cli.get_command(context, name) for name in cli.list_commands(context)}
    return {name: command for name, command in found.items() if command}


def test_the_table_of_benchmarks_is_the_one_that_list_prints() -> None:
    ours = [b for b in registry.find() if b.module.startswith("harness.")]
    assert benchmark_markdown(ours) in README


@pytest.mark.parametrize("name", commands())
def test_each_command_is_in_the_readme_and_explains_itself(name: str) -> None:
    command = commands()[name]
    assert f"`harness {name}" in README
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts[0]} has no help"


def test_the_gate_calls_the_test_command_of_the_readme() -> None:
    assert "pip install uv && uv run pytest" in README
    assert re.search(r"^pip install .*uv && uv run pytest$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)


@pytest.mark.slow
def test_the_python_example_of_the_readme_runs(tmp_path: Path) -> None:
    (example,) = [e for e in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if e.startswith("import harness")]
    ended = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    assert re.fullmatch(r"True priced \d+\.\d{6}\n", ended.stdout), ended.stdout


@pytest.mark.slow
def test_the_benchmark_of_the_readme_is_judged_sound(tmp_path: Path) -> None:
    (example,) = [e for e in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "@benchmark" in e]
    ended = judge(install(tmp_path, "from_readme", squares=example), "squares")
    assert ended.returncode == 0, ended.stdout


def test_every_note_on_a_decision_is_in_its_index() -> None:
    folder = ROOT / "docs" / "decisions"
    notes = {p.name for p in folder.glob("0*.md")}
    assert notes == set(re.findall(r"\((0[^)]*\.md)\)", (folder / "README.md").read_text()))


def test_every_abuse_case_of_the_market_names_its_tests_and_they_exist() -> None:
    page = (ROOT / "docs" / "marketplace.md").read_text()
    section = page.split("## Abuse, and what comes of it")[1].split("\n## ")[0]
    _, _, *rows = [line for line in section.splitlines() if line.startswith("|")]
    files = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    there = {name for text in files for name in re.findall(r"^(?:async )?def (test_\w+)", text, re.MULTILINE)}
    assert len(rows) > 20
    for row in rows:
        named = set(re.findall(r"`(test_\w+)`", row))
        assert named, f"no test: {row}"
        assert named <= there, named - there


def test_the_shipped_schema_is_the_generated_one() -> None:
    from harness import codec

    assert json.loads((ROOT / "docs" / "schema.json").read_text()) == codec.schema()


def test_the_shipped_reports_verify_as_one_chain() -> None:
    from harness.proof.verify import verify

    reports = sorted((ROOT / "results").glob("2*.json"))
    assert reports
    for verdict in verify(*reports):
        assert verdict.accepted, verdict.faults
        assert verdict.complete


def test_relative_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), ROOT / "results" / "README.md"]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_run_that_the_readme_shows_is_of_todays_plan() -> None:
    from harness.cluster.plan import plan
    from harness.model import Device

    cpu = Device(uuid="CPU-1", name="a CPU", kind="cpu", selector="cpu", sensors={}, thread_count=2)
    shown = README.split("at the time of writing:")[1].split("report results/")[0]
    _, _, rows = shown.partition("benchmark  parameters")
    named = {line.split()[0] for line in rows.splitlines() if re.match(r"    [a-z]\w+ +\w+=", line)}
    assert named == {job.benchmark for job in plan((cpu,), (), "quick", "00")}
