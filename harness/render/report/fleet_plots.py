"""The drawings of many devices together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from harness.measure.compare import Comparison
from harness.render.report.figure import Figure, Grid, Spec, axis, rows_panel
from harness.render.report.views import FleetKind, FleetView
from harness.render.report.words import shown, signed_percent, tame

__all__ = ["fleet_figures"]

_FINE = 0.05  # a reach whose ticks need tenths of a per cent
_WIDEST = 0.6
_ROWS_MOST = 60
_DECIDED = {"faster": "var(--good)", "mended": "var(--good)", "slower": "var(--bad)", "broken": "var(--bad)"}


def fleet_figures(fleet: FleetView) -> Iterator[Figure]:
    """Yield what there is to see of several devices, what needs a hand first."""
    if fleet.ill:
        yield _ill(fleet)
    if fleet.side_by_side:
        head, *rows = fleet.side_by_side
        said = "Low ends of what each was seen to do, and the share of the best of them. Kinds of device are not comparable in worth."
        yield Figure(title="By class of work", said=said, grid=Grid(head, tuple(rows)))
    if fleet.comparisons:
        yield _comparison(fleet.comparisons, fleet.comparison_remarks)
    works: dict[str, list[FleetKind]] = {}
    for kind in fleet.kinds:
        works.setdefault(kind.work, []).append(kind)
    for work, kinds in sorted(works.items(), key=_weight):
        yield _spread(work, kinds)
    if fleet.node_count > 1:
        yield _nodes(fleet)


def _weight(one: tuple[str, list[FleetKind]]) -> tuple[int, int]:
    """Order classes of work: those with most outliers first, then those that most cards have in common."""
    return -sum(k.outlier_count for k in one[1]), -sum(k.card_count for k in one[1])


def _ill(fleet: FleetView) -> Figure:
    rows = tuple(
        (c.node, c.name, c.card, "; ".join(c.ill), "; ".join(c.causes) or "not told by the reports") for c in fleet.ill
    )
    more = fleet.ill_count - len(rows)
    notes = (f"{more} more: `harness fleet report` lists all.",) if more > 0 else ()
    said = "Each with what was found, and what may explain it."
    head = ("node", "model", "device", "found", "may explain it")
    return Figure(title="Devices to look at", said=said, grid=Grid(head, rows), notes=(*notes, *fleet.remarks))


def _nodes(fleet: FleetView) -> Figure:
    rows = tuple(
        (n.node, n.name, str(n.card_count), str(n.ill_count), "" if n.deviation_fraction is None else signed_percent(n.deviation_fraction))
        for n in fleet.nodes
    )  # fmt: skip
    said = f"{len(rows)} of {fleet.node_count:,} nodes, those to look at first on top. The last column is the median over all results, against the node's own kind."
    return Figure(
        title="Nodes", said=said, grid=Grid(("node", "model", "devices", "to look at", "against its kind"), rows)
    )


def _spread(work: str, kinds: Sequence[FleetKind]) -> Figure:
    """Draw how the cards of each model spread around its median in one class of work."""
    reach = min(
        max(
            max(abs(k.low_fraction), abs(k.high_fraction), *(abs(s.deviation_fraction) for s in k.outliers), 0.02)
            for k in kinds
        )
        * 1.08,
        _WIDEST,
    )
    ends = [{"row": i, "x": k.low_fraction, "high": k.high_fraction} for i, k in enumerate(kinds)]
    boxes = [{"row": i, "x": k.first_fraction, "high": k.third_fraction} for i, k in enumerate(kinds)]
    middles = [{"row": i, "x": 0.0} for i in range(len(kinds))]
    spots = [{"row": i, "x": s.deviation_fraction, "node": s.node, "card": s.card, "told": signed_percent(s.deviation_fraction)} for i, k in enumerate(kinds) for s in k.outliers]  # fmt: skip
    x: Spec = {
        "field": "x",
        "type": "quantitative",
        "scale": {"domain": [-reach, reach], "clamp": True},
        "axis": axis("against the median of the model", format="+.1%" if reach < _FINE else "+.0%", tickCount=5),
    }
    tips = [
        {"field": "node", "title": "node"},
        {"field": "card", "title": "card"},
        {"field": "told", "title": "against its kind"},
    ]
    layers: list[Spec] = [
        {"data": {"values": ends}, "mark": {"type": "rule", "color": "var(--series-1)", "yOffset": 7, "y2Offset": 7}, "encoding": {"x": {}, "x2": {"field": "high"}}},
        {"data": {"values": boxes}, "mark": {"type": "bar", "height": 12, "yOffset": 7, "opacity": 0.45, "color": "var(--series-1)"}, "encoding": {"x": {}, "x2": {"field": "high"}}},
        {"data": {"values": middles}, "mark": {"type": "tick", "thickness": 2, "size": 14, "yOffset": 7, "color": "var(--ink)"}, "encoding": {"x": {}}},
        {"data": {"values": spots}, "mark": {"type": "point", "filled": True, "opacity": 1, "size": 45, "yOffset": 7, "color": "var(--bad)"}, "encoding": {"x": {}, "tooltip": tips}},
    ]  # fmt: skip
    labels = [f"{k.name}  {shown(k.median_value, k.unit)}, {k.card_count:,} cards" for k in kinds]
    drawn = rows_panel(f"Spread of {work} over models", labels, layers, x)
    head = ("model", "cards", "median", "spread", "middle half", "outliers")
    rows = tuple((k.name, f"{k.card_count:,}", shown(k.median_value, k.unit), f"{signed_percent(k.low_fraction)} to {signed_percent(k.high_fraction)}", f"{signed_percent(k.first_fraction)} to {signed_percent(k.third_fraction)}", str(k.outlier_count)) for k in kinds)  # fmt: skip
    said = "Box: the middle half of the cards; line: all but the outliers, which are red."
    return Figure(title=f"Spread within a model: {work}", said=said, panels=(drawn,), grid=Grid(head, rows))


def _comparison(found: Sequence[Comparison], remarks: Sequence[str]) -> Figure:
    """Draw what changed from the first report to the second."""
    told = [c for c in found if c.change_fraction is not None and c.low_fraction is not None][:_ROWS_MOST]
    head = ("benchmark", "parameters", "device", "speed", "decision", "reason")
    rows = tuple((tame(c.benchmark, 60), _params(c), tame(c.device, 20), "" if c.change_fraction is None else signed_percent(c.change_fraction), c.decision.replace("_", " "), tame(c.reason)) for c in found[:_ROWS_MOST])  # fmt: skip
    title, said = (
        "From the first report to the second",
        "Speed of the second against the first, with its 95 % interval: right is faster.",
    )
    if not told:
        return Figure(
            title=title, said="No point of both reports can be compared.", grid=Grid(head, rows), notes=tuple(remarks)
        )
    bars: list[dict[str, Any]] = [{"row": i, "x": c.low_fraction, "high": _end(c), "mid": c.change_fraction, "colour": _DECIDED.get(c.decision, "var(--series-1)")} for i, c in enumerate(told)]  # fmt: skip
    reach = min(max(max(abs(b["x"]), abs(b["high"])) for b in bars) * 1.08 or 0.01, _WIDEST)
    x: Spec = {
        "field": "x",
        "type": "quantitative",
        "scale": {"domain": [-reach, reach], "clamp": True},
        "axis": axis("change of speed", format="+.1%" if reach < _FINE else "+.0%", tickCount=5),
    }
    colour: Spec = {"field": "colour", "type": "nominal", "scale": None}
    layers: list[Spec] = [
        {"data": {"values": bars}, "mark": {"type": "bar", "height": 8, "opacity": 0.4, "yOffset": 7}, "encoding": {"x": {}, "x2": {"field": "high"}, "color": colour}},
        {"data": {"values": bars}, "mark": {"type": "point", "filled": True, "opacity": 1, "size": 55, "yOffset": 7}, "encoding": {"x": {"field": "mid"}, "color": colour}},
        {"data": {"values": [{"row": 0, "x": 0.0}]}, "mark": {"type": "rule", "color": "var(--muted)", "y": 0, "y2": "height"}, "encoding": {"x": {}, "y": None}},
    ]  # fmt: skip
    labels = [f"{tame(c.benchmark, 40)} {_params(c)} · {c.decision.replace('_', ' ')}" for c in told]
    return Figure(
        title=title,
        said=said,
        panels=(rows_panel("Change of speed", labels, layers, x),),
        grid=Grid(head, rows),
        notes=tuple(remarks),
    )


def _end(c: Comparison) -> float:
    return c.high_fraction if c.high_fraction is not None and math.isfinite(c.high_fraction) else 10.0


def _params(c: Comparison) -> str:
    return tame(" ".join(f"{k}={v}" for k, v in c.params.items()) + ("" if c.regime == "burst" else f" {c.regime}"), 80)
