"""`harness serve` over HTTP: what it promises to who asks, pays, repeats himself, or means harm."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from crashes import Forgetful
from mpp.x402 import decode_payment_response
from shopfront import (
    BUYER,
    OTHER,
    SELLER,
    TOKEN,
    URL,
    Front,
    client,
    front,
    header,
    paying,
    report_at,
    required,
    signed,
)
from standin import StandIn
from test_scoring import gpu

from harness import codec
from harness.cli import cli
from harness.errors import FailureError, MisuseError
from harness.market.dialects.x402 import receipt_signer
from harness.market.offers import envelope as envelopes
from harness.market.offers.offer import held_atomic
from harness.market.offers.secp256k1 import ORDER
from harness.market.sales.door import app
from harness.market.sales.facilitator import LocalFacilitator, Payment, Settled
from harness.market.sales.fulfil import program
from harness.market.sales.journal_check import check
from harness.market.sales.limits import Buckets, Limits
from harness.market.sales.service import TOKENS, serve, token_of
from harness.model import Quote, Report
from harness.scoring.price import requote

Ask = Callable[[Front, httpx.AsyncClient], Awaitable[None]]
MANY = Limits(per_minute=10**6, all_per_minute=10**6)


def serving(tmp_path: Path, ask: Ask, *, limits: Limits = MANY, **more: Any) -> Front:
    """Open a service, ask it, and close it."""

    async def asking() -> Front:
        made = front(tmp_path, **more)
        async with client(app(made.counter, limits)) as http:
            await ask(made, http)
        await made.counter.till.close()
        return made

    return asyncio.run(asking())


async def quoted(http: httpx.AsyncClient, seconds: int = 600, **more: Any) -> dict[str, Any]:
    response = await http.post("/v1/quotes", json={"seconds": seconds, **more})
    assert response.status_code == 201, response.text
    found: dict[str, Any] = response.json()
    return found


def accept(quote: dict[str, Any]) -> str:
    return f"/v1/quotes/{quote['quote_id']}/accept"


async def bought(http: httpx.AsyncClient, **more: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Buy; return the quote and the sale."""
    quote = await quoted(http, **more)
    response = await http.get(accept(quote), headers=await paying(http, accept(quote)))
    assert response.status_code == 200, response.text
    return quote, response.json()


def code(response: httpx.Response) -> str:
    assert response.headers["content-type"] == "application/problem+json"
    found: str = response.json()["code"]
    return found


# --- the way it is meant ----------------------------------------------------------------------------------------------


def test_a_quote_is_signed_paid_for_delivered_and_receipted(tmp_path: Path) -> None:
    async def ask(made: Front, http: httpx.AsyncClient) -> None:
        quote, sale = await bought(http)
        offer = envelopes.of_plain(quote["envelope"]).offer
        assert envelopes.verify(envelopes.of_plain(quote["envelope"]), now_s=int(time.time())) == SELLER.address
        assert sale["state"] == "CAPTURED"
        assert sale["payer"] == BUYER.address
        assert sale["delivery"]["device"] == "GPU-1"
        assert int(sale["amount_atomic"]) == held_atomic(offer, 600) == made.facilitator.transfers[0]["value"]
        assert made.facilitator.transfers[0]["to"] == SELLER.address
        assert receipt_signer(sale["receipt"]) == SELLER.address
        assert sale["receipt"]["payload"]["transaction"] == sale["transaction"]
        standing = (await http.get(f"/v1/quotes/{quote['quote_id']}")).json()
        assert standing["envelope"] == quote["envelope"]
        assert standing["sale"] == {**sale, "receipt": None, "delivery": None}  # who knows an id need not be the buyer

    serving(tmp_path, ask)
    assert check(tmp_path / "journal.db").quote_counts == {"CAPTURED": 1}


