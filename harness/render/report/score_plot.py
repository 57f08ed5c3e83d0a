"""A device's scores among those of other cards, as a drawing."""

from __future__ import annotations

from collections.abc import Sequence

from harness.render.report.figure import BELOW, Figure, Grid, Spec, decades, layer, measure, rows_panel, tips
from harness.render.report.views import Standing
from harness.render.report.words import number

__all__ = ["standing_figure"]

_TITLE = "Score per workload"
_SAID = (
    "Blue diamond: this device, by the low ends of its results, with a bar to their high ends. Grey: other models of GPU, by the low end of "
    "what others published of them. Orange tick: published of this very model. 1 CU-1 is the reference node, an H100 SXM."
)


def standing_figure(standings: Sequence[Standing]) -> Figure:
    """Draw a device's scores among those that published results of other cards come to."""
    scored = [(s, s.cu_per_hour) for s in standings if s.cu_per_hour]
    lacking = tuple(f"{s.profile}: {s.said}" for s in standings if not s.cu_per_hour)
    if not scored:
        return Figure(title=_TITLE, said="No workload could be scored.", notes=lacking)
    unit = scored[0][0].unit
    reach = [value for s, own in scored for value in (own, *(p.cu_per_hour for p in s.peers))]
    x = measure("value", f"{unit}, log scale", scale={"type": "log"}, values=decades(min(reach), max(reach)))
    labels = [f"{s.profile}  {number(own)}" for s, own in scored]
    drawn = rows_panel(f"Scores on {len(scored)} workloads", labels, _layers(scored, unit), x)
    rows = tuple((s.profile, number(own), s.said) for s, own in scored)
    return Figure(
        title=_TITLE,
        said=_SAID,
        panels=(drawn,),
        grid=Grid(("workload", unit, "standing"), rows),
        notes=lacking,
        notes_title="Workloads without a score",
    )


def _layers(scored: Sequence[tuple[Standing, float]], unit: str) -> list[Spec]:
    peers = [
        {"row": i, "value": p.cu_per_hour, "name": p.name, "told": number(p.cu_per_hour)}
        for i, (s, _) in enumerate(scored)
        for p in s.peers
    ]
    kinds = [
        {"row": i, "value": s.own_kind, "name": "published of this model", "told": number(s.own_kind)}
        for i, (s, _) in enumerate(scored)
        if s.own_kind
    ]
    own = [
        {"row": i, "value": v, "high": s.high_cu_per_hour or v, "name": "this device", "told": number(v)}
        for i, (s, v) in enumerate(scored)
    ]
    told = {"x": {}, "tooltip": tips(name="card", told=unit)}
    blue = {"color": "var(--series-1)"}
    return [
        layer(peers, "point", told, filled=True, size=42, opacity=0.45, color="var(--muted)", **BELOW),
        layer(kinds, "tick", told, thickness=3, size=16, color="var(--series-2)", **BELOW),
        layer(own, "rule", {"x": {}, "x2": {"field": "high"}}, size=4, y2Offset=7, **blue, **BELOW),
        layer(own, "point", told, shape="diamond", filled=True, opacity=1, size=130, **blue, **BELOW),
    ]
