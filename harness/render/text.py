"""Records as cards and aligned tables for a terminal: units in the header or beside the value, noise in a column, advice below."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from harness.device.facts import Check
from harness.device.preflight import objections
from harness.measure.compare import Comparison
from harness.model import Device, Job, Measurement, Note, Outcome, Report, Score, Verdict
from harness.registry import Benchmark, Sized
from harness.render.tables import Whole, blank_table
from harness.scoring.fleet import Fleet, Spread, sentence
from harness.scoring.placement import gate, no_public_numbers, placements
from harness.units import Quantity, energy_per_unit, engineering, quantity, rate_interval

__all__ = [
    "benchmark_markdown",
    "benchmark_table",
    "checks_card",
    "command_table",
    "comparison_table",
    "device_card",
    "fleet_tables",
    "job_line",
    "job_of",
    "outcome_line",
    "report_tables",
    "score_table",
    "verdict_card",
]

_GOOD, _FAIR, _BAD = "green", "yellow", "red"
_COLOURS = {"valid": _GOOD, "power_capped": _GOOD, "skipped": "dim", "invalid": _BAD, "throttled": _BAD}
_ADVICE = {
    "noisy": "noisy: something else uses the machine, or its clock moves; the interval is honest but wide; a longer preset narrows it",
    "drifting": "drifting: it had not settled; a longer preset shows where it ends",
    "throttled": "throttled: the hardware cut the clock; look at cooling and power supply",
    "not_steady": "not_steady: temperature or clock still moved when the soak had taken its longest",
    "thermally_limited": "thermally_limited: this is its sustained speed in this case and room",
    "invalid": "invalid: not counted anywhere; the reason is in the report",
}


def _params(job: Job) -> str:
    told = " ".join(f"{k}={v}" for k, v in job.params.items())
    return told if job.regime == "burst" else f"{told} {job.regime}".strip()


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"  # noqa: PLR2004 - four digits, or whole


def device_card(device: Device) -> RenderableType:
    """Return what a device says of itself, and which of its sensors answer."""
    facts: list[tuple[str, object]] = [
        ("uuid", device.uuid),
        ("memory", f"{device.memory_bytes / 2**30:.1f} GiB" if device.memory_bytes else None),
        ("cores", device.core_count and f"{device.core_count} ({device.thread_count} threads usable)"),
        ("caches", _caches(device)),
        ("isa", " ".join(device.isa)),
        ("compute capability", device.compute_capability),
        ("multiprocessors", device.sm_count),
        ("PCI", device.pci_bus_id),
        ("driver", device.driver),
        ("VBIOS", device.vbios),
        ("power limit", _limit(device)),
        ("MIG", {True: "enabled", False: "off", None: None}[device.mig_enabled]),
        ("ECC", {True: "on", False: "off", None: None}[device.ecc_enabled]),
        ("sensors", _sensors(device)),
        ("not usable", device.unusable_reason),
    ]
    grid = Table.grid(padding=(0, 2))
    for name, value in facts:
        if value:
            grid.add_row(Text(f"  {name}", style="dim"), Text(str(value)))
    mark = "  EMULATED: its rates mean nothing" if device.emulated else ""
    title = Text.assemble((device.selector, "bold cyan"), "  ", (device.name, "bold"), (mark, _BAD))
    return Group(title, grid)


def checks_card(device: Device, checks: Sequence[Check]) -> RenderableType:
    """Return what came of holding the views of a device against each other: the disagreements first, what nobody knows last."""
    grid = Table.grid(padding=(0, 2))
    for verdict, style in (("disagree", _BAD), ("agree", ""), ("unknown", "dim")):
        for check in (c for c in checks if c.verdict == verdict):
            said = "; ".join(f"{side}: {value}" for side, value in check.said.items() if value is not None)
            grid.add_row(Text(f"  {verdict}", style=style), Text(check.name), Text(check.reason or said, style=style))
    return Group(Text.assemble((device.selector, "bold cyan"), "  ", (device.name, "bold")), grid)


def _caches(device: Device) -> str:
    levels = (("L1d", device.l1_bytes), ("L2", device.l2_bytes), ("L3", device.l3_bytes))
    return ", ".join(f"{name} {size / 2**10:.0f} KiB" for name, size in levels if size)


def _limit(device: Device) -> str | None:
    if device.power_limit_w is None:
        return None
    default = f" (default {device.power_default_limit_w:.0f} W)" if device.power_default_limit_w else ""
    return f"{device.power_limit_w:.0f} W{default}"


def _sensors(device: Device) -> str:
    states: dict[str, list[str]] = {}
    for name, state in device.sensors.items():
        states.setdefault(state, []).append(name)
    told = (s for s in ("ok", "not_supported", "no_permission", "error") if s in states)
    return "; ".join(f"{state.replace('_', ' ')}: {', '.join(sorted(states[state]))}" for state in told)


def benchmark_table(found: Sequence[Benchmark]) -> RenderableType:
    """Return the table of benchmarks: what each measures and over which axes."""
    table = blank_table("benchmark", "version", "measures", "axes", right=["version"], wrap=["measures"])
    for bench in found:
        table.add_row(Text(bench.name, style="bold"), str(bench.version), bench.summary, _axes(bench))
    return table


def _axes(bench: Benchmark) -> str:
    return "; ".join(f"{name}: {_axis(axis)}" for name, axis in bench.axes.items())


def _axis(axis: object) -> str:
    if isinstance(axis, Sized):
        return "{cpu} (cpu), {cuda} (cuda)".format(**axis.told())
    values = [str(v) for v in axis] if isinstance(axis, Sequence) else []
    return ", ".join(values if len(values) <= 5 else (*values[:2], "...", values[-1]))  # noqa: PLR2004 - fits a line


def benchmark_markdown(found: Sequence[Benchmark]) -> str:
    """Return the same table as Markdown, for the README."""
    rows = [f"| `{b.name}` | {b.summary} | {_axes(b)} |" for b in found]
    return "\n".join(["| benchmark | measures | axes |", "|---|---|---|", *rows])


def command_table(rows: Sequence[tuple[str, str]]) -> RenderableType:
    """Return the table of commands: how each is called, and what it does."""
    table = blank_table("command", "does", wrap=["command"])
    for call, does in rows:
        table.add_row(Text(call, style="bold"), does)
    return table


def report_tables(report: Report) -> RenderableType:
    """Return a report: for each device its card and one table of results, then what the states mean for the reader."""
    parts: list[RenderableType] = []
    causes: dict[str, tuple[str, ...]] = {}
    for device in report.devices:
        notes = _notes(report, device)
        causes[device.uuid] = tuple(note.what for note in notes if note.severity != "info")
        parts += [device_card(device), *map(_note, notes), Text(), _results(report, device), Text()]
        parts += [Text(line) for line in _standing(report, device, causes)]
    parts += [Text(f"! {line}", style=_FAIR) for line in _advice(report)]
    return Group(*parts)


def _notes(report: Report, device: Device) -> tuple[Note, ...]:
    """Return what was seen of a device before it had work, and what its sensors showed under load."""
    before = next((p.notes for p in report.preflight if p.device_uuid == device.uuid), ())
    under_load = objections(device, [s for m in _measured(report, device) for s in m.telemetry])
    return tuple({note.what: note for note in (*before, *under_load)}.values())


def _measured(report: Report, device: Device) -> list[Measurement]:
    return [o.measurement for o in report.outcomes if o.measurement and job_of(o).device_uuid == device.uuid]


def _note(note: Note) -> Text:
    style = {"refuse": _BAD, "tag": _FAIR, "info": "dim"}[note.severity]
    return Text.assemble("  ", (note.what, style), f"; to mend it: {note.advice}")


def _standing(report: Report, device: Device, causes: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield where a GPU's results lie among public ones of its kind, in plain words."""
    yield from (p.sentence for p in placements(report, causes) if p.device_uuid == device.uuid)
    yield from (f"! {said}" for said in map(gate, _measured(report, device)) if said and not device.emulated)
    missing = no_public_numbers(device)
    if missing:
        yield missing


