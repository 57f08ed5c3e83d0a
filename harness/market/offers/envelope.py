"""An offer as it travels: canonical JSON with its signatures and where its evidence lies; one spelling, no other field, every length exact.

Promised by `verify`: the provider that the offer names signed this very offer for this chain and escrow, and it was good at the time asked about.
Not promised: what the evidence says (its hash is signed; fetch it, `hash` must match, then `harness verify`), that the provider may receive money
for an agent (read `getAgentWallet` on the chain), a contract's wallet (ERC-1271 takes a chain).

    {"evidence":{"hash","mediaType","uri"}|null,"quote":{...},"schema":"harness-quote/1","signatures":[{"scheme","signer","signature"}]}
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import rfc8785

from harness.errors import ForgeryError, MisuseError
from harness.market.offers import offer as offers
from harness.market.offers.abi import Value
from harness.market.offers.offer import SCHEMA, Offer, digest_of
from harness.market.offers.secp256k1 import Signer, recover
from harness.strangers import loads

__all__ = [
    "MAX_BYTES",
    "Envelope",
    "Evidence",
    "Signature",
    "decode",
    "encode",
    "fresh",
    "of_plain",
    "plain",
    "read",
    "schema",
    "sign",
    "verify",
]

MAX_BYTES = 1 << 16
_SIGNATURES_MOST = 8
_TEXT_MOST = 2048
_HASH, _ADDRESS, _SIGNED = r"0x[0-9a-f]{64}", r"0x[0-9a-f]{40}", r"0x[0-9a-f]{130}"
_NUMBER = r"0|[1-9][0-9]{0,77}"  # 2^256 has 78 digits


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Where the document lies that `evidenceRoot` is the hash of."""

    uri: str
    media_type: str
    hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """A signature of an offer's EIP-712 digest."""

    scheme: str  # eip712
    signer: str
    signature: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """An offer with its signatures."""

    offer: Offer
    signatures: tuple[Signature, ...] = ()
    evidence: Evidence | None = None


def sign(envelope: Envelope | Offer, signer: Signer) -> Envelope:
    """Return an envelope with one more signature.

    Raises:
        MisuseError: the key has signed it already.
    """
    envelope = envelope if isinstance(envelope, Envelope) else Envelope(offer=envelope)
    if any(one.signer == signer.address for one in envelope.signatures):
        message = f"{signer.address} has signed this offer already"
        raise MisuseError(message)
    made = Signature(scheme="eip712", signer=signer.address, signature=signer.sign(digest_of(envelope.offer)))
    return replace(envelope, signatures=(*envelope.signatures, made))


def verify(envelope: Envelope, *, now_s: int | None, skew_s: int = 0) -> str:
    """Return the address of the provider, who signed this offer.

    Args:
        envelope: as decoded.
        now_s: seconds since 1970 for which to ask whether it is good; None where that does not matter, as for evidence in a dispute.
        skew_s: by how much the clocks may differ.

    Raises:
        ForgeryError: a signature is not of its signer, or the provider's is missing.
        MisuseError: the offer is not yet or no longer good, or extra `sign` is missing.
    """
    for at, one in enumerate(envelope.signatures):
        found = recover(digest_of(envelope.offer), one.signature)
        if found != one.signer:
            what = f"signed by {found}, not by {one.signer}"
            raise ForgeryError(what, f"$.signatures[{at}]")
    provider = envelope.offer.provider
    if provider not in {one.signer for one in envelope.signatures}:
        what = f"the provider {provider} did not sign it"
        raise ForgeryError(what, "$.signatures")
    if now_s is not None:
        fresh(envelope.offer, now_s=now_s, skew_s=skew_s)
    return provider


def fresh(offer: Offer, *, now_s: int, skew_s: int = 0) -> None:
    """Return if an offer is good at a time.

    Raises:
        MisuseError: it is not yet good, or no longer. (An offer never outlives its evidence.)
    """
    if now_s + skew_s < offer.valid_after:
        message = f"the offer is good from {offer.valid_after} on; it is {now_s}"
        raise MisuseError(message)
    if now_s - skew_s >= offer.valid_until:
        message = f"the offer was good until {offer.valid_until}; it is {now_s}: ask for another"
        raise MisuseError(message)


def plain(envelope: Envelope) -> dict[str, Any]:
    """Return an envelope as dicts and lists."""
    proof = envelope.evidence
    return {
        "schema": SCHEMA,
        "quote": offers.plain(envelope.offer),
        "signatures": [
            {"scheme": one.scheme, "signer": one.signer, "signature": one.signature} for one in envelope.signatures
        ],
        "evidence": proof and {"uri": proof.uri, "mediaType": proof.media_type, "hash": proof.hash},
    }


def encode(envelope: Envelope) -> bytes:
    """Return an envelope's canonical bytes."""
    return rfc8785.dumps(plain(envelope))


def read(path: str | Path) -> Envelope:
    """Read an envelope from a file; white space around it is not minded.

    Raises:
        MisuseError: there is no such file.
        ForgeryError: as `decode`.
    """
    try:
        with Path(path).open("rb") as file:
            return decode(file.read(MAX_BYTES + 2).strip())
    except OSError as err:
        message = f"cannot read {str(path)!r}: {err.strerror}"
        raise MisuseError(message) from err


