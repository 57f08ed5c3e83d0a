"""How steady each measurement was, as a drawing."""

from __future__ import annotations

import math
from collections.abc import Sequence

from harness.render.report.figure import (
    BELOW,
    OWN_COLOUR,
    TONES,
    Figure,
    Grid,
    Spec,
    deviation,
    layer,
    rows_panel,
    tips,
)
from harness.render.report.views import RoundsRow
from harness.render.report.words import signed_percent

__all__ = ["rounds_figure"]

_TITLE = "Rounds and intervals"
_SAID = (
    "Each tick is the median of a round, each bar the 95 % interval; the least steady come first. Faint ticks were discarded, with the "
    "reason in the report."
)
_ENDLESS = 10.0  # where an interval has no slow end


def rounds_figure(rows: Sequence[RoundsRow]) -> Figure:
    """Draw each measurement's rounds around its time, with the interval that follows from them."""
    if not rows:
        return Figure(title=_TITLE, said="Nothing was measured.")
    x = deviation("x", "against the time reported; right is slower", max(map(_farthest, rows)))
    labels = [f"{r.label} · {r.state.replace('_', ' ')}" for r in rows]
    drawn = rows_panel(f"Rounds of {len(rows)} measurements", labels, _layers(rows), x)
    told = tuple(
        (r.label, r.state, f"{signed_percent(r.low_fraction)} to {signed_percent(r.high_fraction)}", str(len(r.rounds)))
        for r in rows
    )
    grid = Grid(("measurement", "state", "interval", "rounds"), told)
    return Figure(title=_TITLE, said=_SAID, panels=(drawn,), grid=grid)


def _layers(rows: Sequence[RoundsRow]) -> list[Spec]:
    bars = [{"row": i, "x": r.low_fraction, "high": _end(r), "colour": TONES[r.tone]} for i, r in enumerate(rows)]
    dots = [
        {"row": i, "x": d.deviation_fraction, "kept": d.discarded is None, "told": signed_percent(d.deviation_fraction), "why": d.discarded or "counts"}
        for i, r in enumerate(rows)
        for d in r.rounds
    ]  # fmt: skip
    faint = {"condition": {"test": "datum.kept", "value": 0.8}, "value": 0.25}
    seen = {"x": {}, "opacity": faint, "tooltip": tips(told="round", why="state")}
    return [
        layer(bars, "bar", {"x": {}, "x2": {"field": "high"}, "color": OWN_COLOUR}, height=10, opacity=0.35, **BELOW),
        layer(dots, "tick", seen, thickness=1.5, size=12, color="var(--ink)", **BELOW),
    ]


def _farthest(row: RoundsRow) -> float:
    return max(abs(row.low_fraction), _end(row), *(abs(d.deviation_fraction) for d in row.rounds), 0.01)


def _end(row: RoundsRow) -> float:
    return row.high_fraction if math.isfinite(row.high_fraction) else _ENDLESS
