"""Other people's clients buy from `harness serve`, in a process of its own, with a facilitator over HTTP; and that process is killed."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import npmcache
import pytest
from facilitating import Desk, facilitating
from shopfront import BUYER, SELLER, client, front, header, paying, required, signed
from shopfront import TOKEN as OURS
from test_serve_quotes import MANY, accept, quoted

from harness.market.offers.secp256k1 import Signer, keygen
from harness.market.sales.door import app
from harness.market.sales.facilitator import HttpFacilitator, LocalFacilitator
from harness.market.sales.journal_check import check
from harness.market.sales.service import TOKENS

ROOT = Path(__file__).parents[2]
PRIVATE = bytes([7]) * 32
PAYER = Signer(PRIVATE).address
TOKEN = TOKENS["base-sepolia"]


@contextmanager
def selling(folder: Path, facilitator: str, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Sell the report in `results` (a CPU's: it is the one that is here), and yield the URL."""
    key = folder / "key"
    if not key.exists():
        keygen(key)
    terms = ["--cpus", "--evidence-hours", "87600", "--journal", str(folder / "quotes.db"), "--port", "0"]
    command = [sys.executable, "-m", "harness", "serve", str(ROOT / "results"), "--key", str(key)]
    with subprocess.Popen(
        [*command, "--facilitator", facilitator, *terms, *options], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().removeprefix("listening at ").strip() or pytest.fail("no start"), process
        finally:
            process.terminate()
            process.wait(40)


def ask(url: str, seconds: int = 60) -> dict[str, Any]:
    answer = httpx.post(f"{url}/v1/quotes", json={"seconds": seconds})
    assert answer.status_code == 201, answer.text
    quote: dict[str, Any] = answer.json()
    return quote


def settled(desk: Desk, sale: dict[str, Any], count: int) -> None:
    """Check that what the client was told is what happened, once."""
    assert sale["state"] == "CAPTURED"
    assert sale["payer"] == PAYER
    assert len(desk.ledger.transfers) == desk.asked.count("settle") == count
    assert desk.ledger.transfers[-1]["transaction"] == sale["transaction"]
    assert str(desk.ledger.transfers[-1]["value"]) == sale["amount_atomic"]


@pytest.mark.slow  # a process that imports web3 and one that serves
def test_the_official_x402_client_buys_with_its_own_limits_on_spending(tmp_path: Path) -> None:
    pytest.importorskip("x402.mechanisms.evm.exact", reason="PyPI's x402[evm,httpx] is not installed")
    from eth_account import Account
    from x402 import x402Client
    from x402.http import decode_payment_response_header
    from x402.http.clients import x402HttpxClient
    from x402.mechanisms.evm.exact.register import register_exact_evm_client

    async def buy(url: str) -> httpx.Response:
        payer = register_exact_evm_client(x402Client(), Account.from_key(PRIVATE))
        async with x402HttpxClient(payer) as http:
            found: httpx.Response = await http.get(ask(url)["accept"])
            return found

    ledger = LocalFacilitator(name=TOKEN.name, version=TOKEN.version)
    with facilitating(ledger) as desk, selling(tmp_path, desk.url) as (url, _):
        answer = asyncio.run(buy(url))
        assert answer.status_code == 200, answer.text
        settled(desk, answer.json(), 1)
    told = decode_payment_response_header(answer.headers["PAYMENT-RESPONSE"])
    assert told.success
    assert told.transaction == answer.json()["transaction"]
    assert check(tmp_path / "quotes.db").quote_counts == {"CAPTURED": 1}


@pytest.mark.slow
def test_the_mpp_client_buys_from_the_same_url(tmp_path: Path) -> None:
    pytest.importorskip("mpp.methods.evm", reason="PyPI's pympp[evm] is not installed")
    from eth_account import Account
    from mpp.client.transport import Mpp
    from mpp.methods.evm import client as evm
    from mpp.methods.evm.assets import BASE_SEPOLIA_USDC

    async def buy(url: str) -> httpx.Response:
        method = evm.charge(currency=BASE_SEPOLIA_USDC, account=Account.from_key(PRIVATE), max_amount="1")
        async with Mpp(methods=[method]) as payer:
            return await payer.fetch(ask(url)["accept"])

    ledger = LocalFacilitator(name=TOKEN.name, version=TOKEN.version)
    with facilitating(ledger) as desk, selling(tmp_path, desk.url) as (url, _):
        answer = asyncio.run(buy(url))
        assert answer.status_code == 200, answer.text
        settled(desk, answer.json(), 1)
        assert answer.headers["Payment-Receipt"]


@pytest.mark.slow
def test_killed_with_money_under_way_the_service_says_so_when_it_is_back_and_charges_nobody_again(
    tmp_path: Path,
) -> None:
    ledger = LocalFacilitator(name=TOKEN.name, version=TOKEN.version)
    with facilitating(ledger) as desk:
        desk.hold = threading.Event()
        with selling(tmp_path, desk.url) as (url, process):
            quote = ask(url)
            paid = header(signed(required(httpx.get(quote["accept"])), Signer(PRIVATE)))
            buyer = threading.Thread(target=hang, args=(quote["accept"], paid))
            buyer.start()
            assert desk.settling.wait(20)
            process.kill()
            process.wait()
            buyer.join(20)
        assert check(tmp_path / "quotes.db").quote_counts == {"AUTHORIZED": 1}
        desk.hold.set()
        with selling(tmp_path, desk.url) as (url, _):
            told = httpx.get(f"{url}/v1/quotes/{quote['quote_id']}").json()
            assert told["state"] == "OUTCOME_UNKNOWN"
            again = httpx.get(f"{url}/v1/quotes/{quote['quote_id']}/accept", headers=paid)
            assert again.json()["code"] == "already_decided"
        assert desk.asked.count("settle") == len(ledger.transfers) == 1
    found = check(tmp_path / "quotes.db")
    assert found.unknown == (quote["quote_id"],)


def test_the_official_typescript_sdk_finds_and_verifies_the_offer_and_the_receipt_in_our_headers(
    tmp_path: Path,
) -> None:
    modules = npmcache.modules()

    async def buying() -> dict[str, str]:
        made = front(tmp_path)
        async with client(app(made.counter, MANY)) as http:
            quote = await quoted(http)
            due = await http.get(accept(quote))
            paid = await http.get(accept(quote), headers=header(signed(required(due))))
            return {"required": due.headers["PAYMENT-REQUIRED"], "response": paid.headers["PAYMENT-RESPONSE"]}

    script = """
    const sdk = require("@x402/extensions/offer-receipt");
    const told = JSON.parse(require("fs").readFileSync(0));
    const required = JSON.parse(Buffer.from(told.required, "base64"));
    const [offer] = sdk.extractOffersFromPaymentRequired(required);
    const receipt = sdk.extractReceiptFromResponse(new Response("", { headers: { "PAYMENT-RESPONSE": told.response } }));
    const [decoded] = sdk.decodeSignedOffers([offer]);
    const payer = receipt.payload.payer;
    Promise.all([sdk.verifyOfferSignatureEIP712(offer), sdk.verifyReceiptSignatureEIP712(receipt)]).then(([by, paid]) => {
      const matches = [[payer], [by.signer]].map((payers) => sdk.verifyReceiptMatchesOffer(receipt, decoded, payers));
      console.log(JSON.stringify({ offer: by.signer, receipt: paid.signer, payer, matches }));
    });
    """
    told = subprocess.run(
        ["node", "-e", script],
        input=json.dumps(asyncio.run(buying())),
        env={**os.environ, "NODE_PATH": str(modules)},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(told.stdout)
    assert {found["offer"].lower(), found["receipt"].lower()} == {SELLER.address}
    assert found["payer"].lower() == BUYER.address
    assert found["matches"] == [True, False]


def hang(url: str, headers: dict[str, str]) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.get(url, headers=headers, timeout=30)


@pytest.mark.parametrize(
    ("what", "answer", "status", "code"),
    [
        ("verify", (500, b"{}"), 503, "failed"),
        ("verify", (200, b'{"isValid":false,"invalidReason":"insufficient_funds"}'), 402, "payment_required"),
        ("settle", (502, b"bad gateway"), 504, "outcome_unknown"),
        ("settle", (500, b'{"success":false,"errorReason":"internal_error"}'), 504, "outcome_unknown"),
        ("settle", (200, b'{"success":true,"transaction":""}'), 504, "outcome_unknown"),
        ("settle", (200, b'{"success":false,"errorReason":"settlement_pending"}'), 504, "outcome_unknown"),
        ("settle", (200, b'{"success":false,"errorReason":"transaction_failed"}'), 504, "outcome_unknown"),
        ("settle", (200, b'{"success":false,"errorReason":"unexpected_settle_error"}'), 504, "outcome_unknown"),
        ("settle", (200, b'{"success":false,"errorReason":"nonce_already_used"}'), 504, "outcome_unknown"),
        ("settle", (200, b'{"success":false}'), 504, "outcome_unknown"),
        ("settle", (200, b'{"success":false,"errorReason":["insufficient_funds"]}'), 504, "outcome_unknown"),
        (
            "settle",
            (200, b'{"success":false,"errorReason":"insufficient_funds","transaction":"0xab"}'),
            504,
            "outcome_unknown",
        ),
        (
            "settle",
            (200, b'{"success":false,"errorReason":"insufficient_funds","transaction":""}'),
            409,
            "settlement_refused",
        ),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_what_is_no_clear_answer_of_a_facilitator_is_not_taken_for_a_refusal(
    tmp_path: Path, what: str, answer: tuple[int, bytes], status: int, code: str
) -> None:
    async def asking(desk: Desk) -> None:
        made = front(tmp_path, facilitator=HttpFacilitator(desk.url))
        async with client(app(made.counter, MANY)) as http:
            quote = await quoted(http)
            got = await http.get(accept(quote), headers=await paying(http, accept(quote)))
            assert (got.status_code, got.json()["code"]) == (status, code)
            assert made.delivered == []
        await made.counter.close()

    with facilitating(LocalFacilitator(name=OURS.name, version=OURS.version)) as desk:
        desk.answers[what] = answer
        asyncio.run(asking(desk))
    lasting = {503: {}, 402: {}, 504: {"OUTCOME_UNKNOWN": 1}, 409: {"VOIDED": 1}}
    assert check(tmp_path / "journal.db").quote_counts == lasting[status]
