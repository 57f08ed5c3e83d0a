"""The offer: what is signed, in whole numbers; and that no second spelling, no twin of a signature and no stray field passes."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st
from offers import NOW_S, SIGNER, any_offer, offered, quoted, signed, terms
from test_scoring import on_cpu

from harness import codec
from harness.errors import ForgeryError, MisuseError
from harness.market.offers import envelope as envelopes
from harness.market.offers import evidence, keccak, secp256k1
from harness.market.offers.abi import calldata, checksummed, encode
from harness.market.offers.envelope import Envelope, Evidence, decode, verify
from harness.market.offers.follows import check_quote
from harness.market.offers.offer import (
    Offer,
    captured_atomic,
    digest_of,
    held_atomic,
    make_offer,
    price_fraction,
    typed_data_of,
)
from harness.market.offers.secp256k1 import ORDER, Signer, keygen, load_signer, recover
from harness.model import Quote, Terms
from harness.scoring import price

# --- what it is built on ----------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.binary(max_size=300))
def test_the_two_kinds_of_keccak_are_one_function(data: bytes) -> None:
    from Crypto.Hash import keccak as other

    assert keccak.plain(data) == other.new(digest_bits=256, data=data).digest() == keccak.keccak256(data)


def test_calldata_is_what_others_encode() -> None:
    """The first is the example of Solidity's own ABI specification; the second comes from eth-abi, another implementation."""
    from eth_abi.abi import encode as other

    assert calldata("baz(uint32,bool)", *(69, True)) == "0xcdcd77c0" + f"{69:064x}" + f"{1:064x}"
    kinds = ("bytes32", "uint8", "string", "int128", "bytes", "address")
    values = ("0x" + "0f" * 32, 255, "h\u00e4" * 20, -5, "0x00ff", "0x" + "ab" * 20)
    plain = (bytes.fromhex("0f" * 32), 255, "h\u00e4" * 20, -5, b"\x00\xff", "0x" + "ab" * 20)
    assert encode(kinds, values) == other(kinds, plain)


def test_an_address_gets_the_capitals_of_its_standard() -> None:
    assert checksummed("0x5aaeb6053f3e94c9b9a09f33669435e7ef1beaed") == "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("bytes32", "0xab"),  # others pad it
        ("address", "0x" + "AB" * 20),
        ("uint8", 256),
        ("uint256", True),
        ("uint64", -1),
        ("string", "\ud800"),
        ("uint120", 2**120),
    ],
)
def test_a_value_that_does_not_fit_is_neither_cut_nor_padded(kind: str, value: Any) -> None:
    with pytest.raises(MisuseError, match="wants"):
        encode((kind,), (value,))


# --- keys and signatures ----------------------------------------------------------------------------------------------


def test_a_key_is_its_owners_alone_and_never_shown(tmp_path: Path) -> None:
    path = tmp_path / "quotes.key"
    address = keygen(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    loaded, secret = load_signer(path), path.read_text().split()[1]
    assert loaded.address == address
    assert secret not in repr(loaded) + str(loaded)
    with pytest.raises(MisuseError, match="not written over"):
        keygen(path)
    path.chmod(0o640)
    with pytest.raises(MisuseError, match="read by others"):
        load_signer(path)
    path.chmod(0o600)
    path.write_text("-----BEGIN PRIVATE KEY-----\n")
    with pytest.raises(MisuseError, match="not a key that signs prices") as said:
        load_signer(path)
    assert secret not in str(said.value)


def test_the_high_twin_of_a_signature_is_refused() -> None:
    """Plain recovery gives the same signer for both, so a signature's bytes would be no identity."""
    digest = digest_of(offered())
    whole = bytes.fromhex(SIGNER.sign(digest)[2:])
    r, s, v = whole[:32], int.from_bytes(whole[32:64], "big"), whole[64]
    assert s <= ORDER // 2
    twin = "0x" + (r + (ORDER - s).to_bytes(32, "big") + bytes([55 - v])).hex()
    from eth_account import Account

    assert Account._recover_hash(digest, signature=bytes.fromhex(twin[2:])).lower() == SIGNER.address
    with pytest.raises(ForgeryError, match="upper half"):
        recover(digest, twin)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda s: s[:-2],  # 64 bytes, as EIP-2098 writes them
        lambda s: s + "00",
        lambda s: s[:-2] + "00",  # v 0 for 27
        lambda s: s[:-2] + "1d",
        lambda s: "0x" + s[2:].upper(),
        lambda s: s[2:],
        lambda s: "0x" + "00" * 64 + "1b",
        lambda s: "0x" + "ff" * 32 + s[66:],
    ],
)
def test_a_signature_has_one_spelling(spoil: Any) -> None:
    digest = digest_of(offered())
    good = SIGNER.sign(digest)
    assert recover(digest, good) == SIGNER.address
    with pytest.raises(ForgeryError):
        recover(digest, spoil(good))