def test_everything_an_offer_names_by_hash_is_served_and_its_price_is_derived_again(tmp_path: Path) -> None:
    """Abuse: prices made of other inputs than are shown. Anybody can derive the price from what is served."""

    async def ask(_: Front, http: httpx.AsyncClient) -> None:
        quote, _sale = await bought(http)
        fields = quote["envelope"]["quote"]
        documents = [
            (await http.get(f"/v1/evidence/{fields[n]}")).json() for n in ("evidenceRoot", "slaHash", "scoringHash")
        ]
        assert [one["schema"] for one in documents] == ["harness.evidence/1", "harness.sla/1", "harness.scoring/1"]
        found = codec.decode((await http.get(f"/v1/evidence/{documents[0]['quote']}")).content, Quote)
        report = codec.decode((await http.get(f"/v1/evidence/{documents[0]['report']}")).content, Report)
        assert requote(report, found.device_uuid, found.terms, market=StandIn()) == found
        assert found.digests["market_model"] == StandIn().digest == documents[2]["digests"]["market_model"]
        assert (await http.get("/v1/evidence/0x" + "0" * 64)).status_code == 404

    serving(tmp_path, ask)


def test_each_offer_fixes_all_sales_before_it(tmp_path: Path) -> None:
    async def ask(made: Front, http: httpx.AsyncClient) -> None:
        await bought(http)
        quote = await quoted(http)
        evidence = (await http.get(f"/v1/evidence/{quote['envelope']['quote']['evidenceRoot']}")).json()
        assert evidence["journalHead"] == made.journal.head() != "0" * 64

    serving(tmp_path, ask)


def test_an_envelope_is_enough_to_accept_by_when_the_service_has_forgotten_it(tmp_path: Path) -> None:
    kept: dict[str, Any] = {}

    async def before(_: Front, http: httpx.AsyncClient) -> None:
        kept.update(await quoted(http))

    async def after(made: Front, http: httpx.AsyncClient) -> None:
        body = envelopes.encode(envelopes.of_plain(kept["envelope"]))
        assert code(await http.get(accept(kept))) == "not_found"
        due = await http.post(accept(kept), content=body)
        paid = await http.post(accept(kept), content=body, headers=header(signed(required(due))))
        assert paid.status_code == 200, paid.text
        root = kept["envelope"]["quote"]["evidenceRoot"]
        assert (await http.get(f"/v1/evidence/{root}")).status_code == 200

    reports = [report_at(time.time() - 60)]
    serving(tmp_path, before, reports=reports)
    serving(tmp_path, after, reports=reports)


def test_heads_are_answered_and_buy_nothing(tmp_path: Path) -> None:
    async def ask(made: Front, http: httpx.AsyncClient) -> None:
        quote = await quoted(http)
        paid = await paying(http, accept(quote))
        answer = await http.head(accept(quote), headers=paid)
        assert (answer.status_code, answer.content) == (402, b"")
        assert made.delivered == []
        for path in ("/", "/v1/devices", f"/v1/quotes/{quote['quote_id']}", "/openapi.json"):
            head, got = await http.head(path), await http.get(path)
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["content-type"] == got.headers["content-type"]

    serving(tmp_path, ask)


def test_what_agents_look_for_is_there_with_nothing_for_sale_too(tmp_path: Path) -> None:
    async def ask(made: Front, http: httpx.AsyncClient) -> None:
        card = (await http.get("/.well-known/agent-card.json")).json()
        assert card["supportedInterfaces"][0]["url"] == URL
        assert (await http.get("/.well-known/agent-registration.json")).json()["x402Support"] is True
        openapi = (await http.get("/openapi.json")).json()
        paid = openapi["paths"]["/v1/quotes/{quote_id}/accept"]
        assert all("402" in paid[m]["responses"] and paid[m]["x-payment-info"]["offers"] for m in ("get", "post"))
        made.restock()
        assert code(await http.get("/.well-known/agent-card.json")) == "misuse"
        assert code(await http.post("/v1/quotes", json={"seconds": 60})) == "not_found"
        assert (await http.get("/")).status_code == 200

    serving(tmp_path, ask)


