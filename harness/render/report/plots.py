"""The drawings of one device: views in, figures out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from harness.render.report.figure import TONES, Figure, Grid, Spec, axis, decades, panel, rows_panel
from harness.render.report.views import Bill, Roof, RoofPoint, RoundsRow, Stairs, Standing
from harness.render.report.words import binary, money, number, percent, shown, signed_percent

__all__ = ["bill_figure", "roof_figure", "rounds_figure", "stairs_figure", "standing_figure"]

_LEAST_NS = 1e-3  # a logarithm needs one
_FINE = 0.05  # a reach whose ticks need tenths of a per cent
_WIDEST = 0.6  # of a deviation that is drawn to scale


def standing_figure(standings: Sequence[Standing]) -> Figure:
    """Draw a device's scores among those that published results of other cards come to."""
    scored = [s for s in standings if s.cu_per_hour]
    title, lacking = "Score per workload", tuple(f"{s.profile}: {s.said}" for s in standings if not s.cu_per_hour)
    if not scored:
        return Figure(title=title, said="No workload could be scored.", notes=lacking)
    peers = [
        {"row": i, "value": p.cu_per_hour, "name": p.name, "told": number(p.cu_per_hour)}
        for i, s in enumerate(scored)
        for p in s.peers
    ]
    kinds = [
        {"row": i, "value": s.own_kind, "name": "published of this model"} for i, s in enumerate(scored) if s.own_kind
    ]
    own = [
        {"row": i, "value": s.cu_per_hour, "high": s.high_cu_per_hour or s.cu_per_hour, "name": "this device", "told": number(s.cu_per_hour or 0)}
        for i, s in enumerate(scored)
    ]  # fmt: skip
    reach = [*(p.cu_per_hour for s in scored for p in s.peers), *(s.cu_per_hour or 1.0 for s in scored)]
    tips = [{"field": "name", "title": "card"}, {"field": "told", "title": scored[0].unit}]
    x: Spec = {
        "field": "value",
        "type": "quantitative",
        "scale": {"type": "log"},
        "axis": axis(f"{scored[0].unit}, log scale", values=decades(min(reach), max(reach))),
    }
    layers = [
        {"data": {"values": peers}, "mark": {"type": "point", "filled": True, "size": 42, "opacity": 0.45, "color": "var(--muted)"}, "encoding": {"x": {}, "tooltip": tips}},
        {"data": {"values": kinds}, "mark": {"type": "tick", "thickness": 3, "size": 16, "color": "var(--series-2)"}, "encoding": {"x": {}, "tooltip": tips[:1]}},
        {"data": {"values": own}, "mark": {"type": "rule", "size": 4, "color": "var(--series-1)"}, "encoding": {"x": {}, "x2": {"field": "high"}}},
        {"data": {"values": own}, "mark": {"type": "point", "shape": "diamond", "filled": True, "opacity": 1, "size": 130, "color": "var(--series-1)"}, "encoding": {"x": {}, "tooltip": tips}},
    ]  # fmt: skip
    said = (
        "Blue diamond: this device's proven low end, with a bar to its high end. Grey: other models of GPU, by the low end of "
        "what others published of them. Orange tick: published of this very model. 1 CU-1 is the reference node, an H100 SXM."
    )
    rows = tuple((s.profile, number(s.cu_per_hour or 0), s.said) for s in scored)
    labels = [f"{s.profile}  {number(s.cu_per_hour or 0)}" for s in scored]
    drawn = rows_panel(f"Scores on {len(scored)} workloads", labels, layers, x)
    return Figure(
        title=title,
        said=said,
        panels=(drawn,),
        grid=Grid(("workload", scored[0].unit, "standing"), rows),
        notes=lacking,
        notes_title="Workloads without a score",
    )


