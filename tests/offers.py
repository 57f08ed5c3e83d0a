"""A priced GPU, its seller's key, and offers made of it: what tests of the market start from."""

from __future__ import annotations

import functools
from typing import Any

from hypothesis import strategies as st
from test_price import ask, node

from harness.market.offers import envelope as envelopes
from harness.market.offers.envelope import Envelope
from harness.market.offers.evidence import epoch_s
from harness.market.offers.offer import Offer, OfferTerms, held_atomic, make_offer
from harness.market.offers.secp256k1 import Signer
from harness.model import Quote

__all__ = ["GLM", "NOW_S", "SIGNER", "USDC", "any_offer", "offered", "quoted", "signed", "terms"]

SIGNER = Signer(b"\x11" * 32)
USDC = "0x833589fcd6edb6e08f4c7c32d4f71b54bda02913"
GLM = "0x0b220b82f3ea3b7f6d9a1d8ab58930c064a2b5bf"


@functools.cache
def quoted() -> Quote:
    return ask(node())


NOW_S = epoch_s("2026-11-24T12:06:00Z")  # a minute after the report was sealed


def terms(**more: Any) -> OfferTerms:
    known: dict[str, Any] = {
        "provider": SIGNER.address,
        "pay_to": "0x" + "22" * 20,
        "asset": USDC,
        "asset_decimals": 6,
        "chain_id": 8453,
        "now_s": NOW_S,
        "nonce": 7,
        "device_salt": "0x" + "ab" * 32,
        "escrow": "0x" + "33" * 20,
        "evaluator": "0x" + "44" * 20,
        "agent_registry": "0x" + "55" * 20,
        "agent_id": 22,
    }
    return OfferTerms(**(known | more))


def offered(**more: Any) -> Offer:
    return make_offer(quoted(), terms(**more))


def signed(**more: Any) -> Envelope:
    return envelopes.sign(offered(**more), SIGNER)


_address = st.integers(0, 2**160 - 1).map(lambda n: f"0x{n:040x}")
_hash = st.integers(0, 2**256 - 1).map(lambda n: f"0x{n:064x}")


@st.composite
def any_offer(draw: st.DrawFn, /, **fixed: Any) -> Offer:
    """Draw an offer from all that there may be, large numbers and 18 decimals included."""
    price, scale = draw(st.integers(1, 2**100)), draw(st.integers(0, 36))
    least, more = draw(st.integers(1, 2**40)), draw(st.integers(0, 2**60))
    begin, length, late = draw(st.integers(0, 2**40)), draw(st.integers(1, 2**20)), draw(st.integers(0, 2**20))
    values: dict[str, Any] = {
        "revision": draw(st.integers(0, 2**32 - 1)),
        "supersedes": draw(_hash),
        "provider": SIGNER.address,
        "agent_registry": draw(_address),
        "agent_id": draw(st.integers(0, 2**256 - 1)),
        "pay_to": draw(_address),
        "asset": draw(_address),
        "asset_decimals": draw(st.sampled_from([0, 2, 6, 8, 18, 36])),
        "chain_id": draw(st.integers(1, 2**64)),
        "unit": draw(st.sampled_from(["gpu-second", "mcycle", "token-in", "token-out"])),
        "unit_price_atomic": price,
        "price_scale": scale,
        "min_units": least,
        "max_units": least + more,
        "max_total_atomic": -(-(least + more) * price // 10**scale),
        "valid_after": begin,
        "valid_until": begin + length,
        "evidence_until": begin + length + late,
        "nonce": draw(st.integers(0, 2**256 - 1)),
        **{name: draw(_hash) for name in ("evidence_root", "sla_hash", "scoring_hash", "device_commitment")},
        "evaluator": draw(_address),
        "escrow": draw(_address),
    }
    made = Offer(**(values | fixed))
    assert held_atomic(made, made.max_units) == made.max_total_atomic
    return made
