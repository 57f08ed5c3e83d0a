"""`harness fleet report` and `harness fleet export`: what the reports of many nodes say together."""

from __future__ import annotations

import click

from harness.cli.output import json_option, show, show_json
from harness.errors import FailureError
from harness.render import text
from harness.scoring import evidence, parquet

__all__ = ["export", "report"]

_reports = click.argument("reports", nargs=-1, required=True, metavar="REPORT...")


@click.command()
@_reports
@json_option
@click.pass_context
def report(ctx: click.Context, *, reports: tuple[str, ...], as_json: bool) -> None:
    """Compare the cards of many reports with their own kind, and say which are ill and why.

    A card that is alone of its kind is compared with nothing. Files that `harness fleet export` wrote are read, too; only reports
    are verified. Exits 1 if a card is ill.
    """
    found = evidence.fleet(*reports)
    if as_json:
        show_json(found)
    else:
        show(text.fleet_tables(found))
    if any(card.ill for card in found.cards):
        ctx.exit(FailureError.exit_code)


@click.command()
@_reports
@click.option("--out", required=True, metavar="FILE.parquet", help="The file to write, or to write anew.")
@json_option
def export(*, reports: tuple[str, ...], out: str, as_json: bool) -> None:
    """Write the outcomes of reports into one Parquet file, one row each, to be read by other programs.

    The reports stay the truth: each row names the digest of its report and of its outcome.
    """
    rows = parquet.export(*reports, out=out)
    if as_json:
        show_json({"path": out, "row_count": rows})
    else:
        show(f"{rows} rows in {out}")
