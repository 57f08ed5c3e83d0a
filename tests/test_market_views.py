"""Views of an offer: each gives the offer back as it was, and no number that a view shows can be changed unseen."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from offers import GLM, NOW_S, SIGNER, any_offer, offered, quoted, signed

from harness.errors import ForgeryError, MisuseError
from harness.market.dialects import (
    a2a,
    akash,
    bittensor,
    commerce,
    erc8004,
    erc8183,
    erc8294,
    golem,
    mpp,
    schemas,
    table,
    x402,
    zerog,
)
from harness.market.dialects.onchain import Request
from harness.market.offers import envelope as envelopes
from harness.market.offers.abi import ZERO_ADDRESS, ZERO_BYTES32, checksummed
from harness.market.offers.envelope import Envelope
from harness.market.offers.offer import Offer, digest_of, held_atomic, price_fraction
from harness.market.offers.secp256k1 import Signer
from harness.market.sales import feedback
from harness.market.sales.till import Sold

TOKEN: dict[str, Any] = {"token_name": "USD Coin", "token_version": "2"}
PAYER = "0x" + "66" * 20
EVIDENCE = b'{"schema":"harness.verdict/1"}'


@dataclass(frozen=True)
class View:
    """How a document is made of an envelope, and how that is read back."""

    make: Callable[[Envelope], Any]
    read: Callable[[Any], Envelope]
    made_of: Callable[[], Envelope] = signed


def url(envelope: Envelope) -> str:
    return f"https://gpu.example/v1/quotes/{envelope.offer.quote_id}/accept"


def _x402(own: Envelope) -> Any:
    return x402.to_x402(own, SIGNER, resource_url=url(own), **TOKEN, units=1200)


def _payment(own: Envelope) -> Any:
    info = commerce.to_payment_info(own.offer, operator="0x" + "77" * 20, payer=PAYER, lease_s=7200, refund_s=86_400)
    return commerce.plain(info, own)


def _request(own: Envelope) -> Request:
    return Request(
        chain_id=own.offer.chain_id,
        registry="0x" + "88" * 20,
        agent_id=own.offer.agent_id,
        validator=SIGNER.address,
        quote_id=own.offer.quote_id,
        salt="0x" + "99" * 32,
    )


def sold(own: Envelope, payer: str = PAYER, **more: Any) -> Sold:
    known: dict[str, Any] = {
        "id": own.offer.quote_id,
        "state": "CAPTURED",
        "payer": payer,
        "amount_atomic": held_atomic(own.offer, 1200),
        "asset": own.offer.asset,
        "network": f"eip155:{own.offer.chain_id}",
        "transaction": "0x" + payer[-2:] * 32,
    }
    return Sold(**(known | more))


SAID: dict[str, Any] = {
    "kind": "uptime",
    "value": 9977,
    "created_at": "2026-11-26T12:00:00Z",
    "endpoint": "https://gpu.example/",
}


def _glm() -> Envelope:
    return signed(asset=GLM, asset_decimals=18, chain_id=137, usd_per_asset=Decimal("0.21"))


SERVICES = [
    erc8004.Service("web", "https://gpu.example/"),
    erc8004.Service("MCP", "https://gpu.example/mcp", "2026-07-28"),
]
ABOUT = {"name": "a node", "description": "sells an H100"}
VIEWS = {
    "x402": View(_x402, x402.from_x402),
    "mpp": View(lambda own: mpp.to_mpp(own, url=url(own), units=1200), mpp.from_mpp),
    "mpp-dynamic": View(lambda own: mpp.to_mpp(own, url=url(own)), mpp.from_mpp),
    "erc8004": View(
        lambda own: erc8004.to_registration(own, **ABOUT, image="https://gpu.example/i.png", services=SERVICES),
        erc8004.from_registration,
    ),
    "erc8004-validation": View(
        lambda own: erc8004.to_validation(
            own, _request(own), response=0, evidence=EVIDENCE, uri="https://gpu.example/e"
        ),
        lambda d: erc8004.from_validation(d, EVIDENCE)[0],
    ),
    "erc8004-feedback": View(
        lambda own: feedback.to_feedback(own, sold(own), **SAID), lambda d: feedback.from_feedback(d).envelope
    ),
    "erc8183-job": View(lambda own: erc8183.to_job(own, units=1200, expired_at=NOW_S + 7200), erc8183.from_job),
    "erc8183": View(
        lambda own: erc8183.to_evaluation(
            own,
            contract="0x" + "aa" * 20,
            job_id=2**60,
            upheld=False,
            deliverable="0x" + "bb" * 32,
            reason="0x" + "cc" * 32,
        ),
        erc8183.from_evaluation,
    ),
    "commerce": View(_payment, lambda d: commerce.from_payment_info(d)[0]),
    "golem": View(
        lambda own: golem.to_golem(own, model="NVIDIA H100 80GB HBM3", memory_bytes=80 << 30), golem.from_golem, _glm
    ),
    "a2a": View(lambda own: a2a.to_card(own, **ABOUT, version="1", url="https://gpu.example/a2a"), a2a.from_card),
}


def wire(name: str, document: Any) -> Any:
    """Send a document over a wire."""
    return golem.parse_golem(golem.golem_text(document)) if name == "golem" else json.loads(json.dumps(document))


@pytest.mark.parametrize("name", VIEWS)
def test_each_view_gives_the_same_quote_back(name: str) -> None:
    view = VIEWS[name]
    own = view.made_of()
    back = view.read(wire(name, view.make(own)))
    assert back == own
    assert (back.offer.quote_id, digest_of(back.offer)) == (own.offer.quote_id, digest_of(own.offer))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every leaf of a document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if not inner:
        yield path
        return
    for key, one in inner:
        yield from places(one, (*path, key))


FREE = {  # what the offer does not say and nobody signs: the seller's words, the buyer's choices, and hints to their software
    "x402": {"name", "version", "maxTimeoutSeconds"},
    "mpp": {"url"},  # the origin: what is paid where is signed by x402 and by the 402 itself
    "mpp-dynamic": {"url"},
    "erc8004": {"name", "description", "image", "endpoint", "version"},
    "erc8004-validation": {"response", "responseURI", "tag"},
    "erc8004-feedback": {"value", "endpoint", "txHash", "amountAtomic"},
    "erc8183-job": {"expiredAt"},
    "erc8183": {"contract", "jobId", "deliverable", "reason"},
    "commerce": set[str](),
    "golem": {"golem.!exp.gap-35.v1.inf.gpu.model", "golem.!exp.gap-35.v1.inf.gpu.memory.total.gib"},
    "a2a": {"name", "description", "version", "url"},
}


def another(value: Any) -> Any:
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | Decimal):
        return value + 1
    if isinstance(value, str):
        return value[:-1] + ("0" if value[-1:] != "0" else "1")
    return "more"


@pytest.mark.parametrize("name", VIEWS)
def test_no_leaf_of_a_view_can_be_changed_unseen(name: str) -> None:
    """Each leaf in turn is changed; whatever is not the seller's own wording must be noticed."""
    view = VIEWS[name]
    own = view.made_of()
    document = wire(name, view.make(own))
    passed = set()
    for path in places(document):
        spoilt = copy.deepcopy(document)
        holder = spoilt
        for step in path[:-1]:
            holder = holder[step]
        holder[path[-1]] = another(holder[path[-1]])
        try:
            assert view.read(spoilt) == own
        except (ForgeryError, AssertionError):
            continue
        passed.add(path[-1])
    assert passed == FREE[name], f"{passed ^ FREE[name]} can be changed, or no longer"


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("spoil", [lambda d: d | {"discount": "1"}, lambda _: {}, lambda _: [], lambda _: None])
def test_a_document_with_more_or_nothing_in_it_is_refused(name: str, spoil: Any) -> None:
    view = VIEWS[name]
    with pytest.raises(ForgeryError):
        view.read(spoil(wire(name, view.make(view.made_of()))))