def decode(data: bytes) -> Envelope:
    """Read an envelope from its canonical bytes.

    Raises:
        ForgeryError: they are not; a field is unknown, missing or misspelt; the quote id is not that of the quote; says where.
    """
    if len(data) > MAX_BYTES:
        what = f"{len(data)} bytes are more than the {MAX_BYTES} of an envelope"
        raise ForgeryError(what)
    try:
        document = loads(data)
    except (ValueError, RecursionError) as err:
        what = f"not JSON: {err}"
        raise ForgeryError(what) from err
    found = of_plain(document)
    if encode(found) != data:
        what = "second spelling: not the canonical form of RFC 8785, or a key stands in it twice"
        raise ForgeryError(what)
    return found


def of_plain(document: Any) -> Envelope:
    """Make an envelope of dicts and lists, as another document carries it.

    Raises:
        ForgeryError: as `decode`, but for the order of keys.
    """
    whole = _object(document, "$", ("evidence", "quote", "schema", "signatures"))
    if whole["schema"] != SCHEMA:
        what = f"{whole['schema']!r} is not {SCHEMA!r}"
        raise ForgeryError(what, "$.schema")
    return Envelope(
        offer=_offer(whole["quote"]),
        signatures=tuple(_signatures(whole["signatures"])),
        evidence=_evidence(whole["evidence"], whole["quote"]),
    )


def _offer(value: Any) -> Offer:
    kinds = offers.kinds()
    texts = _object(value, "$.quote", tuple(kinds))
    values: dict[str, Value] = {}
    for name, kind in kinds.items():
        path = f"$.quote.{name}"
        whole = kind.startswith("uint")
        text = _text(texts[name], path, _NUMBER if whole else None)
        values[name] = int(text) if whole else text
    claimed = values.pop("quoteId")
    try:
        found = offers.of_values(values)
    except MisuseError as err:
        raise ForgeryError(str(err), "$.quote") from err
    if found.quote_id != claimed:
        what = f"is {claimed!r}; that of this quote is {found.quote_id}"
        raise ForgeryError(what, "$.quote.quoteId")
    return found


def _signatures(value: Any) -> Iterator[Signature]:
    if not isinstance(value, list) or len(value) > _SIGNATURES_MOST:
        what = f"should be a list of at most {_SIGNATURES_MOST}"
        raise ForgeryError(what, "$.signatures")
    seen: set[str] = set()
    for at, one in enumerate(value):
        path = f"$.signatures[{at}]"
        parts = _object(one, path, ("scheme", "signature", "signer"))
        signer = _text(parts["signer"], f"{path}.signer", _ADDRESS)
        if signer in seen:
            what = f"{signer} stands here twice"
            raise ForgeryError(what, path)
        seen.add(signer)
        yield Signature(
            scheme=_text(parts["scheme"], f"{path}.scheme", "eip712"),
            signer=signer,
            signature=_text(parts["signature"], f"{path}.signature", _SIGNED),
        )


def _evidence(value: Any, quote: Any) -> Evidence | None:
    if value is None:
        return None
    parts = _object(value, "$.evidence", ("hash", "mediaType", "uri"))
    if parts["hash"] != quote["evidenceRoot"]:
        what = "is not the quote's evidenceRoot"
        raise ForgeryError(what, "$.evidence.hash")
    return Evidence(
        uri=_text(parts["uri"], "$.evidence.uri", None),
        media_type=_text(parts["mediaType"], "$.evidence.mediaType", None),
        hash=_text(parts["hash"], "$.evidence.hash", _HASH),
    )


def _object(value: Any, path: str, names: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict):
        what = "should be an object"
        raise ForgeryError(what, path)
    for name in sorted(set(value) ^ set(names)):
        raise ForgeryError("unknown field" if name in value else "missing field", f"{path}.{name[:100]}")
    return value


def _text(value: Any, path: str, pattern: str | None) -> str:
    if (
        not isinstance(value, str)
        or len(value) > _TEXT_MOST
        or not re.fullmatch(pattern or r"[^\ud800-\udfff]*", value)
    ):
        what = f"{str(value)[:150]!r} is not text" + (f" of the form {pattern}" if pattern else "")
        raise ForgeryError(what, path)
    return value


def schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of an envelope."""
    patterns = {"address": _ADDRESS, "bytes32": _HASH}
    fields: dict[str, Any] = {
        name: {"type": "string", "pattern": f"^({patterns.get(kind, _NUMBER)})$"}
        for name, kind in offers.kinds().items()
    }
    fields["unit"] = {"enum": list(offers.units())}
    signature = _closed(
        scheme={"const": "eip712"},
        signer={"type": "string", "pattern": f"^{_ADDRESS}$"},
        signature={"type": "string", "pattern": f"^{_SIGNED}$"},
    )
    proof = _closed(
        uri={"type": "string", "maxLength": _TEXT_MOST},
        mediaType={"type": "string", "maxLength": _TEXT_MOST},
        hash={"type": "string", "pattern": f"^{_HASH}$"},
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A signed offer of compute",
        **_closed(
            schema={"const": SCHEMA},
            quote=_closed(**fields),
            signatures={"type": "array", "items": signature, "maxItems": _SIGNATURES_MOST},
            evidence={"anyOf": [{"type": "null"}, proof]},
        ),
    }


def _closed(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": sorted(properties),
        "additionalProperties": False,
    }
