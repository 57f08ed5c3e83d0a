"""Feedback: what is said of a seller counts by who surely paid him, once each, and never by himself."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from offers import SIGNER, USDC, offered, signed
from test_market_views import PAYER, SAID, sold

from harness.errors import ForgeryError, MisuseError
from harness.market.dialects.schemas import schema_of
from harness.market.offers import envelope as envelopes
from harness.market.offers.envelope import Envelope
from harness.market.offers.keccak import keccak256
from harness.market.offers.secp256k1 import Signer
from harness.market.sales.feedback import (
    KINDS,
    Agent,
    Given,
    Transfer,
    from_feedback,
    to_feedback,
    weighed,
)

OWNER = "0x" + "77" * 20
AGENT = Agent(
    chain_id=8453,
    registry="0x" + "55" * 20,
    agent_id=22,
    own=frozenset({SIGNER.address, "0x" + "22" * 20, OWNER}),
)
sale = functools.cache(signed)


def buyer(n: int) -> str:
    return f"0x{n:040x}"


def file(value: int, payer: str = PAYER, own: Envelope | None = None, **more: Any) -> dict[str, Any]:
    own = own or sale()
    return to_feedback(own, sold(own, payer, **more), **(SAID | {"value": value}))


def said(document: Any, author: str | None = None) -> Given:
    data = json.dumps(document).encode()
    client = author or document["clientAddress"].rpartition(":")[2]
    return Given(author=client, file_hash="0x" + keccak256(data).hex(), file=data)


def on_chain(*files: dict[str, Any]) -> set[Transfer]:
    found = {from_feedback(one).transfer for one in files}
    return {one for one in found if one}


def test_feedback_is_a_view_of_a_sale_with_its_payment() -> None:
    made = file(9977)
    found = from_feedback(json.loads(json.dumps(made)))
    amount = sold(sale()).amount_atomic
    assert found.transfer == Transfer(
        chain_id=8453, transaction="0x" + "66" * 32, payer=PAYER, pay_to="0x" + "22" * 20, asset=USDC, amount_atomic=amount or 0
    )  # fmt: skip
    assert (found.client, found.kind, found.value, made["tag2"]) == (PAYER, "uptime", 9977, "gpu-second")
    assert schema_of("erc8004-feedback")["properties"]["tag1"]["enum"] == list(KINDS)
    unpaid = file(0, transaction=None)
    assert "proofOfPayment" not in unpaid
    assert from_feedback(unpaid).transfer is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"id": "0x" + "00" * 32}, "the sale is of 0x00"),
        ({"asset": "0x" + "99" * 20}, "in 0x9999"),
        ({"network": "eip155:1"}, "on eip155:1;"),
        ({"payer": None}, "by None"),
        ({"amount_atomic": 1}, "1 atoms were paid"),
        ({"transaction": "pending"}, "transaction"),
    ],
)
def test_what_is_no_payment_for_the_offer_proves_nothing(change: dict[str, Any], says: str) -> None:
    with pytest.raises(MisuseError, match=says):
        to_feedback(sale(), replace(sold(sale()), **change), **SAID)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "revenues"},
        {"value": 10_001},
        {"value": -1},
        {"value": True},
        {"created_at": "yesterday"},
        {"created_at": "2026-13-26T12:00:00Z"},
    ],
)
def test_what_says_nothing_is_no_feedback(change: dict[str, Any]) -> None:
    with pytest.raises(MisuseError):
        to_feedback(sale(), sold(sale()), **(SAID | change))
    with pytest.raises(MisuseError, match="no agent"):
        file(1, own=sale(agent_registry="0x" + "00" * 20, agent_id=0))


def test_abuse_self_dealing_the_sellers_own_feedback_weighs_nothing_even_if_paid() -> None:
    honest, praise = file(4000, buyer(1)), [file(10_000, own) for own in sorted(AGENT.own)]
    found = weighed([said(one) for one in (honest, *praise)], AGENT, kind="uptime", seen=on_chain(honest, *praise))
    assert (found.value, found.payer_count) == (Fraction(40), 1)
    assert [why for _, why in found.raw] == [None] + ["by the agent itself"] * 3


def test_abuse_self_dealing_many_addresses_without_a_payment_that_was_seen_weigh_nothing() -> None:
    """A hundred Sybils: some claim no payment, some one that never was, some one of somebody else's."""
    honest = file(4000, buyer(1))
    unpaid = [said(file(10_000, buyer(n), transaction=None)) for n in range(100, 130)]
    claimed = [said(file(10_000, buyer(n))) for n in range(130, 160)]
    stolen = [said(honest, author=buyer(n)) for n in range(160, 190)]
    everything = [said(honest), *unpaid, *claimed, *stolen]
    found = weighed(everything, AGENT, kind="uptime", seen=on_chain(honest))
    assert (found.value, found.payer_count) == (Fraction(40), 1)
    assert [one for one, _ in found.raw] == everything
    assert [why for _, why in found.raw[1::30]] == [
        "no proof of payment",
        "its payment was not found",
        f"written by {buyer(160)}, not by the payer",
    ]
    nothing = weighed(everything, AGENT, kind="uptime", seen=[])
    assert (nothing.value, nothing.payer_count) == (None, 0)


