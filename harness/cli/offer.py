"""`harness offer`: a quote made payable and signed, in the dialect of a market, and checked again."""

from __future__ import annotations

import json
import time
from decimal import Decimal
from pathlib import Path

import click

from harness.cli.calls import call
from harness.cli.output import json_option, show, show_json
from harness.cli.price import Number
from harness.errors import FailureError, ForgeryError, MisuseError

__all__ = ["offer"]

_key = click.option("--key", metavar="FILE", help="The seller's key, made by `harness keygen --quotes`.")
_at = click.option("--at", "now_s", type=click.IntRange(min=0), metavar="SECONDS", help="The time to judge for, in seconds since 1970; else now.")  # fmt: skip
_out = click.option("--out", metavar="FILE", help="Write it to this file instead of stdout.")
_TEXT_MOST = 1 << 20
_PARTS = ("price", "promise")
_ADDED = {
    "price": "the seller takes a token for another number of dollars than 1 (--usd-per-asset), or sells by an LLM's token",
    "promise": "the seller promises with another tolerance than 0.05 (--tolerance)",
}


@click.group()
def offer() -> None:
    """Turn a quote into a signed offer, show it as markets and agents read it, and check one.

    Signing and checking take the extra `sign`. No chain is contacted.
    """


offer.add_command(call)


@offer.command()
@click.argument("quote", metavar="QUOTE")
@click.option("--terms", required=True, metavar="FILE.toml", help="The seller's terms: pay_to, asset, asset_decimals, chain_id, and what else differs from the defaults.")  # fmt: skip
@click.option("--key", required=True, metavar="FILE", help="The seller's key, made by `harness keygen --quotes`.")
@click.option(
    "--max-units", type=click.IntRange(min=1), metavar="N", help="How many units at most; else as the terms say."
)
@click.option("--cpu", is_flag=True, help="Offer also what the quote says is not for a GPU market.")
@_at
@_out
def make(
    *, quote: str, terms: str, key: str, max_units: int | None, cpu: bool, now_s: int | None, out: str | None
) -> None:
    """Make a signed offer of a quote that `harness quote --out` wrote; prints its envelope.

    The salt that hides the device is printed to stderr: keep it, to show a buyer which device it was.
    """
    from harness.market.offers import envelope
    from harness.market.offers import offer as offers
    from harness.market.offers.secp256k1 import load_signer
    from harness.market.offers.seller import load_seller, terms_of

    signer = load_signer(key)
    known = load_seller(terms)
    asked = terms_of(known, now_s=_now(now_s), provider=signer.address, max_units=max_units)
    made = envelope.sign(offers.make_offer(quote, asked, gpu_only=not cpu), signer)
    click.echo(f"device salt {asked.device_salt}", err=True)
    _written(envelope.encode(made).decode(), out)


@offer.command("show")
@click.argument("file", metavar="OFFER")
@click.option("--view", required=True, metavar="NAME", help="x402, mpp, erc8004, erc8183, commerce, golem, a2a, csv, eip712 or envelope.")  # fmt: skip
@click.option("--set", "words", multiple=True, metavar="KEY=VALUE", help="What that view needs beside the offer, as url=https://... May be given again.")  # fmt: skip
@_key
@_out
def show_(*, file: str, view: str, words: tuple[str, ...], key: str | None, out: str | None) -> None:
    """Print an offer in the dialect of a market."""
    from harness.market.dialects import views
    from harness.market.offers import envelope
    from harness.market.offers.secp256k1 import load_signer

    pairs = dict(_pair(word) for word in words)
    signer = load_signer(key) if key else None
    _written(views.show(view, envelope.read(file), pairs, signer=signer), out)


@offer.command()
@click.argument("file", metavar="DOCUMENT")
@click.option("--view", required=True, metavar="NAME", help="In which dialect it is.")
@_out
def read(*, file: str, view: str, out: str | None) -> None:
    """Print the offer that a document of a market was made from. Exits 4 if it says something else than the offer in it."""
    from harness.market.dialects import views
    from harness.market.offers import envelope

    _written(envelope.encode(views.read(view, _text(file))).decode(), out)


@offer.command()
@click.argument("file", metavar="OFFER")
@click.option(
    "--quote", metavar="QUOTE", help="The quote it should have been made from: promise and price are compared."
)
@click.option("--tolerance", type=Number(), metavar="SHARE", help="The seller's `sla_tolerance`, to compare the promise by; else 0.05 is tried.")  # fmt: skip
@click.option("--usd-per-asset", type=Number(), metavar="USD", help="The seller's `usd_per_asset`, to compare the price by; else 1 is tried.")  # fmt: skip
@click.option("--any-time", is_flag=True, help="Do not ask whether it is still good, as in a dispute.")
@_at
@json_option
def verify(
    *,
    file: str,
    quote: str | None,
    tolerance: Decimal | None,
    usd_per_asset: Decimal | None,
    any_time: bool,
    now_s: int | None,
    as_json: bool,
) -> None:
    """Check who signed an offer, that nothing in it was changed, and that it is good now. Exits 4 if it is refused."""
    from harness.market.offers import envelope
    from harness.market.offers.follows import check_quote

    found = envelope.read(file)
    signer = envelope.verify(found, now_s=None if any_time else _now(now_s))
    left = check_quote(found.offer, quote, tolerance=tolerance, usd_per_asset=usd_per_asset) if quote else _PARTS
    told = {
        "quote_id": found.offer.quote_id,
        "signed_by": signer,
        "valid_until": found.offer.valid_until,
        "unit": found.offer.unit,
        "max_total_atomic": str(found.offer.max_total_atomic),
        "asset": found.offer.asset,
        "follows_from_quote": None if left else True,
        "not_compared": left,
    }
    if as_json:
        show_json(told)
        return
    show(f"signed by its provider {signer}", f"quote {found.offer.quote_id}, good until {found.offer.valid_until}")
    if not quote:
        show("not checked: that it follows from a quote (--quote)")
        return
    for part in _PARTS:
        show(f"not comparable: {part}; {_ADDED[part]}" if part in left else f"{part} follows from the quote")


@offer.command()
@click.option("--view", default="envelope", show_default=True, metavar="NAME", help="Of the document of which dialect.")
def schema(*, view: str) -> None:
    """Print the JSON Schema (draft 2020-12) of a signed offer, or of its document in a dialect."""
    from harness.market.dialects.schemas import schema_of

    click.echo(json.dumps(schema_of(view), indent=1))


def _now(now_s: int | None) -> int:
    return int(time.time()) if now_s is None else now_s


def _pair(word: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not equals:
        message = f"--set {word!r} should be KEY=VALUE"
        raise MisuseError(message)
    return name, value


def _text(file: str) -> str:
    try:
        with Path(file).open("rb") as stream:
            data = stream.read(_TEXT_MOST + 1)
    except OSError as err:
        message = f"cannot read {file!r}: {err.strerror}"
        raise MisuseError(message) from err
    if len(data) > _TEXT_MOST:
        what = f"more than the {_TEXT_MOST} bytes of a document"
        raise ForgeryError(what)
    try:
        return data.decode()
    except UnicodeDecodeError as err:
        what = f"not UTF-8 (byte {err.start})"
        raise ForgeryError(what) from err


def _written(text: str, out: str | None) -> None:
    if out is None:
        click.echo(text)
        return
    try:
        Path(out).write_text(text, encoding="utf-8", newline="")
    except OSError as err:
        message = f"cannot write {out!r}: {err.strerror}"
        raise FailureError(message) from err
