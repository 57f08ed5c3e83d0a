"""Disputes: who may file one, what decides it, and what it cannot be used for; and the OpenAPI document, held to what is answered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import schemathesis
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import positive_data_acceptance
from shopfront import BUYER, OTHER, Front, front, header, report_at, required, signed
from test_serve_quotes import MANY, bought, code, serving

from harness.errors import ForgeryError, MisuseError
from harness.market.offers.evidence import hashed
from harness.market.offers.secp256k1 import Signer
from harness.market.sales.disputes import Finding, Promise, judge, promise_of, refund_atomic
from harness.market.sales.docket import Docket
from harness.market.sales.door import app
from harness.market.sales.journal import Entry
from harness.market.sales.journal_check import check
from harness.model import Report

if TYPE_CHECKING:
    import httpx

PROMISE = Promise(profile="general", floor_cycles_per_s=1000, tolerance=Fraction(1, 20), validators=1, agreeing=1)
speeds = st.integers(1, 2000)


def seen(low: int | None, high: int | None, name: str = "r") -> Finding:
    bounds = [None if x is None else Fraction(x) for x in (low, high)]
    return Finding(low_cycles_per_s=bounds[0], high_cycles_per_s=bounds[1], report=name)


# --- the rule ---------------------------------------------------------------------------------------------------------


@given(speeds, speeds)
@example(949, 949)
@example(950, 950)
@example(900, 950)
def test_a_promise_is_broken_if_and_only_if_the_upper_bound_is_below_the_floor_less_the_tolerance(
    a: int, b: int
) -> None:
    low, high = min(a, b), max(a, b)
    said = judge(PROMISE, [seen(low, high)])
    assert (said.verdict == "supports") == (high < 950)
    assert (said.verdict == "contradicts") == (low >= 950)
    due = refund_atomic(10_000, PROMISE, said)
    assert due == (10_000 * (1000 - high) // 1000 if high < 950 else 0)
    assert 0 <= due <= 10_000


@given(st.lists(st.sampled_from(["slow", "fast", "wide", "nothing"]), min_size=5, max_size=5))
def test_of_a_committee_no_minority_decides_and_no_order_matters(votes: list[str]) -> None:
    """Abuse: a captured evaluator. Four of five must agree, whoever comes first."""
    promise = replace(PROMISE, validators=5, agreeing=4)
    saw = {"slow": seen(1, 900), "fast": seen(950, 999), "wide": seen(900, 960), "nothing": seen(None, None)}
    said = judge(promise, [saw[vote] for vote in votes])
    assert (said.verdict == "supports") == (votes.count("slow") >= 4)
    assert (said.verdict == "contradicts") == (votes.count("fast") >= 2)
    assert judge(promise, [saw[vote] for vote in reversed(votes)]).verdict == said.verdict


def test_another_promise_than_the_signed_one_and_one_of_nothing_are_refused() -> None:
    document = (
        b'{"agreeing":1,"floor":null,"metric":"cycles_per_s","profile":"general","tolerance":"0.05","validators":1}'
    )
    with pytest.raises(ForgeryError):
        promise_of(document, hashed(b"another"))
    with pytest.raises(MisuseError, match="promised no speed"):
        promise_of(document, hashed(document))


# --- over HTTP --------------------------------------------------------------------------------------------------------


async def claim_of(made: Front, http: httpx.AsyncClient) -> dict[str, Any]:
    """Buy, let a minute pass, and return a claim about it."""
    quote, sale = await bought(http)
    now_s = int(made.clock())
    made.clock.ahead_s += 60
    return {
        "quote_id": quote["quote_id"],
        "capture_id": sale["transaction"],
        "metric": "cycles_per_s",
        "from_s": now_s + 1,
        "until_s": now_s + 50,
    }


async def filed(http: httpx.AsyncClient, claim: dict[str, Any], buyer: Signer = BUYER) -> httpx.Response:
    due = required(await http.post("/v1/disputes", json=claim))
    return await http.post("/v1/disputes", json=claim, headers=header(signed(due, buyer)))


def again(made: Front, seed: str, **more: Any) -> Report:
    """Return the report of a re-benchmark, as `harness run --seed` writes it."""
    return replace(report_at(made.clock(), **more), seed=seed)


@pytest.mark.parametrize(
    ("mem", "verdict", "state"), [(1500e9, "supports", "REBENCHMARKED"), (3026e9, "contradicts", "UPHELD"), (2950e9, "contradicts", "UPHELD")]
)  # fmt: skip
def test_abuse_sandbagging_a_dispute_is_decided_by_a_benchmark_with_a_fresh_seed(
    tmp_path: Path, mem: float, verdict: str, state: str
) -> None:
    async def ask(made: Front, http: httpx.AsyncClient) -> None:
        claim = await claim_of(made, http)
        answer = await filed(http, claim)
        assert answer.status_code == 201, answer.text
        dispute = answer.json()
        assert (dispute["state"], dispute["verdict"], len(dispute["seed"])) == ("DISPUTED", None, 32)
        url = f"/v1/disputes/{dispute['dispute_id']}"
        made.restock(*made.reports, again(made, "another seed", mem=1e9))
        made.counter._looked_s = float("-inf")
        assert (await http.get(url)).json()["state"] == "DISPUTED"  # a benchmark that was not asked for decides nothing
        made.restock(*made.reports, again(made, dispute["seed"], mem=mem))
        made.counter._looked_s = float("-inf")
        said = (await http.get(url)).json()
        assert (said["verdict"], said["state"]) == (verdict, state)
        assert "does not prove" in said["reason"]
        paid = made.facilitator.transfers[0]["value"]
        assert (int(said["refund_atomic"]) > 0) == (verdict == "supports")
        if verdict == "supports":
            share = 1 - int(said["measured_cycles_per_s"]) / 10**6
            assert int(said["refund_atomic"]) == pytest.approx(paid * share, abs=1)
            made.counter.docket.refunded(claim["quote_id"], "0xfeed")
            assert (await http.get(url)).json()["refunded_by"] == "0xfeed"
        made.restock(*made.reports, again(made, dispute["seed"], mem=1e9))
        made.counter._looked_s = float("-inf")
        assert (await http.get(url)).json()["verdict"] == verdict  # abuse: a verdict is not changed by a later one

    serving(tmp_path, ask)
    check(tmp_path / "journal.db")


def test_abuse_dispute_spam_one_a_capture_against_a_bond_by_who_paid(tmp_path: Path) -> None:
    async def ask(made: Front, http: httpx.AsyncClient) -> None:
        claim = await claim_of(made, http)
        stranger = await filed(http, claim, OTHER)
        assert stranger.status_code == 402
        assert "by who paid for it" in stranger.json()["detail"]
        due = required(await http.post("/v1/disputes", json=claim))
        assert int(due["accepts"][0]["amount"]) == made.facilitator.transfers[0]["value"] // 10
        first = await http.post("/v1/disputes", json=claim, headers=header(signed(due)))
        assert first.status_code == 201
        second = await http.post("/v1/disputes", json=claim, headers=header(signed(due)))
        assert code(second) == "already_decided"
        assert len(made.facilitator.transfers) == 2

    serving(tmp_path, ask)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"capture_id": "0xother"}, "misuse"),
        ({"quote_id": "0x" + "0" * 64}, "not_found"),
        ({"until_s": 2**40}, "misuse"),
        ({"from_s": 0}, "misuse"),
        ({"metric": "happiness"}, "invalid"),
    ],
)
def test_abuse_a_claim_about_something_else_is_refused_before_a_bond_is_asked_for(
    tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    async def ask(made: Front, http: httpx.AsyncClient) -> None:
        claim = await claim_of(made, http)
        assert code(await http.post("/v1/disputes", json=claim | change)) == says

    serving(tmp_path, ask)


def test_abuse_a_claim_after_its_window_and_one_about_what_nobody_paid_for(tmp_path: Path) -> None:
    async def ask(made: Front, http: httpx.AsyncClient) -> None:
        claim = await claim_of(made, http)
        made.clock.ahead_s += 600 + 86_400
        assert code(await http.post("/v1/disputes", json=claim)) == "already_decided"

    serving(tmp_path, ask)


def test_abuse_evaluator_silence_lapses_and_is_held_against_nobody(tmp_path: Path) -> None:
    async def ask(made: Front, http: httpx.AsyncClient) -> None:
        dispute = (await filed(http, await claim_of(made, http))).json()
        made.clock.ahead_s += 86_401
        made.counter._looked_s = float("-inf")
        said = (await http.get(f"/v1/disputes/{dispute['dispute_id']}")).json()
        assert (said["state"], said["verdict"], said["refund_atomic"]) == ("CLOSED", None, None)

    serving(tmp_path, ask)


def test_abuse_a_report_without_a_score_takes_no_validators_seat(tmp_path: Path) -> None:
    async def ask(made: Front, http: httpx.AsyncClient) -> None:
        dispute = (await filed(http, await claim_of(made, http))).json()
        slow = again(made, dispute["seed"], mem=1500e9)
        seal = replace(slow.seal, outcomes=slow.seal.outcomes[:1])
        made.restock(*made.reports, replace(slow, outcomes=slow.outcomes[:1], seal=seal))
        assert (await looked(made, http, dispute))["state"] == "DISPUTED"
        made.restock(*made.reports, slow)
        assert (await looked(made, http, dispute))["verdict"] == "supports"

    serving(tmp_path, ask)


@pytest.mark.parametrize(("sealed_s", "state"), [(86_300, "REBENCHMARKED"), (86_500, "CLOSED")])
def test_what_decides_is_when_it_was_measured_and_not_when_somebody_asked(
    tmp_path: Path, sealed_s: int, state: str
) -> None:
    async def ask(made: Front, http: httpx.AsyncClient) -> None:
        dispute = (await filed(http, await claim_of(made, http))).json()
        made.clock.ahead_s += sealed_s
        made.restock(*made.reports, again(made, dispute["seed"], mem=1500e9))
        made.clock.ahead_s += 30 * 86_400
        assert (await looked(made, http, dispute))["state"] == state

    serving(tmp_path, ask)


def test_a_dispute_that_could_not_be_opened_is_opened_at_the_next_start(tmp_path: Path) -> None:
    async def ask(made: Front, http: httpx.AsyncClient) -> None:
        claim = await claim_of(made, http)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Docket, "file", broken)
            dispute = (await filed(http, claim)).json()
        assert (dispute["state"], dispute["seed"]) == ("BOND_CAPTURED", None)
        made.counter.start()
        found = await looked(made, http, dispute)
        assert (found["state"], len(found["seed"])) == ("DISPUTED", 32)

    def broken(*_: Any) -> None:
        message = "the disk is full"
        raise OSError(message)

    serving(tmp_path, ask)
    assert check(tmp_path / "journal.db").undelivered == ()


async def looked(made: Front, http: httpx.AsyncClient, dispute: dict[str, Any]) -> dict[str, Any]:
    """Return where a dispute stands, after a look at the reports."""
    made.counter._looked_s = float("-inf")
    found: dict[str, Any] = (await http.get(f"/v1/disputes/{dispute['dispute_id']}")).json()
    return found


def test_two_disputes_at_once_cost_one_bond(tmp_path: Path) -> None:
    async def ask(made: Front, http: httpx.AsyncClient) -> None:
        import asyncio

        claim = await claim_of(made, http)
        due = required(await http.post("/v1/disputes", json=claim))
        answers = await asyncio.gather(
            *(http.post("/v1/disputes", json=claim, headers=header(signed(due))) for _ in range(4))
        )
        assert sorted(one.status_code for one in answers) == [201, 409, 409, 409]
        assert len(made.facilitator.transfers) == 2

    serving(tmp_path, ask)


def test_abuse_a_promise_that_was_taken_for_a_quotes_id_is_kept_and_tried_all_the_same(tmp_path: Path) -> None:
    """The hash of a promise is public, and a cheap purchase could claim to replace an offer of that id: another buyer's promise would not be kept."""

    async def ask(made: Front, http: httpx.AsyncClient) -> None:
        quote = (await http.post("/v1/quotes", json={"seconds": 60})).json()
        promised = quote["envelope"]["quote"]["slaHash"]
        for unknown in (promised, "0x" + "0" * 63 + "1"):
            assert code(await http.post("/v1/quotes", json={"seconds": 60, "supersedes": unknown})) == "not_found"
        replacing = await http.post("/v1/quotes", json={"seconds": 60, "supersedes": quote["quote_id"]})
        assert replacing.status_code == 201
        made.journal.append(Entry(quote_id=promised, expected="DRAFT", state="EVIDENCED"))
        answer = await filed(http, await claim_of(made, http))
        assert answer.status_code == 201, answer.text

    serving(tmp_path, ask)


def test_nothing_is_refunded_that_is_not_due(tmp_path: Path) -> None:
    async def ask(made: Front, http: httpx.AsyncClient) -> None:
        claim = await claim_of(made, http)
        with pytest.raises(MisuseError, match="CAPTURED, not REBENCHMARKED"):
            Docket(made.journal).refunded(claim["quote_id"], "0xfeed")

    serving(tmp_path, ask)


# --- the OpenAPI document ---------------------------------------------------------------------------------------------


@pytest.fixture
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    made = front(tmp_path_factory.mktemp("api"))
    made.counter.start()
    yield schemathesis.openapi.from_asgi("/openapi.json", app(made.counter, MANY))
    made.journal.close()


schema = schemathesis.pytest.from_fixture("api")


@pytest.mark.slow
@schema.parametrize()
@settings(max_examples=2, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_what_the_document_says_is_what_is_answered(case: Any) -> None:
    # A well-formed request for what does not exist, or costs money, is refused as it should be.
    case.call_and_validate(excluded_checks=[positive_data_acceptance])
