"""What SKILL.md tells an agent to type exists: every command with its options, every path of the service, every tool."""

from __future__ import annotations

import asyncio
import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
from shopfront import client, front

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


def test_each_path_and_each_tool_that_it_names_is_there(tmp_path: Path) -> None:
    from harness.market.agents import Dispute
    from harness.market.door import app
    from harness.market.mcp_tools import server
    from harness.market.stall import Stall

    shop = front(tmp_path)

    async def described() -> dict[str, Any]:
        async with client(app(shop.counter)) as http:
            return dict((await http.get("/openapi.json")).json())

    document = asyncio.run(described())
    named = re.findall(r"(GET|POST) (/v1/[\w/{}]+)", SKILL)
    assert len(named) >= 7
    for method, path in named:
        spelt = next((known for known in document["paths"] if re.sub(r"{\w+}", "{}", known) == re.sub(r"{\w+}", "{}", path)), None)  # fmt: skip
        assert spelt, path
        assert method.lower() in document["paths"][spelt]
    tools = server(Stall("http://gpus.example"))._tool_manager.list_tools()
    assert re.findall(r"^\| `(\w+)` \|", SKILL, re.MULTILINE) == [tool.name for tool in tools]
    body = document["components"]["schemas"]["DisputeRequest"]["properties"]
    assert set(body) == set(re.findall(r"`(\w+)`", SKILL[SKILL.index("`POST /v1/disputes`") :].split(": 402")[0])) - {"cycles_per_s"}  # fmt: skip
    assert {"seed", "deadline_s"} <= Dispute.__dataclass_fields__.keys()
    shop.journal.close()