class _Column(NamedTuple):
    """A column that is shown where it has something to say."""

    name: str
    cell: Callable[[Measurement], str]


def _clock(m: Measurement) -> str:
    return f"{m.clock_mhz:.0f}" if m.clock_mhz else ""


def _energy(m: Measurement) -> str:
    gross = energy_per_unit(m)
    if gross is None or m.energy is None:
        return ""
    shown = engineering(gross)
    return f"{_number(shown.value)} {shown.unit}{' disputed' if m.energy.disputed else ''}"


_EXTRA = (_Column("clock MHz", _clock), _Column("energy", _energy))


def _results(report: Report, device: Device) -> Whole:
    measured = _measured(report, device)
    extra = [column for column in _EXTRA if any(map(column.cell, measured))]
    names = ("value", "95 % interval", "±", *(c.name for c in extra))
    table = blank_table(
        "benchmark",
        "parameters",
        "value",
        "unit",
        *names[1:],
        "state",
        right=names,
        wrap=["parameters"],
        spare=["95 % interval", "clock MHz", "energy"],
    )
    mine = [o for o in report.outcomes if job_of(o).device_uuid == device.uuid]
    for outcome in sorted((o for o in mine if not o.skipped), key=lambda o: job_of(o).benchmark):
        job = job_of(outcome)
        value, unit, interval, noise, state, why = _cells(outcome)
        colour = _COLOURS.get(state, _FAIR if outcome.measurement else _BAD)
        said = Text.assemble((state, colour), f"  {why}" if why else "")
        more = [c.cell(outcome.measurement) if outcome.measurement else "" for c in extra]
        table.add_row(Text(job.benchmark, style="bold"), _params(job), value, unit, interval, noise, *more, said)
    for benchmark, params, reason in _left_out(mine):
        blank = [""] * (len(names) + 1)
        said = Text.assemble(("skipped", _COLOURS["skipped"]), f"  {reason}")
        table.add_row(Text(benchmark, style="dim"), Text(params, style="dim"), *blank, said)
    return table