def roof_figure(roof: Roof) -> Figure:
    """Draw the roofline with every kernel on it."""
    title = "Roofline"
    if roof.bytes_per_s is None or not roof.peaks:
        lacks = [w for w, known in (("a bandwidth from memory (stream)", roof.bytes_per_s), ("an arithmetic rate (gemm, fma)", roof.peaks)) if not known]  # fmt: skip
        return Figure(
            title=title, said=f"No roof: this session did not measure {' nor '.join(lacks)}.", notes=roof.left_out
        )
    bandwidth = roof.bytes_per_s
    first, last = _reach(roof)
    lines = [
        {"x": x, "y": min(bandwidth * x, p.flops_per_s), "type": p.dtype}
        for p in roof.peaks
        for x in (first, p.flops_per_s / bandwidth, max(last, 2 * p.flops_per_s / bandwidth))
    ]
    dots = [{"x": p.flops_per_byte, "y": p.flops_per_s, "type": p.dtype, "n": str(p.number), "name": p.label, "limit": p.limit, "share": _share(p), "rate": shown(p.flops_per_s, "FLOP/s")} for p in roof.points]  # fmt: skip
    x: Spec = {
        "field": "x",
        "type": "quantitative",
        "scale": {"type": "log", "nice": False},
        "axis": axis("operations per byte", values=decades(first, 2 * last)),
    }
    y: Spec = {
        "field": "y",
        "type": "quantitative",
        "scale": {"type": "log"},
        "axis": axis("FLOP/s", format="~s", values=decades(*_heights(roof))),
    }
    colour: Spec = {"field": "type", "type": "nominal", "title": None}
    tips = [
        {"field": f, "title": t}
        for f, t in (("name", "kernel"), ("rate", "rate"), ("share", "of its roof"), ("limit", "limit"))
    ]
    layers = [
        {"data": {"values": lines}, "mark": {"type": "line", "strokeWidth": 2}, "encoding": {"x": x, "y": y, "color": colour}},
        {"data": {"values": dots}, "mark": {"type": "point", "filled": True, "opacity": 1, "size": 70}, "encoding": {"x": x, "y": y, "color": colour, "tooltip": tips}},
        {"data": {"values": list(_numbers(roof.points))}, "mark": {"type": "text", "dy": -11, "fontSize": 10}, "encoding": {"x": x, "y": y, "text": {"field": "n"}}},
    ]  # fmt: skip
    ridges = "; ".join(f"{p.dtype}: {shown(p.flops_per_s, 'FLOP/s')} ({p.source}), ridge at {number(p.flops_per_s / bandwidth)} operations a byte" for p in roof.peaks)  # fmt: skip
    said = f"The roof is what this device did itself in this session: {shown(bandwidth, 'B/s')} ({roof.bandwidth_source}); {ridges}. Numbers are those of the table."
    grid = Grid(
        ("no.", "kernel", "operations a byte", "rate", "type", "limited by", "of its roof", "counting"),
        tuple((str(p.number), p.label, number(p.flops_per_byte), shown(p.flops_per_s, "FLOP/s"), p.dtype, p.limit, _share(p), p.counting) for p in roof.points),
    )  # fmt: skip
    return Figure(
        title=title,
        said=said,
        panels=(panel("Roofline with every kernel", 340, layers),),
        grid=grid,
        notes=roof.left_out,
        notes_title="Without a place on a roofline",
    )


def _heights(roof: Roof) -> tuple[float, float]:
    rates = [*(p.flops_per_s for p in roof.points), *(p.flops_per_s for p in roof.peaks)]
    return min(rates), max(rates)


def _numbers(points: Sequence[RoofPoint]) -> Iterator[dict[str, Any]]:
    """Yield the numbers beside the points; of those that would be written over each other, one list."""
    near: dict[tuple[int, int], list[RoofPoint]] = {}
    for p in points:
        place = round(math.log2(p.flops_per_byte) * 2), round(math.log2(p.flops_per_s) * 1.5)
        near.setdefault(place, []).append(p)
    for together in near.values():
        top = max(together, key=lambda p: p.flops_per_s)
        yield {"x": top.flops_per_byte, "y": top.flops_per_s, "n": ", ".join(str(p.number) for p in together)}


def _reach(roof: Roof) -> tuple[float, float]:
    seen = [p.flops_per_byte for p in roof.points] or [1.0]
    return min(*seen, 0.1) * 0.7, max(*seen, 1.0) * 1.5


def _share(point: RoofPoint) -> str:
    return "" if point.reached_fraction is None else percent(point.reached_fraction)