def test_a_program_that_leaves_something_running_has_delivered_when_it_ends(tmp_path: Path) -> None:
    async def ask(_: Front, http: httpx.AsyncClient) -> None:
        _quote, sale = await bought(http)
        assert (sale["delivery"], sale["delivery_fault"]) == ({"host": "gpu1"}, None)

    script = 'sleep 3 & echo \'{"host":"gpu1"}\''
    serving(tmp_path, ask, fulfil=program(["/bin/sh", "-c", script], timeout_s=1.5))


@pytest.mark.parametrize(
    ("script", "delivery", "fault"),
    [
        ("import json, sys; print(json.dumps({'ssh': json.load(sys.stdin)['device']}))", {"ssh": "GPU-1"}, None),
        ("raise SystemExit(3)", None, "exit code 3"),
        ("print('done')", None, "one JSON object"),
        ("import time; time.sleep(30)", None, "took more than"),
    ],
)
def test_a_program_of_the_sellers_delivers_once_or_the_sale_is_undelivered(
    tmp_path: Path, script: str, delivery: dict[str, Any] | None, fault: str | None
) -> None:
    async def ask(_: Front, http: httpx.AsyncClient) -> None:
        _quote, sale = await bought(http)
        assert (sale["state"], sale["delivery"]) == ("CAPTURED", delivery)
        assert (fault is None) == (sale["delivery_fault"] is None)
        assert (fault or "") in (sale["delivery_fault"] or "")

    slow = "sleep" in script
    serving(tmp_path, ask, fulfil=program([sys.executable, "-c", script], timeout_s=0.3 if slow else 30))
    assert bool(check(tmp_path / "journal.db").undelivered) == bool(fault)


# --- keys of idempotency ----------------------------------------------------------------------------------------------


def test_the_same_key_gives_the_same_quote_and_another_request_with_it_is_refused(tmp_path: Path) -> None:
    async def ask(_: Front, http: httpx.AsyncClient) -> None:
        key = {"Idempotency-Key": "k" * 16}
        first, again = [await http.post("/v1/quotes", json={"seconds": 60}, headers=key) for _ in range(2)]
        assert first.json() == again.json()
        assert code(await http.post("/v1/quotes", json={"seconds": 61}, headers=key)) == "idempotency_conflict"
        assert (
            code(await http.post("/v1/quotes", json={"seconds": 60}, headers={"Idempotency-Key": "short"})) == "invalid"
        )

    serving(tmp_path, ask)


def test_a_lost_answer_is_given_again_for_the_same_key_and_payment_even_after_a_restart(tmp_path: Path) -> None:
    kept: dict[str, Any] = {}
    key = {"Idempotency-Key": "purchase-0001-abcdef"}

    async def before(made: Front, http: httpx.AsyncClient) -> None:
        quote = await quoted(http)
        paid = await paying(http, accept(quote)) | key
        first = await http.get(accept(quote), headers=paid)
        assert decode_payment_response(first.headers["payment-response"])["transaction"] == first.json()["transaction"]
        kept.update(quote=quote, paid=paid, sale=first.json(), receipts=receipts(first))
        again = await http.get(accept(quote), headers=paid)
        assert (again.status_code, again.json(), receipts(again)) == (200, kept["sale"], kept["receipts"])
        assert code(await http.get(accept(quote), headers=await other(http, made) | key)) == "idempotency_conflict"
        assert (
            code(await http.get(accept(quote), headers={k: v for k, v in paid.items() if k not in key}))
            == "already_decided"
        )

    async def other(http: httpx.AsyncClient, made: Front) -> dict[str, str]:
        made.clock.ahead_s += 3600
        quote = await quoted(http)
        return await paying(http, accept(quote))

    async def after(made: Front, http: httpx.AsyncClient) -> None:
        again = await http.get(accept(kept["quote"]), headers=kept["paid"])
        assert (again.status_code, again.json(), receipts(again)) == (200, kept["sale"], kept["receipts"])
        assert made.delivered == []

    def receipts(answer: httpx.Response) -> tuple[str, str]:
        return answer.headers["payment-response"], answer.headers["payment-receipt"]

    serving(tmp_path, before)
    serving(tmp_path, after)


