"""`harness market`: what the market asks, how well the model of it does, and fresh prices for it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from harness.cli.market_table import table
from harness.cli.output import json_option, show, show_json, stderr
from harness.errors import FailureError

__all__ = ["market"]

Segment = Literal["hyperscaler", "neocloud", "marketplace"]
_MOST_TOLD = 5

_cells = click.option("--cells", metavar="FILE", help="Prices that `harness market refresh` wrote; else those shipped.")
_markdown = click.option("--markdown", is_flag=True, help="Print the table as Markdown.")
_files = click.option("--from", "files", multiple=True, metavar="FILE", help="Offers: our CSV, a SkyPilot catalogue, or vast.ai's JSON. May be given again.")  # fmt: skip
_gpuhunt = click.option("--gpuhunt", is_flag=True, help="Fetch today's offers through gpuhunt (extra `gpuhunt`).")
_provider = click.option("--provider", metavar="NAME", help="Whose catalogue a SkyPilot file is.")
_segment = click.option("--segment", type=click.Choice(["hyperscaler", "neocloud", "marketplace"]), help="What kind of seller that is, if not plain from its name.")  # fmt: skip
_date = click.option("--date", "day", metavar="DATE", help="The day of offers that do not say it, as 2026-10-31.")
_source = click.option("--source", metavar="TEXT", help="Where the offers are from, to be cited.")


@click.group()
def market() -> None:
    """Look at the market for GPU hours, test the model of it, and refresh its prices.

    A quote needs none of this: the model is shipped, fitted, with its prices.
    """


market.add_command(table)


@market.command()
@_cells
@_markdown
@json_option
def backtest(*, cells: str | None, markdown: bool, as_json: bool) -> None:
    """Show how far off the model is on cards, sellers and architectures that it has not seen.

    Each is left out in turn, and everything is fitted again without it; the usual ways to price a GPU are given the same task. Takes
    about a minute, and the extra `market`.
    """
    from harness.fitting import backtest as fitting
    from harness.fitting.cells import read_snapshot
    from harness.render import backtest as text

    found = fitting.backtest(read_snapshot(Path(cells)) if cells else None)
    if as_json:
        show_json(found)
    elif markdown:
        click.echo(text.backtest_markdown(found), nl=False)
    else:
        show(text.backtest_table(found))


@market.command()
@_cells
@click.option("--out", metavar="FILE", default="market_model.json", show_default=True, help="Where to write the model.")
@_markdown
@json_option
def fit(*, cells: str | None, out: str, markdown: bool, as_json: bool) -> None:
    """Fit the model again, with intervals by its backtest, and show that backtest."""
    from harness.fitting import backtest as fitting
    from harness.fitting.cells import read_snapshot
    from harness.fitting.fit import as_json as written
    from harness.render import backtest as text

    model, tested = fitting.refit(read_snapshot(Path(cells)) if cells else None)
    _write(out, written(model))
    if as_json:
        show_json({"digest": model.digest, "backtest": tested})
    elif markdown:
        click.echo(text.backtest_markdown(tested), nl=False)
    else:
        show(text.backtest_table(tested))
    stderr().print(f"wrote {out}: model {model.digest[:16]}", highlight=False)


@market.command()
@_files
@_gpuhunt
@_provider
@_segment
@_date
@_source
@click.option("--alone", is_flag=True, help="Leave out the prices that are shipped.")
@click.option(
    "--out", metavar="FILE", default="market_cells.json", show_default=True, help="Where to write the prices."
)
def refresh(
    *,
    files: tuple[str, ...],
    gpuhunt: bool,
    provider: str | None,
    segment: Segment | None,
    day: str | None,
    source: str | None,
    alone: bool,
    out: str,
) -> None:
    """Read fresh offers into a file of prices that `harness market fit` takes.

    Offers are made medians of a card at a seller. Spot prices, reserves of auctions and slices of a GPU are passed over; what stands
    five times off all others is screened, and told.
    """
    from harness.fitting import cells as cells_
    from harness.fitting.offers import Origin
    from harness.fitting.refresh import gathered
    from harness.fitting.refresh import refresh as refreshed

    reading = gathered(files, Origin(provider=provider, segment=segment, date=day, source=source), gpuhunt=gpuhunt)
    snapshot = refreshed(reading.offers, alone=alone)
    _write(out, cells_.as_json(snapshot))
    _tell(reading.left_out)
    _tell(snapshot.screened)
    click.echo(f"{len(reading.offers)} offers read; {len(snapshot.cells)} prices up to {snapshot.as_of} in {out}")


@market.command()
@_files
@_gpuhunt
@_provider
@_segment
@_date
@_source
@json_option
def index(
    *,
    files: tuple[str, ...],
    gpuhunt: bool,
    provider: str | None,
    segment: Segment | None,
    day: str | None,
    source: str | None,
    as_json: bool,
) -> None:
    """Show how fresh offers stand over the model, by class of card, and whether that is enough to go by."""
    from harness.fitting.offers import Origin
    from harness.fitting.refresh import gathered, index_of
    from harness.render import backtest as text

    reading = gathered(files, Origin(provider=provider, segment=segment, date=day, source=source), gpuhunt=gpuhunt)
    prints = index_of(reading.offers)
    _tell(reading.left_out)
    if as_json:
        show_json(prints)
    else:
        show(text.index_table(prints))


def _tell(texts: tuple[str, ...]) -> None:
    console = stderr()
    for text in texts[:_MOST_TOLD]:
        console.print(f"left out: {text}", highlight=False, markup=False)
    if len(texts) > _MOST_TOLD:
        console.print(f"left out: {len(texts) - _MOST_TOLD} more", highlight=False)


def _write(path: str, text: str) -> None:
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as err:
        msg = f"cannot write {path!r}: {err.strerror}"
        raise FailureError(msg) from err
