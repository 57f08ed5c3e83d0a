"""`harness doctor`: what this machine can measure, and what would mend the rest."""

from __future__ import annotations

import click

from harness.cli.output import json_option, show, show_json
from harness.errors import FailureError

__all__ = ["doctor"]


@click.command()
@click.option("--out", default="results", show_default=True, metavar="FOLDER", help="Where reports would go.")
@json_option
@click.pass_context
def doctor(ctx: click.Context, *, out: str, as_json: bool) -> None:
    """Say what this machine can measure, what it cannot and why, with the command that mends it.

    Nothing is measured, and nothing is changed. Exits 1 if something that is there cannot be measured; a machine without a GPU is no
    failure: its CPU can.
    """
    from harness.cluster import checkup  # brings what asks the driver for GPUs
    from harness.render.doctor import checkup as card

    found = checkup.doctor(out)
    if as_json:
        show_json(found)
    else:
        show(card(found))
    if any(finding.blocks for finding in found):
        ctx.exit(FailureError.exit_code)