class Penniless(LocalFacilitator):
    """Finds the payer's account empty at the last moment."""

    async def settle(self, payment: Payment) -> Settled:
        return Settled(refusal="insufficient_funds")


def test_a_sale_that_was_refused_is_refused_again_for_the_same_key(tmp_path: Path) -> None:
    async def ask(_: Front, http: httpx.AsyncClient) -> None:
        quote = await quoted(http)
        paid = await paying(http, accept(quote)) | {"Idempotency-Key": "purchase-0001-abcdef"}
        first, again = [await http.get(accept(quote), headers=paid) for _ in range(2)]
        assert code(first) == "settlement_refused"
        assert (again.status_code, again.json()) == (first.status_code, first.json())

    serving(tmp_path, ask, facilitator=Penniless(name=TOKEN.name, version=TOKEN.version))


@pytest.mark.parametrize("dies", [False, True])
def test_while_a_sale_is_delivered_its_key_says_so_and_after_a_crash_then_that_nobody_knows(
    tmp_path: Path, dies: bool
) -> None:
    async def ask(made: Front, http: httpx.AsyncClient) -> None:
        quote = await quoted(http)
        paid = await paying(http, accept(quote)) | {"Idempotency-Key": "purchase-0001-abcdef"}
        first = asyncio.create_task(http.get(accept(quote), headers=paid))
        await delivering.wait()
        assert code(await http.get(accept(quote), headers=paid)) == "in_progress"
        if dies:
            made.counter.till._open.clear()  # as in a process that was started since
            again = await http.get(accept(quote), headers=paid)
            assert (again.status_code, again.json()["delivery"]) == (200, None)
            assert "outcome of the delivery is unknown" in again.json()["delivery_fault"]
        go.set()
        answers = [await first, await http.get(accept(quote), headers=paid)]
        assert [one.json()["delivery"] for one in answers] == [{"login": "secret"}] * 2

    async def slow(_: Any, __: Any) -> dict[str, str]:
        delivering.set()
        await go.wait()
        return {"login": "secret"}

    delivering, go = asyncio.Event(), asyncio.Event()
    serving(tmp_path, ask, fulfil=slow)


# --- abuse ------------------------------------------------------------------------------------------------------------


def test_abuse_replay_of_a_payment_8_at_once_over_http(tmp_path: Path) -> None:
    async def ask(made: Front, http: httpx.AsyncClient) -> None:
        for n in range(1, 6):
            quote = await quoted(http, seconds=60)
            paid = await paying(http, accept(quote))
            answers = await asyncio.gather(*(http.get(accept(quote), headers=paid) for _ in range(8)))
            assert sorted(one.status_code for one in answers) == [200] + [409] * 7
            assert len(made.delivered) == len(made.facilitator.transfers) == n
            made.clock.ahead_s += 61

    serving(tmp_path, ask)