# --- all views agree on the money -------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(any_offer(), st.data())
def test_all_views_ask_for_the_same_total(offer: Offer, data: st.DataObject) -> None:
    """One rule of rounding: the exact price, up to a whole atom, whatever the decimals and the scale."""
    units = data.draw(st.integers(offer.min_units, offer.max_units))
    own = envelopes.sign(offer, SIGNER)
    exact = units * price_fraction(offer) * 10**offer.asset_decimals
    due = -(-exact.numerator // exact.denominator)
    shown = x402.to_x402(own, SIGNER, resource_url=url(own), **TOKEN, units=units)
    listed = mpp.payment_info(offer, units=units)["offers"][0]["amount"]
    assert {shown["accepts"][0]["amount"], listed, str(held_atomic(offer, units))} == {str(due)}
    assert x402.from_x402(json.loads(json.dumps(shown))) == own
    assert mpp.from_mpp(json.loads(json.dumps(mpp.to_mpp(own, url=url(own), units=units)))) == own
    assert table.from_csv(table.to_csv([own])) == (own,)


# --- x402 -------------------------------------------------------------------------------------------------------------


def test_a_payment_is_bound_to_the_quote_by_its_url_and_to_the_providers_key() -> None:
    own = signed()
    with pytest.raises(MisuseError, match="does not hold the quote id"):
        x402.to_x402(own, SIGNER, resource_url="https://gpu.example/", **TOKEN)
    with pytest.raises(MisuseError, match="the offer's provider is"):
        x402.to_x402(own, Signer(b"\x12" * 32), resource_url=url(own), **TOKEN)
    with pytest.raises(MisuseError, match="59 units"):
        x402.to_x402(own, SIGNER, resource_url=url(own), **TOKEN, units=59)


def test_a_slice_costs_no_more_than_what_clients_pay_by_default() -> None:
    offer = offered(max_units=86_400)
    units = x402.units_within(offer, 10**6)
    assert held_atomic(offer, units) <= 10**6 < held_atomic(offer, units + 1)
    with pytest.raises(MisuseError, match="more than 5"):
        x402.units_within(offer, 5)


def test_a_receipt_names_its_signer_and_a_changed_one_another() -> None:
    receipt = x402.sign_receipt(offered(), SIGNER, resource_url=url(signed()), payer=PAYER, issued_at_s=NOW_S)
    assert x402.receipt_signer(json.loads(json.dumps(receipt))) == SIGNER.address
    receipt["payload"]["payer"] = checksummed("0x" + "67" * 20)
    assert x402.receipt_signer(receipt) != SIGNER.address
    with pytest.raises(ForgeryError, match="payload"):
        x402.receipt_signer(receipt | {"payload": receipt["payload"] | {"amount": "1"}})


# --- chains -----------------------------------------------------------------------------------------------------------


def test_a_failed_validation_never_reads_like_none() -> None:
    own = signed()
    record = erc8004.to_validation(own, _request(own), response=0, evidence=EVIDENCE, uri="x")
    assert record["responseHash"] != ZERO_BYTES32
    assert record["tag"]
    whole: dict[str, Any] = {"response": 0, "evidence": EVIDENCE, "uri": "x"}
    wrongs: list[dict[str, Any]] = [{"evidence": b""}, {"tag": ""}, {"response": 101}]
    for wrong in wrongs:
        with pytest.raises(MisuseError):
            erc8004.to_validation(own, _request(own), **(whole | wrong))
    with pytest.raises(MisuseError, match="not this offer's"):
        erc8004.to_validation(own, replace(_request(own), agent_id=1), response=0, evidence=EVIDENCE, uri="x")
    with pytest.raises(ForgeryError, match="responseHash"):
        erc8004.from_validation(record, EVIDENCE + b" ")


VALIDATORS = [Signer(bytes([n]) * 32) for n in range(1, 6)]
NETWORK: dict[str, Any] = {"chain_id": 8453, "network": "0x" + "99" * 20}


def answers(*verdicts: int) -> list[erc8294.Signed]:
    return [
        erc8294.attest(
            erc8294.Attestation(
                request_hash="0x" + "ab" * 32,
                agent_id=22,
                validator=signer.address,
                verdict=verdict,
                evidence_hash="0x" + "cd" * 32,
                issued_at=NOW_S,
            ),
            signer,
            **NETWORK,
        )
        for signer, verdict in zip(VALIDATORS, verdicts, strict=False)
    ]


FIVE = erc8294.Policy(selection_size=5, min_operators=3, min_responses=4)
OPERATORS = dict(zip((v.address for v in VALIDATORS), "aabbc", strict=True))
KNOWN: dict[str, Any] = {"agent_id": 22, **NETWORK, "operators": {v.address: v.address for v in VALIDATORS}}


@pytest.mark.parametrize(("verdicts", "verdict"), [((100, 100, 0, 60), 100), ((100, 49, 0, 50), 0), ((90,) * 5, 100)])
def test_a_committees_verdict_follows_from_its_signed_attestations(verdicts: tuple[int, ...], verdict: int) -> None:
    document, digest = erc8294.aggregated(FIVE, answers(*verdicts))
    assert document["aggregatedVerdict"] == verdict
    assert digest != ZERO_BYTES32
    sent = json.loads(json.dumps(document))
    assert erc8294.check(sent, FIVE, **KNOWN) == verdict
    for change in ({"aggregatedVerdict": 100 - verdict}, {"attestationsRoot": "0x" + "0" * 64}, {"policy": "0x"}):
        with pytest.raises(ForgeryError):
            erc8294.check(sent | change, FIVE, **KNOWN)
    sent["attestations"][0]["verdict"] = 1
    with pytest.raises(ForgeryError, match="signed by"):
        erc8294.check(sent, FIVE, **KNOWN)


def test_abuse_a_captured_evaluator_four_keys_of_two_operators_are_no_committee() -> None:
    """Four of five agree, but by the list two operators run them all; three behind them are enough."""
    own = erc8294.aggregated(FIVE, answers(100, 100, 100, 100))[0]
    with pytest.raises(ForgeryError, match="2 operators stand behind the answers; the policy wants 3"):
        erc8294.check(own, FIVE, **(KNOWN | {"operators": OPERATORS}))
    assert erc8294.check(own, FIVE, **(KNOWN | {"operators": OPERATORS | {VALIDATORS[3].address: "d"}})) == 100


def test_abuse_a_key_that_is_not_listed_has_no_vote_even_where_one_is_enough() -> None:
    """By the list A bought the verdict, and B and C fail the device; two keys that nobody listed would tip it."""
    listed = {v.address: v.address for v in VALIDATORS[:3]}
    for policy, given_answers in ((FIVE, answers(100, 0, 0, 100, 100)), (erc8294.Policy(), answers(0, 0, 0, 100)[3:])):
        document, _ = erc8294.aggregated(policy, given_answers)
        assert document["schema"] == "vni-aggregated-response/v1"
        with pytest.raises(ForgeryError, match="nobody listed"):
            erc8294.check(document, policy, **(KNOWN | {"operators": listed}))
        assert erc8294.check(document, policy, **KNOWN) == 100


def test_too_few_or_doubled_answers_give_no_verdict() -> None:
    for given_answers in (answers(100, 100, 100), answers(100, 100, 100) + answers(100)):
        with pytest.raises(MisuseError):
            erc8294.aggregated(FIVE, given_answers)
    (alone,) = answers(100)
    document, _ = erc8294.aggregated(erc8294.Policy(), [alone])
    assert document["attestationsRoot"] == "0x" + erc8294._leaf(alone.attestation).hex()


def test_a_job_with_another_token_or_budget_is_not_the_offers() -> None:
    """The reference contract lets a provider change the token before the client pays."""
    own = signed()
    made = erc8183.to_job(own, units=1200, expired_at=NOW_S + 7200)
    job = erc8183.Job(
        provider=made["provider"],
        evaluator=made["evaluator"],
        token=made["token"],
        budget_atomic=int(made["budget"]),
        expired_at=NOW_S + 7200,
        description=made["description"],
    )
    erc8183.check_job(job, own.offer, units=1200, work_until=NOW_S + 7199)
    for change in (
        {"token": GLM},
        {"budget_atomic": job.budget_atomic + 1},
        {"evaluator": PAYER},
        {"description": "x"},
    ):
        with pytest.raises(ForgeryError, match="the offer gives"):
            erc8183.check_job(replace(job, **change), own.offer, units=1200, work_until=NOW_S + 7199)
    for evaluator in (ZERO_ADDRESS, SIGNER.address):
        with pytest.raises(MisuseError, match="evaluator"):
            erc8183.to_job(signed(evaluator=evaluator), units=1200, expired_at=NOW_S + 7200)


def test_a_payment_moves_for_this_offer_or_not_at_all() -> None:
    """The hash is that of the contract's text, computed here by another implementation; the nonce follows from the offer's digest."""
    from eth_abi.abi import encode
    from eth_utils.crypto import keccak

    own = offered()
    info = commerce.to_payment_info(own, operator="0x" + "77" * 20, payer=PAYER, lease_s=60, refund_s=60)
    text = (
        "PaymentInfo(address operator,address payer,address receiver,address token,uint120 maxAmount,"
        "uint48 preApprovalExpiry,uint48 authorizationExpiry,uint48 refundExpiry,uint16 minFeeBps,uint16 maxFeeBps,"
        "address feeReceiver,uint256 salt)"
    )
    kinds = ["bytes32", *(part.split()[0] for part in text[12:-1].split(","))]
    inner = keccak(encode(kinds, [keccak(text=text), *info.values().values()]))
    whole = keccak(encode(["uint256", "address", "bytes32"], [own.chain_id, own.escrow, inner]))
    assert commerce.payment_hash(info, own) == "0x" + whole.hex()
    dearer = replace(own, nonce=8)
    other = commerce.to_payment_info(dearer, operator="0x" + "77" * 20, payer=PAYER, lease_s=60, refund_s=60)
    assert commerce.nonce_of(other, dearer) != commerce.nonce_of(info, own)
    with pytest.raises(ForgeryError, match="salt"):
        commerce.check_payment_info(info, dearer, operator=info.operator, capture_by=own.valid_until)
    with pytest.raises(MisuseError, match="no escrow"):
        commerce.to_payment_info(offered(escrow=ZERO_ADDRESS), operator=PAYER, payer=PAYER, lease_s=1, refund_s=1)


# --- other markets ----------------------------------------------------------------------------------------------------


def test_golem_gets_every_digit_of_the_price() -> None:
    own = _glm()
    text = golem.golem_text(golem.to_golem(own, model="NVIDIA H100 80GB HBM3"))
    first, fixed = json.loads(text, parse_float=Decimal)["golem.com.pricing.model.linear.coeffs"]
    assert Fraction(first) == price_fraction(own.offer)
    assert fixed == 0
    with pytest.raises(MisuseError, match="GLM"):
        golem.to_golem(signed(), model="x")


def tokens() -> tuple[Envelope, Envelope]:
    more: dict[str, Any] = {
        "asset": ZERO_ADDRESS,
        "asset_decimals": 18,
        "chain_id": 16_661,
        "usd_per_asset": Decimal("1.1"),
        "max_units": 10**6,
        "evaluator": ZERO_ADDRESS,
    }
    return (
        signed(unit="token-in", units_per_s=Decimal(9000), **more),
        signed(unit="token-out", units_per_s=Decimal(700), **more),
    )


def test_0g_takes_two_prices_of_tokens_and_gives_both_offers_back() -> None:
    both = tokens()
    params = zerog.to_0g(*both, url="https://gpu.example/v1", model="smollm2")
    assert zerog.from_0g(json.loads(json.dumps(params))) == both
    assert len(params["additionalInfo"]) < 4096
    assert int(params["inputPrice"]) == held_atomic(both[0].offer, 1) < int(params["outputPrice"])
    with pytest.raises(ForgeryError, match=r"\$\.inputPrice"):
        zerog.from_0g(params | {"inputPrice": "1"})
    with pytest.raises(MisuseError, match="token-in"):
        zerog.to_0g(both[1], both[0], url="x", model="y")


def test_weights_follow_from_quotes_alone_and_are_normalised_as_officially() -> None:
    """The pairs were made with `bittensor.intents.weights.normalize` of bittensor 11.3.0."""
    official = [
        ([0, 1, 2], [1000000, 2500000, 1], [0, 1], [26214, 65535]),
        ([5, 9], [3, 3], [5, 9], [65535, 65535]),
        ([1, 2, 3, 4], [0, 7, 1, 65535], [2, 3, 4], [7, 1, 65535]),
        ([7], [0], [], []),
        ([1, 2], [131070, 1], [1], [65535]),
        ([1, 2], [131070, 3], [1, 2], [65535, 2]),
    ]
    for uids, weights, kept, values in official:
        assert bittensor.normalised(uids, weights) == (kept, values)
    one = quoted()
    two = replace(one, device_uuid="GPU-2", cycles_per_s=2_500_000)
    cpu = replace(one, device_uuid="CPU-1", for_gpu_market=False)
    weights_file, beside = bittensor.to_weights(
        {3: [one, two], 4: [cpu], 8: [replace(one, device_uuid="GPU-3")]}, netuid=27, block=9
    )
    assert weights_file == {"3": 3_500_000, "8": 1_000_000}
    assert beside["preview"] == {"uids": [3, 8], "weights": [65535, 18724]}
    assert (
        beside == bittensor.to_weights({8: [replace(one, device_uuid="GPU-3")], 3: [two, one]}, netuid=27, block=9)[1]
    )
    with pytest.raises(MisuseError, match="counted twice: GPU-1"):
        bittensor.to_weights({3: [one], 4: [one]}, netuid=27, block=9)
    with pytest.raises(MisuseError, match="different data"):
        bittensor.to_weights({3: [one], 4: [replace(two, digests={"profile": "0"})]}, netuid=27, block=9)


# --- tables -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow  # pandas and pyarrow are loaded
def test_tables_keep_every_digit_as_text(tmp_path: Path) -> None:
    rows = [signed(nonce=2**255 + 1, agent_id=2**60 + 1), signed(asset_decimals=18)]
    assert table.from_csv(table.to_csv(rows)) == tuple(rows)
    table.to_parquet(rows, tmp_path / "offers.parquet")
    assert table.from_parquet(tmp_path / "offers.parquet") == tuple(rows)
    frame = table.frame_of(rows)
    assert {str(kind) for kind in frame.dtypes} == {"string"}
    assert frame["nonce"][0] == str(2**255 + 1)
    with pytest.raises(ForgeryError, match="maxTotalAtomic"):
        table.from_csv(table.to_csv(rows).replace(f'"{rows[0].offer.max_total_atomic}"', '"1"', 1))
    with pytest.raises(ForgeryError, match="columns"):
        table.from_csv('"quoteId"\r\n"0x"\r\n')


# --- schemas ----------------------------------------------------------------------------------------------------------


def documents() -> dict[str, Any]:
    """Return a document of each form that has a schema."""
    names = {"erc8183": "erc8183-evaluation", "erc8183-job": "erc8183"}
    made = {names.get(name, name): wire(name, view.make(view.made_of())) for name, view in VIEWS.items()}
    made["envelope"] = json.loads(envelopes.encode(signed()))
    made["erc8294"] = erc8294.aggregated(FIVE, answers(100, 100, 0, 60))[0]
    made["bittensor"] = bittensor.to_weights({3: [quoted()]}, netuid=27, block=9)[1]
    made["0g"] = zerog.to_0g(*tokens(), url="https://gpu.example/v1", model="smollm2")
    return {name: json.loads(json.dumps(one, default=float)) for name, one in made.items()}


def test_every_document_fits_its_schema_and_no_field_more_does() -> None:
    found = documents()
    maybe = {"golem.!exp.gap-35.v1.inf.gpu.memory.total.gib", "golem.com.payment.platform.erc20-polygon-glm.address"}
    maybe.add("proofOfPayment")
    assert {name.removesuffix("-dynamic") for name in found} == {*schemas.NAMES}
    for name, document in found.items():
        validator = jsonschema.Draft202012Validator(schemas.schema_of(name.removesuffix("-dynamic")))
        validator.check_schema(validator.schema)
        validator.validate(document)
        assert not validator.is_valid(document | {"discount": "1"}), name
        for field in document:
            assert not validator.is_valid({k: v for k, v in document.items() if k != field}) or field in maybe, field
            assert not validator.is_valid(document | {field: [[]]}), (name, field)


def test_what_x402_carries_fits_the_schemas_beside_it() -> None:
    for extension in _x402(signed())["extensions"].values():
        jsonschema.validate(extension["info"], extension["schema"])


# --- Akash ------------------------------------------------------------------------------------------------------------

ORDER = {
    "resources": [
        {
            "memory": 34359738368,
            "cpu": 8000,
            "gpu": {
                "units": 1,
                "attributes": {"vendor": {"nvidia": {"model": "h100", "ram": "80Gi", "interface": "sxm5"}}},
            },
            "storage": [{"class": "ephemeral", "size": 107374182400}],
            "count": 1,
            "endpoint_quantity": 1,
            "ip_lease_quantity": 0,
        }
    ],
    "price": {"denom": "uakt", "amount": "100000"},
    "price_precision": 6,
}
RATES = akash.Rates(usd_per_akt=Decimal("0.5"), block_s=Decimal(6))


def bid(order: Any = None, **more: Any) -> str:
    asked: dict[str, Any] = {"quotes": [quoted()], "rates": RATES, "now_s": NOW_S} | more
    return akash.bid(
        json.dumps(ORDER if order is None else order), asked["quotes"], asked["rates"], now_s=asked["now_s"]
    )


def changed(**more: Any) -> dict[str, Any]:
    return ORDER | more


def test_a_bid_is_the_price_of_a_block_rounded_up_once() -> None:
    usd_per_hour = Fraction(quoted().price_usd_per_hour or 0)
    exact = usd_per_hour / 600 / Fraction(1, 2) * 10**6  # 600 blocks an hour, half a dollar an AKT, millionths
    said = Fraction(Decimal(bid()))
    assert 0 <= said - exact < Fraction(1, 10**6)
    assert len(bid().split(".")[1]) == 6
    assert Decimal(bid(changed(price_precision=18))) <= Decimal(bid(changed(price_precision=0)))
    assert "." not in bid(ORDER["resources"])  # the old form: a list, whole uakt
    two = changed(resources=[ORDER["resources"][0] | {"count": 2}])  # type: ignore[index]
    assert abs(2 * Decimal(bid()) - Decimal(bid(two))) <= Decimal("0.000001")
    usdc = changed(price={"denom": akash._USD[0], "amount": "1000000"})
    assert abs(Decimal(bid(usdc)) * 2 - Decimal(bid())) <= Decimal("0.000002")


def test_what_stands_beside_the_gpus_is_added_by_the_month() -> None:
    rates = replace(
        RATES,
        cpu_usd=Decimal("1.6"),
        memory_usd=Decimal("0.8"),
        storage_usd=Decimal("0.02"),
        endpoint_usd=Decimal("0.05"),
    )
    month = Fraction(16, 10) * 8 + Fraction(8, 10) * 32 + Fraction(2, 100) * 100 + Fraction(5, 100)
    more = Fraction(Decimal(bid(rates=rates))) - Fraction(Decimal(bid()))
    assert abs(more - month / Fraction(730488, 1000) / 600 * 2 * 10**6) < Fraction(2, 10**6)


@pytest.mark.parametrize(
    ("order", "more", "said"),
    [
        (changed(price={"denom": "uakt", "amount": "1"}), {}, "the order pays 1"),
        (changed(price={"denom": "ibc/STRANGE", "amount": "1"}), {}, "known are uakt"),
        (None, {"rates": akash.Rates()}, "--usd-per-akt"),
        (None, {"now_s": NOW_S + 90_000}, "no fresh quote for h100"),
        (None, {"quotes": [replace(quoted(), for_gpu_market=False)]}, "no fresh quote"),
        (None, {"quotes": [replace(quoted(), device_name="NVIDIA A100-SXM4-80GB")]}, "there are a100"),
        (changed(resources="x"), {}, "should be a list"),
        (changed(resources=[{"cpu": 1000, "count": 1}]), {}, "nothing in the order has a price"),
        (changed(resources=[{"cpu": "-1"}]), {}, "not an amount"),
        (changed(resources=[{"cpu": True}]), {}, "not an amount"),
        (changed(price_precision=99), {}, "precision"),
    ],
)
def test_no_bid_where_there_is_no_price_for_it(order: Any, more: dict[str, Any], said: str) -> None:
    with pytest.raises(MisuseError, match=said):
        bid(order, **more)


@pytest.mark.parametrize(
    ("name", "gpu"),
    [
        ("NVIDIA H100 80GB HBM3", akash.Gpu("h100", "80Gi")),
        ("NVIDIA H100 PCIe", akash.Gpu("h100", None, "pcie")),
        ("NVIDIA A100-SXM4-80GB", akash.Gpu("a100", "80Gi", "sxm")),
        ("NVIDIA GeForce RTX 4090", akash.Gpu("rtx4090")),
        ("NVIDIA RTX A6000", akash.Gpu("rtxa6000")),
        ("Tesla T4", akash.Gpu("t4")),
        ("NVIDIA L40S", akash.Gpu("l40s")),
        ("Tesla V100-SXM2-16GB", akash.Gpu("v100", "16Gi", "sxm")),
        ("NVIDIA H200", akash.Gpu("h200")),
    ],
)
def test_a_cards_name_is_turned_into_akashs(name: str, gpu: akash.Gpu) -> None:
    assert akash.gpu_of(name) == gpu
