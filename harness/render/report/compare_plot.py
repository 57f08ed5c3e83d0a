"""What changed from one report to another, as a drawing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from harness.measure.compare import Comparison
from harness.render.report.figure import BELOW, OWN_COLOUR, Figure, Grid, Spec, deviation, layer, rows_panel, tips
from harness.render.report.words import signed_percent, tame

__all__ = ["comparison_figure"]

_TITLE = "From the first report to the second"
_SAID = "Speed of the second against the first, with its 95 % interval: right is faster. What cannot be compared is in the table only."
_HEAD = ("benchmark", "parameters", "device", "speed", "decision", "reason")
_ROWS_MOST = 60
_LEAST = 0.01  # of a change that is drawn to scale
_ENDLESS = 10.0  # where an interval has no fast end
_DECIDED = {"faster": "var(--good)", "mended": "var(--good)", "slower": "var(--bad)", "broken": "var(--bad)"}


def comparison_figure(found: Sequence[Comparison], remarks: Sequence[str]) -> Figure:
    """Draw the change of each point of two reports."""
    bars = [bar for c in found if (bar := _bar(c)) is not None][:_ROWS_MOST]
    grid = Grid(_HEAD, tuple(map(_row, found[:_ROWS_MOST])))
    if not bars:
        said = "No point of both reports can be compared."
        return Figure(title=_TITLE, said=said, grid=grid, notes=tuple(remarks))
    numbered = [{"row": i, **bar} for i, bar in enumerate(bars)]
    x = deviation("x", "change of speed", max(max(abs(b["x"]), abs(b["high"])) for b in bars) or _LEAST)
    drawn = rows_panel("Change of speed", [b["label"] for b in bars], _layers(numbered), x)
    return Figure(title=_TITLE, said=_SAID, panels=(drawn,), grid=grid, notes=tuple(remarks))


def _bar(c: Comparison) -> dict[str, Any] | None:
    if c.change_fraction is None or c.low_fraction is None:
        return None
    high = c.high_fraction
    return {
        "x": c.low_fraction,
        "high": high if high is not None and math.isfinite(high) else _ENDLESS,
        "mid": c.change_fraction,
        "told": signed_percent(c.change_fraction),
        "why": tame(c.reason),
        "colour": _DECIDED.get(c.decision, "var(--series-1)"),
        "label": f"{tame(c.benchmark, 40)} {_params(c)} · {_word(c)}",
    }


def _layers(bars: Sequence[dict[str, Any]]) -> list[Spec]:
    span = {"x": {}, "x2": {"field": "high"}, "color": OWN_COLOUR}
    told = {"x": {"field": "mid"}, "color": OWN_COLOUR, "tooltip": tips(told="speed", why="decided by")}
    nothing = [{"row": i, "x": 0.0} for i in range(len(bars))]
    return [
        layer(bars, "bar", span, height=8, opacity=0.4, **BELOW),
        layer(nothing, "tick", {"x": {}}, size=14, color="var(--muted)", **BELOW),
        layer(bars, "point", told, filled=True, opacity=1, size=55, **BELOW),
    ]


def _row(c: Comparison) -> tuple[str, ...]:
    change = "" if c.change_fraction is None else signed_percent(c.change_fraction)
    return tame(c.benchmark, 60), _params(c), tame(c.device, 20), change, _word(c), tame(c.reason)


def _word(c: Comparison) -> str:
    return c.decision.replace("_", " ")


def _params(c: Comparison) -> str:
    told = [f"{k}={v}" for k, v in c.params.items()]
    return tame(" ".join(told if c.regime == "burst" else [*told, c.regime]), 80)
