"""`harness watch`: what the sensors say, and nothing else."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from harness.cli.output import show_json, stdout

if TYPE_CHECKING:
    from collections.abc import Iterable

    from harness.cluster.telemetry import Glimpse

__all__ = ["watch"]


@click.command()
@click.option("--device", default="all", show_default=True, help="all, cpu or cuda:N.")
@click.option(
    "--every", "every_s", default=1.0, show_default=True, metavar="SECONDS", help="From one look to the next."
)
@click.option("--count", type=int, metavar="N", help="End after so many looks; by default at Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a device and look, also on a terminal.")
def watch(*, device: str, every_s: float, count: int | None, as_json: bool) -> None:
    """Show live power, clock, temperature and throttling of this machine's devices, without measuring anything.

    Where stdout is no terminal, each look is one line of JSON a device. Sensors are read through NVML and sysfs; no device is opened.
    """
    from harness.cluster import telemetry  # brings NumPy

    looks = telemetry.watch(device, every_s, count)
    try:
        if as_json or not sys.stdout.isatty():
            _lines(looks)
        else:
            _screen(looks)
    except BrokenPipeError:  # whoever read has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        pass  # the usual end, and no failure


def _lines(looks: Iterable[tuple[Glimpse, ...]]) -> None:
    for look in looks:
        for glimpse in look:
            show_json(
                {
                    "at": glimpse.at,
                    "device": glimpse.device.selector,
                    "uuid": glimpse.device.uuid,
                    "name": glimpse.device.name,
                    "sample": glimpse.sample,
                    "lost": glimpse.lost,
                }
            )
        sys.stdout.flush()


def _screen(looks: Iterable[tuple[Glimpse, ...]]) -> None:
    from rich.live import Live

    from harness.render.watch import Board

    console, board = stdout(), Board()
    with Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:
        for look in looks:
            live.update(board.draw(look, width=console.width), refresh=True)