def test_without_the_extra_its_name_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "coincurve", None)
    with pytest.raises(MisuseError, match=r"gpu-assay\[sign\]"):
        Signer(b"\x01" * 32)


def test_an_offers_digest_and_signature_are_those_of_another_implementation() -> None:
    from eth_account import Account
    from eth_account.messages import encode_typed_data

    data = typed_data_of(offered())
    kinds = {f["name"]: f["type"] for f in data["types"]["ComputeQuote"]}
    message = {name: int(v) if kinds[name].startswith("uint") else v for name, v in data["message"].items()}
    theirs = encode_typed_data(full_message=data | {"message": message})
    by_them = Account.from_key(b"\x11" * 32).sign_message(theirs)
    assert bytes(by_them.message_hash) == digest_of(offered())
    assert "0x" + by_them.signature.hex() == SIGNER.sign(digest_of(offered()))


# --- the envelope -----------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(any_offer())
def test_any_offer_comes_back_from_its_envelope_and_fits_its_schema(offer: Offer) -> None:
    whole = replace(envelopes.sign(offer, SIGNER), evidence=Evidence(uri="x", media_type="y", hash=offer.evidence_root))
    data = envelopes.encode(whole)
    assert decode(data) == whole
    assert decode(data).offer.quote_id == offer.quote_id
    jsonschema.validate(json.loads(data), envelopes.schema())
    assert verify(whole, now_s=offer.valid_after) == SIGNER.address


FIELDS = sorted(json.loads(envelopes.encode(signed()))["quote"])


@pytest.mark.parametrize("name", FIELDS)
def test_a_changed_field_is_found_even_where_its_id_is_made_anew(name: str) -> None:
    document = json.loads(envelopes.encode(signed()))
    value = document["quote"][name]
    document["quote"][name] = (
        "mcycle" if name == "unit" else str(int(value) + 1) if value.isdigit() else value[:-1] + "f"
    )
    with pytest.raises(ForgeryError):
        decode(rfc8785.dumps(document))
    with pytest.raises(ForgeryError) as said:
        envelopes.of_plain(document)
    if "that of this quote is" not in str(said.value) or name == "quoteId":
        assert name in {
            "quoteId",
            "maxTotalAtomic",
            "maxUnits",
            "priceScale",
            "unitPriceAtomic",
        }  # those that contradict the rest
        return
    document["quote"]["quoteId"] = str(said.value).rsplit(maxsplit=1)[1]
    with pytest.raises(ForgeryError, match="signed by"):
        verify(envelopes.of_plain(document), now_s=None)


