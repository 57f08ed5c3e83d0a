"""How the cards of each model spread around its median, as a drawing."""

from __future__ import annotations

from collections.abc import Sequence

from harness.render.report.figure import BELOW, Figure, Grid, Spec, deviation, layer, rows_panel, tips
from harness.render.report.views import FleetKind
from harness.render.report.words import shown, signed_percent

__all__ = ["spread_figure"]

_HEAD = ("model", "cards", "median", "spread", "middle half", "outliers")
_LEAST = 0.02  # a narrower spread fills no width: it would look like a wide one


def spread_figure(work: str, kinds: Sequence[FleetKind]) -> Figure:
    """Draw the spread of each model in one class of work."""
    x = deviation("x", "against the median of the model", max(map(_farthest, kinds)))
    labels = [f"{k.name}  {shown(k.median_value, k.unit)}, {k.card_count:,} cards" for k in kinds]
    drawn = rows_panel(f"Spread of {work} over models", labels, _layers(kinds), x)
    said = "Box: the middle half of the cards; line: all but the outliers, which are red."
    grid = Grid(_HEAD, tuple(map(_row, kinds)))
    return Figure(title=f"Spread within a model: {work}", said=said, panels=(drawn,), grid=grid)


def _layers(kinds: Sequence[FleetKind]) -> list[Spec]:
    ends = [{"row": i, "x": k.low_fraction, "high": k.high_fraction} for i, k in enumerate(kinds)]
    boxes = [{"row": i, "x": k.first_fraction, "high": k.third_fraction} for i, k in enumerate(kinds)]
    middles = [{"row": i, "x": 0.0} for i in range(len(kinds))]
    spots = [
        {"row": i, "x": s.deviation_fraction, "node": s.node, "card": s.card, "told": signed_percent(s.deviation_fraction)}
        for i, k in enumerate(kinds)
        for s in k.outliers
    ]  # fmt: skip
    span, blue = {"x": {}, "x2": {"field": "high"}}, {"color": "var(--series-1)"}
    told = {"x": {}, "tooltip": tips(node="node", card="card", told="against its kind")}
    return [
        layer(ends, "rule", span, y2Offset=7, **blue, **BELOW),
        layer(boxes, "bar", span, height=12, opacity=0.45, **blue, **BELOW),
        layer(middles, "tick", {"x": {}}, thickness=2, size=14, color="var(--ink)", **BELOW),
        layer(spots, "point", told, filled=True, opacity=1, size=45, color="var(--bad)", **BELOW),
    ]


def _row(k: FleetKind) -> tuple[str, ...]:
    spread, half = ((k.low_fraction, k.high_fraction), (k.first_fraction, k.third_fraction))
    return (
        k.name,
        f"{k.card_count:,}",
        shown(k.median_value, k.unit),
        " to ".join(map(signed_percent, spread)),
        " to ".join(map(signed_percent, half)),
        str(k.outlier_count),
    )


def _farthest(k: FleetKind) -> float:
    return max(abs(k.low_fraction), abs(k.high_fraction), *(abs(s.deviation_fraction) for s in k.outliers), _LEAST)
