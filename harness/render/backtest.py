"""Tables of the market model: how far off it is on what it has not seen, and fresh indices."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from harness.fitting.backtest import Backtest, Line
from harness.render.tables import blank_table
from harness.scoring.anchor import IndexPrint, objection

__all__ = ["backtest_markdown", "backtest_table", "index_table"]

_COLUMNS = (
    "left out",
    "model",
    "answered",
    "median error, %",
    "mean error, %",
    "within 25 %, %",
    "80 % interval holds, %",
    "interval",
)


def backtest_table(tested: Backtest) -> RenderableType:
    """Return the backtest as a table."""
    table = blank_table(*_COLUMNS, right=_COLUMNS[2:], wrap=_COLUMNS[:2])
    for line in tested.lines:
        table.add_row(*_cells(line), style="bold" if line.model == "ours" else None)
    return Group(Text(_title(tested), style="bold"), table)


def backtest_markdown(tested: Backtest) -> str:
    """Return the same as Markdown, as it stands in docs/pricing.md."""
    rows = [f"| {' | '.join(_COLUMNS)} |", "|---|---|" + "---:|" * (len(_COLUMNS) - 2)]
    rows += [f"| {' | '.join(_cells(line))} |" for line in tested.lines]
    return "\n".join([_title(tested), "", *rows]) + "\n"


def index_table(prints: Sequence[IndexPrint]) -> RenderableType:
    """Return prints of an index, and whether each may be used."""
    numbers = ("over the model", "sellers", "offers", "spread")
    table = blank_table("class", "date", *numbers, "usable", right=numbers)
    for print_ in prints:
        change = f"{math.expm1(print_.log_ratio):+.1%}"
        counts = (str(print_.seller_count), str(print_.offer_count), f"{print_.log_mad:.2f}")
        table.add_row(print_.card_class, print_.date, change, *counts, objection(print_) or "yes")
    return table


def _title(tested: Backtest) -> str:
    return f"{tested.cells} prices (medians of a card at a seller) up to {tested.as_of}; nothing that is left out enters a fit."


def _cells(line: Line) -> Iterator[str]:
    yield line.split
    yield line.model
    yield f"{line.answered} of {line.asked}"
    for fraction in (line.median_error_fraction, line.mean_error_fraction):
        yield "-" if fraction is None else f"{100 * fraction:.1f}"
    for fraction in (line.near_fraction, line.covered_fraction):
        yield "-" if fraction is None else f"{100 * fraction:.0f}"
    yield "-" if line.interval_factor is None else f"x/÷ {line.interval_factor:.2f}"
