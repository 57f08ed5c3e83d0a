"""All views of one offer by name, as text in and out: what the command line and other doors choose from.

A view takes words that the offer does not have (a URL, a name, a buyer) as text, and says which. Reading gives the offer back, or says where the
document says something else than the offer signed in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from harness.errors import ForgeryError, MisuseError
from harness.market.dialects import a2a, commerce, erc8004, erc8183, golem, mpp, table, x402
from harness.market.offers import envelope as envelopes
from harness.market.offers.envelope import Envelope
from harness.market.offers.offer import typed_data_of
from harness.market.offers.secp256k1 import Signer
from harness.strangers import loads

__all__ = ["VIEWS", "View", "read", "show"]

Words = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One dialect."""

    what: str
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()  # beside what it needs
    make: Callable[[Envelope, Words, Signer | None], str]
    read: Callable[[str], Envelope] | None


def show(name: str, envelope: Envelope, words: Words | None = None, *, signer: Signer | None = None) -> str:
    """Return an offer in a dialect, as text.

    Args:
        name: one of `VIEWS`.
        envelope: the signed offer.
        words: what that view needs and takes.
        signer: the provider's key, for `x402` alone.

    Raises:
        MisuseError: there is no such view, a word is missing, unknown or out of range, or the offer does not fit the dialect.
    """
    view, given = _view(name), words or {}
    missing = [key for key in view.needs if key not in given]
    odd = [key for key in given if key not in (*view.needs, *view.takes)]
    if missing or odd:
        message = f"view {name} needs {', '.join(view.needs) or 'nothing'} and takes {', '.join(view.takes) or 'nothing more'}; {', '.join(missing or odd)} is {'missing' if missing else 'unknown'}"
        raise MisuseError(message)
    return view.make(envelope, given, signer)


def read(name: str, text: str) -> Envelope:
    """Return the offer in a document of a dialect.

    Raises:
        MisuseError: there is no such view, or nothing can be read from it.
        ForgeryError: the document is damaged, or says something else than the offer in it.
    """
    view = _view(name)
    if view.read is None:
        message = f"view {name} has no room for an offer, so none can be read from it"
        raise MisuseError(message)
    return view.read(text)


def _view(name: str) -> View:
    if name not in VIEWS:
        message = f"no view {name!r}; there are {', '.join(VIEWS)}"
        raise MisuseError(message)
    return VIEWS[name]


def _json(document: Any) -> str:
    return json.dumps(document, ensure_ascii=False, indent=1)


def _parsed(text: str) -> Any:
    try:
        return loads(text)
    except (ValueError, RecursionError) as err:
        what = f"not JSON: {err}"
        raise ForgeryError(what) from err


def _whole(words: Words, name: str, otherwise: int | None = None) -> Any:
    text = words.get(name)
    if text is None:
        return otherwise
    if not (text.isascii() and text.isdigit() and len(text) < 80):  # noqa: PLR2004 - more digits than 2^256 has
        message = f"{name} is {text!r}; it should be a whole number"
        raise MisuseError(message)
    return int(text)


def _x402(own: Envelope, words: Words, signer: Signer | None) -> str:
    if signer is None:
        message = "view x402 is signed: give the provider's key with --key"
        raise MisuseError(message)
    made = x402.to_x402(
        own,
        signer,
        resource_url=words["url"],
        token_name=words["token_name"],
        token_version=words["token_version"],
        units=_whole(words, "units"),
        timeout_s=_whole(words, "timeout_s", 60),
    )
    return _json(made)


def _registration(own: Envelope, words: Words, _: Signer | None) -> str:
    services = [
        erc8004.Service(name, words[key])
        for name, key in (("web", "url"), ("MCP", "mcp"), ("A2A", "a2a"))
        if key in words
    ]
    made = erc8004.to_registration(
        own, name=words["name"], description=words["description"], image=words.get("image", ""), services=services
    )
    return _json(made)


def _payment(own: Envelope, words: Words, _: Signer | None) -> str:
    info = commerce.to_payment_info(
        own.offer,
        operator=words["operator"],
        payer=words["payer"],
        lease_s=_whole(words, "lease_s", 86_400),
        refund_s=_whole(words, "refund_s", 604_800),
    )
    return _json(commerce.plain(info, own))


def _golem(own: Envelope, words: Words, _: Signer | None) -> str:
    made = golem.to_golem(own, model=words["model"], memory_bytes=_whole(words, "memory_bytes"))
    return golem.golem_text(made)


VIEWS: Mapping[str, View] = {
    "envelope": View(
        what="the offer itself: canonical JSON",
        make=lambda own, _, __: envelopes.encode(own).decode(),
        read=lambda text: envelopes.decode(text.strip().encode()),
    ),
    "eip712": View(
        what="what a wallet is asked to sign (eth_signTypedData_v4)",
        make=lambda own, _, __: _json(typed_data_of(own.offer)),
        read=None,
    ),
    "x402": View(
        what="the body of an HTTP 402 with a signed offer (offer-receipt)",
        needs=("url", "token_name", "token_version"),
        takes=("units", "timeout_s"),
        make=_x402,
        read=lambda text: x402.from_x402(_parsed(text)),
    ),
    "mpp": View(
        what="OpenAPI with x-payment-info",
        needs=("url",),
        takes=("units",),
        make=lambda own, words, _: _json(mpp.to_mpp(own, url=words["url"], units=_whole(words, "units"))),
        read=lambda text: mpp.from_mpp(_parsed(text)),
    ),
    "erc8004": View(
        what="an agent's registration file",
        needs=("name", "description"),
        takes=("image", "url", "mcp", "a2a"),
        make=_registration,
        read=lambda text: erc8004.from_registration(_parsed(text)),
    ),
    "erc8183": View(
        what="the job that pays for it, with its evaluator",
        needs=("units", "expired_at"),
        make=lambda own, words, _: _json(
            erc8183.to_job(own, units=_whole(words, "units"), expired_at=_whole(words, "expired_at"))
        ),
        read=lambda text: erc8183.from_job(_parsed(text)),
    ),
    "commerce": View(
        what="PaymentInfo of commerce-payments, its salt the offer's digest",
        needs=("operator", "payer"),
        takes=("lease_s", "refund_s"),
        make=_payment,
        read=lambda text: commerce.from_payment_info(_parsed(text))[0],
    ),
    "golem": View(
        what="properties of a Golem offer, in GLM by the second",
        needs=("model",),
        takes=("memory_bytes",),
        make=_golem,
        read=lambda text: golem.from_golem(golem.parse_golem(text)),
    ),
    "a2a": View(
        what="an agent card",
        needs=("url", "name", "description", "version"),
        make=lambda own, words, _: _json(a2a.to_card(own, **words)),
        read=lambda text: a2a.from_card(_parsed(text)),
    ),
    "csv": View(
        what="a row of a table, amounts as text",
        make=lambda own, _, __: table.to_csv([own]),
        read=lambda text: _only(table.from_csv(text)),
    ),
}


def _only(rows: tuple[Envelope, ...]) -> Envelope:
    if len(rows) != 1:
        what = f"holds {len(rows)} offers; one was wanted"
        raise ForgeryError(what)
    return rows[0]
