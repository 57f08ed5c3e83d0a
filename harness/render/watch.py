"""What sensors say, for a terminal: a device a block, with the course of its power or, without that, its temperature."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from harness.render.live import sensed, silence

if TYPE_CHECKING:
    from harness.cluster.telemetry import Glimpse
    from harness.model import TelemetrySample

__all__ = ["Board", "course"]

_BARS = "\N{LOWER ONE EIGHTH BLOCK}\N{LOWER ONE QUARTER BLOCK}\N{LOWER THREE EIGHTHS BLOCK}\N{LOWER HALF BLOCK}\N{LOWER FIVE EIGHTHS BLOCK}\N{LOWER THREE QUARTERS BLOCK}\N{LOWER SEVEN EIGHTHS BLOCK}\N{FULL BLOCK}"
_KEPT = 120
_COURSE_FROM = 70  # columns from which there is room for it
_NAME_MOST = 34


class Board:
    """Draws look after look, and remembers the course of each device."""

    def __init__(self) -> None:
        self._courses: dict[str, deque[float]] = {}

    def draw(self, look: Sequence[Glimpse], *, width: int) -> RenderableType:
        """Return a look as lines of at most `width` columns."""
        lines: list[Text] = []
        for glimpse in look:
            head = Text.assemble(
                (glimpse.device.selector, "bold cyan"), "  ", (glimpse.device.name[:_NAME_MOST], "bold")
            )
            if glimpse.device.emulated:
                head.append("  EMULATED", style="red")
            lines += [head, Text("  ") + self._said(glimpse)]
            if glimpse.sample and (more := _more(glimpse.sample)):
                lines.append(Text(f"  {more}", style="dim"))
            if width >= _COURSE_FROM and (told := self._course(glimpse, width - 20)):
                lines.append(Text(f"  {told}"))
        lines.append(Text("Ctrl-C ends it", style="dim"))
        for line in lines:
            line.no_wrap, line.overflow = True, "ellipsis"
        return Group(*lines)

    def _said(self, glimpse: Glimpse) -> Text:
        if glimpse.lost:
            return Text(f"lost: {glimpse.lost}", style="red")
        quiet = silence(glimpse.device)
        if quiet or glimpse.sample is None:
            return Text(quiet or "nothing yet", style="dim")
        return sensed(glimpse.sample)

    def _course(self, glimpse: Glimpse, width: int) -> str | None:
        sample = glimpse.sample
        if sample is None or (sample.power_w is None and sample.temperature_c is None):
            return None
        value, unit = (
            (sample.power_w, "W") if sample.power_w is not None else (sample.temperature_c or 0.0, "\N{DEGREE SIGN}C")
        )
        kept = self._courses.setdefault(glimpse.device.uuid, deque(maxlen=_KEPT))
        kept.append(value)
        shown = list(kept)[-max(1, width) :]
        return f"{course(shown)} {min(kept):.0f} to {max(kept):.0f} {unit}"


def course(values: Sequence[float]) -> str:
    """Return values as bars, from the least to the most of them; a flat course is low."""
    least, most = min(values), max(values)
    span = most - least or 1.0
    return "".join(_BARS[min(len(_BARS) - 1, int((v - least) / span * len(_BARS)))] for v in values)


def _more(sample: TelemetrySample) -> str:
    said = (
        ("busy {:.0%}", sample.utilization_fraction),
        ("memory {:.0%}", sample.memory_utilization_fraction),
        ("{:.0f} MHz", sample.memory_clock_mhz),
        ("{:.0f} \N{DEGREE SIGN}C", sample.memory_temperature_c),
        ("PCIe {}", sample.pcie_generation),
        ("x{}", sample.pcie_width),
    )
    return "  ".join(form.format(value) for form, value in said if value is not None)
