"""How commands print: tables for people, or one JSON document as the last line of stdout."""

from __future__ import annotations

import json
import shutil
import sys
from typing import Any

import click
from rich.console import Console, RenderableType

from harness import codec

__all__ = ["json_option", "show", "show_json", "stderr"]

_WIDE = 200  # where nobody looks at it on a screen, no line needs to be cut

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document as the last line of stdout."
)


def _width(terminal: bool) -> int:
    return shutil.get_terminal_size().columns if terminal else _WIDE


def show(*parts: RenderableType) -> None:
    """Print to stdout; colour only on a terminal, and not where NO_COLOR is set."""
    terminal = sys.stdout.isatty()
    console = Console(file=sys.stdout, width=max(_width(terminal), 60), soft_wrap=not terminal)
    for part in parts:
        console.print(part)


def stderr() -> Console:
    """Return the console for progress and warnings."""
    return Console(file=sys.stderr, width=_width(sys.stderr.isatty()))


def show_json(value: Any) -> None:
    """Print a value as one line of JSON; records are spelled as in their files."""
    click.echo(json.dumps(codec.plain(value), ensure_ascii=False, sort_keys=True, separators=(",", ":")))
