"""Our offers and calldata before contracts on a real EVM: what the chain computes, holds and refuses. Nothing outside this machine is asked."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import evm
import pytest
from click.testing import CliRunner
from evm import Chain, Contract, RevertedError, decode

from harness.cli import cli
from harness.errors import ForgeryError, MisuseError
from harness.market.dialects import calldata, onchain
from harness.market.dialects.erc8183 import Job, check_job, to_job
from harness.market.offers.abi import ZERO_ADDRESS, ZERO_BYTES32, Value
from harness.market.offers.envelope import Envelope, encode, sign
from harness.market.offers.keccak import keccak256
from harness.market.offers.offer import FIELDS, Offer, captured_atomic, digest_of, held_atomic, plain
from harness.market.offers.secp256k1 import ORDER, Signer

STARTS_S = 1_790_000_000
KEY = Signer(b"\x11" * 32)
RICH = 10**9  # a thousand dollars
REASON, OTHER = "0x" + "ab" * 32, "0x" + "cd" * 32
REFUND_WINDOW_S = 86_400


@pytest.fixture(scope="module")
def chain() -> Iterator[Chain]:
    with evm.anvil(starts_s=STARTS_S) as found:
        found.rpc("anvil_setBalance", KEY.address, hex(10**20))
        yield found


@pytest.fixture(scope="module")
def token(chain: Chain) -> Contract:
    return chain.deploy("Token", 6)


@pytest.fixture(scope="module")
def escrow(chain: Chain) -> Contract:
    return chain.deploy("QuoteEscrow")


class Sale:
    """One offer of a dollar token, and the three who have to do with it."""

    def __init__(self, chain: Chain, token: Contract, escrow: Contract) -> None:
        self.chain, self.token, self.escrow = chain, token, escrow
        self.buyer, self.evaluator, self.pay_to, self.stranger = chain.accounts[1:5]

    def offer(self, **more: Any) -> Offer:
        found: dict[str, Any] = {
            "revision": 0,
            "supersedes": ZERO_BYTES32,
            "provider": KEY.address,
            "agent_registry": ZERO_ADDRESS,
            "agent_id": 0,
            "pay_to": self.pay_to,
            "asset": self.token.address,
            "asset_decimals": 6,
            "chain_id": 31337,
            "unit": "gpu-second",
            "unit_price_atomic": 830_555_555_555_555,  # 2.99 an hour: not a whole number of atoms a second
            "price_scale": 12,
            "min_units": 60,
            "max_units": 3600,
            "valid_after": self.chain.now_s() - 1,
            "valid_until": self.chain.now_s() + 300,
            "evidence_until": self.chain.now_s() + 3600,
            "nonce": random.getrandbits(64),
            "evidence_root": OTHER,
            "sla_hash": OTHER,
            "scoring_hash": OTHER,
            "device_commitment": OTHER,
            "evaluator": self.evaluator,
            "escrow": self.escrow.address,
        } | more
        found.setdefault("max_total_atomic", -(-found["max_units"] * found["unit_price_atomic"] // 10 ** found["price_scale"]))  # fmt: skip
        return Offer(**found)

    def send(self, call: calldata.Call, sender: str) -> dict[str, Any]:
        assert call.chain_id == 31337
        return self.chain.send(call.to, call.data, sender)

    def authorize(self, offer: Offer, units: int = 3600, capture_by: int | None = None) -> None:
        self.token.do("mint", self.buyer, RICH, sender=self.buyer)
        self.send(calldata.approve(offer, units=units), self.buyer)
        until = capture_by or self.chain.now_s() + 7200
        self.send(calldata.authorize(sign(offer, KEY), units=units, capture_by=until), self.buyer)

    def capture(self, offer: Offer, units: int) -> None:
        self.send(calldata.capture(offer, units=units), KEY.address)

    def refused(self, call: calldata.Call, sender: str) -> str:
        with pytest.raises(RevertedError) as caught:
            self.send(call, sender)
        return str(caught.value)

    def has(self, account: str) -> int:
        return int(self.token.ask("balanceOf", account))


@pytest.fixture
def sale(chain: Chain, token: Contract, escrow: Contract) -> Iterator[Sale]:
    before = chain.rpc("evm_snapshot")
    yield Sale(chain, token, escrow)
    chain.rpc("evm_revert", before)


def struct(offer: Offer) -> tuple[Any, ...]:
    """Return an offer as the compiler's ABI takes it, apart from our encoder."""
    texts = plain(offer)
    as_kind: dict[str, Any] = {"bytes32": lambda t: bytes.fromhex(t[2:]), "address": str, "string": str}
    return tuple(as_kind.get(kind, int)(texts[name]) for name, kind in FIELDS)


