"""Sells one quote in a child of its own for each step, pulls the plug there with SIGKILL, and prints what is found afterwards.

    python crashes.py FOLDER

One process imports everything, and forks: so that a crash costs milliseconds and is a real one.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shopfront import BUYER, SELLER, TOKEN, signed

from harness.errors import HarnessError
from harness.market.sales.docket import Docket
from harness.market.sales.facilitator import LocalFacilitator, Payment
from harness.market.sales.journal import Entry, Journal, Row
from harness.market.sales.journal_check import check
from harness.market.sales.paywall import requirements
from harness.market.sales.till import Sale, Sold, Till

STEPS = ("verify", "claim", "within claim", "authorize", "settle", "within settle", "settled", "capture", "within capture", "deliver", "within deliver", "delivered", "answer")  # fmt: skip
QUOTE, BOND = "0x" + "ab" * 32, "0x" + "bb" * 32


def pull() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class TornJournal(Journal):
    """Dies inside a transaction, after its first row was inserted and before anything was committed."""

    die: str | None = None

    def _write(self, entry: Entry) -> Row:
        row = super()._write(entry)
        if entry.state is not None and entry.state == self.die:
            pull()
        return row


def payment(folder: Path, name: str = "payment") -> Payment:
    """Return the one payment of this name in this folder, signed once: the buyer who comes back brings the same."""
    path = folder / f"{name}.json"
    wanted = requirements(TOKEN, pay_to=SELLER.address, amount_atomic=1000, timeout_s=300, extra={})
    if not path.exists():
        asked = {"accepts": [wanted], "resource": {"url": "http://gpu.example"}}
        path.write_text(json.dumps(signed(asked, BUYER)))
    payload = json.loads(path.read_text())
    nonce = payload["payload"]["authorization"]["nonce"]
    return Payment(payer=BUYER.address, nonce=nonce, protocol="x402", payload=payload, requirements=wanted)


async def sell(folder: Path, step: str | None) -> str:
    """Sell the quote, or die at a step; return the state that came of it, or the error."""
    book = TornJournal(folder / "j.db")
    book.die = {"within claim": "ACCEPTED", "within capture": "CAPTURED"}.get(step or "")
    facilitator = Forgetful(name=TOKEN.name, version=TOKEN.version, ledger=folder / "ledger")
    if step == "within settle":
        inner = facilitator.settle

        async def settle(paid: Payment) -> Any:
            await inner(paid)
            pull()

        facilitator = Dying(facilitator, settle)  # type: ignore[assignment]

    async def deliver(_: Sale, __: Sold) -> Mapping[str, Any]:
        with (folder / "delivered").open("a") as file:
            file.write("once\n")
        if step == "within deliver":
            pull()
        return {"ok": True}

    def at(name: str) -> None:
        if name == step:
            pull()

    book.recover()
    sale = Sale(id=QUOTE, amount_atomic=1000, pay_to=SELLER.address, evidence={}, quoted={})
    try:
        sold = await Till(book, facilitator, at=at).sell(sale, payment(folder), deliver)
    except HarnessError as err:
        return type(err).__name__
    return sold.state


async def dispute(folder: Path) -> None:
    """Sell the quote, then the bond of its dispute, and die before the dispute is opened."""
    till = Till(Journal(folder / "j.db"), LocalFacilitator(name=TOKEN.name, version=TOKEN.version))

    async def lost(_: Sale, __: Sold) -> Mapping[str, Any]:
        pull()
        return {}

    async def given(_: Sale, __: Sold) -> Mapping[str, Any]:
        return {"ok": True}

    claim = {"quote_id": QUOTE, "capture_id": "0x1", "metric": "cycles_per_s", "from_s": 1, "until_s": 2}
    sale = Sale(id=QUOTE, amount_atomic=1000, pay_to=SELLER.address, evidence={}, quoted={})
    await till.sell(sale, payment(folder), given)
    bond = Sale(id=BOND, amount_atomic=1000, pay_to=SELLER.address, evidence={}, quoted={"claim": claim})
    await till.sell(bond, payment(folder, "bond"), lost)


def disputed(folder: Path) -> dict[str, Any]:
    """Return what a restarted service makes of a bond that was captured, and of no dispute."""
    book = Journal(folder / "j.db")
    before, opened = check(folder / "j.db"), [len(Docket(book).resume()) for _ in range(2)]
    after = check(folder / "j.db", head=before.head)
    states = [dict(found.quote_counts) for found in (before, after)]
    found = [list(found.undelivered) for found in (before, after)]
    return {"step": "bond", "opened": opened, "states": states, "undelivered": found, "of": book.state(QUOTE)}


class Forgetful(LocalFacilitator):
    """Would settle one payment as often as it is told to: nothing but the journal keeps it from that."""

    def _used(self) -> set[str]:
        return set()


class Dying:
    """A facilitator whose answer never comes back."""

    def __init__(self, inner: LocalFacilitator, settle: Any) -> None:
        self.verify, self.settle = inner.verify, settle


def lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def main(folder: Path) -> None:
    (folder / "bond").mkdir()
    child = os.fork()
    if child == 0:
        asyncio.run(dispute(folder / "bond"))
        os._exit(0)
    os.waitpid(child, 0)
    print(json.dumps(disputed(folder / "bond")), flush=True)
    for step in STEPS:
        own = folder / step.replace(" ", "-")
        own.mkdir()
        payment(own)
        child = os.fork()
        if child == 0:
            asyncio.run(sell(own, step))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        after = check(own / "j.db")
        transfers = lines(own / "ledger")
        again = [asyncio.run(sell(own, None)) for _ in range(2)]  # restarted, and the buyer comes back, twice
        found = check(own / "j.db", head=after.head)
        (state,) = found.quote_counts
        told = {
            "step": step,
            "killed": killed,
            "transfers_before": transfers,
            "again": again,
            "transfers": lines(own / "ledger"),
            "delivered": lines(own / "delivered"),
            "state": state,
            "unknown": list(found.unknown),
            "undelivered": list(found.undelivered),
        }
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
