"""From one device of a report to all that is shown of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from harness.device.preflight import objections
from harness.model import Capability, Device, Job, Measurement, Outcome, Quote, Report
from harness.render.report.bill import bill
from harness.render.report.roof import roof
from harness.render.report.standing import standings
from harness.render.report.trace import missing_sensors, trace
from harness.render.report.verdict import Evidence, tone_of, verdict
from harness.render.report.views import DeviceView, EnergyRow, Fact, ResultRow, RoundDot, RoundsRow, Stair, Stairs
from harness.render.report.words import label, number, percent, shown, tame, told_params
from harness.scoring.fleet import Card
from harness.scoring.placement import placements
from harness.units import Quantity, energy_per_unit, engineering, net_energy_per_unit, quantity, rate_interval

__all__ = ["Peers", "device_view", "facts_of", "outcomes_of"]

_ROUNDS_MOST = 40  # rows of a plot that is still read
_DOTS_MOST = 60
_GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Peers:
    """What the other reports say of a device."""

    card: Card
    peer_count: int
    deviation_fraction: float | None


def outcomes_of(report: Report, device: Device) -> tuple[Outcome, ...]:
    """Return the outcomes of one device."""
    return tuple(o for o in report.outcomes if _uuid(o) == device.uuid)


def _uuid(outcome: Outcome) -> str:
    result = outcome.measurement or outcome.skipped or outcome.failed
    return "" if result is None else result.job.device_uuid


def device_view(  # noqa: PLR0913 - each is another source of what is shown
    report: Report, device: Device, anchor: str, *, seen: Capability | None, quote: Quote | None, peers: Peers
) -> DeviceView:
    """Return what is shown of a device: nothing of it is drawn here."""
    outcomes = outcomes_of(report, device)
    measured = [o.measurement for o in outcomes if o.measurement]
    emulated = report.emulated or device.emulated
    energy = tuple(_energy_rows(measured))
    return DeviceView(
        anchor=anchor,
        title=f"{tame(device.selector, 20)} · {tame(device.name, 80)}",
        name=tame(device.name, 80),
        selector=tame(device.selector, 20),
        emulated=emulated,
        facts=tuple(facts_of(device)),
        sensors=tuple(map(tame, missing_sensors(device))),
        verdict=verdict(_evidence(report, device, outcomes, peers)),
        standings=standings(seen) if seen and not emulated else (),
        results=tuple(_rows(outcomes)),
        rounds=_rounds(measured),
        roof=roof(device, measured),
        stairs=_stairs(device, measured),
        trace=trace(device, measured),
        energy=energy,
        no_energy="" if energy else _no_energy(device, measured),
        bill=None if quote is None else bill(quote),
    )


def _evidence(report: Report, device: Device, outcomes: tuple[Outcome, ...], peers: Peers) -> Evidence:
    before = next((p.notes for p in report.preflight if p.device_uuid == device.uuid), ())
    samples = [s for o in outcomes if o.measurement for s in o.measurement.telemetry]
    notes = {note.what: note for note in (*before, *objections(device, samples))}
    causes = {device.uuid: tuple(n.what for n in notes.values() if n.severity != "info")}
    return Evidence(
        device=device,
        emulated=report.emulated or device.emulated,
        outcomes=outcomes,
        notes=tuple(notes.values()),
        card=peers.card,
        placed=tuple(p for p in placements(report, causes) if p.device_uuid == device.uuid),
        peer_count=peers.peer_count,
        against_peers=peers.deviation_fraction,
    )


def facts_of(device: Device) -> Iterator[Fact]:
    """Yield what a device says of itself, as far as it says anything."""
    caches = (("L1d", device.l1_bytes), ("L2", device.l2_bytes), ("L3", device.l3_bytes))
    link = [
        f"generation {device.pcie_generation_max}" if device.pcie_generation_max else "",
        f"x{device.pcie_width_max}" if device.pcie_width_max else "",
    ]
    cores = device.core_count and f"{device.core_count} ({device.thread_count} threads usable)"
    told: dict[str, object] = {
        "kind": device.kind,
        "uuid": device.uuid,
        "memory": device.memory_bytes and f"{device.memory_bytes / _GIB:.1f} GiB",
        "compute capability": device.compute_capability,
        "multiprocessors": device.sm_count,
        "cores": cores,
        "caches": ", ".join(f"{name} {_size(size)}" for name, size in caches if size),
        "instruction sets": " ".join(device.isa),
        "PCIe at most": " ".join(filter(None, link)),
        "PCI address": device.pci_bus_id,
        "driver": device.driver,
        "VBIOS": device.vbios,
        "power limit": _limit(device),
        "MIG": {True: "on", False: "off", None: None}[device.mig_enabled],
        "ECC": {True: "on", False: "off", None: None}[device.ecc_enabled],
        "not usable": device.unusable_reason,
    }
    yield from (Fact(name, tame(value)) for name, value in told.items() if value)


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:g} MiB" if size_bytes >= 1 << 20 else f"{size_bytes / 2**10:g} KiB"


def _limit(device: Device) -> str | None:
    if device.power_limit_w is None:
        return None
    default = f" (default {device.power_default_limit_w:.0f} W)" if device.power_default_limit_w else ""
    return f"{device.power_limit_w:.0f} W{default}"


def _rows(outcomes: Sequence[Outcome]) -> Iterator[ResultRow]:
    """Yield the outcomes as lines of a table: what was measured by name, then what failed, then what was skipped."""
    rank = {True: 0, False: 1}
    ordered = sorted(outcomes, key=lambda o: (bool(o.skipped), rank[o.measurement is not None], _name(o)))
    for outcome in ordered:
        if outcome.measurement:
            yield _measured_row(outcome.measurement)
        elif outcome.failed:
            yield _bare_row(outcome.failed.job, outcome.failed.outcome, outcome.failed.reason)
        elif outcome.skipped:
            yield _bare_row(outcome.skipped.job, "skipped", outcome.skipped.reason)


def _name(outcome: Outcome) -> str:
    result = outcome.measurement or outcome.skipped or outcome.failed
    return "" if result is None else result.job.benchmark


def _measured_row(m: Measurement) -> ResultRow:
    value = quantity(m.work, m.metric, m.time_s)
    best = engineering(Quantity(value.value, tame(value.unit, 60)))
    scale = best.value / value.value if value.value else 1.0
    low, high = (number(q.value * scale) for q in rate_interval(m))
    gross = energy_per_unit(m)
    return ResultRow(
        benchmark=tame(m.job.benchmark, 60),
        params=told_params(m.job),
        value=f"{number(best.value)} {best.unit}",
        interval=f"{low} to {high}",
        noise=_noise(m),
        clock=f"{m.clock_mhz:.0f} MHz" if m.clock_mhz else "",
        reached="" if m.ceiling is None else percent(m.ceiling.reached_fraction),
        energy="" if gross is None else _joules(gross),
        state=m.state,
        tone=tone_of(m.state),
        reason="" if m.state == "valid" else tame(m.reason),
    )


def _noise(m: Measurement) -> str:
    far = m.interval.high_s / m.time_s - 1
    return f"±{percent(far)}" if math.isfinite(far) else "unknown"


def _bare_row(job: Job, state: str, reason: str) -> ResultRow:
    return ResultRow(
        benchmark=tame(job.benchmark, 60),
        params=told_params(job),
        value="",
        interval="",
        noise="",
        clock="",
        reached="",
        energy="",
        state=state,
        tone=tone_of(state),
        reason=tame(reason),
    )


def _joules(q: Quantity) -> str:
    return shown(q.value, q.unit)


def _rounds(measured: Sequence[Measurement]) -> tuple[RoundsRow, ...]:
    """Return the least steady measurements first, as many as a plot can hold."""
    rows = [_round_row(m) for m in measured]
    return tuple(sorted(rows, key=lambda r: r.low_fraction - r.high_fraction)[:_ROUNDS_MOST])


def _round_row(m: Measurement) -> RoundsRow:
    dots = [
        RoundDot(median(r.times_s) / m.time_s - 1, r.discarded and tame(r.discarded)) for r in m.rounds if r.times_s
    ]
    return RoundsRow(
        label=label(m.job),
        state=m.state,
        tone=tone_of(m.state),
        low_fraction=m.interval.low_s / m.time_s - 1,
        high_fraction=m.interval.high_s / m.time_s - 1,
        rounds=tuple(dots[:_DOTS_MOST]),
    )


def _stairs(device: Device, measured: Sequence[Measurement]) -> Stairs:
    steps = []
    for m in measured:
        size = m.job.params.get("size_bytes")
        if m.job.benchmark == "chase" and m.metric == "latency" and isinstance(size, int) and m.work.items:
            value, low, high = (t / m.work.items for t in (m.time_s, m.interval.low_s, m.interval.high_s))
            steps.append(Stair(size, value, low, high, m.state))
    caches = (("L1", device.l1_bytes), ("L2", device.l2_bytes), ("L3", device.l3_bytes))
    return Stairs(steps=tuple(sorted(steps)), caches=tuple((name, size) for name, size in caches if size))


def _energy_rows(measured: Sequence[Measurement]) -> Iterator[EnergyRow]:
    for m in measured:
        gross, net = energy_per_unit(m), net_energy_per_unit(m)
        if gross is None or m.energy is None or not m.energy.window_s:
            continue
        yield EnergyRow(
            label=label(m.job),
            gross=_joules(gross),
            net="idle power unknown" if net is None else _joules(net),
            mean_power_w=m.energy.joules / m.energy.window_s,
            source={"counter": "energy counter", "power": "power over time"}[m.energy.source]
            + ("" if m.energy.scope == "gpu" else f", of the whole {m.energy.scope}"),
            disputed=tame(m.energy.disputed or ""),
        )


def _no_energy(device: Device, measured: Sequence[Measurement]) -> str:
    state = device.sensors.get("energy", "not_supported")
    if state != "ok" and device.sensors.get("power", "not_supported") != "ok":
        return f"No energy: neither the energy counter nor the power sensor can be read ({state.replace('_', ' ')})."
    if not any(m.job.regime == "sustained" for m in measured):
        return "No energy: it is taken under a sustained load only, and this run had none; `--preset standard` has."
    return "No energy: no load lasted long enough for the sensor's own ticks."