def signature(offer: Offer, key: Signer = KEY) -> bytes:
    return bytes.fromhex(key.sign(digest_of(offer))[2:])


def verified(sale: Sale, offer: Offer, signed: bytes) -> str:
    """Return the digest that the contract accepted, or the name of its refusal."""
    try:
        return str(sale.escrow.ask("verify", struct(offer), signed).hex())
    except RevertedError as err:
        return str(err)


# --- the quote --------------------------------------------------------------------------------------------------------


def test_the_chain_computes_the_digest_that_python_signed(sale: Sale) -> None:
    draw = random.Random(8)  # noqa: S311 - any numbers will do
    for _ in range(25):
        price, most = draw.randrange(1, 10**15), draw.randrange(60, 10**9)
        offer = sale.offer(
            unit=draw.choice(["gpu-second", "mcycle", "token-in", "token-out"]),
            agent_id=draw.getrandbits(256),
            nonce=draw.getrandbits(256),
            revision=draw.getrandbits(32),
            unit_price_atomic=price,
            price_scale=draw.randrange(30),
            max_units=most,
            evidence_root="0x" + draw.randbytes(32).hex(),
            escrow="0x" + draw.randbytes(20).hex(),
        )
        assert sale.escrow.ask("digestOf", struct(offer)) == digest_of(offer)


def test_a_signed_quote_is_verified_and_every_changed_field_is_not(sale: Sale) -> None:
    offer = sale.offer(agent_registry="0x" + "77" * 20)
    signed = signature(offer)
    assert verified(sale, offer, signed) == digest_of(offer).hex()
    whole = struct(offer)
    times = {"validAfter", "validUntil", "evidenceUntil"}
    for at, (name, kind) in enumerate(FIELDS):
        step: Any = {"bytes32": b"\x01" * 32, "address": "0x" + "01" * 20, "string": "hour"}
        changed = step.get(kind) or whole[at] + (-1 if name in times else 1)
        with pytest.raises(RevertedError, match="NotSignedBy"):
            sale.escrow.ask("verify", (*whole[:at], changed, *whole[at + 1 :]), signed)


def test_second_spellings_of_a_signature_are_refused(sale: Sale) -> None:
    offer = sale.offer()
    signed = signature(offer)
    r, s, v = signed[:32], int.from_bytes(signed[32:64], "big"), signed[64]
    twin = r + (ORDER - s).to_bytes(32, "big") + bytes([55 - v])  # recovers to the same signer
    assert verified(sale, offer, twin) == "SignatureIsTwin"
    assert verified(sale, offer, signed + b"\0") == "SignatureLength"
    assert verified(sale, offer, signed[:64]) == "SignatureLength"
    assert verified(sale, offer, signed[:64] + bytes([v - 27])) == "SignatureRecovery"
    assert verified(sale, offer, bytes(64) + b"\x1b") == "NotSignedBy"  # ecrecover gives the zero address
    assert verified(sale, offer, signature(offer, Signer(b"\x22" * 32))) == "NotSignedBy"


def test_a_quote_is_good_from_its_first_second_to_the_one_before_its_last(sale: Sale) -> None:
    now = sale.chain.now_s()
    early = sale.offer(valid_after=now + 50, valid_until=now + 100, evidence_until=now + 100)
    assert verified(sale, early, signature(early)) == "NotYetValid"
    sale.chain.wait(60)
    assert verified(sale, early, signature(early)) == digest_of(early).hex()
    sale.chain.wait(40)
    assert verified(sale, early, signature(early)) == "Expired"