def stairs_figure(stairs: Stairs) -> Figure:
    """Draw the latency of a dependent load over the size of what it is loaded from."""
    title = "Latency staircase"
    if not stairs.steps:
        return Figure(title=title, said="The latency of memory was not measured: `chase` does.")
    dots: list[dict[str, Any]] = [
        {"x": s.size_bytes, "y": s.latency_s * 1e9, "low": s.low_s * 1e9, "high": s.high_s * 1e9, "size": f"{binary(s.size_bytes)}B", "told": shown(s.latency_s, "s/hop")}
        for s in stairs.steps
        if math.isfinite(s.high_s)
    ]  # fmt: skip
    ends = [max(d[end], _LEAST_NS) for d in dots for end in ("low", "high")] or [1.0]
    caches = [{"x": size, "name": name} for name, size in stairs.caches]
    x: Spec = {
        "field": "x",
        "type": "quantitative",
        "scale": {"type": "log", "base": 2, "nice": False},
        "axis": axis("working set", labelExpr=_BINARY, tickCount=7),
    }
    y: Spec = {
        "field": "y",
        "type": "quantitative",
        "scale": {"type": "log"},
        "axis": axis("ns a hop", format="~g", values=decades(min(ends), max(ends))),
    }
    tips = [{"field": "size", "title": "working set"}, {"field": "told", "title": "latency"}]
    own: Spec = {"values": dots}
    layers: list[Spec] = [
        {"data": {"values": caches}, "mark": {"type": "rule", "strokeDash": [4, 4], "color": "var(--muted)"}, "encoding": {"x": x}},
        {"data": {"values": caches}, "mark": {"type": "text", "align": "right", "dx": -4, "y": 8}, "encoding": {"x": x, "text": {"field": "name"}}},
        {"data": own, "mark": {"type": "line", "color": "var(--series-1)"}, "encoding": {"x": x, "y": y}},
        {"data": own, "mark": {"type": "rule", "color": "var(--series-1)"}, "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}}},
        {"data": own, "mark": {"type": "point", "filled": True, "opacity": 1, "size": 60, "color": "var(--series-1)"}, "encoding": {"x": x, "y": y, "tooltip": tips}},
    ]  # fmt: skip
    known = (
        ", ".join(f"{name} ends at {binary(size)}B" for name, size in stairs.caches)
        or "the device does not tell the size of its caches"
    )
    said = f"The time of one dependent load in a random walk through more and more memory, with its interval. Steps belong where a cache ends: {known}."
    rows = tuple(
        (
            f"{binary(s.size_bytes)}B",
            shown(s.latency_s, "s/hop"),
            f"{shown(s.low_s, 's/hop')} to {shown(s.high_s, 's/hop')}",
            s.state,
        )
        for s in stairs.steps
    )
    grid = Grid(("working set", "latency", "interval", "state"), rows)
    return Figure(title=title, said=said, panels=(panel("Latency over working set", 240, layers),), grid=grid)


_BINARY = "datum.value >= 1073741824 ? format(datum.value / 1073741824, '~g') + ' GiB' : datum.value >= 1048576 ? format(datum.value / 1048576, '~g') + ' MiB' : format(datum.value / 1024, '~g') + ' KiB'"


def rounds_figure(rows: Sequence[RoundsRow]) -> Figure:
    """Draw each measurement's rounds around its time, with the interval that follows from them."""
    title = "Rounds and intervals"
    if not rows:
        return Figure(title=title, said="Nothing was measured.")
    most = max(
        max(abs(r.low_fraction), _finite(r.high_fraction), *(abs(d.deviation_fraction) for d in r.rounds), 0.01)
        for r in rows
    )
    reach = min(most * 1.05, _WIDEST)
    bars = [
        {"row": i, "x": r.low_fraction, "high": _finite(r.high_fraction), "colour": TONES[r.tone]}
        for i, r in enumerate(rows)
    ]
    dots = [
        {"row": i, "x": d.deviation_fraction, "kept": d.discarded is None, "told": signed_percent(d.deviation_fraction), "why": d.discarded or "counts"}
        for i, r in enumerate(rows)
        for d in r.rounds
    ]  # fmt: skip
    x: Spec = {
        "field": "x",
        "type": "quantitative",
        "scale": {"domain": [-reach, reach], "clamp": True},
        "axis": axis(
            "against the time reported; right is slower", format="+.1%" if reach < _FINE else "+.0%", tickCount=5
        ),
    }
    tips = [{"field": "told", "title": "round"}, {"field": "why", "title": "state"}]
    layers = [
        {"data": {"values": bars}, "mark": {"type": "bar", "height": 10, "opacity": 0.35, "yOffset": 7}, "encoding": {"x": {}, "x2": {"field": "high"}, "color": {"field": "colour", "type": "nominal", "scale": None}}},
        {"data": {"values": dots}, "mark": {"type": "tick", "thickness": 1.5, "size": 12, "yOffset": 7, "color": "var(--ink)"}, "encoding": {"x": {}, "opacity": {"condition": {"test": "datum.kept", "value": 0.8}, "value": 0.25}, "tooltip": tips}},
    ]  # fmt: skip
    said = "Each tick is the median of a round, each bar the 95 % interval; the least steady come first. Faint ticks were discarded, with the reason in the report."
    table = tuple(
        (r.label, r.state, f"{signed_percent(r.low_fraction)} to {signed_percent(r.high_fraction)}", str(len(r.rounds)))
        for r in rows
    )
    labels = [f"{r.label} · {r.state.replace('_', ' ')}" for r in rows]
    drawn = rows_panel(f"Rounds of {len(rows)} measurements", labels, layers, x)
    return Figure(
        title=title, said=said, panels=(drawn,), grid=Grid(("measurement", "state", "interval", "rounds"), table)
    )


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 10.0


def bill_figure(bill: Bill) -> Figure:
    """Draw a price as a waterfall."""
    title = "Price"
    if bill.price_usd_per_hour is None:
        floor = () if bill.floor_usd_per_hour is None else (f"Whatever the price, below {money(bill.floor_usd_per_hour)} an hour standing idle is cheaper.",)  # fmt: skip
        return Figure(title=title, said=bill.said, notes=floor)
    price = float(bill.price_usd_per_hour)
    bars: list[dict[str, Any]] = [
        {"row": i, "x": float(line.start_usd_per_hour), "end": float(line.start_usd_per_hour + line.usd_per_hour), "colour": "var(--fair)" if line.usd_per_hour < 0 else "var(--series-1)", "name": line.name, "told": money(line.usd_per_hour), "basis": line.basis}
        for i, line in enumerate(line for line in bill.lines if line.usd_per_hour)
    ]  # fmt: skip
    bars.append(
        {
            "row": len(bars),
            "x": 0.0,
            "end": price,
            "colour": "var(--ink)",
            "name": "price",
            "told": money(bill.price_usd_per_hour),
            "basis": "the sum",
        }
    )
    x: Spec = {"field": "x", "type": "quantitative", "axis": axis("USD an hour", tickCount=5)}
    tips = [
        {"field": "name", "title": "line"},
        {"field": "told", "title": "USD/h"},
        {"field": "basis", "title": "basis"},
    ]
    layers: list[Spec] = [
        {"data": {"values": bars}, "mark": {"type": "bar", "height": 10, "yOffset": 7}, "encoding": {"x": {}, "x2": {"field": "end"}, "color": {"field": "colour", "type": "nominal", "scale": None}, "tooltip": tips}},
        *_ends(bill, len(bars) - 1),
    ]  # fmt: skip
    rows = (
        *((line.name, money(line.usd_per_hour), line.basis) for line in bill.lines),
        ("price", money(bill.price_usd_per_hour), "the sum"),
    )
    drawn = rows_panel("Price as a waterfall of its lines", [f"{b['name']}  {b['told']}" for b in bars], layers, x)
    notes = list(bill.reasons)
    if bill.sustainable_usd_per_hour is not None and bill.method == "market":
        notes.append(
            f"{money(bill.sustainable_usd_per_hour)} an hour would pay for its purchase, too: advice to the owner, not a price."
        )
    return Figure(
        title=title,
        said=f"{bill.said} In the last row, the red tick is the floor and the orange line the interval."
        if bill.low_usd_per_hour is not None
        else f"{bill.said} The red tick is that floor.",
        panels=(drawn,),
        grid=Grid(("line", "an hour", "basis"), rows),
        notes=tuple(notes),
    )


def _ends(bill: Bill, row: int) -> Iterator[Spec]:
    """Yield the interval of a price, and the floor under it."""
    if bill.low_usd_per_hour is not None and bill.high_usd_per_hour is not None:
        ends = {"row": row, "x": float(bill.low_usd_per_hour), "high": float(bill.high_usd_per_hour)}
        yield {"data": {"values": [ends]}, "mark": {"type": "rule", "size": 3, "color": "var(--series-2)", "yOffset": 7, "y2Offset": 7}, "encoding": {"x": {}, "x2": {"field": "high"}}}  # fmt: skip
    if bill.floor_usd_per_hour is not None:
        floor = {"row": row, "x": float(bill.floor_usd_per_hour), "told": money(bill.floor_usd_per_hour)}
        yield {"data": {"values": [floor]}, "mark": {"type": "tick", "thickness": 3, "size": 18, "color": "var(--bad)", "yOffset": 7}, "encoding": {"x": {}, "tooltip": [{"field": "told", "title": "floor"}]}}  # fmt: skip
