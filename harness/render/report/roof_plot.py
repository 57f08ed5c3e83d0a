"""The roofline, as a drawing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from harness.render.report.figure import Figure, Grid, Spec, decades, layer, measure, panel, tips
from harness.render.report.views import Roof, RoofPoint
from harness.render.report.words import number, percent, shown

__all__ = ["roof_figure"]

_TITLE = "Roofline"
_HEAD = ("no.", "kernel", "operations a byte", "rate", "type", "limited by", "of its roof", "counting")


def roof_figure(roof: Roof) -> Figure:
    """Draw the roofline with every kernel on it."""
    if roof.bytes_per_s is None or not roof.peaks:
        needed = {"a bandwidth from memory (stream)": roof.bytes_per_s, "an arithmetic rate (gemm, fma)": roof.peaks}
        lacks = " nor ".join(what for what, known in needed.items() if not known)
        return Figure(title=_TITLE, said=f"No roof: this session did not measure {lacks}.", notes=roof.left_out)
    drawn = panel("Roofline with every kernel", 340, _layers(roof, roof.bytes_per_s))
    return Figure(
        title=_TITLE,
        said=_said(roof, roof.bytes_per_s),
        panels=(drawn,),
        grid=Grid(_HEAD, tuple(map(_row, roof.points))),
        notes=roof.left_out,
        notes_title="Without a place on a roofline",
    )


def _layers(roof: Roof, bandwidth: float) -> list[Spec]:
    first, last = _reach(roof)
    lines = [
        {"x": x, "y": min(bandwidth * x, p.flops_per_s), "type": p.dtype}
        for p in roof.peaks
        for x in (first, p.flops_per_s / bandwidth, max(last, 2 * p.flops_per_s / bandwidth))
    ]
    dots = [
        {"x": p.flops_per_byte, "y": p.flops_per_s, "type": p.dtype, "name": p.label, "limit": p.limit, "share": _share(p), "rate": shown(p.flops_per_s, "FLOP/s")}
        for p in roof.points
    ]  # fmt: skip
    place = {
        "x": measure("x", "operations per byte", scale={"type": "log", "nice": False}, values=decades(first, 2 * last)),
        "y": measure("y", "FLOP/s", scale={"type": "log"}, format="~s", values=decades(*_heights(roof))),
    }
    coloured = {**place, "color": {"field": "type", "type": "nominal", "title": None}}
    told = {**coloured, "tooltip": tips(name="kernel", rate="rate", share="of its roof", limit="limit")}
    return [
        layer(lines, "line", coloured, strokeWidth=2),
        layer(dots, "point", told, filled=True, opacity=1, size=70),
        layer(list(_numbers(roof.points)), "text", {**place, "text": {"field": "n"}}, dy=-11, fontSize=10),
    ]


def _said(roof: Roof, bandwidth: float) -> str:
    peaks = "; ".join(
        f"{p.dtype}: {shown(p.flops_per_s, 'FLOP/s')} ({p.source}), ridge at {number(p.flops_per_s / bandwidth)} operations a byte"
        for p in roof.peaks
    )
    reached = f"{shown(bandwidth, 'B/s')} ({roof.bandwidth_source})"
    return (
        f"The roof is what this device did itself in this session: {reached}; {peaks}. Numbers are those of the table."
    )


def _row(p: RoofPoint) -> tuple[str, ...]:
    rate, intensity = shown(p.flops_per_s, "FLOP/s"), number(p.flops_per_byte)
    return str(p.number), p.label, intensity, rate, p.dtype, p.limit, _share(p), p.counting


def _share(point: RoofPoint) -> str:
    return "" if point.reached_fraction is None else percent(point.reached_fraction)


def _heights(roof: Roof) -> tuple[float, float]:
    rates = [*(p.flops_per_s for p in roof.points), *(p.flops_per_s for p in roof.peaks)]
    return min(rates), max(rates)


def _reach(roof: Roof) -> tuple[float, float]:
    seen = [p.flops_per_byte for p in roof.points] or [1.0]
    return min(*seen, 0.1) * 0.7, max(*seen, 1.0) * 1.5


def _numbers(points: Sequence[RoofPoint]) -> Iterator[dict[str, Any]]:
    """Yield the numbers beside the points; of those that would be written over each other, one list."""
    near: dict[tuple[int, int], list[RoofPoint]] = {}
    for p in points:
        place = round(math.log2(p.flops_per_byte) * 2), round(math.log2(p.flops_per_s) * 1.5)
        near.setdefault(place, []).append(p)
    for together in near.values():
        top = max(together, key=lambda p: p.flops_per_s)
        yield {"x": top.flops_per_byte, "y": top.flops_per_s, "n": ", ".join(str(p.number) for p in together)}
