"""What is better read than seen: figures that are tables."""

from __future__ import annotations

from collections.abc import Sequence

from harness.render.report.figure import Figure, Grid
from harness.render.report.views import EnergyRow

__all__ = ["energy_figure"]


def energy_figure(rows: Sequence[EnergyRow], none: str) -> Figure:
    """Return what a unit of each work cost in energy; without rows, why that is not known."""
    title = "Energy per unit of work"
    if not rows:
        return Figure(title=title, said=none)
    head = ("benchmark", "gross", "net of idle", "mean power", "from", "in dispute")
    table = tuple((r.label, r.gross, r.net, f"{r.mean_power_w:.0f} W", r.source, r.disputed) for r in rows)
    said = "Gross is all that was drawn while it ran, and what a price counts with; net leaves out what the device draws at rest."
    return Figure(title=title, said=said, grid=Grid(head, table))
