"""The drawings of many devices together."""

from __future__ import annotations

from collections.abc import Iterator

from harness.render.report.compare_plot import comparison_figure
from harness.render.report.figure import Figure, Grid
from harness.render.report.spread_plot import spread_figure
from harness.render.report.views import FleetKind, FleetView
from harness.render.report.words import signed_percent

__all__ = ["fleet_figures"]


def fleet_figures(fleet: FleetView) -> Iterator[Figure]:
    """Yield what there is to see of several devices, what needs a hand first."""
    if fleet.ill:
        yield _ill(fleet)
    if fleet.side_by_side:
        head, *rows = fleet.side_by_side
        said = "Low ends of what each was seen to do, and the share of the best of them. Kinds of device are not comparable in worth."
        yield Figure(title="By class of work", said=said, grid=Grid(head, tuple(rows)))
    if fleet.comparisons:
        yield comparison_figure(fleet.comparisons, fleet.comparison_remarks)
    works: dict[str, list[FleetKind]] = {}
    for kind in fleet.kinds:
        works.setdefault(kind.work, []).append(kind)
    for work, kinds in sorted(works.items(), key=_weight):
        yield spread_figure(work, kinds)
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