def test_a_quote_is_refused_on_another_chain_and_by_another_escrow(sale: Sale) -> None:
    offer, units = sale.offer(), 3600
    sale.token.do("mint", sale.buyer, RICH, sender=sale.buyer)
    sale.send(calldata.approve(offer, units=units), sale.buyer)
    call = calldata.authorize(sign(offer, KEY), units=units, capture_by=sale.chain.now_s() + 7200)
    elsewhere = sale.chain.deploy("QuoteEscrow")
    sale.token.do("approve", elsewhere.address, RICH, sender=sale.buyer)
    assert sale.refused(replace(call, to=elsewhere.address), sale.buyer) == "OtherEscrow"
    with evm.anvil(
        starts_s=STARTS_S, chain_id=8453
    ) as other:  # the same addresses: the same accounts deployed in the same order
        copies = other.deploy("Token", 6), other.deploy("QuoteEscrow")
        assert [copy.address for copy in copies] == [sale.token.address, sale.escrow.address]
        with pytest.raises(RevertedError, match="NotSignedBy"):
            other.send(call.to, call.data, sale.buyer)
    sale.send(call, sale.buyer)  # and taken where it belongs


# --- the escrow -------------------------------------------------------------------------------------------------------


def test_what_is_held_captured_and_given_back_is_what_python_computes(sale: Sale) -> None:
    offer = sale.offer()
    sale.authorize(offer, units=3600)
    held = held_atomic(offer, 3600)
    assert (sale.has(sale.escrow.address), sale.has(sale.buyer)) == (held, RICH - held)
    sale.capture(offer, 1234)
    captured = captured_atomic(offer, 1234)
    assert captured * 10**12 != 1234 * offer.unit_price_atomic  # so that rounding shows
    assert (sale.has(sale.escrow.address), sale.has(sale.buyer)) == (captured, RICH - captured)
    assert sale.refused(calldata.release(offer), sale.stranger) == "TooEarly"
    sale.send(calldata.refund(offer, amount=1000, reason=REASON), sale.evaluator)
    sale.send(calldata.release(offer), sale.stranger)
    assert [sale.has(a) for a in (sale.escrow.address, sale.buyer, sale.pay_to)] == [0, RICH - captured + 1000, captured - 1000]  # fmt: skip
    (event,) = sale.escrow.events("Refunded")
    assert (event["digest"], event["amount"], event["reason"].hex()) == (digest_of(offer), 1000, REASON[2:])


def test_nothing_is_taken_twice_above_what_was_held_or_by_another(sale: Sale) -> None:
    offer = sale.offer()
    sale.authorize(offer, units=100)
    assert sale.refused(calldata.capture(offer, units=101), KEY.address) == "UnitsOutOfRange"
    assert sale.refused(calldata.capture(offer, units=100), sale.stranger) == "NotAllowed"
    assert sale.refused(calldata.reclaim(offer), sale.buyer) == "TooEarly"
    sale.capture(offer, 100)
    assert sale.refused(calldata.capture(offer, units=1), KEY.address) == "WrongState"
    assert sale.refused(calldata.reclaim(offer), sale.buyer) == "WrongState"
    most = captured_atomic(offer, 100)
    assert sale.refused(calldata.refund(offer, amount=most + 1, reason=REASON), sale.evaluator) == "AboveCeiling"
    assert sale.refused(calldata.refund(offer, amount=1, reason=REASON), sale.stranger) == "NotAllowed"
    sale.send(calldata.refund(offer, amount=most, reason=REASON), sale.evaluator)
    assert sale.refused(calldata.refund(offer, amount=0, reason=REASON), sale.evaluator) == "WrongState"
    sale.send(calldata.release(offer), sale.buyer)
    assert sale.refused(calldata.release(offer), sale.buyer) == "WrongState"