def spoilt(change: Any) -> bytes:
    document = json.loads(envelopes.encode(signed()))
    change(document)
    return rfc8785.dumps(document)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda d: d.update(views={}), "$.views: unknown field"),
        (lambda d: d["quote"].update(discount="1"), "$.quote.discount: unknown field"),
        (lambda d: d["quote"].pop("escrow"), "$.quote.escrow: missing field"),
        (lambda d: d["quote"].update(slaHash="0xab"), "$.quote: slaHash is '0xab'"),
        (lambda d: d["quote"].update(nonce="07"), "$.quote.nonce"),
        (lambda d: d["quote"].update(nonce=7), "$.quote.nonce"),
        (lambda d: d["quote"].update(asset=d["quote"]["asset"].upper()), "$.quote: asset"),
        (lambda d: d["quote"].update(chainId=str(2**256)), "$.quote: chainId"),
        (lambda d: d["quote"].update(maxTotalAtomic="1"), "$.quote: maxTotalAtomic"),
        (lambda d: d["signatures"][0].update(note="x"), "$.signatures[0].note: unknown field"),
        (lambda d: d["signatures"].append(d["signatures"][0]), "twice"),
        (lambda d: d["signatures"][0].update(scheme="sr25519"), "$.signatures[0].scheme"),
        (lambda d: d.update(evidence={"uri": "x", "mediaType": "y", "hash": "0x" + "0" * 64}), "$.evidence.hash"),
        (lambda d: d.update(schema="harness-quote/2"), "$.schema"),
    ],
)
def test_what_is_not_signed_cannot_be_smuggled_in(change: Any, where: str) -> None:
    with pytest.raises(ForgeryError) as said:
        decode(spoilt(change))
    assert where in str(said.value)


def test_a_second_spelling_of_an_envelope_is_refused() -> None:
    data = envelopes.encode(signed())
    for other in (data + b"\n", data.replace(b":", b": ", 1), data.replace(b'"unit"', b'"unit":"mcycle","unit"')):
        with pytest.raises(ForgeryError):
            decode(other)


def test_an_offer_is_good_for_its_time_only_and_a_dispute_may_ignore_the_clock() -> None:
    own = signed()
    assert verify(own, now_s=NOW_S) == SIGNER.address
    with pytest.raises(MisuseError, match="good until"):
        verify(own, now_s=NOW_S + 300)
    with pytest.raises(MisuseError, match="good from"):
        verify(own, now_s=NOW_S - 1)
    assert verify(own, now_s=NOW_S + 302, skew_s=5) == verify(own, now_s=None)


def test_an_offer_nobody_signed_or_a_stranger_did_is_no_offer() -> None:
    with pytest.raises(ForgeryError, match="did not sign"):
        verify(Envelope(offer=offered()), now_s=NOW_S)
    with pytest.raises(ForgeryError, match="did not sign"):
        verify(envelopes.sign(offered(), Signer(b"\x12" * 32)), now_s=NOW_S)
    both = envelopes.sign(signed(), Signer(b"\x12" * 32))
    assert verify(decode(envelopes.encode(both)), now_s=NOW_S) == SIGNER.address


@pytest.mark.parametrize("change", [{"chain_id": 1}, {"escrow": "0x" + "34" * 20}])
def test_a_signature_is_good_on_one_chain_and_for_one_escrow(change: dict[str, Any]) -> None:
    elsewhere = replace(signed(), offer=replace(offered(), **change))
    with pytest.raises(ForgeryError, match="signed by"):
        verify(elsewhere, now_s=NOW_S)


# --- money ------------------------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(any_offer(), st.data())
def test_held_and_captured_bracket_the_exact_price_and_differ_by_one_atom_at_most(
    offer: Offer, data: st.DataObject
) -> None:
    units = data.draw(st.integers(0, offer.max_units))
    exact = units * price_fraction(offer) * 10**offer.asset_decimals
    held, captured = held_atomic(offer, units), captured_atomic(offer, units)
    assert captured <= exact <= held <= offer.max_total_atomic
    assert held - captured == (exact.denominator > 1)


@pytest.mark.parametrize(("decimals", "usd"), [(6, "2.99"), (18, "2.99"), (2, "2.99"), (6, "0.34")])
def test_a_whole_hour_costs_what_the_quote_says_in_any_token(decimals: int, usd: str) -> None:
    """Truncated to atoms by the second it would lose 0.07 % of $2.99 and 0.5 % of $0.34."""
    quote = replace(quoted(), price_usd_per_hour=Decimal(usd))
    offer = make_offer(quote, terms(asset_decimals=decimals, max_units=3600))
    assert offer.max_total_atomic == Decimal(usd) * 10**decimals
    exact = Fraction(quote.price_usd_per_hour or 0) / 3600
    assert 0 <= exact - price_fraction(offer) < Fraction(1, 10 ** (decimals + 12))


