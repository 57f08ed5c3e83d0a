"""What the offer and its views refuse, each with words that say what was wrong."""

from __future__ import annotations

import copy
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from offers import NOW_S, SIGNER, offered, quoted, signed, terms
from test_market_views import EVIDENCE, ORDER, VIEWS, answers, bid, changed, tokens, url, wire

from harness import codec
from harness.cli import cli
from harness.errors import FailureError, ForgeryError, MisuseError
from harness.market.dialects import (
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
    views,
    x402,
    zerog,
)
from harness.market.offers import eip712, envelope, evidence, follows, keccak, offer, secp256k1, seller
from harness.market.offers.abi import ZERO_ADDRESS, ZERO_BYTES32, calldata, checked, encode

OWN = signed()
INFO = {"operator": "0x" + "77" * 20, "payer": "0x" + "66" * 20, "lease_s": 60, "refund_s": 60}
PAYMENT: Any = commerce.to_payment_info(OWN.offer, **INFO)  # type: ignore[arg-type]
EVALUATED: dict[str, Any] = {
    "contract": "0x" + "aa" * 20,
    "job_id": 1,
    "upheld": True,
    "deliverable": "0x" + "bb" * 32,
    "reason": "0x" + "cc" * 32,
}
(ATTESTED,) = answers(100)


def document(name: str, **more: Any) -> Any:
    made = VIEWS[name].make(VIEWS[name].made_of())
    return made | more


def deep(made: Any, *path: Any) -> Any:
    """Return a document with its last step of a path replaced by the last argument."""
    *steps, value = path
    holder = made = copy.deepcopy(made)
    for step in steps[:-1]:
        holder = holder[step]
    holder[steps[-1]] = value
    return made


def wanting(**more: object) -> dict[str, Any]:
    """Return an order for an H100 of these properties."""
    return changed(resources=[{"gpu": {"units": 1, "attributes": {"vendor": {"nvidia": {"model": "h100"} | more}}}}])


def long(own: envelope.Envelope) -> envelope.Envelope:
    return replace(own, evidence=envelope.Evidence(uri="u" * 1500, media_type="", hash=own.offer.evidence_root))


