"""`harness verify` and `harness keygen`: who said what, was it changed since, and does a price follow from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from harness.cli.output import json_option, show, show_json
from harness.errors import ForgeryError, MisuseError
from harness.model import Verdict
from harness.proof import signing
from harness.proof import verify as proof
from harness.render import text

__all__ = ["keygen", "verify"]

_HEAD = 1 << 16  # a quote is shorter


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--signer", metavar="HEX", help="Refuse reports that this public key did not sign.")
@json_option
@click.pass_context
def verify(ctx: click.Context, *, files: tuple[str, ...], signer: str | None, as_json: bool) -> None:
    """Check reports: whole, unchanged, in order, and their numbers following from their raw times; and quotes, by pricing anew.

    Several reports of one node are also checked as a chain, in the order given; shell patterns give the right one. A quote of
    `harness quote --out` is recomputed from its report, which must be among the files. Exits 4 if any is refused.
    """
    quotes = [file for file in files if _is_quote(file)]
    reports = [file for file in files if file not in quotes]
    if quotes and not reports:
        message = f"the report that {quotes[0]} was made from is not among the files: name it, too"
        raise MisuseError(message)
    verdicts = (*proof.verify(*reports, signer=signer), *_recomputed(quotes, reports))
    if as_json:
        show_json(verdicts)
    else:
        for verdict in verdicts:
            show(text.verdict_card(verdict))
    if not all(v.accepted for v in verdicts):
        ctx.exit(ForgeryError.exit_code)


def _is_quote(file: str) -> bool:
    from harness.scoring.recompute import is_quote

    try:
        with Path(file).open("rb") as opened:
            return is_quote(opened.read(_HEAD))
    except OSError:
        return False  # which whoever reads it as a report will say


def _recomputed(quotes: Sequence[str], reports: Sequence[str]) -> list[Verdict]:
    from harness.scoring.recompute import recompute

    return [recompute(quote, *reports) for quote in quotes]


@click.command()
@click.option("--out", required=True, metavar="PATH", help="The file to write the private key to; it must not exist.")
@click.option("--quotes", is_flag=True, help="A key of Ethereum's kind that signs offers (extra `sign`); keep it on another machine than the GPUs.")  # fmt: skip
@json_option
def keygen(*, out: str, quotes: bool, as_json: bool) -> None:
    """Make a key for this node's reports, or with --quotes for a seller's offers, and print its public half."""
    if quotes:
        _quote_key(out, as_json=as_json)
        return
    public = signing.keygen(out)
    if as_json:
        show_json({"path": out, "public_key": public})
        return
    show(f"public key {public}", f"private key in {out}, readable by its owner only: keep it, sign with --key {out}")


def _quote_key(out: str, *, as_json: bool) -> None:
    from harness.market.offers import secp256k1

    address = secp256k1.keygen(out)
    if as_json:
        show_json({"path": out, "address": address})
        return
    show(f"address {address}", f"private key in {out}, readable by its owner only: sign offers with --key {out}")
