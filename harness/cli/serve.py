"""`harness serve` and `harness journal`: sell the devices of reports over HTTP, and look at what became of it."""

from __future__ import annotations

import shlex
from decimal import Decimal

import click

from harness.cli.output import json_option, show, show_json, stderr
from harness.cli.price import Number
from harness.errors import MisuseError

__all__ = ["journal", "serve"]


@click.command()
@click.argument("folder", metavar="FOLDER", default="results")
@click.option(
    "--key", required=True, metavar="PATH", help="Sign prices with this key, made by `harness keygen --quotes`."
)
@click.option("--facilitator", required=True, metavar="URL|trial", help="Who settles payments, by x402; `trial` checks signatures and moves nothing.")  # fmt: skip
@click.option("--token", default="base-sepolia", show_default=True, metavar="NAME|CHAIN:ADDRESS:DECIMALS:NAME:VERSION", help="What is paid with: USDC on base-sepolia, base or celo, or another token with EIP-3009.")  # fmt: skip
@click.option("--pay-to", metavar="ADDRESS", help="Where money goes; the key's own address by default.")
@click.option("--journal", default="quotes.db", show_default=True, metavar="FILE", help="What was sold is kept here.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at; nobody else reaches 127.0.0.1.")  # fmt: skip
@click.option("--port", type=click.IntRange(0, 65535), default=8402, show_default=True, help="0 takes a free one.")
@click.option("--url", metavar="URL", help="Under which buyers reach it; needed with another --host.")
@click.option("--valid", "valid_for_s", type=click.IntRange(1, 3600), default=300, show_default=True, help="Seconds that an offer is good for.")  # fmt: skip
@click.option("--evidence-hours", type=click.IntRange(1), default=24, show_default=True, help="Sell by no benchmark that is older.")  # fmt: skip
@click.option("--hours-most", type=click.IntRange(1, 8760), default=24, show_default=True, help="That one quote may be for.")  # fmt: skip
@click.option("--tolerance", type=Number(), default="0.05", show_default=True, help="By which a promised speed may be missed.")  # fmt: skip
@click.option("--segment", type=click.Choice(["marketplace", "neocloud", "hyperscaler"]), default="marketplace", show_default=True, help="What kind of seller asks.")  # fmt: skip
@click.option("--on-sale", metavar="PROGRAM", help="Run once for each sale: JSON on stdin says what was sold, JSON on stdout is the delivery.")  # fmt: skip
@click.option("--cpus", is_flag=True, help="Sell CPUs, too, by what they cost.")
@click.option("--evaluator", metavar="ADDRESS", help="Who holds the bonds of disputes; the seller by default.")
@click.option("--escrow", metavar="ADDRESS", help="A contract that offers are bound to.")
@click.option("--rate", type=click.IntRange(1), default=240, show_default=True, help="Requests a minute from one address.")  # fmt: skip
@click.option("--rate-all", type=click.IntRange(1), default=6000, show_default=True, help="Requests a minute from all.")
def serve(
    folder: str,
    key: str,
    facilitator: str,
    token: str,
    pay_to: str | None,
    journal: str,
    host: str,
    port: int,
    url: str | None,
    valid_for_s: int,
    evidence_hours: int,
    hours_most: int,
    tolerance: Decimal,
    segment: str,
    on_sale: str | None,
    cpus: bool,
    evaluator: str | None,
    escrow: str | None,
    rate: int,
    rate_all: int,
) -> None:
    """Sell the devices of a folder of reports over HTTP until Ctrl-C: signed offers, paid by x402 or MPP, and disputes.

    Needs the extras serve, sign and pay, and no GPU. There is no TLS: put it in front where others can listen.
    """
    from harness.market.offers.abi import ZERO_ADDRESS
    from harness.market.sales.fulfil import program
    from harness.market.sales.limits import Limits
    from harness.market.sales.service import serve as serve_here
    from harness.market.sales.service import token_of
    from harness.market.sales.shop import Seller
    from harness.scoring.terms import Deal

    seller = Seller(
        token=token_of(token),
        pay_to=(pay_to or "").lower(),
        valid_for_s=valid_for_s,
        evidence_max_age_s=evidence_hours * 3600,
        seconds_most=hours_most * 3600,
        tolerance=tolerance,
        deal=Deal(segment=segment),  # type: ignore[arg-type]
        any_device=cpus,
        evaluator=(evaluator or ZERO_ADDRESS).lower(),
        escrow=(escrow or ZERO_ADDRESS).lower(),
    )
    serve_here(
        folder,
        key=key,
        seller=seller,
        facilitator=facilitator,
        journal=journal,
        host=host,
        port=port,
        url=url,
        limits=Limits(per_minute=rate, all_per_minute=rate_all),
        fulfil=program(_words(on_sale)) if on_sale is not None else None,
        started=lambda at: show(f"listening at {at}"),
    )


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError as err:
        message = f"--on-sale {command!r} is no command: {err}"
        raise MisuseError(message) from err


@click.command()
@click.argument("file", metavar="FILE")
@click.option("--head", metavar="HEX", help="A head that was printed before: the journal must still contain that row.")
@click.option("--refunded", nargs=2, metavar="QUOTE TRANSACTION", help="First write down that what was due for a quote was paid back.")  # fmt: skip
@json_option
def journal(*, file: str, head: str | None, refunded: tuple[str, str] | None, as_json: bool) -> None:
    """Check the journal of `harness serve`, row by row, and say what wants a person. Exits 4 if it was changed.

    An unknown outcome is a payment of which nobody heard whether it settled: ask the chain. What is paid and not delivered is to be delivered,
    or paid back.
    """
    from harness.market.sales.journal_check import check

    if refunded:
        _write_refund(file, *refunded)
    found = check(file, head=head)
    if as_json:
        show_json(found)
        return
    show(f"{found.row_count} rows, each as it was written; head {found.head}")
    for state, count in found.quote_counts.items():
        show(f"  {count} {state}")
    for quote_id in found.unknown:
        stderr().print(f"unknown outcome: {quote_id}", markup=False)
    for quote_id in found.undelivered:
        stderr().print(f"paid and not delivered: {quote_id}", markup=False)


def _write_refund(file: str, quote_id: str, transaction: str) -> None:
    from pathlib import Path

    from harness.market.sales.docket import Docket
    from harness.market.sales.journal import Journal

    if not Path(file).is_file():
        message = f"there is no journal {file!r}"
        raise MisuseError(message)
    book = Journal(file)
    try:
        Docket(book).refunded(quote_id, transaction)
    finally:
        book.close()