def _left_out(outcomes: Sequence[Outcome]) -> Iterator[tuple[str, str, str]]:
    """Yield each benchmark with points that were skipped: its name, which or how many, and why the first was."""
    skips = sorted((o.skipped for o in outcomes if o.skipped), key=lambda s: s.job.benchmark)
    for benchmark, group in itertools.groupby(skips, key=lambda s: s.job.benchmark):
        first, *more = group
        yield benchmark, f"{1 + len(more)} points" if more else _params(first.job), first.reason


def job_of(outcome: Outcome) -> Job:
    """Return the job whose end an outcome is."""
    result = outcome.measurement or outcome.skipped or outcome.failed
    assert result is not None  # noqa: S101 - a verified report's outcome holds one
    return result.job


def _cells(outcome: Outcome) -> tuple[str, str, str, str, str, str]:
    if outcome.skipped:
        return "-", "", "", "", "skipped", outcome.skipped.reason
    if outcome.failed:
        return "-", "", "", "", outcome.failed.outcome, outcome.failed.reason
    assert outcome.measurement  # noqa: S101 - the third of three
    m = outcome.measurement
    best = engineering(quantity(m.work, m.metric, m.time_s))
    scale = best.value / quantity(m.work, m.metric, m.time_s).value
    low, high = (_number(q.value * scale) for q in rate_interval(m))
    noise = m.interval.high_s / m.time_s - 1  # the low end may be cut at the fastest sample
    why = "" if m.state == "valid" else m.reason
    return _number(best.value), best.unit, f"{low} .. {high}", f"{noise:.1%}", m.state, why


def _advice(report: Report) -> Iterator[str]:
    states = {o.measurement.state for o in report.outcomes if o.measurement}
    yield from (text for state, text in _ADVICE.items() if state in states)
    missing = len(report.plan) - len(report.outcomes)
    if missing:
        yield f"{missing} of {len(report.plan)} planned jobs have no outcome: resume with `harness run --resume FILE`"


def job_line(job: Job) -> str:
    """Return a job in one line."""
    return f"{job.benchmark} {_params(job)}".strip()


def outcome_line(outcome: Outcome) -> str:
    """Return an outcome in one line."""
    value, unit, _, noise, state, why = _cells(outcome)
    measured = f"{value} {unit} ±{noise}  " if outcome.measurement else ""
    return f"{job_line(job_of(outcome))}: {measured}{state}{f' ({why})' if why and not outcome.measurement else ''}"


def score_table(scores: Sequence[Score]) -> RenderableType:
    """Return scores, the parts they are made of, and what is missing."""
    table = blank_table("device", "profile", "score", "unit", "made of", right=["score"])
    for score in scores:
        made_of = ", ".join(f"{p.work_class} {p.relative_speed:.4g} x {p.weight_fraction:.0%}" for p in score.parts)
        if score.missing:
            made_of += f"  not measured: {', '.join(score.missing)}"
        if score.too_small:
            made_of += f"  {score.too_small}"
        value = "-" if score.cu_per_hour is None else _number(score.cu_per_hour)
        table.add_row(score.device_name, score.profile, value, f"{score.unit}/h", made_of)
    note = Text(
        "1 CU-hour is the work of the reference node in one hour; speeds are lower bounds against it.", style="dim"
    )
    return Group(table, note)


