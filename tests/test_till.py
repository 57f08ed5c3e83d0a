"""One payment, one sale: under replays, crashes, silence and refusals."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from crashes import BOND, STEPS, Forgetful
from shopfront import BUYER, OTHER, SELLER, TOKEN, signed

from harness.errors import FailureError
from harness.market.offers.secp256k1 import Signer
from harness.market.sales.facilitator import Facilitator, LocalFacilitator, NoAnswerError, Payment, Settled
from harness.market.sales.journal import Entry, Journal, PaymentUsedError, Row
from harness.market.sales.journal_check import check
from harness.market.sales.life import StateError
from harness.market.sales.paywall import requirements
from harness.market.sales.till import OutcomeUnknownError, PaymentRefusedError, Sale, SettlementRefusedError, Sold, Till


def paid(buyer: Signer = BUYER, **changes: Any) -> Payment:
    wanted = requirements(TOKEN, pay_to=SELLER.address, amount_atomic=1000, timeout_s=300, extra={})
    payload = signed({"accepts": [wanted], "resource": {"url": "http://gpu.example"}}, buyer, **changes)
    nonce = payload["payload"]["authorization"]["nonce"]
    return Payment(payer=buyer.address, nonce=nonce, protocol="x402", payload=payload, requirements=wanted)


def sale(name: str = "ab", **more: Any) -> Sale:
    return Sale(id="0x" + name * 32, amount_atomic=1000, pay_to=SELLER.address, evidence={}, quoted={}, **more)


class Counted:
    """A delivery that counts."""

    def __init__(self) -> None:
        self.count = 0

    async def __call__(self, _: Sale, __: Sold) -> Mapping[str, Any]:
        self.count += 1
        await asyncio.sleep(0)
        return {"ok": True}


def ledger(**more: Any) -> LocalFacilitator:
    return LocalFacilitator(name=TOKEN.name, version=TOKEN.version, **more)


def test_replay_of_a_payment_runs_the_handler_once_in_each_of_50_rounds(tmp_path: Path) -> None:
    """Eight at a time, by a facilitator that would settle each of them."""

    async def rounds() -> None:
        facilitator = Forgetful(name=TOKEN.name, version=TOKEN.version)
        till, deliver = Till(Journal(tmp_path / "j.db"), facilitator), Counted()
        for n in range(50):
            payment, one = paid(), sale(f"{n:02x}")
            found = await asyncio.gather(*(till.sell(one, payment, deliver) for _ in range(8)), return_exceptions=True)
            assert sorted(type(x).__name__ for x in found) == ["Sold"] + ["StateError"] * 7
            assert (deliver.count, len(facilitator.transfers)) == (n + 1, n + 1)
        await till.close()

    asyncio.run(rounds())
    assert check(tmp_path / "j.db").quote_counts == {"CAPTURED": 50}


def test_one_payment_for_two_sales_at_once_buys_one(tmp_path: Path) -> None:
    async def both() -> None:
        facilitator, deliver = Forgetful(name=TOKEN.name, version=TOKEN.version), Counted()
        till, payment = Till(Journal(tmp_path / "j.db"), facilitator), paid()
        found = await asyncio.gather(
            *(till.sell(sale(name), payment, deliver) for name in ("aa", "bb")), return_exceptions=True
        )
        assert {type(x) for x in found} == {Sold, PaymentUsedError}
        assert (deliver.count, len(facilitator.transfers)) == (1, 1)

    asyncio.run(both())


# --- crashes ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    script = Path(__file__).parent / "crashes.py"
    command = [sys.executable, str(script), str(tmp_path_factory.mktemp("crashes"))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return {told["step"]: told for told in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_any_step_nothing_is_captured_twice_and_nothing_captured_is_lost(
    crashed: dict[str, dict[str, Any]], step: str
) -> None:
    """The journal was checked, chain and all, in the script itself: before the restart and after it."""
    told = crashed[step]
    assert told["killed"]
    assert told["transfers"] <= 1
    assert told["delivered"] <= 1
    if told["transfers"]:
        assert told["state"] in {"CAPTURED", "OUTCOME_UNKNOWN"}
    if told["transfers_before"]:
        assert told["transfers"] == 1, "the buyer came back with the same payment, and was charged again"
        assert "CAPTURED" not in told["again"]
    if told["state"] == "CAPTURED":
        assert bool(told["undelivered"]) == (step in {"deliver", "within deliver", "delivered"})


def test_what_was_not_begun_can_be_begun_again_and_what_was_in_doubt_cannot(crashed: dict[str, dict[str, Any]]) -> None:
    states = {step: crashed[step]["state"] for step in STEPS}
    assert {states[step] for step in ("verify", "claim", "within claim")} == {"CAPTURED"}  # by the buyer who came back
    assert states["authorize"] == "VOIDED"
    assert {states[s] for s in ("settle", "within settle", "settled", "capture", "within capture")} == {
        "OUTCOME_UNKNOWN"
    }
    assert all(crashed[s]["unknown"] for s in STEPS if states[s] == "OUTCOME_UNKNOWN")


def test_killed_between_the_bond_and_the_dispute_the_dispute_is_opened_once_at_the_next_start(
    crashed: dict[str, dict[str, Any]],
) -> None:
    told = crashed["bond"]
    assert told["states"] == [{"CAPTURED": 2}, {"CAPTURED": 1, "DISPUTED": 1}]
    assert (told["opened"], told["of"]) == ([2, 0], "DISPUTED")
    assert told["undelivered"] == [[BOND], []]


# --- silence and refusals ---------------------------------------------------------------------------------------------


class Silent:
    """Settles, and says so too late or never."""

    def __init__(self, how: str) -> None:
        self.how, self.inner, self.asked = how, ledger(), 0

    async def verify(self, payment: Payment) -> str | None:
        return None

    async def settle(self, payment: Payment) -> Settled:
        self.asked += 1
        settled = await self.inner.settle(payment)
        if self.how == "late":
            await asyncio.sleep(10)
        if self.how == "broken line":
            message = "no answer"
            raise NoAnswerError(message)
        if self.how == "nonsense":
            raise KeyError(self.how)
        if self.how == "no text":
            return Settled(transaction="0x\ud800")
        if self.how == "surrogate":
            message = "\ud800"
            raise NoAnswerError(message)
        return Settled() if self.how == "nothing said" else settled

    async def close(self) -> None: ...


@pytest.mark.parametrize("how", ["late", "broken line", "nonsense", "no text", "surrogate", "nothing said"])
def test_double_settlement_after_a_timeout_is_a_tombstone_and_never_driven_again(tmp_path: Path, how: str) -> None:
    async def trying() -> None:
        facilitator: Any = Silent(how)
        till, deliver = Till(Journal(tmp_path / "j.db"), facilitator, settle_s=0.05), Counted()
        payment = paid()
        with pytest.raises(OutcomeUnknownError):
            await till.sell(sale(), payment, deliver)
        for another in (payment, paid()):
            with pytest.raises(StateError, match="OUTCOME_UNKNOWN"):
                await till.sell(sale(), another, deliver)
        assert (facilitator.asked, deliver.count) == (1, 0)

    asyncio.run(trying())
    found = check(tmp_path / "j.db")
    assert found.unknown == ("0x" + "ab" * 32,)


def test_a_client_who_hangs_up_while_money_moves_changes_nothing(tmp_path: Path) -> None:
    async def hanging_up() -> None:
        settling = asyncio.Event()

        class Slow(LocalFacilitator):
            async def settle(self, payment: Payment) -> Settled:
                settling.set()
                await asyncio.sleep(0.05)
                return await LocalFacilitator.settle(self, payment)

        deliver = Counted()
        till = Till(Journal(tmp_path / "j.db"), Slow(name=TOKEN.name, version=TOKEN.version))
        asked = asyncio.create_task(till.sell(sale(), paid(), deliver))
        await settling.wait()
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        await till.close()
        assert deliver.count == 1

    asyncio.run(hanging_up())
    assert check(tmp_path / "j.db").quote_counts == {"CAPTURED": 1}


def test_who_cannot_pay_leaves_nothing_behind_and_may_try_again(tmp_path: Path) -> None:
    async def trying() -> None:
        book, facilitator, deliver = Journal(tmp_path / "j.db"), ledger(balances={OTHER.address: 999}), Counted()
        till = Till(book, facilitator)
        with pytest.raises(PaymentRefusedError, match="insufficient_funds"):
            await till.sell(sale(), paid(OTHER), deliver)
        assert book.head() == "0" * 64
        assert (await till.sell(sale(), paid(), deliver)).state == "CAPTURED"

    asyncio.run(trying())


def test_a_payment_that_fails_when_it_is_settled_voids_the_sale_and_frees_the_device(tmp_path: Path) -> None:
    class Drained(LocalFacilitator):
        async def settle(self, payment: Payment) -> Settled:
            self.balances[payment.payer] = 0  # spent elsewhere, between the look and the order
            return await LocalFacilitator.settle(self, payment)

    async def trying() -> None:
        book, deliver = Journal(tmp_path / "j.db"), Counted()
        with pytest.raises(SettlementRefusedError, match="insufficient_funds"):
            await Till(book, Drained(name=TOKEN.name, version=TOKEN.version)).sell(
                sale(device="gpu", until_s=2**40), paid(), deliver
            )
        assert (book.state(sale().id), deliver.count, book.is_let("gpu")) == ("VOIDED", 0, False)

    asyncio.run(trying())


def test_a_facilitator_out_of_reach_costs_the_buyer_nothing(tmp_path: Path) -> None:
    class Away(LocalFacilitator):
        async def verify(self, payment: Payment) -> str | None:
            message = "no route"
            raise NoAnswerError(message)

    async def trying(facilitator: Facilitator) -> None:
        book = Journal(tmp_path / "j.db")
        with pytest.raises(FailureError, match="nothing was claimed"):
            await Till(book, facilitator, verify_s=0.05).sell(sale(), paid(), Counted())
        assert book.head() == "0" * 64

    asyncio.run(trying(Away(name=TOKEN.name, version=TOKEN.version)))


@pytest.mark.parametrize("last", ["CAPTURED", "delivering"])
def test_a_disk_that_is_full_once_the_money_moved_is_no_refusal(tmp_path: Path, last: str) -> None:
    class Full(Journal):
        def append(self, *entries: Entry) -> tuple[Row, ...]:
            if last in {entries[0].state, entries[0].note}:
                message = "cannot write: database or disk is full"
                raise FailureError(message)
            return super().append(*entries)

    async def trying() -> None:
        facilitator, deliver = Forgetful(name=TOKEN.name, version=TOKEN.version), Counted()
        till, payment = Till(Full(tmp_path / "j.db"), facilitator), paid()
        with pytest.raises(OutcomeUnknownError, match="may have settled"):
            await till.sell(sale(), payment, deliver)
        Journal(tmp_path / "j.db").recover()
        with pytest.raises(StateError):
            await till.sell(sale(), payment, deliver)
        assert (len(facilitator.transfers), deliver.count) == (1, 0)

    asyncio.run(trying())
    found = check(tmp_path / "j.db")
    assert (found.unknown or found.undelivered) == (sale().id,)


@pytest.mark.parametrize(
    ("error", "found", "why"),
    [
        (FailureError("no node answered"), None, "no node answered"),
        (KeyError("node"), None, "KeyError: 'node'"),
        (None, {"rate": float("nan")}, "not JSON"),
        (None, {"key": b"bytes"}, "not JSON"),
    ],
)
def test_a_delivery_that_fails_is_written_down_and_not_tried_again(
    tmp_path: Path, error: Exception | None, found: Any, why: str
) -> None:
    async def failing(_: Sale, __: Sold) -> Mapping[str, Any]:
        if error:
            raise error
        return dict(found)

    async def trying() -> None:
        sold = await Till(Journal(tmp_path / "j.db"), ledger()).sell(sale(), paid(), failing)
        assert (sold.state, sold.delivery) == ("CAPTURED", None)
        assert why in str(sold.delivery_fault)

    asyncio.run(trying())
    assert check(tmp_path / "j.db").undelivered == (sale().id,)


def test_who_replaces_a_quote_makes_the_other_one_void(tmp_path: Path) -> None:
    async def trying() -> None:
        till, deliver = Till(Journal(tmp_path / "j.db"), ledger()), Counted()
        await till.sell(sale("bb", supersedes=sale("aa").id), paid(), deliver)
        with pytest.raises(StateError, match="SUPERSEDED"):
            await till.sell(sale("aa"), paid(), deliver)
        with pytest.raises(StateError, match="CAPTURED"):  # what was sold cannot be replaced
            await till.sell(sale("cc", supersedes=sale("bb").id), paid(), deliver)
        assert deliver.count == 1

    asyncio.run(trying())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"value": 999}, "value"),
        ({"to": OTHER.address}, "recipient"),
        ({"from": OTHER.address}, "signature"),
    ],
)
def test_the_ledger_of_the_tests_refuses_what_a_token_would(changes: dict[str, Any], says: str) -> None:
    assert says in str(asyncio.run(ledger().verify(paid(**changes))))
