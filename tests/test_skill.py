"""What SKILL.md tells an agent to type exists, with its options. The paths and tools that it names: tests/test_agents.py, with a market to ask."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from harness.cli import cli

SKILL = (Path(__file__).parent.parent / "SKILL.md").read_text()
COMMANDS = re.findall(r"^ {4,}(harness .+)$", SKILL, re.MULTILINE)


@pytest.mark.parametrize("line", COMMANDS)
def test_each_command_parses_with_its_options(line: str) -> None:
    words = shlex.split(line)[1:]
    words = [word.replace("SEED", "ab" * 16) for word in words]
    context, command = click.Context(cli), cli
    while isinstance(command, click.Group):
        name, found, words = command.resolve_command(context, words)
        assert found is not None, line
        context, command = click.Context(found, info_name=name, parent=context), found  # type: ignore[assignment]
    command.make_context(command.name, list(words), parent=context.parent)  # raises what a user would be told


def test_it_has_the_form_that_agents_look_for() -> None:
    head = re.match(r"---\nname: ([a-z-]+)\ndescription: (.+)\n---\n\n# ", SKILL)
    assert head
    assert head[1] == "harness"
    assert len(head[2]) <= 1024
    assert len(COMMANDS) >= 8