def test_abuse_replay_of_a_payment_on_another_quote_is_refused(tmp_path: Path) -> None:
    """The same price, token and recipient, and all that the scheme signs is the same: the claim is what tells them apart."""

    async def ask(made: Front, http: httpx.AsyncClient) -> None:
        first, second = await quoted(http), await quoted(http)
        paid = signed(required(await http.get(accept(first))))
        assert (await http.get(accept(first), headers=header(paid))).status_code == 200
        made.journal.append(*freeing(made, first))
        terms = required(await http.get(accept(second)))
        moved = {**paid, "accepted": terms["accepts"][0], "resource": terms["resource"]}
        answer = await http.get(accept(second), headers=header(moved))
        assert code(answer) == "payment_used"
        assert len(made.facilitator.transfers) == len(made.delivered) == 1

    def freeing(made: Front, quote: dict[str, Any]) -> Any:
        from harness.market.sales.journal import Entry

        states = ("CAPTURED", "DISPUTED", "REBENCHMARKED", "REFUNDED")
        return [
            Entry(quote_id=quote["quote_id"], expected=a, state=b)  # type: ignore[arg-type]
            for a, b in itertools.pairwise(states)
        ]

    serving(tmp_path, ask, facilitator=Forgetful(name=TOKEN.name, version=TOKEN.version))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda paid: paid["resource"].update(url=f"{URL}/elsewhere"), "another resource"),
        (lambda paid: paid["accepted"].update(network="eip155:1"), "another chain"),
        (lambda paid: paid["accepted"].update(amount="1"), "less"),
        (lambda paid: paid["accepted"].update(payTo="0x" + "99" * 20), "another recipient"),
        (lambda paid: paid["accepted"]["extra"].update(quoteId="0x" + "0" * 64), "another quote"),
        (lambda paid: paid["payload"]["authorization"].update(value="1"), "other than was signed"),
        (lambda paid: paid.update(x402Version=1), "another version"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_abuse_a_payment_that_is_for_something_else_is_refused(tmp_path: Path, change: Any, what: str) -> None:
    async def ask(made: Front, http: httpx.AsyncClient) -> None:
        quote = await quoted(http)
        paid = signed(required(await http.get(accept(quote))))
        change(paid)
        answer = await http.get(accept(quote), headers=header(paid))
        assert answer.status_code == 402, what
        assert (made.facilitator.transfers, made.journal.head()) == ([], "0" * 64)

    serving(tmp_path, ask)


@pytest.mark.parametrize("changes", [{"value": 1}, {"to": OTHER.address}, {"validBefore": 1}, {"validAfter": 2**40}])
def test_abuse_signed_terms_other_than_the_offers_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    async def ask(made: Front, http: httpx.AsyncClient) -> None:
        quote = await quoted(http)
        answer = await http.get(accept(quote), headers=await paying(http, accept(quote), **changes))
        assert answer.status_code == 402
        assert made.facilitator.transfers == []

    serving(tmp_path, ask)


def twin(signature: str) -> str:
    """Return the other signature that recovers to the same key: s in the upper half."""
    s, v = int(signature[66:130], 16), int(signature[130:], 16)
    return signature[:66] + f"{ORDER - s:064x}" + f"{55 - v:02x}"


def test_abuse_signature_malleability_the_twin_of_a_signature_is_no_second_one(tmp_path: Path) -> None:
    async def ask(made: Front, http: httpx.AsyncClient) -> None:
        quote = await quoted(http)
        paid = signed(required(await http.get(accept(quote))))
        paid["payload"]["signature"] = twin(paid["payload"]["signature"])
        assert (await http.get(accept(quote), headers=header(paid))).status_code == 402
        paid["payload"]["signature"] = twin(paid["payload"]["signature"])
        assert (await http.get(accept(quote), headers=header(paid))).status_code == 200
        other = await quoted(http)
        brought = json.loads(json.dumps(other["envelope"]))
        brought["signatures"][0]["signature"] = twin(brought["signatures"][0]["signature"])
        answer = await http.post(accept(other), content=canonical(brought))
        assert code(answer) == "forged"
        assert "upper half" in answer.json()["detail"]

    serving(tmp_path, ask)


def canonical(document: Any) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    "change",
    [
        lambda e: e.update(free=True),
        lambda e: e["quote"].update(discount="100"),
        lambda e: e["quote"].update(slaHash=e["quote"]["slaHash"][:-2]),
        lambda e: e["quote"].update(maxTotalAtomic="1"),
        lambda e: e["signatures"].clear(),
        lambda e: e["quote"].update(payTo=OTHER.address),
    ],
    ids=["field", "quote field", "short bytes32", "cheaper", "unsigned", "other recipient"],
)
def test_abuse_unsigned_fields_and_changed_ones_are_refused(tmp_path: Path, change: Any) -> None:
    async def ask(_: Front, http: httpx.AsyncClient) -> None:
        quote = await quoted(http)
        brought = json.loads(json.dumps(quote["envelope"]))
        change(brought)
        assert code(await http.post(accept(quote), content=canonical(brought))) == "forged"
        smuggled = await http.post("/v1/quotes", json={"seconds": 60, "discount": 1})
        assert code(smuggled) == "invalid"

    serving(tmp_path, ask)


