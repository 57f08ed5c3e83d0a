"""What is for sale: the priced devices of a folder of reports, and signed offers of them on request.

An offer needs no memory: its salt follows from its nonce and the seller's key, so that its envelope alone is enough to accept it by. What is kept
of offers is a convenience of bounded size, gone with the process.

Promised: a report that does not verify is not sold by; an offer names the newest price of its device, and is refused once the device was measured as
another one, or its evidence grew too old.
Not promised: that the device is still there. Who sells it must know.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from harness import codec
from harness.errors import HarnessError, MisuseError
from harness.market.offers import envelope as envelopes
from harness.market.offers import evidence
from harness.market.offers.abi import ZERO_ADDRESS, ZERO_BYTES32, checked
from harness.market.offers.envelope import Envelope, Evidence
from harness.market.offers.offer import SCALE_MOST, Offer, OfferTerms, make_offer, worth
from harness.market.offers.secp256k1 import Signer
from harness.model import Device, Quote, Report
from harness.scoring.evidence import load
from harness.scoring.price import quoter
from harness.scoring.terms import Basis, Deal
from harness.scoring.worth import Market

__all__ = ["Document", "Issued", "Seller", "Shelved", "Shop", "Token", "UnknownQuoteError", "read_reports"]

_KEPT = 4096  # offers, and documents, whose askers may come back
_REPORTS_KEPT = 4096
_LOOK_S = 5.0
_HEADS = 256  # of the journal, that an offer from before a restart may name
_JSON = "application/json"


class UnknownQuoteError(MisuseError):
    """There is no such quote, device or document here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """The token that is paid with; `name` and `version` are those of its EIP-712 domain, which a payer signs.

    Raises:
        MisuseError: its address, chain or decimals are none.
    """

    address: str
    chain_id: int
    decimals: int
    name: str
    version: str

    def __post_init__(self) -> None:
        """Refuse what no chain has."""
        checked("address", self.address, "the token's address")
        checked("uint256", self.chain_id, "the token's chain")
        if not 0 <= self.decimals <= SCALE_MOST:
            message = f"the token's decimals are {self.decimals}; they should be 0 to {SCALE_MOST}"
            raise MisuseError(message)

    @property
    def network(self) -> str:
        """The chain as x402 spells it."""
        return f"eip155:{self.chain_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seller:
    """Who sells, for what, and on what terms. An empty `pay_to` stands for the address of the signing key.

    Raises:
        MisuseError: an address is none, in lower case, or the tolerance or the rate is none.
    """

    token: Token
    pay_to: str = ""
    seconds_least: int = 60
    seconds_most: int = 86_400
    valid_for_s: int = 300
    evidence_max_age_s: int = 86_400
    tolerance: Decimal = Decimal("0.05")  # by which a promised speed may be missed
    usd_per_token: Decimal = Decimal(1)
    basis: Basis = "market"
    deal: Deal | None = None
    profile: str = "general"
    any_device: bool = False  # CPUs, too, by what they cost
    evaluator: str = ZERO_ADDRESS
    escrow: str = ZERO_ADDRESS
    agent_registry: str = ZERO_ADDRESS
    agent_id: int = 0

    def __post_init__(self) -> None:
        """Refuse now what would fail each sale."""
        for name in ("evaluator", "escrow", "agent_registry", *(["pay_to"] if self.pay_to else [])):
            checked("address", getattr(self, name), name)
        checked("uint256", self.agent_id, "agent_id")
        evidence.tolerated(self.tolerance)
        worth(self.usd_per_token)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shelved:
    """A device with its price."""

    report: Report
    quote: Quote
    device: Device
    history: tuple[Quote, ...] = ()  # earlier ones first, this one last


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """Bytes that somebody named by their hash."""

    data: bytes
    media_type: str = _JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """An offer as it was given out."""

    envelope: Envelope
    salt: str
    shelved: Shelved
    seconds: int

    @property
    def offer(self) -> Offer:
        """What was signed."""
        return self.envelope.offer