def test_abuse_self_dealing_offers_in_the_agents_name_that_it_did_not_sign_weigh_nothing() -> None:
    """A rival names the agent in an offer of his own, for an atom, or to his own address: to praise or to defame."""
    rival = Signer(b"\x33" * 32)
    forged = envelopes.sign(offered(nonce=8), rival)
    own = envelopes.sign(offered(provider=rival.address), rival)
    elsewhere = sale(pay_to=buyer(5))
    files = [file(0, buyer(n), one) for n, one in enumerate((forged, own, elsewhere, sale(agent_id=23)), 1)]
    found = weighed([said(one) for one in files], AGENT, kind="uptime", seen=on_chain(*files))
    assert found.value is None
    reasons = [why or "" for _, why in found.raw]
    for why, says in zip(reasons, ("did not sign", "not the agent's", "not the agent's", "another agent"), strict=True):
        assert says in why


def test_a_file_other_than_the_registry_names_and_another_kind_are_kept_and_weigh_nothing() -> None:
    one = file(5000)
    good = said(one)
    wrong = [
        replace(good, file=good.file + b" "),
        said(one | {"valueDecimals": 0}),
        said(one | {"x": 1}),
        Given(author=PAYER, file_hash="0x" + keccak256(b"{").hex(), file=b"{"),
    ]
    found = weighed([good, *wrong], AGENT, kind="uptime", seen=on_chain(one))
    assert (found.value, found.payer_count, len(found.raw)) == (Fraction(50), 1, 5)
    assert all(why for _, why in found.raw[1:])
    assert weighed([good], AGENT, kind="speed", seen=on_chain(one)).raw[0][1] == "of another kind: uptime"
    with pytest.raises(ForgeryError, match="unknown field"):
        from_feedback(one | {"x": 1})


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 10_000)), min_size=1, max_size=8), st.randoms())
@settings(max_examples=15)
def test_abuse_self_dealing_one_payer_counts_once_and_the_order_does_not(
    votes: list[tuple[int, int]], order: Any
) -> None:
    files = [file(value, buyer(n)) for n, value in votes]
    seen, events = on_chain(*files), [said(one) for one in files]
    found = weighed(events, AGENT, kind="uptime", seen=seen)
    assert found.payer_count == len({n for n, _ in votes})
    order.shuffle(events)
    assert weighed(events, AGENT, kind="uptime", seen=seen).value == found.value
    loud = weighed(events + [said(files[0])] * 9, AGENT, kind="uptime", seen=seen)
    assert loud.payer_count == found.payer_count
    low, high = (Fraction(pick(v for _, v in votes), 100) for pick in (min, max))
    assert found.value is not None
    assert low <= found.value <= high


def test_a_loud_payer_moves_the_number_no_more_than_a_quiet_one() -> None:
    files = [file(9000, buyer(1)), file(9000, buyer(2)), file(0, buyer(3))]
    events = [said(one) for one in files] + [said(files[2])] * 50
    found = weighed(events, AGENT, kind="uptime", seen=on_chain(*files))
    assert (found.value, found.payer_count) == (Fraction(90), 3)