def test_abuse_an_offer_of_another_seller_or_for_another_path_is_refused(tmp_path: Path) -> None:
    async def ask(_: Front, http: httpx.AsyncClient) -> None:
        first, second = await quoted(http), await quoted(http)
        other = envelopes.of_plain(first["envelope"]).offer
        foreign = envelopes.sign(replace(other, provider=OTHER.address), OTHER)
        answer = await http.post(f"/v1/quotes/{foreign.offer.quote_id}/accept", content=envelopes.encode(foreign))
        assert code(answer) == "misuse"
        assert OTHER.address in answer.json()["detail"]
        body = envelopes.encode(envelopes.of_plain(first["envelope"]))
        assert code(await http.post(accept(second), content=body)) == "misuse"

    serving(tmp_path, ask)


def test_abuse_stale_quote_after_its_time_is_refused_and_costs_nothing(tmp_path: Path) -> None:
    async def ask(made: Front, http: httpx.AsyncClient) -> None:
        quote = await quoted(http)
        paid = await paying(http, accept(quote))
        made.clock.ahead_s = 301
        assert code(await http.get(accept(quote), headers=paid)) == "expired"
        assert (await http.get(f"/v1/quotes/{quote['quote_id']}")).json()["state"] == "EXPIRED"
        assert made.facilitator.transfers == []
        made.clock.ahead_s = 24 * 3600
        answer = await http.post("/v1/quotes", json={"seconds": 60})
        assert code(answer) == "misuse"
        assert "too old" in answer.json()["detail"]

    serving(tmp_path, ask)


@pytest.mark.parametrize(
    "change", [{"driver": "600.1"}, {"serial": "2"}, {"name": "NVIDIA GeForce RTX 4090"}, {"uuid": "GPU-2"}]
)
def test_abuse_stale_quote_for_a_device_that_is_now_another_one(tmp_path: Path, change: dict[str, Any]) -> None:
    async def ask(made: Front, http: httpx.AsyncClient) -> None:
        quote = await quoted(http)
        paid = await paying(http, accept(quote))
        device = replace(gpu(memory_gib=80), **change)
        made.restock(report_at(time.time() - 30, device=device))
        answer = await http.get(accept(quote), headers=paid)
        assert code(answer) == "misuse"
        assert "ask for another offer" in answer.json()["detail"]
        assert made.facilitator.transfers == []

    serving(tmp_path, ask)


def test_abuse_a_new_benchmark_that_promises_less_ends_old_offers(tmp_path: Path) -> None:
    async def ask(made: Front, http: httpx.AsyncClient) -> None:
        quote = await quoted(http)
        made.restock(*made.reports, report_at(time.time() - 2, mem=3100e9))
        assert (await http.get(accept(quote))).status_code == 402  # faster is no reason
        made.restock(*made.reports, report_at(time.time() - 1, mem=2000e9))
        answer = await http.get(accept(quote))
        assert code(answer) == "misuse"
        assert "measured again" in answer.json()["detail"]

    serving(tmp_path, ask)