def test_a_quote_is_paid_once_even_in_another_revision_of_the_same_id(sale: Sale) -> None:
    offer = sale.offer()
    sale.authorize(offer, units=60)
    again = calldata.authorize(sign(offer, KEY), units=60, capture_by=sale.chain.now_s() + 7200)
    assert sale.refused(again, sale.buyer) == "UsedBefore"
    twisted = list(struct(offer))  # the same id over other contents, signed by a careless provider
    twisted[[name for name, _ in FIELDS].index("nonce")] += 1
    signed = bytes.fromhex(KEY.sign(sale.escrow.ask("digestOf", tuple(twisted)))[2:])
    with pytest.raises(RevertedError, match="UsedBefore"):
        sale.escrow.do("authorize", tuple(twisted), signed, 60, sale.chain.now_s() + 7200, sender=sale.buyer)


def test_a_buyer_gets_everything_back_where_nothing_was_captured_in_time(sale: Sale) -> None:
    offer = sale.offer()
    sale.authorize(offer, units=60, capture_by=sale.chain.now_s() + 100)
    sale.chain.wait(101)
    assert sale.refused(calldata.capture(offer, units=60), KEY.address) == "TooLate"
    assert sale.refused(calldata.reclaim(offer), sale.stranger) == "NotAllowed"
    sale.send(calldata.reclaim(offer), sale.buyer)
    assert (sale.has(sale.buyer), sale.has(sale.escrow.address)) == (RICH, 0)
    assert sale.refused(calldata.reclaim(offer), sale.buyer) == "WrongState"


def test_a_silent_evaluator_keeps_nobodys_money(sale: Sale) -> None:
    offer = sale.offer()
    sale.authorize(offer, units=60)
    sale.capture(offer, 60)
    sale.chain.wait(REFUND_WINDOW_S + 1)
    assert sale.refused(calldata.refund(offer, amount=1, reason=REASON), sale.evaluator) == "TooLate"
    sale.send(calldata.release(offer), sale.stranger)
    assert sale.has(sale.pay_to) == captured_atomic(offer, 60)


def test_what_a_quote_says_of_the_chain_is_read_there_when_it_is_paid(sale: Sale) -> None:
    agents = sale.chain.deploy("Agents")
    agents.do("register", "ipfs://agent", sender=sale.pay_to)
    named = {"agent_registry": agents.address, "agent_id": 0}
    cases = {
        "OtherDecimals": sale.offer(asset_decimals=18),
        "OtherWallet": sale.offer(**named, pay_to=sale.stranger),
        "PartialEvaluator": sale.offer(evaluator=KEY.address),
    }
    for refusal, offer in cases.items():
        call = calldata.authorize(sign(offer, KEY), units=60, capture_by=sale.chain.now_s() + 7200)
        assert sale.refused(call, sale.buyer) == refusal
    sale.authorize(sale.offer(**named), units=60)
    agents.do("clearAgentWallet", 0, sender=sale.pay_to)  # as when the agent is sold
    late = calldata.authorize(sign(sale.offer(**named), KEY), units=60, capture_by=sale.chain.now_s() + 7200)
    assert sale.refused(late, sale.buyer) == "OtherWallet"


def test_only_an_escrow_whose_code_was_looked_at_is_paid(sale: Sale) -> None:
    code = sale.chain.code(sale.escrow.address)
    allowed = {"0x" + keccak256(code).hex()}
    assert onchain.check_escrow(code, allowed) in allowed
    assert sale.chain.code(sale.chain.deploy("QuoteEscrow").address) == code  # no argument is baked in
    jobs = sale.chain.deploy("EvaluatedJobs")
    with pytest.raises(ForgeryError, match="none of those allowed"):
        onchain.check_escrow(sale.chain.code(jobs.address), allowed)
    with pytest.raises(ForgeryError, match="no contract"):
        onchain.check_escrow(sale.chain.code(sale.stranger), allowed)
    proxy = bytes.fromhex(f"363d3d373d3d3d363d73{sale.escrow.address[2:]}5af43d82803e903d91602b57fd5bf3")
    for forwarder in (proxy, bytes.fromhex(f"ef0100{sale.escrow.address[2:]}")):
        with pytest.raises(ForgeryError, match="forwards"):
            onchain.check_escrow(forwarder, {"0x" + keccak256(forwarder).hex()})


