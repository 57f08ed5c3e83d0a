"""`harness market table`: what well-known cards are worth today for each workload."""

from __future__ import annotations

from datetime import datetime

import click

from harness.cli.output import json_option, show, show_json
from harness.render.quotes import market_markdown, market_table
from harness.scoring import pricelist
from harness.scoring.market_model import Segment

__all__ = ["table"]


@click.command()
@click.option("--at", type=click.DateTime(["%Y-%m-%d"]), metavar="DATE", help="The day to read the market for; else today.")  # fmt: skip
@click.option("--segment", type=click.Choice(["marketplace", "neocloud", "hyperscaler"]), default="marketplace", show_default=True, help="What kind of seller asks.")  # fmt: skip
@click.option("--markdown", is_flag=True, help="Print it as Markdown.")
@json_option
def table(*, at: datetime | None, segment: Segment, markdown: bool, as_json: bool) -> None:
    """Print what ten well-known cards are worth for each workload, with the interval, and against what the market asks."""
    day = (at or datetime.now().astimezone()).date()
    found = pricelist.market_table(segment=segment, at=day)
    if as_json:
        show_json(found)
    elif markdown:
        show(market_markdown(found))
    else:
        show(market_table(found))