MISUSES: list[tuple[Callable[[], Any], str]] = [
    (lambda: checked("float", 1), "no type 'float'"),
    (lambda: encode(("uint8",), ()), "0 values were given for 1 types"),
    (lambda: calldata("complete", 1), "not a function's signature"),
    (lambda: calldata("f((uint8,string))", 1, "x"), "a tuple beside text"),
    (lambda: eip712.struct_hash("Mail", (("to", "address"),), {"from": ZERO_ADDRESS}), "from, to unknown or missing"),
    (lambda: offer.of_values({"unit": "gpu-second"}), "unknown or missing"),
    (lambda: replace(OWN.offer, price_scale=37), "neither should be above 36"),
    (lambda: replace(OWN.offer, evidence_until=1), "the three should rise"),
    (lambda: replace(OWN.offer, unit="obh"), "unit is 'obh'"),  # type: ignore[arg-type]
    (lambda: offer.captured_atomic(OWN.offer, 3601), "at most 3600"),
    (lambda: evidence.sla(quoted(), tolerance=Decimal(1)), "tolerance is 1"),
    (lambda: evidence.epoch_s("yesterday"), "not a time"),
    (lambda: secp256k1.Signer(bytes(32)), "not a private key"),
    (lambda: SIGNER.sign(b"short"), "a digest of 5 bytes"),
    (lambda: secp256k1.keygen("/proc/nosuch/key"), "cannot write a key"),
    (lambda: secp256k1.load_signer("/nosuch"), "cannot read the key"),
    (lambda: envelope.sign(OWN, SIGNER), "has signed this offer already"),
    (lambda: envelope.read("/nosuch"), "cannot read"),
    (
        lambda: x402.sign_receipt(OWN.offer, SIGNER, resource_url="x", payer=ZERO_ADDRESS, issued_at_s=1),
        "does not hold",
    ),
    (lambda: mpp.payment_info(OWN.offer, units=1), "1 units"),
    (lambda: mpp.to_mpp(OWN, url="/v1"), "should have an origin"),
    (lambda: mpp.to_mpp(OWN, url=f"http://[/{OWN.offer.quote_id}"), "should have an origin"),
    (lambda: commerce.to_payment_info(OWN.offer, **(INFO | {"lease_s": -1})), "neither should be below 0"),  # type: ignore[arg-type]
    (lambda: replace(PAYMENT, refund_expiry=1), "should not fall"),
    (lambda: replace(PAYMENT, min_fee_bps=1), "basis points should rise"),
    (lambda: erc8183.to_job(OWN, units=600, expired_at=NOW_S), "a job outlives it"),
    (lambda: erc8183.to_evaluation(OWN, **(EVALUATED | {"reason": ZERO_BYTES32})), "reason is zero"),
    (lambda: replace(ATTESTED.attestation, verdict=101), "a verdict is 0 to 100"),
    (lambda: erc8294.Policy(min_responses=2).encoded(), "neither may be more"),
    (lambda: erc8294.attest(ATTESTED.attestation, SIGNER, chain_id=1, network=ZERO_ADDRESS), "the attestation is by"),
    (lambda: bittensor.to_weights({70_000: [quoted()]}, netuid=1, block=1), "UIDs are 0 to 65535"),
    (lambda: bittensor.normalised([1], [float("nan")]), "finite"),
    (lambda: zerog.to_0g(*map(long, tokens()), url="", model=""), "the contract takes 4096"),
    (lambda: schemas.schema_of("nosuch"), "no schema of 'nosuch'"),
    (lambda: views.show("nosuch", OWN), "no view 'nosuch'"),
    (lambda: views.show("x402", OWN, {"url": url(OWN), "token_name": "T", "token_version": "1"}), "with --key"),
    (lambda: views.show("erc8183", OWN, {"units": "-1", "expired_at": "1"}), "a whole number"),
    (lambda: seller.load_seller("/nosuch"), "cannot read the seller's terms"),
    (lambda: seller.terms_of({}, now_s=1), "lack provider, pay_to, asset, asset_decimals, chain_id"),
    (
        lambda: seller.terms_of(
            {"usd_per_asset": "x", "pay_to": "", "asset": "", "asset_decimals": 6, "chain_id": 1}, now_s=1, provider=""
        ),
        "should be a decimal",
    ),
    (lambda: bid(changed(resources=[1])), "is not an object"),
    (lambda: bid(changed(resources=[{"storage": 1}])), "a list of volumes"),
    (lambda: bid(changed(resources=[{"gpu": 1}])), "gpu is not an object"),
    (lambda: bid(wanting(interface=["x"])), "interface is ['x']"),
    (lambda: bid(wanting(ram=80)), "ram is 80"),
    (lambda: akash.bid("nothing", [], akash.Rates(), now_s=1), "the order is not JSON"),
    (lambda: bid(changed(resources=[{"cpu": "1e-x"}])), "not an amount"),
]


WORK: dict[str, Any] = {"operator": INFO["operator"], "capture_by": OWN.offer.valid_until + 59}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"operator": "0x" + "78" * 20}, "operator"),
        ({"authorization_expiry": OWN.offer.valid_until + 59}, "authorization_expiry"),
        ({"max_fee_bps": 1}, "max_fee_bps"),
        ({"max_fee_bps": 10_000, "min_fee_bps": 10_000}, "max_fee_bps"),
        ({"receiver": ZERO_ADDRESS}, "receiver"),
    ],
)
def test_a_provider_does_not_work_for_a_payment_that_pays_him_nothing(change: dict[str, Any], says: str) -> None:
    commerce.check_payment_info(PAYMENT, OWN.offer, **WORK)
    with pytest.raises(ForgeryError, match=rf"\$\.{says}"):
        commerce.check_payment_info(replace(PAYMENT, **change), OWN.offer, **WORK)
    if says == "max_fee_bps":
        commerce.check_payment_info(replace(PAYMENT, **change), OWN.offer, **WORK, max_fee_bps=10_000)  # agreed to


def test_a_provider_does_not_work_for_a_job_that_ends_before_he_does() -> None:
    ends = OWN.offer.valid_until + 1000
    made = erc8183.to_job(OWN, units=600, expired_at=ends)
    job = erc8183.Job(
        provider=made["provider"],
        evaluator=made["evaluator"],
        token=made["token"],
        budget_atomic=int(made["budget"]),
        expired_at=ends,
        description=made["description"],
    )
    erc8183.check_job(job, OWN.offer, units=600, work_until=ends - 1)
    with pytest.raises(ForgeryError, match="expired_at"):
        erc8183.check_job(job, OWN.offer, units=600, work_until=ends)
    with pytest.raises(ForgeryError, match="expired_at"):
        erc8183.check_job(replace(job, expired_at=OWN.offer.valid_until), OWN.offer, units=600, work_until=0)
    with pytest.raises(MisuseError, match="0 units"):
        erc8183.check_job(replace(job, budget_atomic=0), OWN.offer, units=0, work_until=ends - 1)


