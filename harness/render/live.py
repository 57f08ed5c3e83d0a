"""A run as it goes, for a terminal of any width: plain lines, cut and never wrapped, cheap to draw beside a measurement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from harness.cluster.tally import Lane, Tally
from harness.model import Device, TelemetrySample
from harness.render.text import job_line

__all__ = ["clock", "roughly", "screen", "sensed", "silence"]

_WIDE = 100  # columns from which a device fits one line
_BAR_MOST = 60
_ROWS_LEAST = 1
_FRAME = 4  # lines that are no device's
_MINUTE_S, _HOUR_S = 60, 3600
_ALMOST_S = 1.0

# NVML's names in words, with what they mean for a result. Not told: an idle GPU, and clocks that somebody set on purpose.
_THROTTLE = {
    "sw_power_cap": ("power cap", "yellow"),
    "sw_thermal": ("hot", "red"),
    "hw_thermal": ("too hot", "red"),
    "hw_slowdown": ("slowed by hardware", "red"),
    "hw_power_brake": ("power brake", "red"),
    "sync_boost": ("sync boost", "yellow"),
    "display_clocks": ("display clocks", "yellow"),
    "applications_clocks": ("clocks set", "yellow"),
    "gpu_idle": ("idle", "dim"),
}
_SHOWN_SENSORS = {"power", "energy", "temperature", "sm_clock", "throttle_reasons"}


def screen(tally: Tally, now_s: float, *, width: int, height: int, ascii_only: bool = False) -> RenderableType:
    """Return a run as lines of at most `width` columns, at most `height` of them."""
    if not tally.lanes:
        return _line(Text(f"looking at the devices  {clock(now_s - tally.began_s)}"))
    wide = width >= _WIDE
    rows = max(_ROWS_LEAST, height - _FRAME - 1)
    each = 1 if wide or 2 * len(tally.lanes) > rows else 2
    shown, hidden = _most_telling(tally.lanes, rows // each)
    label = max(len(lane.label) for lane in shown)
    lines = [_head(tally, now_s), _bar(tally, min(width, _BAR_MOST), ascii_only=ascii_only)]
    for lane in shown:
        lines += _lane(lane, now_s, label, two_lines=each > 1, wide=wide)
    if hidden:
        lines.append(Text(_hidden(hidden), style="dim"))
    lines.append(Text(_left(tally), style="dim"))
    return Group(*map(_line, lines))


def _line(text: Text) -> Text:
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def clock(elapsed_s: float) -> str:
    """Return a time as 0:07, 12:34 or 1:02:03."""
    whole_s = int(max(0.0, elapsed_s))
    hours, rest = divmod(whole_s, _HOUR_S)
    minutes, seconds = divmod(rest, _MINUTE_S)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _head(tally: Tally, now_s: float) -> Text:
    head = Text.assemble((f"{tally.done} of {tally.total} saved", "bold"), f"  {clock(now_s - tally.began_s)}")
    if tally.finished > tally.done:  # a batch is handed over whole, after a last look at who else was on the device
        head.append(f"  {tally.finished - tally.done} more measured")
    left_s = tally.left_s(now_s)
    if left_s is not None:
        head.append(f"  about {roughly(left_s)} left" if left_s > _ALMOST_S else "  almost done")
    failed = sum(lane.failed_count for lane in tally.lanes)
    if failed:
        head.append(f"  {failed} failed", style="bold red")
    return head


def roughly(left_s: float) -> str:
    """Return a guessed time with no more digits than it deserves."""
    if left_s < _MINUTE_S:
        return f"{left_s:.0f} s"
    return f"{left_s / _MINUTE_S:.0f} min" if left_s < 2 * _HOUR_S else f"{left_s / _HOUR_S:.1f} h"


def _bar(tally: Tally, width: int, *, ascii_only: bool) -> Text:
    full, empty = (
        ("#", "-") if ascii_only else ("\N{BOX DRAWINGS HEAVY HORIZONTAL}", "\N{BOX DRAWINGS LIGHT HORIZONTAL}")
    )
    filled = width * tally.finished // tally.total if tally.total else width
    return Text.assemble((full * filled, "green"), (empty * (width - filled), "dim"))


def _most_telling(lanes: Sequence[Lane], most: int) -> tuple[Sequence[Lane], Sequence[Lane]]:
    """Return the lanes there is room for, in their order: those at work first, those that are done last; and the others."""
    most = max(1, most)
    ranked = sorted(lanes, key=lambda lane: (not lane.running, not lane.waiting))[:most]
    chosen = set(map(id, ranked))
    return [x for x in lanes if id(x) in chosen], [x for x in lanes if id(x) not in chosen]


def _hidden(lanes: Sequence[Lane]) -> str:
    at_work, done = sum(bool(x.running) for x in lanes), sum(not x.jobs_left for x in lanes)
    return f"and {len(lanes)} more: {at_work} at work, {len(lanes) - at_work - done} waiting, {done} done"


def _lane(lane: Lane, now_s: float, label: int, *, two_lines: bool, wide: bool) -> Iterator[Text]:
    name = Text.assemble((lane.label.ljust(label), "bold cyan"), "  ")
    what, told = _doing(lane), _told(lane, now_s)
    if two_lines:
        yield name + what
        yield Text(" " * (label + 2)) + told
    elif wide:
        what.truncate(60, overflow="ellipsis", pad=True)
        yield name + what + Text("  ") + told
    else:
        what.truncate(22, overflow="ellipsis", pad=True)
        yield name + what + Text(" ") + told


def _doing(lane: Lane) -> Text:
    if lane.moment and lane.running:
        after = (
            f", round {lane.moment.round_count + 1}" if lane.moment.phase == "measuring" else f", {lane.moment.phase}"
        )
        return Text(f"{job_line(lane.moment.job)}{after}")
    if lane.running:
        more = f" and {len(lane.running) - 1} more" if len(lane.running) > 1 else ""
        return Text(f"{job_line(lane.running[0])}{more}")
    if lane.waiting:
        return Text(f"waits with {len(lane.waiting)} job{'s' if len(lane.waiting) > 1 else ''}", style="dim")
    failed = f", {lane.failed_count} failed" if lane.failed_count else ""
    return Text(f"done: {lane.done_count} job{'s' if lane.done_count != 1 else ''}{failed}", style="green")


def _told(lane: Lane, now_s: float) -> Text:
    if not lane.jobs_left:
        return Text()
    told = sensed(lane.sample) if lane.sample else Text()
    if not told.plain:
        return Text(silence(lane.device) or "", style="dim")
    age_s = lane.age_s(now_s)
    if age_s is not None:
        told.append(f"  {clock(age_s)} ago", style="dim")
    return told


def silence(device: Device) -> str | None:
    """Return why nothing will be heard of a device; None if something will."""
    if any(device.sensors.get(name) == "ok" for name in _SHOWN_SENSORS):
        return None
    states = sorted(set(device.sensors.values()) - {"ok"})
    why = f" ({', '.join(state.replace('_', ' ') for state in states)})" if states else ""
    return f"no sensors answer{why}"


def sensed(sample: TelemetrySample) -> Text:
    """Return what a sample says, each value where it always stands; what it does not say is left out."""
    told = Text()
    for value, width, unit in (
        (sample.power_w, 4, "W"),
        (sample.sm_clock_mhz, 4, "MHz"),
        (sample.temperature_c, 3, "\N{DEGREE SIGN}C"),
    ):
        if value is not None:
            told.append(f"{value:{width}.0f} {unit}  ")
    reasons = [_THROTTLE.get(name, (name, "yellow")) for name in sample.throttle_reasons or ()]
    for n, (words, style) in enumerate(reasons):
        told.append(f"{', ' if n else ''}{words}", style=style)
    if sample.throttle_reasons == ():
        told.append("no throttle", style="dim")
    return told


def _left(tally: Tally) -> str:
    left: Mapping[str, int] = Counter(job.benchmark for lane in tally.lanes for job in (*lane.running, *lane.waiting))
    return "left: " + (", ".join(f"{name} x{n}" if n > 1 else name for name, n in left.items()) or "writing the report")