def test_abuse_unit_and_decimal_confusion_all_views_ask_for_the_same_atoms(tmp_path: Path) -> None:
    async def ask(_: Front, http: httpx.AsyncClient) -> None:
        quote = await quoted(http, seconds=61)
        offer = envelopes.of_plain(quote["envelope"]).offer
        atoms = -(-61 * offer.unit_price_atomic // 10**offer.price_scale)
        due = await http.get(accept(quote))
        mpp = dict(part.split("=", 1) for part in due.headers["www-authenticate"].removeprefix("Payment ").split(", "))
        asked = mpp["request"].strip('"')
        request = json.loads(base64.urlsafe_b64decode(asked + "=" * (-len(asked) % 4)))
        assert {quote["amount_atomic"], required(due)["accepts"][0]["amount"], request["amount"]} == {str(atoms)}
        assert request["methodDetails"]["decimals"] == offer.asset_decimals == TOKEN.decimals
        listing = (await http.get("/v1/devices")).json()["devices"][0]
        assert abs(atoms / 61 * 3600 / 10**6 - float(listing["usd_per_hour"])) < 60 / 10**6

    serving(tmp_path, ask)


def test_abuse_quote_spam_is_refused_politely_and_leaves_nothing_lasting(tmp_path: Path) -> None:
    async def ask(made: Front, http: httpx.AsyncClient) -> None:
        answers = [await http.post("/v1/quotes", json={"seconds": 60}) for _ in range(400)]
        refused = [one for one in answers if one.status_code == 429]
        assert 59 <= 400 - len(refused) <= 120
        assert all(code(one) == "rate_limited" and int(one.headers["retry-after"]) >= 1 for one in refused)
        assert made.journal.head() == "0" * 64

    serving(tmp_path, ask, limits=Limits(per_minute=240, all_per_minute=10**6))


def test_abuse_quote_spam_what_is_remembered_of_offers_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.market.sales.shop._KEPT", 8)
    monkeypatch.setattr("harness.market.sales.counter._KEYS_KEPT", 8)

    async def ask(made: Front, http: httpx.AsyncClient) -> None:
        for n in range(20):
            await http.post("/v1/quotes", json={"seconds": 60}, headers={"Idempotency-Key": f"{n:016}"})
        shop = made.counter.shop
        assert max(len(shop._issued), len(shop._documents), len(made.counter._keys)) == 8

    serving(tmp_path, ask)


def test_abuse_holds_without_a_payment_keep_the_device_from_nobody(tmp_path: Path) -> None:
    async def ask(made: Front, http: httpx.AsyncClient) -> None:
        for _ in range(20):
            await http.get(accept(await quoted(http)))
        _, sale = await bought(http)
        assert sale["state"] == "CAPTURED"
        assert (await http.get("/v1/devices")).json()["devices"][0]["available"] is False
        late = await quoted(http)
        assert code(await http.get(accept(late))) == "device_taken"
        made.clock.ahead_s = 601
        assert (await http.get(accept(await quoted(http)))).status_code == 402

    serving(tmp_path, ask)


def test_the_limiters_memory_is_bounded_and_each_address_has_its_own_share() -> None:
    now = [0.0]
    buckets = Buckets(per_minute=60, most=3, clock=lambda: now[0])
    assert [buckets.wait_s("a") for _ in range(16)] == [0.0] * 15 + [1.0]
    assert buckets.wait_s("b") == 0
    now[0] = 1.0
    assert (buckets.wait_s("a"), buckets.wait_s("a")) == (0.0, 1.0)
    for name in "cdefg":
        buckets.wait_s(name)
    assert len(buckets) == 3


# --- limits -----------------------------------------------------------------------------------------------------------


def test_a_body_that_is_too_large_or_too_slow_is_cut_off(tmp_path: Path) -> None:
    async def ask(_: Front, http: httpx.AsyncClient) -> None:
        assert code(await http.post("/v1/quotes", content=b" " * (1 << 17))) == "too_large"

        async def endless() -> Any:
            for _ in range(40):
                yield b" " * 4096

        assert code(await http.post("/v1/quotes", content=endless())) == "too_large"

        async def dripping() -> Any:
            yield b"{"
            await asyncio.sleep(5)

        assert code(await http.post("/v1/quotes", content=dripping())) == "slow"

    serving(tmp_path, ask, limits=replace(MANY, body_s=0.05))


def test_it_sells_to_this_machine_alone_unless_told_and_takes_play_money_nowhere_else(tmp_path: Path) -> None:
    from harness.market.offers.secp256k1 import keygen
    from harness.market.sales.shop import Seller

    keygen(tmp_path / "key")
    given: dict[str, Any] = {"key": tmp_path / "key", "seller": Seller(token=TOKEN), "journal": tmp_path / "j.db"}
    with pytest.raises(MisuseError, match="--url"):
        serve(tmp_path, host="0.0.0.0", facilitator="http://127.0.0.1:1", **given)  # noqa: S104
    with pytest.raises(MisuseError, match="no money"):
        serve(tmp_path, host="0.0.0.0", facilitator="trial", url="https://gpu.example", **given)  # noqa: S104
    with pytest.raises(MisuseError, match="should be a URL"):
        serve(tmp_path, facilitator="ftp://x", **given)
    import fcntl

    with (tmp_path / "j.db.lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(FailureError, match="another process"):
            serve(tmp_path, facilitator="trial", **given)


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--tolerance", "1", "tolerance is 1"),
        ("--tolerance", "nan", "tolerance is NaN"),
        ("--tolerance", "-0.1", "tolerance is -0.1"),
        ("--pay-to", "0xABC", "pay_to is '0xabc'"),
        ("--evaluator", "0x12", "evaluator is '0x12'"),
        ("--escrow", "vitalik.eth", "escrow is 'vitalik.eth'"),
        ("--token", "1:0x12:6:USDC:2", "the token's address is '0x12'"),
        ("--token", "1:0x" + "5c" * 20 + ":77:USDC:2", "the token's decimals are 77"),
        ("--token", "²:0x" + "5c" * 20 + ":6:USDC:2", "CHAIN:ADDRESS"),
        ("--url", "gpus.example", "--url 'gpus.example'"),
        ("--url", "https://gpus.example/?a=1", "without a query"),
        ("--url", "http://[", "--url 'http://['"),
        ("--facilitator", "https://", "should be a URL"),
    ],
)
def test_a_sellers_option_that_is_wrong_is_refused_before_anybody_is_let_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, value: str, says: str
) -> None:
    from harness.market.offers.secp256k1 import keygen

    def never(*_: Any, **__: Any) -> None:
        pytest.fail("it started")

    monkeypatch.setattr("harness.market.sales.service.listen", never)
    keygen(tmp_path / "key")
    given = {"--key": str(tmp_path / "key"), "--facilitator": "trial", "--journal": str(tmp_path / "j.db")}
    words = [word for pair in (given | {option: value}).items() for word in pair]
    done = CliRunner().invoke(cli, ["serve", str(tmp_path), *words])
    assert isinstance(done.exception, MisuseError), done.output
    assert says in str(done.exception)


def test_the_known_tokens_are_those_that_the_payment_library_knows() -> None:
    from mpp.methods.evm import assets

    known = {"base": assets.BASE_USDC, "base-sepolia": assets.BASE_SEPOLIA_USDC, "celo": assets.CELO_USDC}
    for name, token in TOKENS.items():
        theirs = known[name]
        assert (token.address, token.chain_id, token.decimals) == (
            theirs.address.lower(),
            theirs.chain_id,
            theirs.decimals,
        )
        assert (token.name, token.version) == (theirs.name, theirs.version)
    own = token_of("31337:0x" + "AB" * 20 + ":18:Test Dollar:1")
    assert (own.chain_id, own.address, own.decimals, own.name) == (31337, "0x" + "ab" * 20, 18, "Test Dollar")
    with pytest.raises(MisuseError, match="CHAIN:ADDRESS"):
        token_of("dollars")