# --- verdicts ---------------------------------------------------------------------------------------------------------


class Validation:
    """A registry of validations with an agent of the provider's and one of an attacker's."""

    def __init__(self, sale: Sale) -> None:
        self.sale, self.chain = sale, sale.chain
        self.validator, self.attacker = sale.evaluator, sale.stranger
        agents = sale.chain.deploy("Agents")
        agents.do("register", "", sender=KEY.address)
        agents.do("register", "", sender=self.attacker)
        self.registry = sale.chain.deploy("ValidationRegistry", agents.address)

    def request(self, salt: str) -> onchain.Request:
        return onchain.Request(
            chain_id=31337,
            registry=self.registry.address,
            agent_id=0,
            validator=self.validator,
            quote_id=self.sale.offer().quote_id,
            salt=salt,
        )

    def ask(self, request: onchain.Request, sender: str, agent_id: int = 0) -> None:
        call = calldata.validation_request(
            chain_id=31337,
            registry=self.registry.address,
            validator=request.validator,
            agent_id=agent_id,
            uri="https://harness.example/disputes/1",
            request_hash=request.hash,
        )
        self.sale.send(call, sender)

    def answer(self, request: onchain.Request, response: int, response_hash: str = REASON) -> None:
        call = calldata.validation_response(
            chain_id=31337,
            registry=self.registry.address,
            request_hash=request.hash,
            response=response,
            uri="https://harness.example/verdicts/1",
            response_hash=response_hash,
            tag="gpu-bench:v1",
        )
        self.sale.send(call, self.validator)

    def standing(self, request: onchain.Request) -> onchain.Standing:
        events = [
            onchain.Response(
                block=event["block"],
                index=event["index"],
                validator=event["validatorAddress"],
                request_hash="0x" + event["requestHash"].hex(),
                response=event["response"],
                response_hash="0x" + event["responseHash"].hex(),
                tag=event["tag"],
            )
            for event in self.registry.events("ValidationResponse")
        ]
        return onchain.standing(events[::-1], request_hash=request.hash, validator=self.validator)

    def status(self, request: onchain.Request) -> tuple[Any, ...]:
        return tuple(self.registry.ask("getValidationStatus", bytes.fromhex(request.hash[2:])))


@pytest.fixture
def validation(sale: Sale) -> Validation:
    return Validation(sale)


def test_the_first_verdict_stands_whatever_a_validator_says_later(validation: Validation) -> None:
    request = validation.request(salt=OTHER)
    validation.ask(request, KEY.address)
    assert validation.standing(request).state == "pending"
    validation.answer(request, 0)
    validation.answer(request, 100, OTHER)
    assert validation.status(request)[2] == 100  # the registry shows the last
    found = validation.standing(request)
    assert found.state == "failed"
    assert found.counts
    assert found.counts.response_hash == REASON
    assert [one.response for one in found.later] == [100]


def test_an_answer_without_a_hash_is_none_and_is_never_written_by_us(validation: Validation) -> None:
    request = validation.request(salt=OTHER)
    validation.ask(request, KEY.address)
    before = validation.status(request)[:5]
    values = (bytes.fromhex(request.hash[2:]), 0, "", bytes(32), "")
    validation.registry.do("validationResponse", *values, sender=validation.validator)
    assert validation.status(request)[:5] == before  # to the registry a failure without a hash is no answer
    assert validation.standing(request).state == "pending"
    with pytest.raises(MisuseError, match="response_hash is zero"):
        validation.answer(request, 0, ZERO_BYTES32)


def test_a_hash_that_was_taken_first_is_asked_for_again_with_another_salt(validation: Validation) -> None:
    request = validation.request(salt=REASON)
    validation.ask(
        request, validation.attacker, agent_id=1
    )  # seen in the mempool, and sent first for an agent of their own
    with pytest.raises(RevertedError, match="exists"):
        validation.ask(request, KEY.address)
    validator, agent_id, *_ = validation.status(request)
    with pytest.raises(ForgeryError, match="another salt"):
        onchain.check_request(request, request_hash=request.hash, agent_id=agent_id, validator=validator)
    again = validation.request(salt=OTHER)
    assert again.hash != request.hash
    validation.ask(again, KEY.address)
    validator, agent_id, *_ = validation.status(again)
    onchain.check_request(again, request_hash=again.hash, agent_id=agent_id, validator=validator)


