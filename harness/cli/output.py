"""How commands print: tables for people, or one JSON document as the last line of stdout."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import click
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from harness import codec
from harness.cluster.rayenv import quiet
from harness.render.tables import room

__all__ = ["hushed", "json_option", "on_one_line", "show", "show_json", "stderr", "stdout"]

# A stranger's report is text, not commands to the terminal: escape sequences in it are shown as what they are not.
_CONTROLS = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160)) if code != ord("\n")}
_NARROW = 60
_WIDE = 200  # where nobody looks at it on a screen, no line needs to be cut

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document as the last line of stdout."
)


class _Tame:
    """What is to be printed, without control characters of its own."""

    def __init__(self, renderable: RenderableType) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for text, style, control in console.render(self._renderable, options):
            yield Segment(text if control else text.translate(_CONTROLS), style, control)


def on_one_line(text: str) -> str:
    """Return a message fit for one line of a terminal."""
    return " ".join(text.split()).translate(_CONTROLS)


def _colours() -> Literal["auto"] | None:
    return None if os.environ.get("NO_COLOR") else "auto"  # with colour go the bold and the dim


def _width(terminal: bool) -> int:
    return shutil.get_terminal_size().columns if terminal else _WIDE


def show(*parts: RenderableType) -> None:
    """Print to stdout; colour only on a terminal, and not where NO_COLOR is set."""
    terminal = sys.stdout.isatty()
    console = Console(
        file=sys.stdout,
        width=max(_width(terminal), _NARROW),
        color_system=_colours(),
        soft_wrap=not terminal,
        markup=False,
        emoji=False,
    )
    for part in parts:
        # What is wider than the terminal goes on in its next line: it is never cropped.
        width = max(_width(terminal), _NARROW)
        console.width = max(width, room(part, width))
        with console.capture() as drawn:
            console.print(_Tame(part))
        # Tables pad their lines to one width, which a file has no use for, and a terminal that is narrower would show as empty lines.
        click.echo(re.sub(r" +$", "", drawn.get(), flags=re.MULTILINE), nl=False)


class _Progress(Console):
    """A console that nobody need listen to."""

    def on_broken_pipe(self) -> None:
        """Go on in silence, where Rich would end the process: what it measures is worth more than what it says."""
        self.quiet = True


def stderr() -> Console:
    """Return the console for progress and warnings.

    It has a copy of the descriptor: while Ray is in this process, the descriptor itself leads to where Ray's noise goes.
    """
    if sys.stderr is None:  # closed before we began
        return _Progress(file=io.StringIO(), width=_WIDE)
    try:
        fd = os.dup(sys.stderr.fileno())
    except (OSError, ValueError):  # no real file, as under a test
        return _Progress(file=sys.stderr, width=_width(sys.stderr.isatty()))
    file = os.fdopen(fd, "w", encoding=sys.stderr.encoding, errors="backslashreplace", buffering=1)
    # A terminal may be made wider or narrower meanwhile.
    console = _Progress(file=file, width=None if file.isatty() else _WIDE, color_system=_colours())
    weakref.finalize(console, file.close)
    return console


def stdout() -> Console:
    """Return the console for what moves on stdout: only for a terminal."""
    return Console(file=sys.stdout, color_system=_colours())


def hushed(ray: str | None) -> AbstractContextManager[object]:
    """Keep Ray's own messages from the terminal for the length of a context, if Ray is to be used at all."""
    return quiet() if ray else nullcontext()


def show_json(value: Any) -> None:
    """Print a value as one line of JSON; records are spelled as in their files."""
    click.echo(json.dumps(codec.plain(value), ensure_ascii=False, sort_keys=True, separators=(",", ":")))