def test_decimals_units_and_scales_cannot_be_taken_for_one_another() -> None:
    """The same digits with another meaning are another offer, with another signature."""
    own = signed()
    for change in ({"asset_decimals": 18}, {"unit": "mcycle"}):
        with pytest.raises(ForgeryError, match="signed by"):
            verify(replace(own, offer=replace(own.offer, **change)), now_s=None)
    with pytest.raises(MisuseError, match="maxTotalAtomic"):
        replace(own.offer, price_scale=6)


def test_a_token_worth_two_dollars_is_asked_for_half_as_often() -> None:
    one, two = offered(), offered(usd_per_asset=Decimal(2))
    assert abs(two.unit_price_atomic * 2 - one.unit_price_atomic) <= 1
    assert one.scoring_hash != two.scoring_hash


def test_tokens_of_a_model_are_priced_by_their_rate() -> None:
    offer = offered(unit="token-out", units_per_s=Decimal(500), price_scale=18, max_units=10**6)
    assert abs(price_fraction(offer) * 500 - price_fraction(offered())) < Fraction(1, 10**15)
    with pytest.raises(MisuseError, match="units_per_s"):
        offered(unit="token-in")


# --- from a quote -----------------------------------------------------------------------------------------------------


def test_an_offer_names_its_evidence_its_promise_and_its_price_inputs() -> None:
    offer, quote = offered(journal_head="ab" * 32), quoted()
    proof = evidence.evidence(quote, journal_head="ab" * 32)
    assert offer.evidence_root == "0x" + keccak.plain(proof).hex()
    assert json.loads(proof)["report"] == quote.report_digest
    assert json.loads(proof)["quote"] == codec.digest(quote)
    assert json.loads(evidence.sla(quote))["floor"] == str(quote.cycles_per_s)
    assert offer.sla_hash == evidence.hashed(evidence.sla(quote))
    assert offer.device_commitment == evidence.committed(quote.device_uuid, "0x" + "ab" * 32)
    assert offer.device_commitment != offered(device_salt="0x" + "ac" * 32).device_commitment
    assert offer == make_offer(codec.encode(quote), terms(journal_head="ab" * 32))


def price_inputs() -> Iterator[tuple[str, Quote, Decimal, Decimal | None]]:
    """Yield the quote with each input of its price changed in turn, and what it is sold with."""
    own, one = quoted(), Decimal(1)
    yield "usd_per_asset", own, Decimal("1.01"), None
    yield "units_per_s", own, one, Decimal(1)
    yield "method", replace(own, method="cost"), one, None
    for name, digest in own.digests.items():
        yield f"digests.{name}", replace(own, digests={**own.digests, name: f"{digest}0"}), one, None
    for field in fields(Terms):
        value = getattr(own.terms, field.name)
        changed: Any = (
            {"x": "1"} if isinstance(value, Mapping) else (not value) if isinstance(value, bool) else f"{value}1"
        )
        yield f"terms.{field.name}", replace(own, terms=replace(own.terms, **{field.name: changed})), one, None


def test_abuse_price_inputs_no_input_of_a_price_can_be_changed_without_another_scoring_hash() -> None:
    seen = {"as it is": evidence.hashed(evidence.scoring(quoted(), usd_per_asset=Decimal(1)))}
    assert seen["as it is"] == offered().scoring_hash
    for name, quote, usd, units in price_inputs():
        seen[name] = evidence.hashed(evidence.scoring(quote, usd_per_asset=usd, units_per_s=units))
    assert len(seen) == len(set(seen.values())) == 4 + len(quoted().digests) + len(fields(Terms))


