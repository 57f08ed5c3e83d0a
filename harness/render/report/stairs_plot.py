"""The latency staircase, as a drawing."""

from __future__ import annotations

from typing import Any

from harness.render.report.figure import Figure, Grid, Spec, decades, layer, measure, panel, tips
from harness.render.report.views import Stair, Stairs
from harness.render.report.words import binary, shown

__all__ = ["stairs_figure"]

_TITLE = "Latency staircase"
_LEAST_NS = 1e-3  # a logarithm needs one
_MOST_NS = 1e12  # and an end
_BINARY = (
    "datum.value >= 1073741824 ? format(datum.value / 1073741824, '~g') + ' GiB' : datum.value >= 1048576 "
    "? format(datum.value / 1048576, '~g') + ' MiB' : format(datum.value / 1024, '~g') + ' KiB'"
)


def stairs_figure(stairs: Stairs) -> Figure:
    """Draw the latency of a dependent load over the size of what it is loaded from."""
    if not stairs.steps:
        return Figure(title=_TITLE, said="The latency of memory was not measured: `chase` does.")
    drawn = panel("Latency over working set", 240, _layers(stairs))
    ends = ", ".join(f"{name} ends at {_size(size)}" for name, size in stairs.caches)
    said = (
        "The time of one dependent load in a random walk through more and more memory, with its interval. Steps belong where a cache ends: "
        f"{ends or 'the device does not tell the size of its caches'}."
    )
    grid = Grid(("working set", "latency", "interval", "state"), tuple(map(_row, stairs.steps)))
    return Figure(title=_TITLE, said=said, panels=(drawn,), grid=grid)


def _layers(stairs: Stairs) -> list[Spec]:
    dots = [_dot(s) for s in stairs.steps]
    heights = [d[end] for d in dots for end in ("low", "high")]
    caches = [{"x": size, "name": name} for name, size in stairs.caches]
    x = measure("x", "working set", scale={"type": "log", "base": 2, "nice": False}, labelExpr=_BINARY, tickCount=7)
    y = measure("y", "ns a hop", scale={"type": "log"}, format="~g", values=decades(min(heights), max(heights)))
    blue = {"color": "var(--series-1)"}
    told = {"x": x, "y": y, "tooltip": tips(size="working set", told="latency")}
    layers = [
        layer(caches, "rule", {"x": x}, strokeDash=[4, 4], color="var(--muted)"),
        layer(caches, "text", {"x": x, "text": {"field": "name"}}, align="right", dx=-4, y=8),
        layer(dots, "line", {"x": x, "y": y}, **blue),
        layer(dots, "rule", {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}}, **blue),
        layer(dots, "point", told, filled=True, opacity=1, size=60, **blue),
    ]
    return [one for one in layers if one["data"]["values"]]  # a mark without data has no extent


def _dot(s: Stair) -> dict[str, Any]:
    y, low, high = (min(max(t * 1e9, _LEAST_NS), _MOST_NS) for t in (s.latency_s, s.low_s, s.high_s))
    return {"x": s.size_bytes, "y": y, "low": low, "high": high, "size": _size(s.size_bytes), "told": shown(s.latency_s, "s/hop")}  # fmt: skip


def _row(s: Stair) -> tuple[str, ...]:
    ends = f"{shown(s.low_s, 's/hop')} to {shown(s.high_s, 's/hop')}"
    return _size(s.size_bytes), shown(s.latency_s, "s/hop"), ends, s.state


def _size(size_bytes: int) -> str:
    told = binary(size_bytes)
    return f"{told}B" if " " in told else f"{told} B"