def test_the_hash_of_a_request_binds_each_of_its_fields(validation: Validation) -> None:
    request = validation.request(salt=OTHER)
    others = (
        replace(request, chain_id=1),
        replace(request, registry="0x" + "01" * 20),
        replace(request, agent_id=1),
        replace(request, validator="0x" + "01" * 20),
        replace(request, quote_id=REASON),
        replace(request, salt=REASON),
    )
    assert len({one.hash for one in (request, *others)}) == 7


class Jobs:
    """A contract of jobs, and one job for an offer that its provider has named a price for."""

    def __init__(self, sale: Sale) -> None:
        self.sale, self.offer = sale, sale.offer()
        self.contract = sale.chain.deploy("EvaluatedJobs")
        sale.token.do("mint", sale.buyer, RICH, sender=sale.buyer)
        sale.token.do("approve", self.contract.address, RICH, sender=sale.buyer)
        self.told = to_job(sign(self.offer, KEY), units=60, expired_at=self.offer.valid_until + 1000)
        names = ("provider", "evaluator", "expiredAt", "description", "hook", "providerAgentId")
        made = [int(self.told[n]) if n in {"expiredAt", "providerAgentId"} else self.told[n] for n in names]
        self.contract.do("createJob", *made, sender=sale.buyer)
        self.price(sale.token.address, int(self.told["budget"]))

    def price(self, token: str, budget: int) -> None:
        self.contract.do("setBudget", 0, token, budget, b"", sender=KEY.address)

    def fund(self) -> None:
        self.contract.do("fund", 0, self.told["token"], int(self.told["budget"]), b"", sender=self.sale.buyer)

    def job(self) -> Job:
        _, _, provider, expired_at, evaluator, budget, token, _, description = self.contract.ask("getJob", 0)
        return Job(
            provider=provider,
            evaluator=evaluator,
            token=token,
            budget_atomic=budget,
            expired_at=expired_at,
            description=description,
        )


@pytest.mark.parametrize("upheld", [True, False], ids=["complete", "reject"])
def test_an_evaluators_verdict_pays_the_provider_or_the_client_once(sale: Sale, *, upheld: bool) -> None:
    jobs = Jobs(sale)
    jobs.fund()
    budget = held_atomic(jobs.offer, 60)
    verdict = calldata.verdict(chain_id=31337, contract=jobs.contract.address, job_id=0, upheld=upheld, reason=REASON)
    if upheld:
        assert sale.refused(verdict, sale.evaluator) == "WrongStatus"  # nothing was submitted
    jobs.contract.do("submit", 0, bytes.fromhex(OTHER[2:]), b"", sender=KEY.address)
    assert sale.refused(verdict, KEY.address) == "Unauthorized"
    sale.send(verdict, sale.evaluator)
    assert sale.refused(verdict, sale.evaluator) == "WrongStatus"
    assert (sale.has(KEY.address), sale.has(sale.buyer)) == ((budget, RICH - budget) if upheld else (0, RICH))
    (event,) = jobs.contract.events("JobCompleted" if upheld else "JobRejected")
    assert event["reason"].hex() == REASON[2:]


def test_a_token_or_a_budget_that_was_swapped_before_funding_is_seen_and_not_paid(sale: Sale) -> None:
    jobs = Jobs(sale)
    work_until = jobs.offer.valid_until
    check_job(jobs.job(), jobs.offer, units=60, work_until=work_until)
    budget = held_atomic(jobs.offer, 60)
    for token, amount, refusal in (
        (sale.chain.deploy("Token", 18).address, budget, "PaymentTokenMismatch"),
        (sale.token.address, budget + 1, "BudgetMismatch"),
    ):
        jobs.price(token, amount)
        with pytest.raises(ForgeryError, match="the offer gives"):
            check_job(jobs.job(), jobs.offer, units=60, work_until=work_until)
        with pytest.raises(RevertedError, match=refusal):
            jobs.fund()
    assert sale.has(sale.buyer) == RICH


