"""Tables on terminals of any width: a digit, a unit or a state that is not there is told, never cut off."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import madeup
import pytest
from rich.console import Console, Group, RenderableType
from rich.text import Text

from harness import codec
from harness.measure.compare import compare
from harness.model import Report
from harness.render import text
from harness.render.quotes import market_table
from harness.render.tables import Whole, blank_table, room
from harness.scoring import pricelist
from harness.scoring.fleet import fleet

WIDTHS = (40, 60, 80, 100, 140, 200)
SHIPPED = next((Path(__file__).parent.parent / "results").glob("2*.json"))


def told() -> dict[str, RenderableType]:
    cpu = codec.read(SHIPPED, Report)
    gpus = [madeup.node(at, madeup.MODELS[0], card_count=2) for at in range(3)]
    return {
        "report of a CPU": text.report_tables(cpu),
        "report of GPUs": text.report_tables(gpus[0]),
        "comparison": text.comparison_table(compare(gpus[0], gpus[1]), ["!"]),
        "fleet": text.fleet_tables(fleet(gpus)),
        "market": market_table(pricelist.market_table(at=date(2026, 10, 10))),
    }


def drawn(part: RenderableType, width: int) -> str:
    console = Console(width=max(width, room(part, width)), color_system=None, soft_wrap=False)
    with console.capture() as seen:
        console.print(part)
    return seen.get()


def tables(part: RenderableType) -> Iterator[Whole]:
    if isinstance(part, Group):
        for inner in part.renderables:
            yield from tables(inner)
    elif isinstance(part, Whole):
        yield part


def cells(column: Any) -> Iterator[str]:
    for cell in (column.header, *column.cells):
        yield cell.plain if isinstance(cell, Text) else str(cell)


@pytest.mark.parametrize("width", WIDTHS)
def test_every_cell_appears_whole_or_its_column_is_said_to_be_left_out(width: int) -> None:
    for name, part in told().items():
        held = list(tables(part))
        assert held, name
        for table in held:
            seen = drawn(table, width)
            _, _, gone = " ".join(seen.split()).partition("as the terminal is narrow: ")
            left_out = gone.split(", ") if gone else []
            assert left_out == list(table.spare)[: len(left_out)]
            for column in table.columns:
                if column.header in left_out:
                    continue
                for cell in cells(column):
                    for piece in [cell] if column.no_wrap else cell.split():
                        assert piece in seen or len(piece) > 24, (name, width, column.header, piece)


def test_a_report_fits_eighty_columns_with_its_states() -> None:
    for name in ("report of a CPU", "report of GPUs"):
        seen = drawn(told()[name], 80)
        assert max(map(len, seen.splitlines())) <= 80
        assert re.search(r" ±  .*state", seen)
        assert "left out" not in drawn(told()[name], 200)
    assert "left out, as the terminal is narrow: 95 % interval" in drawn(told()["report of a CPU"], 80)


def test_room_goes_to_words_and_numbers_stay_on_one_line() -> None:
    table = blank_table("name", "value", "said", right=["value"], spare=["value"])
    table.add_row("a", "1.2345678", "word " * 12)
    for width, gone in ((20, True), (24, False), (60, False)):
        seen = drawn(table, width)
        assert ("1.2345678" not in seen) == gone
        assert max(map(len, seen.splitlines()[1:2])) <= width