def read_reports(folder: Path) -> tuple[Report, ...]:
    """Return the reports of a folder that verify, oldest first. What does not is left out: one bad file closes no shop."""
    read = (_read(path, path.stat().st_mtime_ns) for path in sorted(folder.glob("[0-9]*.json")))
    return tuple(sorted((report for report in read if report), key=lambda report: report.sealed_at))


@functools.lru_cache(maxsize=_REPORTS_KEPT)
def _read(path: Path, _changed_ns: int) -> Report | None:
    """Read a file once for each time that it was written."""
    try:
        return load(path)
    except HarnessError:
        return None


@dataclass(slots=True)
class Shop:
    """The shelf and the pen. Not for several threads at once."""

    folder: Path
    seller: Seller
    signer: Signer
    url: str = ""  # where evidence is fetched from
    now_s: Callable[[], float] = time.time
    market: Market | None = None
    read: Callable[[Path], tuple[Report, ...]] = read_reports
    by_itself: bool = True  # looks for new reports when it is asked something; else only when it is told to
    _shelf: dict[str, Shelved] = field(default_factory=dict)  # by device
    _reports: tuple[Report, ...] = ()
    _seen: tuple[tuple[str, int], ...] | None = None
    _looked_s: float = float("-inf")
    _issued: OrderedDict[str, Issued] = field(default_factory=OrderedDict)
    _documents: OrderedDict[str, Document] = field(default_factory=OrderedDict)
    _found: dict[str, Document] = field(default_factory=dict)  # of what is on the shelf
    _secret: bytes = b""

    def __post_init__(self) -> None:
        """Derive the secret of salts from the key: its signatures are deterministic, and this one is never shown."""
        self._secret = hashlib.sha256(self.signer.sign(hashlib.sha256(b"harness.salt/1").digest()).encode()).digest()

    @property
    def pay_to(self) -> str:
        """Where money goes."""
        return self.seller.pay_to or self.signer.address

    # --- the shelf ------------------------------------------------------------------------------------------------

    def listings(self) -> tuple[Shelved, ...]:
        """Return what is for sale, by name; the folder is looked at again if it changed."""
        self._look()
        return tuple(sorted(self._shelf.values(), key=lambda one: (one.device.name, one.device.uuid)))

    def reports(self) -> tuple[Report, ...]:
        """Return all reports of the folder, oldest first."""
        self._look()
        return self._reports

    def _look(self) -> None:
        if self._seen is None or (self.by_itself and time.monotonic() - self._looked_s >= _LOOK_S):
            self.refresh()

    def refresh(self) -> None:
        """Look at the folder, and price what is there anew if it changed. May run beside everything else: what was for sale is so until the end."""
        self._looked_s = time.monotonic()
        seen = tuple((path.name, path.stat().st_mtime_ns) for path in sorted(self.folder.glob("[0-9]*.json")))
        if seen == self._seen:
            return
        reports = self.read(self.folder)
        quotes: dict[str, list[tuple[Report, Quote]]] = {}
        for at, report in enumerate(reports):
            for quote in self._priced(report, reports[:at]):
                quotes.setdefault(quote.device_uuid, []).append((report, quote))
        shelf = {uuid: shelved for uuid, found in quotes.items() for shelved in self._shelved(uuid, found)}
        self._found = dict(self._evidence_of(quotes, shelf))
        self._shelf, self._reports, self._seen = shelf, reports, seen

    def _priced(self, report: Report, earlier: tuple[Report, ...]) -> tuple[Quote, ...]:
        seller = self.seller
        asked = quoter(
            profile=seller.profile, basis=seller.basis, deal=seller.deal, history=earlier, market=self.market
        )
        return asked(report)

    def _shelved(self, uuid: str, found: list[tuple[Report, Quote]]) -> Iterator[Shelved]:
        """Yield a device if its newest quote has a price: a newer report that has none takes it off the shelf."""
        report, quote = found[-1]
        sold = quote.for_gpu_market or (self.seller.any_device and not quote.emulated)
        if quote.price_usd_per_hour and sold:
            device = next(one for one in report.devices if one.uuid == uuid)
            yield Shelved(report=report, quote=quote, device=device, history=tuple(quote for _, quote in found))

    def _evidence_of(
        self, quotes: dict[str, list[tuple[Report, Quote]]], shelf: dict[str, Shelved]
    ) -> Iterator[tuple[str, Document]]:
        for report, quote in (pair for found in quotes.values() for pair in found):
            yield codec.digest(quote), Document(data=codec.encode(quote))
            yield quote.report_digest, Document(data=codec.encode(report))
        for one in shelf.values():
            for made in (self._sla(one), evidence.scoring(one.quote, usd_per_asset=self.seller.usd_per_token)):
                yield evidence.hashed(made), Document(data=made)

    def _sla(self, shelved: Shelved) -> bytes:
        return evidence.sla(shelved.quote, tolerance=self.seller.tolerance)

    # --- offers ---------------------------------------------------------------------------------------------------

    def offer(self, *, device: str | None, seconds: int, head: str, supersedes: str | None = None) -> Issued:
        """Sign an offer of some seconds of a device.

        Args:
            device: its UUID; None takes the only one there is.
            seconds: of use, all paid for.
            head: of the journal, so that the offer fixes all that came before it.
            supersedes: the id of the offer that this one replaces.

        Raises:
            UnknownQuoteError: no such device is for sale, or no offer of this shop is remembered that is to be replaced.
            MisuseError: too few or too many seconds, or the evidence is too old.
        """
        shelved = self._of(device)
        least, most = self.seller.seconds_least, self.seller.seconds_most
        if not least <= seconds <= most:
            message = f"{seconds} seconds were asked for; from {least} to {most} are sold"
            raise MisuseError(message)
        if supersedes is not None and supersedes not in self._issued:
            message = f"there is no offer {supersedes} here to replace"
            raise UnknownQuoteError(message)
        nonce = secrets.randbits(128)
        terms = self._terms(nonce, seconds, head, supersedes)
        offer = make_offer(shelved.quote, terms, gpu_only=not self.seller.any_device)
        if offer.evidence_root not in self._documents:
            made = Document(data=evidence.evidence(shelved.quote, journal_head=head))
            self._keep(self._documents, offer.evidence_root, made)
        proof = Evidence(
            uri=f"{self.url}/v1/evidence/{offer.evidence_root}", media_type=_JSON, hash=offer.evidence_root
        )
        signed = envelopes.sign(Envelope(offer=offer, evidence=proof), self.signer)
        issued = Issued(envelope=signed, salt=terms.device_salt, shelved=shelved, seconds=seconds)
        self._keep(self._issued, offer.quote_id, issued)
        return issued

    def _of(self, device: str | None) -> Shelved:
        self._look()
        found = [one for one in self._shelf.values() if device in {None, one.device.uuid}]
        if len(found) == 1:
            return found[0]
        known = f"{len(self._shelf)} devices are for sale: name one" if device is None else "it is not for sale here"
        message = f"device {device!r}: {known}"
        raise UnknownQuoteError(message)

    def _terms(self, nonce: int, seconds: int, head: str, supersedes: str | None) -> OfferTerms:
        seller = self.seller
        return OfferTerms(
            provider=self.signer.address,
            pay_to=self.pay_to,
            asset=seller.token.address,
            asset_decimals=seller.token.decimals,
            chain_id=seller.token.chain_id,
            now_s=int(self.now_s()),
            nonce=nonce,
            device_salt=self._salt(nonce),
            valid_for_s=seller.valid_for_s,
            min_units=seconds,
            max_units=seconds,
            usd_per_asset=seller.usd_per_token,
            evidence_max_age_s=seller.evidence_max_age_s,
            agent_registry=seller.agent_registry,
            agent_id=seller.agent_id,
            evaluator=seller.evaluator,
            escrow=seller.escrow,
            supersedes=supersedes or ZERO_BYTES32,
            journal_head=head,
            sla_tolerance=seller.tolerance,
        )

    def _salt(self, nonce: int) -> str:
        return "0x" + hmac.new(self._secret, nonce.to_bytes(32, "big"), hashlib.sha256).hexdigest()

    @staticmethod
    def _keep(kept: OrderedDict[str, Any], name: str, what: object) -> None:
        kept[name] = what
        if len(kept) > _KEPT:
            kept.popitem(last=False)

    def issued(self, quote_id: str) -> Issued | None:
        """Return an offer that was given out lately; None where it was forgotten, or never was."""
        return self._issued.get(quote_id)

    def shown(self, envelope: Envelope) -> Issued:
        """Return an offer that somebody brings back.

        Raises:
            ForgeryError: it is not signed, or not by this seller.
            MisuseError: it is another seller's, or not for a device on the shelf as it now is.
        """
        offer = envelope.offer
        envelopes.verify(envelope, now_s=None)
        if offer.provider != self.signer.address:
            message = f"the offer is by {offer.provider}; this is {self.signer.address}"
            raise MisuseError(message)
        self._look()
        salt = self._salt(offer.nonce)
        for shelved in self._shelf.values():
            if evidence.committed(shelved.device.uuid, salt) == offer.device_commitment:
                return Issued(envelope=envelope, salt=salt, shelved=shelved, seconds=offer.max_units)
        message = "the device of this offer is no longer for sale: ask for another offer"
        raise MisuseError(message)

    def attest(self, issued: Issued) -> Shelved:
        """Return what is on the shelf for an offer now.

        Raises:
            MisuseError: the device is gone, was measured as another one, or no longer promises what the offer does.
        """
        self._look()
        sold, now = issued.shelved.device, self._shelf.get(issued.shelved.device.uuid)
        if now is None:
            message = "the device of this offer is no longer for sale: ask for another offer"
            raise MisuseError(message)
        for name in ("name", "serial", "vbios", "driver", "memory_bytes", "mig_enabled"):
            before, after = getattr(sold, name), getattr(now.device, name)
            if before != after:
                message = (
                    f"the device's {name} was {before!r} when this was offered and is {after!r}: ask for another offer"
                )
                raise MisuseError(message)
        before_s, after_s = issued.shelved.quote.cycles_per_s, now.quote.cycles_per_s
        same = evidence.hashed(self._sla(now)) == issued.offer.sla_hash
        faster = issued.shelved is not now and before_s and after_s and after_s >= before_s
        if not (same or faster):
            message = (
                "the device was measured again since, and less or another speed is promised now: ask for another offer"
            )
            raise MisuseError(message)
        return now

    def document(self, name: str) -> Document | None:
        """Return what has this hash, Keccak-256 with 0x or SHA-256 without; None where nothing on the shelf, or of late, has it."""
        self._look()
        return self._found.get(name) or self._documents.get(name)

    def documents_of(self, issued: Issued, heads: Callable[[int], tuple[str, ...]]) -> dict[str, bytes]:
        """Return what an offer names by hash, as far as it is at hand: evidence, promise and price inputs.

        Args:
            issued: an offer.
            heads: returns so many of the journal's newest heads, one of which an offer from before a restart names.
        """
        quote, offer = issued.shelved.quote, issued.offer
        known = self._documents.get(offer.evidence_root)
        made = [self._sla(issued.shelved), evidence.scoring(quote, usd_per_asset=self.seller.usd_per_token)]
        made += [known.data] if known else [evidence.evidence(quote, journal_head=head) for head in heads(_HEADS)]
        named = {offer.evidence_root, offer.sla_hash, offer.scoring_hash}
        return {name: data for data in made if (name := evidence.hashed(data)) in named}
