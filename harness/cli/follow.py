"""Who follows a run: plain lines for a log, or a screen that moves for a terminal."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

from rich.live import Live

from harness.cli.output import on_one_line
from harness.cluster import board
from harness.cluster.tally import Tally
from harness.model import Device, Job, Outcome
from harness.render import text
from harness.render.live import roughly, screen

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from harness.cluster.session import Outlook
    from harness.measure.moment import Moment

__all__ = ["LOOKS_PER_S", "follower"]

LOOKS_PER_S = 2  # each costs a few milliseconds of a CPU that may be what is measured


def follower(console: Console, live: Path | None) -> Lines | Screen:
    """Return who is to follow a run: a screen where the terminal can move its cursor, else lines."""
    return Screen(console, live) if console.is_terminal and not console.is_dumb_terminal else Lines(console)


class _Unheard(contextlib.suppress):
    """Whoever followed may be gone: progress is no result, and a run goes on without it."""

    def __init__(self) -> None:
        super().__init__(OSError, ValueError)  # a closed pipe, a full disk; a file that was closed


class Lines:
    """Progress as plain lines, for a log."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._total = self._done = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        with _Unheard():
            sys.stderr.flush()

    def _say(self, line: str) -> None:
        with _Unheard():
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def planned(
        self, devices: Sequence[Device], jobs: Sequence[Job], already: int, outlook: Outlook | None = None
    ) -> None:
        """Say what is about to run, and about how long it takes."""
        tally = Tally(0.0)
        tally.planned(devices, jobs, already, outlook)
        self._total, self._done = tally.total, already
        resumed = f", {already} already done" if already else ""
        names = ", ".join(f"{d.selector} ({d.name})" for d in devices)
        left_s = tally.left_s(0.0)
        takes = f", about {roughly(left_s)}" if left_s is not None else ""
        self._say(f"{self._total} jobs on {names}{resumed}{takes}")

    def started(self, job: Job) -> None:
        """A log wants results; what has begun is not one."""

    def ended(self, outcome: Outcome) -> None:
        """Say how a job ended."""
        self._done += 1
        self._say(f"[{self._done}/{self._total}] {on_one_line(text.outcome_line(outcome))}")


class Screen:
    """Progress as a few moving lines; results scroll above them.

    Nothing is asked of a device for it: what is shown is what the measuring processes pinned to `live`, between rounds, of what their
    samplers had heard.
    """

    def __init__(self, console: Console, live: Path | None) -> None:
        self._console, self._folder = console, live
        self._guard = threading.Lock()  # the screen is drawn from a thread of its own
        self._tally = Tally(time.monotonic())
        self._live = Live(
            console=console,
            get_renderable=self._draw,
            refresh_per_second=LOOKS_PER_S,
            transient=True,
            redirect_stdout=False,  # what Ray's threads print must not come to light here
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        with _Unheard():
            self._live.start(refresh=True)
        return self

    def __exit__(self, *exc: object) -> None:
        with _Unheard():
            self._live.stop()

    def _draw(self) -> RenderableType:
        with self._guard:
            if self._folder:
                at_work = [lane.device for lane in self._tally.lanes if lane.running]
                seen = {device.uuid: board.pinned(self._folder, device) for device in at_work}
                self._tally.heard({uuid: moment for uuid, moment in seen.items() if moment})
            size = self._console.size
            encoded = self._console.encoding.startswith("utf")
            return screen(self._tally, time.monotonic(), width=size.width, height=size.height, ascii_only=not encoded)

    def planned(
        self, devices: Sequence[Device], jobs: Sequence[Job], already: int, outlook: Outlook | None = None
    ) -> None:
        """Begin to count."""
        with self._guard:
            self._tally.planned(devices, jobs, already, outlook)

    def started(self, job: Job) -> None:
        """Show what has begun, at the next look."""
        with self._guard:
            self._tally.started(job, time.monotonic())

    def glanced(self, uuid: str, moment: Moment) -> None:
        """Take in what a device on another machine does."""
        with self._guard:
            self._tally.heard({uuid: moment})

    def ended(self, outcome: Outcome) -> None:
        """Let a result scroll past."""
        with _Unheard():
            self._console.print(on_one_line(text.outcome_line(outcome)), markup=False, highlight=False)
        with self._guard:
            self._tally.ended(outcome, time.monotonic())
