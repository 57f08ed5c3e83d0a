"""Tables of which no digit is lost: on a terminal that is too narrow they leave out what they may, say so, and are wider than it rather than cut."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Group
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

__all__ = ["Whole", "blank_table", "room"]

_GAP = 2
_LONGEST_WORD = 24  # a longer one may be folded: a path, a name that somebody gave


class Whole(Table):
    """A table whose cells appear whole, whatever the width: figures on one line, words from word to word.

    Rich takes from every column alike where a table is too wide, and crops what then does not fit: a number without its last digits, or without its unit,
    is another number.
    """

    spare: tuple[str, ...] = ()  # columns to leave out first where the table is too wide, in this order

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw what fits."""
        drawn, gone = self._fitted(options.max_width)
        yield from super(Whole, drawn).__rich_console__(
            console, options.update_width(max(drawn.total, options.max_width))
        )
        if gone:
            yield Text(f"left out, as the terminal is narrow: {', '.join(gone)}", style="dim")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Measure what fits."""
        drawn, _ = self._fitted(options.max_width)
        return Measurement(drawn.total, drawn.total)

    def needed(self, width: int) -> int:
        """Return how many cells it takes where a line has so many."""
        return self._fitted(width)[0].total

    @property
    def total(self) -> int:
        """The width of the whole, in cells."""
        return sum(column.width or 0 for column in self.columns) + _GAP * (len(self.columns) - 1)

    def _fitted(self, width: int) -> tuple[Whole, list[str]]:
        """Return the table with the width of each column, and the names of those that are left out."""
        drawn, gone = copy.copy(self), list[str]()
        drawn.columns = [copy.copy(column) for column in self.columns]
        for column in drawn.columns:
            column.width = _least(column)
        for name in self.spare:
            if drawn.total <= width:
                break
            left = [column for column in drawn.columns if column.header != name]
            drawn.columns = [replace(column, _index=at) for at, column in enumerate(left)]  # what is padded hangs on it
            gone.append(name)
        _widen(drawn.columns, width - drawn.total)
        return drawn, gone


def room(part: RenderableType, width: int) -> int:
    """Return how many cells the tables in what is to be printed take at least, where a line has so many."""
    if isinstance(part, Group):
        return max((room(inner, width) for inner in part.renderables), default=0)
    return part.needed(width) if isinstance(part, Whole) else 0


def _widen(columns: Sequence[Column], left: int) -> None:
    """Give what is left of a line to the columns of words, the one that lacks least first."""
    lacking = [(_widest(column) - (column.width or 0), at) for at, column in enumerate(columns)]
    rest = sorted(pair for pair in lacking if pair[0] > 0)
    for n, (lacks, at) in enumerate(rest):
        more = min(lacks, max(left, 0) // (len(rest) - n))
        columns[at].width = (columns[at].width or 0) + more
        left -= more


def _texts(column: Column) -> Iterator[str]:
    for cell in (column.header, *column.cells):
        yield cell.plain if isinstance(cell, Text) else str(cell)


def _widest(column: Column) -> int:
    return max((cell_len(line) for text in _texts(column) for line in text.split("\n")), default=0)


def _least(column: Column) -> int:
    if column.no_wrap:
        return _widest(column)
    return max((min(cell_len(word), _LONGEST_WORD) for text in _texts(column) for word in text.split()), default=0)


def blank_table(*columns: str, right: Sequence[str] = (), wrap: Sequence[str] = (), spare: Sequence[str] = ()) -> Whole:
    """Return an empty table.

    Args:
        columns: their headers; the last one is of words.
        right: those of numbers.
        wrap: others of words, which may take several lines.
        spare: those to leave out where there is no room, the first one first.
    """
    made = Whole(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold", expand=False)
    made.spare = tuple(spare)
    for name in columns:
        wraps = name == columns[-1] or name in wrap
        made.add_column(name, justify="right" if name in right else "left", no_wrap=not wraps, overflow="fold")
    return made