def test_an_open_job_that_expired_draws_nothing_from_others(sale: Sale) -> None:
    jobs = Jobs(sale)
    sale.token.do("mint", jobs.contract.address, RICH, sender=sale.buyer)  # other people's
    sale.chain.wait(2000)
    with pytest.raises(RevertedError, match="WrongStatus"):
        jobs.contract.do("claimRefund", 0, b"", sender=sale.buyer)


# --- what is written offline ------------------------------------------------------------------------------------------


def test_each_call_is_one_that_the_compiled_contract_has_and_reads_back(sale: Sale) -> None:
    offer = sale.offer()
    digest, reason = digest_of(offer), bytes.fromhex(REASON[2:])
    envelope = sign(offer, KEY)
    registry: dict[str, Any] = {"chain_id": 1, "registry": sale.token.address}
    calls: dict[tuple[str, str], tuple[calldata.Call, tuple[Any, ...]]] = {
        ("Token", "approve"): (calldata.approve(offer, units=61), (offer.escrow, held_atomic(offer, 61))),
        ("QuoteEscrow", "authorize"): (
            calldata.authorize(envelope, units=61, capture_by=99),
            (struct(offer), signature(offer), 61, 99),
        ),
        ("QuoteEscrow", "capture"): (calldata.capture(offer, units=7), (digest, 7)),
        ("QuoteEscrow", "refund"): (calldata.refund(offer, amount=8, reason=REASON), (digest, 8, reason)),
        ("QuoteEscrow", "release"): (calldata.release(offer), (digest,)),
        ("QuoteEscrow", "reclaim"): (calldata.reclaim(offer), (digest,)),
        ("ValidationRegistry", "validationRequest"): (
            calldata.validation_request(
                **registry, validator=offer.pay_to, agent_id=5, uri="é" * 40, request_hash=REASON
            ),
            (offer.pay_to, 5, "é" * 40, reason),
        ),
        ("ValidationRegistry", "validationResponse"): (
            calldata.validation_response(
                **registry, request_hash=REASON, response=0, uri="", response_hash=OTHER, tag="gpu-bench:v1"
            ),
            (reason, 0, "", bytes.fromhex(OTHER[2:]), "gpu-bench:v1"),
        ),
        ("EvaluatedJobs", "complete"): (
            calldata.verdict(chain_id=1, contract=offer.asset, job_id=3, upheld=True, reason=REASON),
            (3, reason, b""),
        ),
        ("EvaluatedJobs", "reject"): (
            calldata.verdict(chain_id=1, contract=offer.asset, job_id=3, upheld=False, reason=REASON),
            (3, reason, b""),
        ),
    }
    made = evm.compiled()
    for (contract, name), (call, values) in calls.items():
        item = next(one for one in made[contract]["abi"] if one.get("name") == name)
        takes = [evm.kind_of(one) for one in item["inputs"]]
        data = bytes.fromhex(call.data[2:])
        assert data[:4] == keccak256(f"{name}({','.join(takes)})".encode())[:4], name
        assert decode(takes, data[4:]) == values, name