def test_what_has_no_price_for_a_gpu_market_is_not_offered() -> None:
    from standin import StandIn

    cpu = price(on_cpu(), market=StandIn())
    with pytest.raises(MisuseError, match="not for a GPU market"):
        make_offer(cpu, terms())
    assert make_offer(cpu, terms(), gpu_only=False).unit_price_atomic > 0
    with pytest.raises(MisuseError, match="has no price"):
        make_offer(replace(quoted(), price_usd_per_hour=None, reasons=("emulated",)), terms())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"now_s": NOW_S + 86_400}, "too old to sell by"),
        ({"valid_for_s": 3601}, "valid_for_s"),
        ({"usd_per_asset": Decimal(0)}, "usd_per_asset"),
        ({"price_scale": 0}, "raise price_scale"),
        ({"asset_decimals": 37}, "asset_decimals"),
        ({"min_units": 9, "max_units": 8}, "minUnits"),
        ({"provider": "0x" + "AB" * 20}, "provider"),
        ({"device_salt": "0xab"}, "a salt is"),
    ],
)
def test_terms_that_make_no_sense_are_misuse(change: dict[str, Any], said: str) -> None:
    with pytest.raises(MisuseError, match=said):
        offered(**change)


@pytest.mark.parametrize(
    ("added", "given", "left"),
    [
        ({}, {}, ()),
        ({"sla_tolerance": "0.1"}, {}, ("promise",)),
        ({"usd_per_asset": "2"}, {}, ("price",)),
        ({"sla_tolerance": "0.1", "usd_per_asset": "2"}, {}, ("promise", "price")),
        ({"sla_tolerance": "0.1", "usd_per_asset": "2"}, {"tolerance": "0.1", "usd_per_asset": "2"}, ()),
    ],
)
def test_an_honest_offer_follows_from_its_quote_or_is_said_not_to_be_comparable(
    added: dict[str, str], given: dict[str, str], left: tuple[str, ...]
) -> None:
    own = offered(**{name: Decimal(text) for name, text in added.items()})
    known = {name: Decimal(text) for name, text in given.items()}
    assert check_quote(own, quoted(), **known) == left


@pytest.mark.parametrize(
    ("added", "given", "where"),
    [
        ({}, {"tolerance": "0.1"}, "slaHash"),
        ({"usd_per_asset": "2"}, {"usd_per_asset": "1"}, "unitPriceAtomic"),
    ],
)
def test_an_offer_of_other_terms_than_the_seller_says_is_refused(
    added: dict[str, str], given: dict[str, str], where: str
) -> None:
    own = offered(**{name: Decimal(text) for name, text in added.items()})
    with pytest.raises(ForgeryError, match=where):
        check_quote(own, quoted(), **{name: Decimal(text) for name, text in given.items()})


def test_an_offer_of_another_price_than_its_own_inputs_give_is_refused() -> None:
    own = offered()
    dear = own.unit_price_atomic + 1
    total = -(-own.max_units * dear // 10**own.price_scale)
    with pytest.raises(ForgeryError, match="unitPriceAtomic"):
        check_quote(replace(own, unit_price_atomic=dear, max_total_atomic=total), quoted())
    with pytest.raises(ForgeryError, match="scoringHash"):
        check_quote(replace(own, scoring_hash="0x" + "0" * 64), quoted(), usd_per_asset=Decimal(1))
    for wrong in ({"tolerance": Decimal("NaN")}, {"usd_per_asset": Decimal(0)}):
        with pytest.raises(MisuseError):
            check_quote(own, quoted(), **wrong)


def test_the_arithmetic_of_offers_names_no_float() -> None:
    """What measured numbers are allowed, money is not: a test reads the sources."""
    import ast

    room = Path(secp256k1.__file__).parents[1]
    for name in (
        "offer",
        "follows",
        "envelope",
        "evidence",
        "x402",
        "mpp",
        "commerce",
        "erc8183",
        "akash",
        "golem",
        "zerog",
        "table",
        "abi",
    ):
        tree = ast.parse(next(room.rglob(f"{name}.py")).read_text())
        for node in ast.walk(tree):
            assert not (isinstance(node, ast.Constant) and isinstance(node.value, float)), (name, node.lineno)
            assert not (isinstance(node, ast.Name) and node.id == "float"), (name, node.lineno)


def test_making_an_offer_loads_no_library_that_signs() -> None:
    code = "import sys, harness.market.offers.offer, harness.market.offers.envelope, harness.market.dialects.x402; print(*{m.split('.')[0] for m in sys.modules})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"eth_account", "coincurve", "pydantic", "numpy", "pandas", "pyarrow", "web3"} & set(found)
