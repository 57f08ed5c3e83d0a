"""A shop with one H100, a facilitator in memory, buyers with keys, and the whole service behind ASGI: what tests of `harness serve` share."""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from standin import StandIn
from test_price import node
from test_scoring import gpu

from harness.market.offers.eip712 import Domain, digest
from harness.market.offers.secp256k1 import Signer
from harness.market.sales.counter import Counter, Fulfil, lease
from harness.market.sales.docket import Docket
from harness.market.sales.facilitator import TRANSFER, Facilitator, LocalFacilitator
from harness.market.sales.journal import Journal
from harness.market.sales.paywall import Paywall
from harness.market.sales.shop import Seller, Shop, Token
from harness.market.sales.till import Till
from harness.model import Report

__all__ = [
    "BUYER",
    "OTHER",
    "SELLER",
    "TOKEN",
    "URL",
    "Clock",
    "Front",
    "client",
    "front",
    "paying",
    "report_at",
    "signed",
]

URL = "http://gpu.example"
TOKEN = Token(address="0x" + "5c" * 20, chain_id=84532, decimals=6, name="USDC", version="2")
SELLER, BUYER, OTHER = (Signer(bytes([n]) * 32) for n in (1, 2, 3))


def report_at(at_s: float, **more: Any) -> Report:
    """Return a report of one H100 that was sealed at a time."""
    stamp = datetime.fromtimestamp(at_s, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    made = node(device=more.pop("device", gpu(memory_gib=80)), **more)
    return replace(made, created_at=stamp, sealed_at=stamp)


@dataclass(slots=True)
class Clock:
    """The real time, and what is added to it."""

    ahead_s: float = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s

    def date(self) -> datetime:
        return datetime.fromtimestamp(self(), UTC)


@dataclass(slots=True)
class Front:
    """A whole service, and handles on its parts."""

    counter: Counter
    journal: Journal
    facilitator: LocalFacilitator
    path: Path
    clock: Clock
    reports: list[Report]
    delivered: list[str] = field(default_factory=list)

    def restock(self, *reports: Report) -> None:
        """Put other reports into the folder."""
        self.reports[:] = reports
        self.counter.shop._seen = None
        self.counter.shop.refresh()


def front(
    tmp_path: Path,
    *,
    reports: list[Report] | None = None,
    facilitator: Facilitator | None = None,
    seller: Callable[[Seller], Seller] = lambda one: one,
    at: Callable[[str], None] = lambda _: None,
    fulfil: Fulfil | None = None,
    settle_s: float = 5.0,
    url: str = URL,
) -> Front:
    """Open a shop whose only report was sealed a minute ago."""
    clock = Clock()
    shelf = [report_at(time.time() - 60)] if reports is None else reports
    local = LocalFacilitator(name=TOKEN.name, version=TOKEN.version)
    journal = Journal(tmp_path / "journal.db", now=clock.date)
    shop = Shop(
        folder=tmp_path,
        seller=seller(Seller(token=TOKEN)),
        signer=SELLER,
        url=url,
        now_s=clock,
        market=StandIn(),
        read=lambda _: tuple(sorted(shelf, key=lambda one: one.sealed_at)),
    )
    till = Till(journal, facilitator or local, settle_s=settle_s, at=at)
    made = Front(
        counter=Counter(
            shop, journal, till, Paywall(TOKEN, "gpu.example"), Docket(journal, now_s=clock), url, now_s=clock
        ),
        journal=journal,
        facilitator=facilitator if isinstance(facilitator, LocalFacilitator) else local,
        path=tmp_path / "journal.db",
        clock=clock,
        reports=shelf,
    )

    async def deliver(sale: Any, sold: Any) -> Any:
        made.delivered.append(sale.id)
        return await (fulfil or lease)(sale, sold)

    made.counter.fulfil = deliver
    return made


def client(app: Any, **more: Any) -> httpx.AsyncClient:
    """Return a client that speaks to an application without a network."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url=URL, **more)


def signed(required: dict[str, Any], buyer: Signer = BUYER, **changes: Any) -> dict[str, Any]:
    """Return x402's payment for what is required, as a wallet makes it; `changes` are to what is signed."""
    accepted = required["accepts"][0]
    message = {
        "from": buyer.address,
        "to": accepted["payTo"].lower(),
        "value": int(accepted["amount"]),
        "validAfter": 0,
        "validBefore": int(time.time()) + accepted["maxTimeoutSeconds"],
        "nonce": "0x" + secrets.token_hex(32),
    } | changes
    extra = accepted["extra"]
    domain = Domain(
        name=extra["name"],
        version=extra["version"],
        chain_id=int(accepted["network"].removeprefix("eip155:")),
        verifying_contract=accepted["asset"].lower(),
    )
    return {
        "x402Version": 2,
        "resource": required["resource"],
        "accepted": accepted,
        "payload": {
            "authorization": {name: str(value) for name, value in message.items()},
            "signature": buyer.sign(digest(domain, "TransferWithAuthorization", TRANSFER, message)),
        },
    }


def header(payment: dict[str, Any]) -> dict[str, str]:
    """Return a payment as a request carries it."""
    return {"PAYMENT-SIGNATURE": base64.b64encode(json.dumps(payment).encode()).decode()}


def required(response: httpx.Response) -> dict[str, Any]:
    """Return what a 402 asks for."""
    assert response.status_code == 402, response.text
    found: dict[str, Any] = json.loads(base64.b64decode(response.headers["PAYMENT-REQUIRED"]))
    return found


async def paying(http: httpx.AsyncClient, path: str, buyer: Signer = BUYER, **changes: Any) -> dict[str, str]:
    """Ask what a resource costs; return the head of a request that pays for it."""
    return header(signed(required(await http.get(path)), buyer, **changes))
