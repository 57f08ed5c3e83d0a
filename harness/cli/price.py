"""`harness score` and `harness quote`: what a report is worth."""

from __future__ import annotations

import click

from harness.cli.output import json_option, show, show_json
from harness.render import text
from harness.scoring import evidence
from harness.scoring.costs import load_costs

__all__ = ["quote", "score"]

_reports = click.argument("reports", nargs=-1, required=True, metavar="REPORT...")
_profile = click.option("--profile", default="general", show_default=True, help="The workload to score for.")


@click.command()
@_reports
@_profile
@json_option
def score(*, reports: tuple[str, ...], profile: str, as_json: bool) -> None:
    """Score the devices of reports against the reference node, in compute units an hour.

    Files that `harness fleet export` wrote are read, too, a report at a time.
    """
    scores = evidence.score(*reports, profile=profile)
    if as_json:
        show_json(scores)
    else:
        show(text.score_table(scores))


@click.command()
@_reports
@click.option("--costs", metavar="FILE.toml", help="Your own costs; keys not given keep their defaults.")
@_profile
@json_option
def quote(*, reports: tuple[str, ...], costs: str | None, profile: str, as_json: bool) -> None:
    """Price the devices of reports, with the breakdown of each price.

    Files that `harness fleet export` wrote are read, too, a report at a time.

    \b
    Keys of the costs file, all optional: electricity_usd_per_kwh, pue, capex_usd, life_years,
    residual_fraction, capital_rate, utilisation, host_usd_per_hour, fee_fraction, margin_fraction.
    """
    given = load_costs(costs) if costs else None
    quotes = evidence.quote(*reports, costs=given, profile=profile)
    if as_json:
        show_json(quotes)
        return
    for one in quotes:
        show(text.quote_card(one), "")
