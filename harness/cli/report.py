"""`harness report`: what people read of reports: one HTML file, Markdown, or a table for a spreadsheet."""

from __future__ import annotations

import click

from harness.cli.output import json_option, show_json

__all__ = ["report"]


@click.command()
@click.argument("reports", nargs=-1, required=True, metavar="REPORT...")
@click.option("--html", metavar="FILE.html", help="One page with everything in it, for any browser, without a network (extra `report`).")  # fmt: skip
@click.option("--markdown", is_flag=True, help="Print Markdown, for a pull request; also done where no file is asked for.")  # fmt: skip
@click.option("--csv", metavar="FILE.csv", help="One row an outcome, for a spreadsheet.")
@click.option("--parquet", metavar="FILE.parquet", help="The same with every raw time, for programs.")
@click.option("--proof", "proofs", multiple=True, metavar="TRANSCRIPT", help="What `harness prove` wrote for one of the devices; may be given for each.")  # fmt: skip
@json_option
def report(
    *,
    reports: tuple[str, ...],
    html: str | None,
    markdown: bool,
    csv: str | None,
    parquet: str | None,
    proofs: tuple[str, ...],
    as_json: bool,
) -> None:
    """Write what reports say, for people: verdict, scores, roofline, latencies, telemetry, price and seal.

    Of several reports also how they compare, how each model spreads, and which nodes to look at. Folders of reports and files that
    `harness fleet export` wrote are read, too; each report is verified first.
    """
    from harness.render.report import report as written

    text = written(*reports, html=html, csv=csv, parquet=parquet, proofs=proofs)
    files = [file for file in (html, csv, parquet) if file is not None]
    if as_json:
        show_json({"files": files, "markdown": text if markdown or not files else None})
        return
    if markdown or not files:
        click.echo(text, nl=False)
    else:
        for file in files:
            click.echo(f"wrote {file}", err=True)
