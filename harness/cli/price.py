"""`harness score` and `harness quote`: what a report is worth."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path

import click

from harness import codec
from harness.cli.fleet_quotes import quote_on_ray
from harness.cli.output import hushed, json_option, show, show_json
from harness.cli.standby import stand_by
from harness.errors import FailureError, MisuseError
from harness.model import Quote
from harness.render import text
from harness.render.quotes import explanation, quote_card
from harness.scoring import evidence
from harness.scoring.costs import load_costs
from harness.scoring.market_model import Segment
from harness.scoring.terms import Basis, Deal

__all__ = ["Number", "quote", "score"]

_reports = click.argument("reports", nargs=-1, required=True, metavar="REPORT...")
_profile = click.option(
    "--profile", default="general", show_default=True, metavar="NAME|FILE.toml", help="The workload to score for."
)


class Number(click.ParamType[Decimal]):
    """A decimal, exactly as it was typed."""

    name = "number"

    def convert(self, value: str | Decimal, param: click.Parameter | None, ctx: click.Context | None) -> Decimal:
        """Take a number, or say that it is none."""
        try:
            return Decimal(value)
        except InvalidOperation:
            self.fail(f"{value!r} is not a number", param, ctx)


@click.command()
@_reports
@_profile
@json_option
def score(*, reports: tuple[str, ...], profile: str, as_json: bool) -> None:
    """Score the devices of reports against the reference node, in compute units an hour.

    Folders of reports and files that `harness fleet export` wrote are read, too, a report at a time.
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
@click.option("--basis", type=click.Choice(["market", "cost"]), default="market", show_default=True, help="Price a GPU by what the market pays, or by what it costs its owner.")  # fmt: skip
@click.option("--segment", type=click.Choice(["marketplace", "neocloud", "hyperscaler"]), default="marketplace", show_default=True, help="What kind of seller asks.")  # fmt: skip
@click.option("--provider", metavar="KEY", help="A seller that the market model knows.")
@click.option("--at", type=click.DateTime(["%Y-%m-%d"]), metavar="DATE", help="The day to read the market for; else the report's.")  # fmt: skip
@click.option("--spot", is_flag=True, help="May be taken away at any moment.")
@click.option("--interruptions", type=Number(), metavar="N", help="How often that happens, an hour, where it is known.")  # fmt: skip
@click.option("--term-days", type=click.IntRange(min=0), default=0, help="Days paid in advance.")
@click.option("--congestion", type=Number(), default="1", show_default=True, help="The controller's multiplier, from 0.5 to 2.")  # fmt: skip
@click.option("--history", multiple=True, metavar="REPORT", help="An earlier report, or a folder of them: what reliability is taken from.")  # fmt: skip
@click.option("--explain", is_flag=True, help="Print the whole derivation.")
@click.option("--ray", metavar="ADDRESS", help="Share the reports out over the cores of a Ray cluster: HOST:PORT of its head, or local.")  # fmt: skip
@click.option("--out", metavar="FOLDER", help="Write each quote into a file of its own, for `harness verify`.")
@json_option
@click.pass_context
def quote(
    ctx: click.Context,
    *,
    reports: tuple[str, ...],
    costs: str | None,
    profile: str,
    basis: Basis,
    segment: Segment,
    provider: str | None,
    at: datetime | None,
    spot: bool,
    interruptions: Decimal | None,
    term_days: int,
    congestion: Decimal,
    history: tuple[str, ...],
    explain: bool,
    ray: str | None,
    out: str | None,
    as_json: bool,
) -> None:
    """Price the devices of reports, with the breakdown of each price.

    Folders of reports and files that `harness fleet export` wrote are read, too, a report at a time.
    With --ray they are read here and travel as bytes; the quotes are the same to the byte. Nodes that price cannot be measured
    meanwhile without the one disturbing the other.

    \b
    Keys of the costs file, all optional: electricity_usd_per_kwh, pue, capex_usd, life_years,
    residual_fraction, capital_rate, utilisation, host_usd_per_hour, wear_usd_per_hour,
    fee_fraction, margin_fraction.
    """
    deal = Deal(
        segment=segment,
        provider=provider,
        at=None if at is None else date(at.year, at.month, at.day),
        spot=spot,
        interruptions_per_hour=interruptions,
        term_s=term_days * 24 * 3600,
        congestion=congestion,
    )
    given = load_costs(costs) if costs else None
    if ray and (code := stand_by("no quote was written")) is not None:
        ctx.exit(code)
    if ray:
        with hushed(ray):
            quotes = quote_on_ray(
                *reports, ray=ray, costs=given, profile=profile, basis=basis, deal=deal, history=history
            )
    else:
        quotes = evidence.quote(*reports, costs=given, profile=profile, basis=basis, deal=deal, history=history)
    files = [_written(one, Path(out)) for one in quotes] if out else []
    if as_json:
        show_json(quotes)
        return
    scores = {
        (s.report_digest, s.device_uuid): s for s in (evidence.score(*reports, profile=profile) if explain else ())
    }
    for one in quotes:
        key = (one.report_digest, one.device_uuid)
        show(explanation(one, scores[key]) if explain else quote_card(one), "")
    for file in files:
        show(f"quote {file}")


def _written(one: Quote, folder: Path) -> Path:
    """Write a quote in its canonical bytes."""
    if folder.is_file():
        message = f"--out {str(folder)!r} is a file; it should be a folder"
        raise MisuseError(message)
    path = folder / f"quote-{codec.digest(one)[:16]}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(codec.encode(one))
    except OSError as err:
        message = f"cannot write {str(path)!r}: {err.strerror}"
        raise FailureError(message) from err
    return path
