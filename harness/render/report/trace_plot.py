"""Telemetry as a drawing: power, clock and temperature over each other, and what ran, on one axis of time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from harness.render.report.figure import (
    BELOW,
    OWN_COLOUR,
    TONES,
    Figure,
    Grid,
    Spec,
    axis,
    layer,
    measure,
    panel,
    rows_panel,
    tips,
)
from harness.render.report.views import Trace
from harness.render.report.words import number

__all__ = ["trace_figure"]

_GAP_S = 3.0  # between two looks
_LATE = 0.5  # of the width, from where on a name is written to the left


def trace_figure(trace: Trace) -> Figure:
    """Draw telemetry over time, with the benchmarks on the same clock."""
    said = "Seconds since the first measurement was set up; benchmarks are placed to about a second."
    bands = [{"x": b.start_s, "end": b.end_s, "why": b.reasons, "colour": TONES[b.tone]} for b in trace.bands]
    x: Spec = {"field": "x", "type": "quantitative", "scale": {"domain": [0, trace.end_s], "nice": False}}
    panels = tuple(_telemetry(trace, bands, x))
    lanes = (_lanes(trace, bands, x),) if trace.lanes else ()
    if bands:
        said += " Shaded: the hardware held itself back, orange by a limit of power, red by heat or supply."
    missing = tuple(f"Not drawn, {m}." for m in trace.missing)
    if not panels:
        said = "No sensor told power, clock or temperature; what ran is drawn alone. " + said
    return Figure(title="Telemetry", said=said, panels=(*panels, *lanes), grid=_told(trace), notes=missing)


def _telemetry(trace: Trace, bands: list[dict[str, Any]], x: Spec) -> Iterator[Spec]:
    for field, title in (("power_w", "W"), ("clock_mhz", "MHz"), ("temperature_c", "°C")):
        values = _parts([(s.at_s, v) for s in trace.samples if (v := getattr(s, field)) is not None])
        if not values:
            continue
        bare: Spec = {**x, "axis": axis("", labels=False, ticks=False, tickCount=6)}
        y = measure("y", title, scale={"zero": field == "power_w"}, tickCount=4)
        layers: list[Spec] = [_shade(bands, bare)] if bands else []
        if field == "power_w" and trace.power_limit_w:
            layers.append(layer([{"y": trace.power_limit_w}], "rule", {"y": y}, strokeDash=[5, 4], color="var(--bad)"))
        told = {"x": bare, "y": y, "detail": {"field": "part"}, "tooltip": _tips(title)}
        blue = {"color": "var(--series-1)"}
        layers.append(layer(values, "line", told, strokeWidth=1.5, point={"size": 6, **blue}, **blue))
        yield panel(f"{title} over time", 96, layers, in_time=True)


def _tips(title: str) -> list[Spec]:
    return [{"field": "x", "title": "s", "format": ".1f"}, {"field": "y", "title": title, "format": ".4~r"}]


def _parts(seen: list[tuple[float, float]]) -> list[dict[str, Any]]:
    """Number the stretches in which somebody looked: over a gap nobody knows, so nothing is drawn."""
    values, part = [], 0
    for i, (at_s, value) in enumerate(seen):
        part += i > 0 and at_s - seen[i - 1][0] > _GAP_S
        values.append({"x": at_s, "y": value, "part": part})
    return values


def _shade(bands: list[dict[str, Any]], x: Spec) -> Spec:
    told = {"x": x, "x2": {"field": "end"}, "color": OWN_COLOUR, "tooltip": tips(why="held back by")}
    return layer(bands, "rect", told, opacity=0.22)


def _lanes(trace: Trace, bands: list[dict[str, Any]], x: Spec) -> Spec:
    bars = [
        {"row": i, "x": lane.start_s, "end": lane.end_s, "name": lane.label, "state": lane.state}
        for i, lane in enumerate(trace.lanes)
    ]
    ticks = [{"row": i, "x": at} for i, lane in enumerate(trace.lanes) for at in lane.rounds_s]
    timed: Spec = {**x, "axis": axis("seconds", tickCount=6)}
    told = {"x": {}, "x2": {"field": "end"}, "tooltip": tips(name="benchmark", state="state")}
    blue = {"color": "var(--series-1)"}
    layers = [
        layer(bars, "bar", told, height=8, opacity=0.3, **blue, **BELOW),
        layer(ticks, "tick", {"x": {}}, thickness=1, size=8, **blue, **BELOW),
    ]
    labels = [lane.label for lane in trace.lanes]
    names = [_names(trace, at_end=at_end) for at_end in (False, True)]
    drawn = rows_panel("When each benchmark ran", labels, layers, timed, names=names, in_time=bool(trace.samples))
    return {**drawn, "layer": [_shade(bands, timed), *drawn["layer"]] if bands else drawn["layer"]}


def _names(trace: Trace, *, at_end: bool) -> Spec:
    """Write each lane's name where it begins, or, where that is far to the right, up to where it ends."""
    late = [lane.start_s > trace.end_s * _LATE for lane in trace.lanes]
    values = [
        {"row": i, "x": lane.end_s if at_end else lane.start_s, "label": lane.label}
        for i, lane in enumerate(trace.lanes)
        if late[i] is at_end
    ]
    side, named = "right" if at_end else "left", {"x": {}, "text": {"field": "label"}}
    return layer(values, "text", named, align=side, baseline="middle", dy=-9, limit=300)


def _told(trace: Trace) -> Grid:
    rows = []
    for field, title, unit in (
        ("power_w", "power", "W"),
        ("clock_mhz", "clock", "MHz"),
        ("temperature_c", "temperature", "°C"),
    ):
        values = [v for s in trace.samples if (v := getattr(s, field)) is not None]
        if values:
            rows.append(
                (title, *(f"{number(v)} {unit}" for v in (min(values), sum(values) / len(values), max(values))))
            )
    rows += [(f"held back by {b.reasons}", f"{b.start_s:.1f} s", "to", f"{b.end_s:.1f} s") for b in trace.bands[:20]]
    return Grid(("what", "least", "mean of what is drawn", "most"), tuple(rows))