def verdict_card(verdict: Verdict) -> RenderableType:
    """Return a verdict: what holds, what does not, and what is beyond it."""
    word = ("accepted", _GOOD) if verdict.accepted else ("REFUSED", _BAD)
    signed = f"signed by {verdict.signed_by[:16]}..." if verdict.signed_by else "unsigned"
    lines = [Text.assemble((verdict.subject, "bold"), ": ", word, f"  ({signed})" if verdict.digest else "")]
    lines += [Text.assemble("  ", (fault.path, "bold"), f": {fault.what}", style=_BAD) for fault in verdict.faults]
    lines += [Text(f"  proven: {what}") for what in verdict.proven]
    lines += [Text(f"  not proven: {what}", style="dim") for what in verdict.not_proven]
    return Group(*lines)


_DECIDED = {"faster": _GOOD, "mended": _GOOD, "same": "dim", "slower": _BAD, "broken": _BAD}


def comparison_table(comparisons: Sequence[Comparison], remarks: Sequence[str]) -> RenderableType:
    """Return what changed from the baseline, what cannot be told, and what else differs between the two reports."""
    right = ["speed", "95 % interval", "in cycles"]
    table = blank_table(
        "benchmark",
        "parameters",
        "device",
        *right,
        "decision",
        right=right,
        wrap=["parameters", "device"],
        spare=["95 % interval", "in cycles"],
    )
    for c in comparisons:
        regime = "" if c.regime == "burst" else f" {c.regime}"
        said = Text.assemble((c.decision.replace("_", " "), _DECIDED.get(c.decision, _FAIR)), f"  {c.reason}")
        high = "?" if c.high_fraction is None else f"{c.high_fraction:+.1%}"
        ends = "" if c.low_fraction is None else f"{c.low_fraction:+.1%} .. {high}"
        params = " ".join(f"{k}={v}" for k, v in c.params.items()) + regime
        change, cycles = (
            "" if fraction is None else f"{fraction:+.1%}" for fraction in (c.change_fraction, c.cycles_change_fraction)
        )
        table.add_row(Text(c.benchmark, style="bold"), params, c.device, change, ends, cycles, said)
    notes = [Text(f"! {line}", style=_FAIR) for line in remarks]
    return Group(table, Text("speed is that of B against A: +2% is faster", style="dim"), *notes)


def fleet_tables(fleet: Fleet) -> RenderableType:
    """Return what a fleet's reports say: each kind's spread, each node, and then which cards are ill and why."""
    right = ["cards", "median", "MAD", "outliers"]
    spreads = blank_table(
        "model",
        "driver",
        "limit",
        "point",
        *right,
        "unit",
        right=right,
        wrap=["model", "driver", "point"],
        spare=["driver", "limit"],
    )
    for spread in fleet.spreads:
        if spread.node is None:
            spreads.add_row(*_spread_cells(spread))
    right = ["cards", "ill", "against its model"]
    nodes = blank_table("node", *right, "model", right=right)
    for line in fleet.nodes:
        change = "" if line.deviation_fraction is None else f"{line.deviation_fraction:+.1%}"
        count = Text(str(line.ill_count), style=_BAD if line.ill_count else "")
        nodes.add_row(Text(line.node, style="bold"), str(line.card_count), count, change, line.name)
    ill = [card for card in fleet.cards if card.ill]
    said = [Text(f"! {sentence(card, fleet.cards)}", style=_BAD) for card in ill]
    said += [Text(f"  {line}", style=_FAIR) for line in fleet.remarks]
    remarks: dict[str, list[str]] = {}
    for card in fleet.cards:
        for remark in card.remarks:
            remarks.setdefault(remark, []).append(card.node)
    said += [Text(f"  {remark} (node {', '.join(dict.fromkeys(at))})", style="dim") for remark, at in remarks.items()]
    total = f"{_count(fleet.cards, 'card')} in {_count(fleet.report_digests, 'report')}: {len(ill) or 'none'} ill"
    return Group(spreads, Text(), nodes, Text(), *said, Text(total, style=_BAD if ill else _GOOD))


def _count(things: Sequence[object], noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


def _spread_cells(spread: Spread) -> tuple[str, ...]:
    shown = engineering(Quantity(spread.median_value, spread.unit))
    scale = shown.value / spread.median_value if spread.median_value else 1.0
    return (
        spread.name,
        spread.driver or "",
        f"{spread.power_limit_w:.0f} W" if spread.power_limit_w is not None else "",
        spread.point,
        str(spread.card_count),
        _number(shown.value),
        _number(spread.mad_value * scale),
        str(len(spread.outliers) or ""),
        shown.unit,
    )
