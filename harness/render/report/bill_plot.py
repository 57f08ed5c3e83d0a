"""A price as a waterfall."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from harness.render.report.figure import BELOW, OWN_COLOUR, Figure, Grid, Spec, layer, measure, rows_panel, tips
from harness.render.report.views import Bill
from harness.render.report.words import money

__all__ = ["bill_figure"]

_TITLE = "Price"


def bill_figure(bill: Bill) -> Figure:
    """Draw a price as a waterfall; where there is none, say why."""
    if bill.price_usd_per_hour is None:
        return Figure(title=_TITLE, said=bill.said, notes=tuple(_advice(bill)))
    bars = list(_bars(bill))
    told = {"x": {}, "x2": {"field": "end"}, "color": OWN_COLOUR, "tooltip": tips(name="line", told="USD/h", basis="basis")}  # fmt: skip
    layers = [layer(bars, "bar", told, height=10, **BELOW), *_bounds(bill, len(bars) - 1)]
    labels = [f"{bar['name']}  {bar['told']}" for bar in bars]
    drawn = rows_panel("Price as a waterfall of its lines", labels, layers, measure("x", "USD an hour", tickCount=5))
    lines = ((line.name, money(line.usd_per_hour), line.basis) for line in bill.lines)
    rows = (*lines, ("price", money(bill.price_usd_per_hour), "the sum"))
    return Figure(
        title=_TITLE,
        said=" ".join([bill.said, *_legend(bill)]),
        panels=(drawn,),
        grid=Grid(("line", "an hour", "basis"), rows),
        notes=(*bill.reasons, *_advice(bill)),
    )


def _bars(bill: Bill) -> Iterator[dict[str, Any]]:
    """Yield the lines that move the price, and the price."""
    row = 0
    for line in bill.lines:
        if line.usd_per_hour:
            start, colour = line.start_usd_per_hour, "var(--fair)" if line.usd_per_hour < 0 else "var(--series-1)"
            ends = {"x": float(start), "end": float(start + line.usd_per_hour)}
            yield {"row": row, **ends, "colour": colour, "name": line.name, "told": money(line.usd_per_hour), "basis": line.basis}  # fmt: skip
            row += 1
    ends = {"x": 0.0, "end": float(bill.price_usd_per_hour or 0)}
    yield {"row": row, **ends, "colour": "var(--ink)", "name": "price", "told": money(bill.price_usd_per_hour), "basis": "the sum"}  # fmt: skip


def _bounds(bill: Bill, row: int) -> Iterator[Spec]:
    """Yield the interval of a price, and the floor under it."""
    if bill.low_usd_per_hour is not None and bill.high_usd_per_hour is not None:
        ends = {"row": row, "x": float(bill.low_usd_per_hour), "high": float(bill.high_usd_per_hour)}
        yield layer([ends], "rule", {"x": {}, "x2": {"field": "high"}}, size=3, color="var(--series-2)", y2Offset=7, **BELOW)  # fmt: skip
    if bill.floor_usd_per_hour is not None:
        floor = {"row": row, "x": float(bill.floor_usd_per_hour), "told": money(bill.floor_usd_per_hour)}
        yield layer([floor], "tick", {"x": {}, "tooltip": tips(told="floor")}, thickness=3, size=18, color="var(--bad)", **BELOW)  # fmt: skip


def _legend(bill: Bill) -> Iterator[str]:
    if bill.floor_usd_per_hour is not None:
        yield "In the last row the red tick is that floor."
    if bill.low_usd_per_hour is not None:
        yield "The orange line is the interval."


def _advice(bill: Bill) -> Iterator[str]:
    if bill.price_usd_per_hour is None and bill.floor_usd_per_hour is not None:
        yield f"Whatever the price, below {money(bill.floor_usd_per_hour)} an hour standing idle is cheaper."
    if bill.sustainable_usd_per_hour is not None and bill.method == "market":
        yield f"{money(bill.sustainable_usd_per_hour)} an hour would pay for its purchase, too: advice to the owner, not a price."