@pytest.mark.parametrize(("call", "said"), MISUSES, ids=[said for _, said in MISUSES])
def test_misuse_is_told(call: Callable[[], Any], said: str) -> None:
    with pytest.raises(MisuseError) as err:
        call()
    assert said in str(err.value)


FORGERIES: list[tuple[Callable[[], Any], str]] = [
    (lambda: envelope.decode(b"x" * (envelope.MAX_BYTES + 1)), "more than the"),
    (lambda: envelope.decode(b"{"), "not JSON"),
    (lambda: envelope.decode(b"[]"), "should be an object"),
    (lambda: envelope.of_plain(deep(envelope.plain(OWN), "signatures", {})), "a list of at most 8"),
    (
        lambda: envelope.verify(
            replace(OWN, signatures=(replace(OWN.signatures[0], signer="0x" + "12" * 20),)), now_s=None
        ),
        "not by 0x1212",
    ),
    (lambda: x402.from_x402(deep(document("x402"), "accepts", 0, "extra", "units", "9" * 5000)), "not a whole number"),
    (lambda: x402.from_x402(deep(document("x402"), "accepts", 0, "extra", "units", "1")), "1 units"),
    (
        lambda: x402.from_x402(
            deep(document("x402"), "extensions", "offer-receipt", "info", "offers", 0, "signature", 7)
        ),
        "is not text",
    ),
    (lambda: x402.receipt_signer({"format": "jws", "payload": {}}), "not a receipt"),
    (lambda: x402.receipt_signer({}), "$.payload: missing"),
    (lambda: mpp.from_mpp({"paths": {}}), "the one operation"),
    (lambda: mpp.from_mpp(deep(document("mpp"), "servers", 0, "url", "")), "should have an origin"),
    (lambda: erc8004.from_registration(document("erc8004", services={})), "should be a list"),
    (
        lambda: erc8004.from_validation(deep(document("erc8004-validation"), "request", "chainId", "x"), EVIDENCE),
        "not a whole number",
    ),
    (lambda: erc8183.from_job(document("erc8183-job", units="x")), "not a whole number"),
    (lambda: erc8183.from_evaluation(document("erc8183", jobId="-1")), "not a whole number"),
    (
        lambda: erc8294.check(
            {"attestations": [{"verdict": "x"}]},
            erc8294.Policy(),
            agent_id=1,
            chain_id=1,
            network=ZERO_ADDRESS,
            operators={},
        ),
        "missing",
    ),
    (
        lambda: erc8294.check(
            {"attestations": []}, erc8294.Policy(), agent_id=1, chain_id=1, network=ZERO_ADDRESS, operators={}
        ),
        "about one request",
    ),
    (lambda: commerce.from_payment_info(document("commerce", paymentInfo={})), "should have the fields"),
    (lambda: commerce.from_payment_info(deep(document("commerce"), "paymentInfo", "salt", "x")), "not a whole number"),
    (
        lambda: commerce.from_payment_info(deep(document("commerce"), "paymentInfo", "maxAmount", float("inf"))),
        "not text",
    ),
    (lambda: mpp.from_mpp(deep(document("mpp"), "servers", 0, "url", "http://[")), "should have an origin"),
    (lambda: golem.parse_golem("{"), "not JSON"),
    (
        lambda: golem.from_golem({"harness-quote": envelope.plain(OWN), "golem.!exp.gap-35.v1.inf.gpu.model": "x"}),
        "GLM",
    ),
    (lambda: zerog.from_0g({"additionalInfo": "{"}), "not JSON"),
    (
        lambda: zerog.from_0g(
            zerog.to_0g(*tokens(), url="u", model="m")
            | {"additionalInfo": json.dumps({"harness-quote": [envelope.plain(t) for t in tokens()[::-1]]})}
        ),
        "token-in",
    ),
    (lambda: views.read("x402", "{"), "not JSON"),
    (lambda: views.read("csv", table.to_csv([])), "holds 0 offers"),
    (lambda: table.from_csv('"a\x00'), "CSV"),
]