PUBLISHED = {  # as the standards' own contracts have them: erc-8004-contracts at 122bdf2, erc-8183/base-contracts at 0310b99
    "ValidationRegistry": (
        "validationRequest(address,uint256,string,bytes32)",
        "validationResponse(bytes32,uint8,string,bytes32,string)",
        "getValidationStatus(bytes32)",
        "getAgentValidations(uint256)",
        "getValidatorRequests(address)",
        "getIdentityRegistry()",
        "ValidationRequest(address,uint256,string,bytes32)",
        "ValidationResponse(address,uint256,bytes32,uint8,string,bytes32,string)",
    ),
    "EvaluatedJobs": (
        "createJob(address,address,uint48,string,address,uint256)",
        "setBudget(uint256,address,uint256,bytes)",
        "fund(uint256,address,uint256,bytes)",
        "submit(uint256,bytes32,bytes)",
        "complete(uint256,bytes32,bytes)",
        "reject(uint256,bytes32,bytes)",
        "claimRefund(uint256,bytes)",
        "JobCreated(uint256,address,address,address,uint48,address)",
        "JobSubmitted(uint256,address,bytes32)",
        "JobCompleted(uint256,address,bytes32)",
        "JobRejected(uint256,address,bytes32)",
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_doubles_have_the_functions_and_events_of_the_originals(name: str) -> None:
    abi = evm.compiled()[name]["abi"]
    known = {
        f"{one['name']}({','.join(map(evm.kind_of, one['inputs']))})"
        for one in abi
        if one["type"] in {"function", "event"}
    }
    assert set(PUBLISHED[name]) <= known


def test_the_command_writes_what_pays_and_takes(sale: Sale, tmp_path: Path) -> None:
    """All the way by `harness offer call`: nothing but its output reaches the chain."""
    offer = sale.offer()
    (tmp_path / "offer.json").write_bytes(encode(sign(offer, KEY)))

    def sent(sender: str, *words: str) -> None:
        done = CliRunner().invoke(cli, ["offer", "call", str(tmp_path / "offer.json"), "--json", "--do", *words])
        assert done.exit_code == 0, done.output
        sale.send(calldata.Call(**json.loads(done.stdout.splitlines()[-1])), sender)

    sale.token.do("mint", sale.buyer, RICH, sender=sale.buyer)
    sent(sale.buyer, "approve", "--units", "600")
    sent(sale.buyer, "authorize", "--units", "600", "--capture-by", str(sale.chain.now_s() + 7200))
    sent(KEY.address, "capture", "--units", "500")
    sent(sale.evaluator, "refund", "--amount", "1", "--reason", REASON)
    sent(sale.stranger, "release")
    assert sale.has(sale.pay_to) == captured_atomic(offer, 500) - 1
    wrong = CliRunner().invoke(cli, ["offer", "call", str(tmp_path / "offer.json"), "--do", "capture"])
    assert isinstance(wrong.exception, MisuseError)
    assert "takes --units" in str(wrong.exception)


def test_what_cannot_be_meant_is_not_written(sale: Sale) -> None:
    offer = sale.offer()
    respond: dict[str, Any] = {"chain_id": 1, "registry": offer.asset, "request_hash": REASON, "uri": "", "response_hash": REASON}  # fmt: skip
    wrong: dict[str, Any] = {
        "did not sign": lambda: calldata.authorize(Envelope(offer=offer), units=60, capture_by=1),
        "is for 60 to 3600": lambda: calldata.authorize(sign(offer, KEY), units=59, capture_by=1),
        "at most 3600": lambda: calldata.capture(offer, units=3601),
        "names no escrow": lambda: calldata.capture(sale.offer(escrow=ZERO_ADDRESS), units=60),
        "no evaluator": lambda: calldata.refund(sale.offer(evaluator=ZERO_ADDRESS), amount=1, reason=REASON),
        "were paid": lambda: calldata.refund(offer, amount=offer.max_total_atomic + 1, reason=REASON),
        "reason is zero": lambda: calldata.refund(offer, amount=1, reason=ZERO_BYTES32),
        "0 to 100": lambda: calldata.validation_response(**respond, response=101, tag="t"),
        "tag is empty": lambda: calldata.validation_response(**respond, response=1, tag=""),
        "address is zero": lambda: calldata.verdict(
            chain_id=1, contract=ZERO_ADDRESS, job_id=1, upheld=True, reason=REASON
        ),
    }
    for says, write in wrong.items():
        with pytest.raises(MisuseError, match=says):
            write()


def test_a_value_is_never_cut_to_fit(sale: Sale) -> None:
    too_large: Value = 1 << 64
    with pytest.raises(MisuseError, match="uint64"):
        calldata.authorize(sign(sale.offer(), KEY), units=60, capture_by=int(too_large))
