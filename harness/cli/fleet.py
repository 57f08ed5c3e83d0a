"""`harness fleet`: what the nodes of a fleet are, and what they have measured."""

from __future__ import annotations

import click

from harness.cli.fleet_report import export, report
from harness.cli.output import hushed, json_option, show, show_json

__all__ = ["fleet"]


@click.group()
def fleet() -> None:
    """Look at a fleet."""


@fleet.command()
@click.option(
    "--ray", metavar="ADDRESS", help="HOST:PORT of the fleet's head; by default this machine alone, without Ray."
)
@json_option
def status(*, ray: str | None, as_json: bool) -> None:
    """Show the nodes of a fleet, their devices and which of them can be measured.

    Asked from a node of the fleet. Each node looks at its own devices, as `harness devices` does; what Ray believes of them does not
    count.
    """
    from harness.cluster import census
    from harness.render import fleet as text

    with hushed(ray):
        found = census.take(ray)
    if as_json:
        show_json(found)
    else:
        show(text.census_table(found))


for command in (export, report):
    fleet.add_command(command)