@pytest.mark.parametrize(("call", "said"), FORGERIES, ids=[said for _, said in FORGERIES])
def test_a_forgery_is_told(call: Callable[[], Any], said: str) -> None:
    with pytest.raises(ForgeryError) as err:
        call()
    assert said in str(err.value)


def nodes(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every part of a document but the offer that it carries, which has tests of its own."""
    yield path
    for key, one in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        if key not in {"quote", "signatures", "schema"}:
            yield from nodes(one, (*path, key))


@pytest.mark.parametrize("name", VIEWS)
def test_no_part_of_another_kind_breaks_a_reader(name: str) -> None:
    """A stranger's document ends in the offer or in a `ForgeryError`: never in another error."""
    own = VIEWS[name].made_of()
    made = wire(name, VIEWS[name].make(own))
    strange: Iterator[Any] = itertools.cycle([None, 5, "x", [], {}, True, "9" * 5000, -1, [[]], 1.5, {"": ""}])
    for path in [*nodes(made)][1:]:
        for value in itertools.islice(strange, 3):
            try:
                VIEWS[name].read(deep(made, *path, value))
            except ForgeryError:
                continue


def test_a_bad_attestation_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    made, _ = erc8294.aggregated(erc8294.Policy(), [ATTESTED])
    for field, value, said in (("verdict", 101, "0 to 100"), ("verdict", "x", "'<='"), ("issuedAt", -1, "wants")):
        with pytest.raises(ForgeryError, match=r"attestations\[0\]") as err:
            erc8294.check(
                deep(made, "attestations", 0, field, value),
                erc8294.Policy(),
                agent_id=22,
                chain_id=1,
                network=ZERO_ADDRESS,
                operators={ATTESTED.attestation.validator: "us"},
            )
        assert said in str(err.value)


def test_keccak_needs_nothing_but_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "Crypto.Hash", None)
    keccak._implementation.cache_clear()
    assert keccak._implementation() is keccak.plain
    keccak._implementation.cache_clear()


def test_files_that_cannot_be_written_are_failures(tmp_path: Path) -> None:
    with pytest.raises(FailureError, match="cannot write"):
        table.to_parquet([OWN], tmp_path)
    path = tmp_path / "o.json"
    path.write_bytes(envelope.encode(OWN))
    for args, kind in (
        (["show", str(path), "--view", "csv", "--out", str(tmp_path)], FailureError),
        (["show", str(path), "--view", "mpp", "--set", "url"], MisuseError),
        (["read", str(tmp_path / "nosuch"), "--view", "csv"], MisuseError),
    ):
        assert isinstance(CliRunner().invoke(cli, ["offer", *args]).exception, kind)
    for data, said in ((b"x" * ((1 << 20) + 1), "more than"), (b"\xff", "not UTF-8")):
        path.write_bytes(data)
        found = CliRunner().invoke(cli, ["offer", "read", str(path), "--view", "csv"])
        assert isinstance(found.exception, ForgeryError)
        assert said in str(found.exception)


def test_akashs_command_is_among_the_others_too(tmp_path: Path) -> None:
    (tmp_path / "quote-1.json").write_bytes(codec.encode(quoted()))
    args = ["akash-price", "--quotes", str(tmp_path), "--usd-per-akt", "0.5", "--at", str(NOW_S)]
    done = CliRunner().invoke(cli, args, input=json.dumps(ORDER))
    assert Decimal(done.stdout) > 0
    assert "no quote in" in str(CliRunner().invoke(cli, [*args, "--quotes", str(tmp_path / "x")]).exception)
    assert "-1" in CliRunner().invoke(cli, [*args, "--cpu-usd", "-1"]).stderr
    assert "bytes" in str(CliRunner().invoke(cli, args, input="x" * ((1 << 20) + 1)).exception)


def test_a_quotes_mcycle_is_sold_too_and_checked() -> None:
    own = offered(unit="mcycle", price_scale=18, max_units=10**7)
    assert follows.check_quote(own, quoted()) == ()
    by_token = offered(unit="token-in", units_per_s=Decimal(9), price_scale=18)
    assert follows.check_quote(by_token, quoted(), usd_per_asset=Decimal(1)) == ("price",)
    with pytest.raises(MisuseError, match="no price per mcycle"):
        offer.make_offer(replace(quoted(), price_usd_per_mcycle=None), terms(unit="mcycle"))
