"""What a drawing is: panels in the grammar of Vega-Lite, the same in words and as a table, and the colours, which the page decides on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from harness.render.report.views import Tone

__all__ = [
    "BELOW",
    "CONFIG",
    "OWN_COLOUR",
    "TONES",
    "Figure",
    "Grid",
    "Spec",
    "axis",
    "decades",
    "deviation",
    "layer",
    "measure",
    "panel",
    "rows_panel",
    "tips",
]

Spec = Mapping[str, Any]

_GUTTER_PX = 46  # left of panels that share an axis of time
_FINE = 0.05  # a reach whose ticks need tenths of a per cent
_WIDEST = 0.6  # of a deviation that is drawn to scale
_ROW_PX = 32  # a line of text, and the marks that it names

BELOW: Spec = {"yOffset": 7}  # a mark under the name of its row
OWN_COLOUR: Spec = {"field": "colour", "type": "nominal", "scale": None}  # as the data say, and no legend

# Colours are names of the style sheet's: light, dark and paper each have their own, and one drawing serves all three.
TONES: Mapping[Tone, str] = {
    "good": "var(--good)",
    "fair": "var(--fair)",
    "bad": "var(--bad)",
    "plain": "var(--series-1)",
}

CONFIG: Spec = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "aria": False,  # each mark would be read out; the panel's description and the table beside it are
    "view": {"stroke": "transparent"},
    "axis": {
        "labelColor": "var(--muted)",
        "titleColor": "var(--muted)",
        "gridColor": "var(--line)",
        "domainColor": "var(--line)",
        "tickColor": "var(--line)",
        "labelFontSize": 11,
        "titleFontSize": 11,
        "titleFontWeight": "normal",
        "labelOverlap": True,
    },
    "legend": {
        "labelColor": "var(--ink)",
        "titleColor": "var(--muted)",
        "labelFontSize": 11,
        "titleFontSize": 11,
        "titleFontWeight": "normal",
        "orient": "top",
        "columns": 3,
        "symbolSize": 70,
    },
    "text": {"fill": "var(--ink)", "fontSize": 11},
    "range": {"category": [f"var(--series-{i})" for i in range(1, 7)]},
}


class Grid(NamedTuple):
    """A table: what a drawing shows, for those who cannot see it or want the numbers."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A drawing with its text and table; without panels there is nothing to draw, and `said` tells why."""

    title: str
    said: str
    panels: tuple[Spec, ...] = ()
    grid: Grid | None = None
    notes: tuple[str, ...] = ()
    notes_title: str = "Notes"


def decades(low: float, high: float) -> list[float]:
    """Return the powers of ten around a range: ticks of a logarithmic axis that does not become a curtain."""
    return [10.0**e for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]


def axis(title: str, **more: Any) -> dict[str, Any]:
    """Return an axis with a title."""
    return {"title": title or None, **more}


def measure(field: str, title: str, *, scale: Spec | None = None, **more: Any) -> Spec:
    """Return how a number is placed along an axis."""
    found: dict[str, Any] = {"field": field, "type": "quantitative", "axis": axis(title, **more)}
    return found if scale is None else {**found, "scale": scale}


def deviation(field: str, title: str, most: float) -> Spec:
    """Return an axis of deviations from zero in the middle, wide enough for `most`; what is too far stands at its edge."""
    reach = min(most * 1.08, _WIDEST)
    form = "+.1%" if reach < _FINE else "+.0%"
    return measure(field, title, scale={"domain": [-reach, reach], "clamp": True}, format=form, tickCount=5)


def layer(values: Sequence[Mapping[str, Any]], mark: str, encoding: Spec, **style: Any) -> Spec:
    """Return marks of one kind, one for each of the values."""
    return {"data": {"values": values}, "mark": {"type": mark, **style}, "encoding": encoding}


def tips(**titles: str) -> list[Spec]:
    """Return what a mark tells when it is pointed at: fields with their titles."""
    return [{"field": field, "title": title} for field, title in titles.items()]


def panel(description: str, height_px: int, layers: Sequence[Spec], *, in_time: bool = False) -> Spec:
    """Return one drawing as wide as the page, of marks over each other; those `in_time` line up under each other."""
    pinned = {"config": {"axisY": {"minExtent": _GUTTER_PX, "maxExtent": _GUTTER_PX}}} if in_time else {}
    return {
        "description": description,
        "width": "container",
        "height": height_px,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "layer": list(layers),
        **pinned,
    }


def rows_panel(  # noqa: PLR0913 - two of them are for rows in time alone
    description: str,
    labels: Sequence[str],
    layers: Sequence[Spec],
    x: Spec,
    *,
    names: Sequence[Spec] = (),
    in_time: bool = False,
) -> Spec:
    """Return a drawing with a row for each label, which stands over its marks: so that long names fit on a phone.

    `names` are layers that write the labels elsewhere. The layers encode `y` by the field `row`, the label's number; `x` is how the field that places each label at the left is scaled.
    """
    ordinal = row_axis(len(labels), in_time=in_time)
    named = names or (
        {
            "data": {"values": [{"row": i, "label": label} for i, label in enumerate(labels)]},
            "mark": {"type": "text", "align": "left", "baseline": "middle", "dy": -9, "x": 0, "limit": 330},
            "encoding": {"text": {"field": "label"}},
        },
    )
    placed = [
        {**layer, "encoding": {"y": ordinal, **layer["encoding"]}}
        for layer in (*layers, *named)
        if layer["data"]["values"]
    ]  # a mark without data has no extent
    shared = [
        {**layer, "encoding": {**layer["encoding"], "x": {**x, **layer["encoding"]["x"]}}}
        if "x" in layer["encoding"]
        else layer
        for layer in placed
    ]
    return panel(description, _ROW_PX * len(labels) + 4, shared, in_time=in_time)


def row_axis(count: int, *, in_time: bool = False) -> Spec:
    """Return the axis of numbered rows, which has nothing to say itself, but takes the room of one that has."""
    blank = {"labels": False, "ticks": False, "domain": False, "grid": False, "title": " "}
    return {
        "field": "row",
        "type": "ordinal",
        "axis": blank if in_time else None,
        "scale": {"domain": list(range(count)), "paddingInner": 0, "paddingOuter": 0},
    }
