"""The market model: monotone, honest about what it does not know, and the same wherever and in whatever order it is made."""

from __future__ import annotations

import copy
import itertools
import json
import math
import random
import sys
from dataclasses import replace
from datetime import date
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.cli import cli
from harness.errors import FailureError, MisuseError
from harness.fitting import cells, refresh
from harness.fitting.backtest import SPLITS, Backtest, _ahead, _covered, _folds, _quantile, backtest, refit
from harness.fitting.baselines import BASELINES
from harness.fitting.choice import errors_left_out, mean_error
from harness.fitting.fit import Settings, as_json, fit
from harness.fitting.offers import Offer, Origin, read_offers
from harness.fitting.order import in_order, pairs
from harness.render.backtest import backtest_markdown
from harness.scoring.anchor import IndexPrint
from harness.scoring.market_document import Document, Segment
from harness.scoring.market_model import Features, MarketModel
from harness.scoring.sheets import find_sheet, sheets
from harness.scoring.tables import table

MODEL = MarketModel.load()
SNAPSHOT = cells.shipped_snapshot()
RATES = ("fp16_flops_per_s", "fp32_flops_per_s", "fp64_flops_per_s", "memory_bytes_per_s", "memory_bytes")
FEW = {"RTX-4090", "RTX-3090", "H100-PCIe-80GB", "H100-SXM-80GB", "A100-PCIe-80GB", "RTX-A6000", "L40", "RTX-A4000"}
SEGMENTS: tuple[Segment, ...] = ("hyperscaler", "neocloud", "marketplace")


def sheet(card: str) -> Features:
    found = MODEL.features_of(card)
    assert found
    return found


def price(card: str, segment: Segment = "marketplace", **given: Any) -> float:
    found = MODEL.estimate(given.pop("features", sheet(card)), segment=segment, gpu_name=card, **given)
    assert found.log_price is not None, found.reasons
    return math.exp(found.log_price)


# --- a better card is never cheaper -----------------------------------------------------------------------------------

cards = st.sampled_from(sorted(sheets()))
segments = st.sampled_from(SEGMENTS)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    cards,
    segments,
    st.sampled_from([None, "vastai", "aws", "nosuch"]),
    st.dictionaries(st.sampled_from(RATES), st.floats(1.0, 1.4)),
    st.dictionaries(st.sampled_from(RATES), st.floats(0.5, 1.2)),
    st.sets(st.sampled_from(RATES)),
    st.booleans(),
    st.dates(date(2025, 11, 1), date(2027, 6, 1)),
)
def test_better_in_any_rate_is_never_cheaper(
    card: str,
    segment: Segment,
    provider: str | None,
    gains: dict[str, float],
    losses: dict[str, float],
    measured: set[str],
    named: bool,
    at: date,
) -> None:
    worse = replace(
        sheet(card), measured=frozenset(measured), **{n: getattr(sheet(card), n) * x for n, x in losses.items()}
    )
    better = replace(worse, **{n: getattr(worse, n) * x for n, x in gains.items()})
    name = card if named else None
    low, high = (
        MODEL.estimate(f, segment=segment, provider=provider, gpu_name=name, at=at).log_price for f in (worse, better)
    )
    if low is not None and high is not None:
        assert high >= low - 1e-12


@pytest.mark.parametrize("segment", SEGMENTS)
def test_no_card_is_dearer_than_a_better_one_of_its_class(segment: Segment) -> None:
    usd = {key: price(key, segment) for key in sheets()}
    for better, worse in pairs():
        assert usd[better] >= usd[worse], (better, worse)


@pytest.mark.parametrize("segment", SEGMENTS)
@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ("RTX-5090", "RTX-4090"),
        ("RTX-4090", "T4"),
        ("RTX-4090", "RTX-3090"),
        ("H200-SXM-141GB", "H100-SXM-80GB"),
        ("H100-SXM-80GB", "A100-SXM-80GB"),
        ("B200-SXM-180GB", "H200-SXM-141GB"),
        ("L40S", "L4"),
        ("RTX-PRO-6000-WS", "RTX-5090"),
    ],
)
def test_pairs_that_price_lists_get_wrong(better: str, worse: str, segment: Segment) -> None:
    assert price(better, segment) > price(worse, segment)


def test_an_h200_gains_over_an_h100_by_its_memory_alone() -> None:
    parts = {
        card: {c.name: c.log_factor for c in MODEL.estimate(sheet(card), gpu_name=card).contributions}
        for card in ("H200-SXM-141GB", "H100-SXM-80GB")
    }
    h200, h100 = parts["H200-SXM-141GB"], parts["H100-SXM-80GB"]
    assert h200["memory_bytes_per_s"] + h200["memory_bytes"] > h100["memory_bytes_per_s"] + h100["memory_bytes"]


def test_a_falling_curve_is_refused() -> None:
    document = copy.deepcopy(dict(table("market_model")))
    document["curves"][3]["weight"] = -0.01
    with pytest.raises(MisuseError, match="curve 3 falls"):
        MarketModel.from_json(document)


def slowly(document: Document, segment: Segment, at: dict[str, float]) -> float:
    """Return the sum of the curves by their definition."""
    total = 0.0
    for curve in document.curves:
        if curve.segment in {None, segment}:
            x = math.fsum(share * at[name] for name, share in curve.on.items())
            total += curve.weight * (
                x if curve.knot is None else 1 / (1 + math.exp((curve.knot - x) / document.curve_width))
            )
    return total


@pytest.mark.parametrize("segment", SEGMENTS)
def test_what_a_rate_adds_is_its_average_over_all_orders(segment: Segment) -> None:
    d, rng = MODEL.document, random.Random(7)  # noqa: S311 - no secret
    for _ in range(20):
        at = {name: rng.uniform(-4, 4) for name in d.axes}
        found = MODEL._curves[segment].parts(at)
        for name in d.axes:
            steps = []
            for order in itertools.permutations(d.axes):
                before = {n: at[n] if order.index(n) < order.index(name) else 0.0 for n in d.axes}
                steps.append(slowly(d, segment, before | {name: at[name]}) - slowly(d, segment, before))
            assert found[name] == pytest.approx(math.fsum(steps) / len(steps), abs=1e-12)
        assert MODEL._curves[segment].base == pytest.approx(slowly(d, segment, dict.fromkeys(d.axes, 0.0)), abs=1e-12)


def test_a_knot_that_cannot_be_computed_with_is_refused() -> None:
    document = copy.deepcopy(dict(table("market_model")))
    step = next(curve for curve in document["curves"] if curve["knot"] is not None)
    step["knot"] = 1e4
    with pytest.raises(MisuseError, match=r"the knot of curve \d+ is 10000.0, more than 300 times the width"):
        MarketModel.from_json(document)


def test_effects_move_no_more_than_order_needs() -> None:
    import numpy as np

    keys = sorted(key for key, row in sheets().items() if row.card_class == "workstation")
    draw = random.Random(7)  # noqa: S311 - no secret
    free = {key: draw.gauss(0, 0.1) for key in keys}
    trust = {key: draw.uniform(50, 200) for key in keys}
    held = in_order(free, trust, {key: np.zeros(1) for key in keys})
    orders = [(b, w) for b, w in pairs() if b in free and w in free]
    assert all(held[b] >= held[w] for b, w in orders)
    assert any(free[b] < free[w] for b, w in orders)
    # The least change: of all that keep the order, none between here and where the effects would like to be is nearer to them.
    cost = sum(trust[k] * (held[k] - free[k]) ** 2 for k in keys)
    for _ in range(5):
        other = in_order({k: held[k] + draw.gauss(0, 0.02) for k in keys}, trust, {key: np.zeros(1) for key in keys})
        assert sum(trust[k] * (other[k] - free[k]) ** 2 for k in keys) > cost - 1e-3


# --- what a name is worth ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("card", ["RTX-4090", "RTX-2080", "L40S", "H100-SXM-80GB"])
def test_a_slow_card_is_priced_as_what_it_is_and_not_by_its_name(card: str) -> None:
    whole = sheet(card)
    rates = ("fp16_flops_per_s", "memory_bytes_per_s", "fp32_flops_per_s")
    reach = {name: axis.reach_fraction for name, axis in MODEL.document.axes.items()}
    slow = replace(whole, measured=frozenset(rates), **{n: 0.6 * getattr(whole, n) * reach.get(n, 1) for n in rates})
    named, nameless = (MODEL.estimate(slow, gpu_name=name).log_price for name in (card, None))
    sound = math.log(price(card, "neocloud"))
    assert named is not None
    assert nameless is not None
    effect = MODEL.document.cards[card].effect
    assert named - nameless <= max(effect, 0) * 0.6 + 1e-9  # most of a premium is gone
    assert named < sound + math.log(0.85)


def test_measured_rates_are_read_against_what_sound_cards_reach() -> None:
    whole = sheet("RTX-4090")
    axes = MODEL.document.axes
    reached = replace(
        whole,
        measured=frozenset({"fp16_flops_per_s", "memory_bytes_per_s"}),
        fp16_flops_per_s=whole.fp16_flops_per_s * axes["fp16_flops_per_s"].reach_fraction,
        memory_bytes_per_s=whole.memory_bytes_per_s * axes["memory_bytes_per_s"].reach_fraction,
    )
    found = MODEL.estimate(reached, segment="marketplace", gpu_name="RTX-4090")
    assert found.basis == "measured"
    assert found.log_price == pytest.approx(math.log(price("RTX-4090")), abs=1e-9)


@pytest.mark.parametrize(
    ("name", "memory_gib", "key"),
    [
        ("NVIDIA GeForce RTX 4090", None, "RTX-4090"),
        ("Tesla T4", 15, "T4"),
        ("NVIDIA GeForce RTX 4060 Ti", 16, "RTX-4060-Ti-16GB"),
        ("NVIDIA GeForce RTX 4060 Ti", None, None),
        ("NVIDIA GeForce RTX 4090", 48, None),
        ("H100 SXM", None, "H100-SXM-80GB"),
        ("RTX 9090", None, None),
    ],
)
def test_a_sheet_is_found_by_any_spelling_and_never_for_another_card(
    name: str, memory_gib: int | None, key: str | None
) -> None:
    found = find_sheet(name, memory_gib << 30 if memory_gib else None)
    assert (found.key if found else None) == key


# --- intervals, age, refusals -----------------------------------------------------------------------------------------


def half(**given: Any) -> float:
    found = MODEL.estimate(given.pop("features", sheet("RTX-4090")), **given)
    assert found.high is not None
    assert found.low is not None
    return (found.high - found.low) / 2


def test_what_was_never_priced_is_said_and_has_a_wider_interval() -> None:
    never = next(key for key in sheets() if key not in {c.card for c in SNAPSHOT.cells})
    known = MODEL.estimate(sheet("RTX-4090"), provider="vastai", gpu_name="RTX-4090")
    found = MODEL.estimate(sheet(never), provider="vastai", gpu_name=never)
    assert (known.basis, found.basis) == ("spec", "unmeasured")
    assert half(features=sheet(never), provider="vastai", gpu_name=never) > half(provider="vastai", gpu_name="RTX-4090")
    assert half(gpu_name="RTX-4090") > half(provider="vastai", gpu_name="RTX-4090")
    assert half(features=sheet(never)) > half(gpu_name="RTX-4090")


def test_an_old_snapshot_widens_the_interval_and_a_very_old_one_has_no_price() -> None:
    today, year, later = date.fromisoformat(MODEL.document.as_of), date(2027, 10, 10), date(2029, 1, 1)
    assert half(at=year, gpu_name="RTX-4090") > 1.15 * half(at=today, gpu_name="RTX-4090")
    assert any("12 months older" in r for r in MODEL.estimate(sheet("RTX-4090"), at=year).reasons)
    withheld = MODEL.estimate(sheet("RTX-4090"), at=later)
    assert withheld.withheld
    assert withheld.log_price is None
    assert "too old" in withheld.reasons[0]


def test_what_no_such_seller_offers_is_told_and_has_a_wider_interval() -> None:
    consumer, data_centre = (
        MODEL.estimate(sheet(card), segment="hyperscaler", gpu_name=card) for card in ("RTX-4090", "T4")
    )
    assert consumer.reasons == ("no hyperscaler was seen to offer a consumer card: the interval is wider",)
    assert not data_centre.reasons
    assert consumer.high is not None and consumer.log_price is not None  # noqa: PT018 - for the type checker
    assert data_centre.high is not None and data_centre.log_price is not None  # noqa: PT018
    assert consumer.high - consumer.log_price > data_centre.high - data_centre.log_price


def test_prices_of_last_year_are_lower() -> None:
    assert price("H100-SXM-80GB", "neocloud", at=date(2025, 12, 7)) < 0.9 * price("H100-SXM-80GB", "neocloud")


def test_out_of_range_is_withheld_and_just_beyond_is_told() -> None:
    b300 = sheet("B300-SXM-288GB")
    beyond, far = (replace(b300, memory_bytes=b300.memory_bytes * x) for x in (1.6, 4))
    told, withheld = MODEL.estimate(beyond), MODEL.estimate(far)
    assert not told.withheld
    assert "memory_bytes lies 60% beyond" in " ".join(told.reasons)
    assert withheld.withheld
    assert "out of range: memory_bytes" in withheld.reasons[0]


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_rate_that_is_no_number_is_misuse(value: float) -> None:
    with pytest.raises(MisuseError, match="fp16_flops_per_s must be a positive number"):
        MODEL.estimate(replace(sheet("T4"), fp16_flops_per_s=value))


def test_contributions_sum_to_the_price() -> None:
    found = MODEL.estimate(sheet("L4"), provider="lambdalabs", gpu_name="L4", at=date(2026, 1, 5))
    assert found.log_price is not None
    assert math.fsum(c.log_factor for c in found.contributions) == pytest.approx(found.log_price, abs=1e-12)
    assert {"base", "fp16_flops_per_s", "segment", "seller", "date"} <= {c.name for c in found.contributions}


def test_a_known_seller_is_priced_as_the_kind_that_it_is() -> None:
    one, other = (
        MODEL.estimate(sheet("T4"), segment=s, provider="Vast.ai", gpu_name="T4") for s in ("neocloud", "marketplace")
    )
    assert one.log_price == other.log_price
    assert "vast.ai is a marketplace" in one.reasons[0].lower()


# --- index ------------------------------------------------------------------------------------------------------------

PRINT = IndexPrint(card_class="consumer", date="2027-09-01", log_ratio=0.3, seller_count=5, offer_count=20, log_mad=0.1)


def test_a_sound_print_moves_the_price_and_resets_its_age() -> None:
    at = date(2027, 10, 1)
    stale, moved = (MODEL.estimate(sheet("RTX-4090"), gpu_name="RTX-4090", at=at, index=i) for i in ([], [PRINT]))
    assert stale.log_price is not None
    assert moved.log_price == pytest.approx(stale.log_price + 0.3, abs=1e-12)
    assert half(at=at, index=[PRINT]) < half(at=at)
    other = MODEL.estimate(sheet("H100-SXM-80GB"), at=at, index=[PRINT])
    assert other == MODEL.estimate(sheet("H100-SXM-80GB"), at=at)


@pytest.mark.parametrize(
    ("change", "why"),
    [({"seller_count": 3}, "thin: 3 sellers"), ({"offer_count": 7}, "thin: 7 offers"), ({"log_mad": 0.5}, "disputed")],
)
def test_a_thin_or_disputed_print_is_withheld(change: dict[str, Any], why: str) -> None:
    at = date(2027, 10, 1)
    found = MODEL.estimate(sheet("RTX-4090"), at=at, index=[replace(PRINT, **change)])
    assert found.log_price == MODEL.estimate(sheet("RTX-4090"), at=at).log_price
    assert why in found.reasons[0]


def test_an_index_is_one_say_a_seller() -> None:
    offers: list[Offer] = []
    for seller, factor in (("one", 1.2), ("two", 1.2), ("three", 1.2), ("loud", 3.0)):
        for card in ("RTX-4090", "RTX-3090") * (10 if seller == "loud" else 1):
            told = MODEL.estimate(sheet(card), segment="marketplace", gpu_name=card)
            assert told.log_price is not None
            usd = factor * math.exp(told.log_price) * (1 + len(offers) * 1e-9)
            offers.append(offer(seller, card, f"{usd:.9f}", day="2027-09-01"))
    (found,) = refresh.index_of(offers, MODEL)
    assert (found.seller_count, found.offer_count) == (4, 26)
    assert math.exp(found.log_ratio) == pytest.approx(1.2, rel=1e-6)


# --- offers and cells -------------------------------------------------------------------------------------------------


def offer(provider: str, card: str, usd: str, *, day: str = "2026-10-01", segment: Segment = "marketplace") -> Offer:
    return Offer(
        provider=provider, segment=segment, card=card, usd_per_gpu_hour=Decimal(usd), date=day, exact_date=True, kind="ask", source="test"
    )  # fmt: skip


OURS_HEAD = "provider,segment,gpu_key,price_usd_per_gpu_hour,spot,date,kind,source"
OFFERS = [
    offer("a", "T4", "0.1"),
    offer("a", "T4", "0.2"),
    offer("b", "T4", "0.12"),
    offer("a", "L4", "0.3", day="2026-09-20"),
]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from(OFFERS), max_size=8), st.randoms())
def test_order_and_duplicates_of_offers_do_not_count(again: list[Offer], order: random.Random) -> None:
    shuffled = [*OFFERS, *again]
    order.shuffle(shuffled)
    assert cells.cells_of(shuffled) == cells.cells_of(OFFERS)


def test_order_of_cells_does_not_count() -> None:
    some = [c for c in SNAPSHOT.cells if c.provider in {"vastai", "aws", "nebius"}]
    shuffled = random.Random(3).sample(some, len(some))  # noqa: S311 - no secret
    assert fit(SNAPSHOT, shuffled).document == fit(SNAPSHOT, some).document


def test_what_stands_alone_is_screened_and_told() -> None:
    found = cells.cells_of([*OFFERS, offer("c", "T4", "1.5")])
    assert "c" not in {c.provider for c in found.cells}
    assert "T4 at c for 1.5 USD" in found.screened[0]


def test_of_two_that_contradict_each_other_none_is_dropped_and_both_are_told() -> None:
    two = [offer("honest", "H100-SXM-80GB", "2.5"), offer("bait", "H100-SXM-80GB", "0.05")]
    found = cells.cells_of([*two, offer("a", "T4", "0.1")])
    assert [c.provider for c in found.cells] == ["a", "bait", "honest"]
    assert [text.partition("five times")[2] for text in found.screened] == [
        " off the only other, 2.500: kept",
        " off the only other, 0.050: kept",
    ]


def test_known_prices_are_among_the_others_that_an_offer_is_held_against() -> None:
    bait, fair = offer("bait", "H100-SXM-80GB", "0.05"), offer("fair", "H100-SXM-80GB", "2.2")
    found = cells.cells_of([bait, fair], SNAPSHOT)
    assert {c.provider for c in found.cells} - {c.provider for c in SNAPSHOT.cells} == {"fair"}
    assert any("H100-SXM-80GB at bait for 0.05 USD" in text for text in set(found.screened) - set(SNAPSHOT.screened))


def test_an_offer_of_tomorrow_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would make every other price old: one row of 2062 left one of 351 cells."""
    monkeypatch.setattr("harness.fitting.offers._today", lambda: "2026-11-03")
    file = tmp_path / "offers.csv"
    days = ("2026-11-03", "2026-11", "2026-11-04", "2062-10-12", "2026-12")
    file.write_text("\n".join([OURS_HEAD, *(f"a,neocloud,T4,0.5,0,{day},list,x" for day in days)]))
    found = read_offers(file, Origin())
    assert [o.date for o in found.offers] == ["2026-11-03", "2026-11"]
    assert [text.partition(": ")[2] for text in found.left_out] == [f"{day} is after today" for day in days[2:]]


def test_each_refresh_gives_a_seller_no_further_vote() -> None:
    snapshot = SNAPSHOT
    for day in ("2026-10-12", "2026-10-19", "2027-01-20"):
        snapshot = cells.cells_of([offer("vastai", "H100-SXM-80GB", "2.0", day=day)], snapshot)
        says = [(c.provider, c.card, cells.era_of(cells.months_before(snapshot.as_of, c.date))) for c in snapshot.cells]
        assert len(says) == len(set(says))
        assert ("vastai", "H100-SXM-80GB", "") in says
    own = [c.date for c in snapshot.cells if (c.provider, c.card) == ("vastai", "H100-SXM-80GB")]
    assert own == ["2025-12-07", "2026-10-19", "2027-01-20"]


def test_our_own_columns_are_read_and_what_is_no_ask_is_passed_over(tmp_path: Path) -> None:
    head = "provider,segment,gpu_key,price_usd_per_gpu_hour,spot,date,date_quality,kind,source\n"
    rows = [
        "a,neocloud,T4,0.5,0,2026-10-01,exact,list,x@1:y",
        "a,neocloud,T4,0.1,1,2026-10-01,exact,list,x",
        "a,neocloud,T4,0.4,0,2026-10-01,exact,median price of 5 RENTED GPUs (transaction),x",
        "a,neocloud,T5,0.4,0,2026-10-01,exact,list,x",
        "a,neocloud,T4,free,0,2026-10-01,exact,list,x",
        "a,neocloud,T4,0.4,0,last week,exact,list,x",
        "a,shop,T4,0.4,0,2026-10-01,exact,list,x",
    ]
    file = tmp_path / "offers.csv"
    file.write_text(head + "\n".join(rows))
    found = read_offers(file, Origin())
    assert [(o.card, str(o.usd_per_gpu_hour), o.source) for o in found.offers] == [("T4", "0.5", "x")]
    assert [text.partition("offers.csv, ")[2] for text in found.left_out] == [
        "offer 4: no card 'T5'",
        "offer 5: 'free' is no number",
        "offer 6: 'last week' is no date, which would be as 2026-10-31 or 2026-10",
        "offer 7: no kind of seller 'shop'; there are hyperscaler, neocloud, marketplace",
    ]


def test_a_catalogue_of_skypilot_is_read(tmp_path: Path) -> None:
    file = tmp_path / "vms.csv"
    gpu = "{'Gpus': [{'Name': 'A100', 'MemoryInfo': {'SizeInMiB': 81920}}]}"
    file.write_text(
        "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,Price,SpotPrice,Region,GpuInfo\n"
        f'x8,L40S,8,96,512,12.0,4.0,eu,\n4090,RTX4090,1.0,8,32,0.5,,us,\ncpu,,,8,32,0.2,,us,\nhalf,L4,0.5,8,32,0.2,,us,\nodd,A100,1,8,32,1.2,,us,"{gpu}"\n'
    )
    with pytest.raises(MisuseError, match="does not say provider or date: give --provider and --date"):
        read_offers(file, Origin())
    found = read_offers(file, Origin(provider="lambdalabs", date="2026-10-31"))
    assert [(o.card, str(o.usd_per_gpu_hour)) for o in found.offers] == [("L40S", "1.5"), ("RTX-4090", "0.5")]
    assert "no card 'A100' of 80 GiB" in found.left_out[0]  # PCIe or SXM: who does not say is not guessed for


def test_an_answer_of_vast_ai_is_read(tmp_path: Path) -> None:
    file = tmp_path / "offers.json"
    rows = [
        {"gpu_name": "RTX 4090", "num_gpus": 2, "dph_total": 0.8, "gpu_ram": 24564, "rentable": True},
        {"gpu_name": "RTX 4090", "num_gpus": 2, "dph_total": 0.3, "gpu_ram": 24564, "is_bid": True},
        {"gpu_name": "RTX 4090", "dph_total": 0.8},
    ]
    file.write_text(json.dumps({"offers": rows}))
    found = read_offers(file, Origin(date="2026-10-31"))
    assert [(o.provider, o.card, str(o.usd_per_gpu_hour)) for o in found.offers] == [("vastai", "RTX-4090", "0.4")]
    assert "offer 3: lacks num_gpus" in found.left_out[0]


VAST_ROW: dict[str, Any] = {"gpu_name": "RTX 4090", "num_gpus": 1, "dph_total": 0.4, "gpu_ram": 24564}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"{OURS_HEAD}\na,neocloud,T4,0.5,0,2026-10-01,list,x\nb,neocloud,T4,0.4", "lacks date, source"),
        (
            f"{OURS_HEAD}\na,neocloud,T4,0.5,0,2026-10-01,list,x\nb,neocloud,T4,0.4,True,2026-10-01,list,x",
            "spot is 'True'",
        ),
        (
            f"{OURS_HEAD}\na,neocloud,T4,0.5,0,2026-10-01,list,x\nb,neocloud,T4,0.4,1.0,2026-10-01,list,x",
            "spot is '1.0'",
        ),
        ("AcceleratorName,AcceleratorCount,Price,GpuInfo\nT4,1,0.5,\nT4", "lacks AcceleratorCount, Price"),
        (
            "AcceleratorName,AcceleratorCount,Price,GpuInfo\nT4,1,0.5,\nT4,1,0.5,SizeInMiB': 1.2.3",
            "cannot be read: ValueError",
        ),
        (json.dumps([VAST_ROW, VAST_ROW | {"gpu_ram": "n/a"}]), "'n/a' is no number"),
        (json.dumps([VAST_ROW, VAST_ROW | {"gpu_ram": [1]}]), "'[1]' is no number"),
        (
            json.dumps([VAST_ROW]).replace(
                "}]", '}, {"gpu_name": "T4", "num_gpus": 1, "dph_total": 1, "gpu_ram": 1e400}]'
            ),
            "inf",
        ),
        (json.dumps([VAST_ROW, VAST_ROW | {"dph_total": None}]), "lacks dph_total"),
    ],
)
def test_a_row_that_cannot_be_read_is_told_and_costs_no_other(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "offers"
    file.write_text(text)
    found = read_offers(file, Origin(provider="lambdalabs", date="2026-10-31"))
    assert len(found.offers) == 1
    assert len(found.left_out) == 1
    assert f"offer 2: {says}" in found.left_out[0]


def test_a_table_without_a_column_of_ours_is_refused_by_its_name(tmp_path: Path) -> None:
    file = tmp_path / "offers.csv"
    file.write_text("provider,gpu_key,price_usd_per_gpu_hour\na,T4,0.5\n")
    with pytest.raises(FailureError, match="lacks segment, date, source"):
        read_offers(file, Origin())


def test_what_gpuhunt_gives_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    item: dict[str, Any] = {
        "provider": "verda",
        "instance_name": "8H100.SXM5",
        "price": 32.0,
        "gpu_count": 8,
        "gpu_name": "H100",
    }
    item |= {"gpu_memory": 80.0, "spot": False, "gpu_vendor": "nvidia"}
    changes: list[dict[str, Any]] = [{}, {"instance_name": "h"}, {"spot": True}, {"gpu_vendor": "amd"}]
    items = [SimpleNamespace(**{**item, **change}) for change in changes]
    monkeypatch.setitem(sys.modules, "gpuhunt", SimpleNamespace(query=lambda **_: items))
    found = refresh.gathered([], gpuhunt=True)
    assert [(o.provider, o.card, o.usd_per_gpu_hour) for o in found.offers] == [
        ("datacrunch", "H100-SXM-80GB", Decimal(4))
    ]
    assert "offer 2: no card 'H100' of 80 GiB" in found.left_out[0]


@pytest.mark.parametrize(
    ("text", "error"), [("a,b\n1,2\n", MisuseError), ('{"offers": 3}', MisuseError), ("[]", FailureError)]
)
def test_a_file_that_holds_no_offers_is_refused(tmp_path: Path, text: str, error: type[Exception]) -> None:
    file = tmp_path / "x"
    file.write_text(text)
    with pytest.raises(error):
        read_offers(file, Origin())


def test_the_commands_read_offers_into_prices_and_an_index(tmp_path: Path) -> None:
    rows = [f"s{i},marketplace,RTX-4090,0.{40 + i},0,2026-11-01,exact,ask,x" for i in range(4)]
    rows += [f"s{i},marketplace,RTX-3090,0.{20 + i},0,2026-11-01,exact,ask,x" for i in range(4)]
    (tmp_path / "o.csv").write_text(
        "provider,segment,gpu_key,price_usd_per_gpu_hour,spot,date,date_quality,kind,source\n" + "\n".join(rows)
    )
    asked = ["--from", str(tmp_path / "o.csv")]
    done = CliRunner().invoke(
        cli, ["market", "refresh", *asked, "--out", str(tmp_path / "cells.json")], catch_exceptions=False
    )
    assert done.stdout.startswith("8 offers read; ")
    found = cells.read_snapshot(tmp_path / "cells.json")
    assert found.as_of == "2026-11-01"
    assert len(found.cells) == len(SNAPSHOT.cells) + 8
    done = CliRunner().invoke(cli, ["market", "index", *asked, "--json"], catch_exceptions=False)
    (print_,) = json.loads(done.stdout)
    assert (print_["card_class"], print_["seller_count"], print_["offer_count"]) == ("consumer", 4, 8)


# --- what is shipped, and the backtest --------------------------------------------------------------------------------


def test_the_shipped_model_is_what_a_fit_of_the_shipped_prices_gives() -> None:
    fitted = fit(SNAPSHOT, SNAPSHOT.cells, widths=MODEL.document.widths)
    assert fitted.document.cells_digest == MODEL.document.cells_digest
    for card in ("RTX-4090", "T4", "B200-SXM-180GB", "L4"):
        for segment in SEGMENTS:
            again = fitted.estimate(sheet(card), segment=segment, gpu_name=card)
            assert again.log_price == pytest.approx(math.log(price(card, segment)), abs=1e-4)
    assert MarketModel.from_json(json.loads(as_json(fitted))) == fitted


def test_the_document_shows_the_backtest_that_the_shipped_intervals_come_from() -> None:
    tested = msgspec.convert(table("market_backtest"), Backtest)
    assert table("market_backtest")["model_digest"] == MODEL.digest
    assert tested.widths == MODEL.document.widths
    assert tested.cells == len(cells.current(SNAPSHOT))
    assert backtest_markdown(tested) in (Path(__file__).parent.parent / "docs" / "pricing.md").read_text()


@pytest.mark.parametrize(
    ("offers", "told"),
    [
        ([offer("a", "T4", "0.1"), offer("a", "L4", "0.2")], "cards: 2, sellers: 1, architectures: 2"),
        ([offer("a", "T4", "0.1"), offer("b", "T4", "0.1")], "cards: 1, sellers: 2, architectures: 1"),
        (
            [offer("runpod", "T4", "0.1"), offer("runpod-community", "L4", "0.1")],
            "cards: 2, sellers: 1, architectures: 2",
        ),
    ],
)
def test_what_cannot_be_left_out_is_not_fitted(offers: list[Offer], told: str) -> None:
    with pytest.raises(MisuseError, match=f"two sellers, two cards and two architectures are needed.*{told}"):
        refit(cells.cells_of(offers))


def test_nothing_that_is_left_out_enters_a_fold() -> None:
    for split, key in SPLITS.items():
        asked = 0
        for _, out, known in _folds(SNAPSHOT, split):
            assert not {key(c) for c in out} & {key(c) for c in known}
            asked += len(out)
        assert asked == len(cells.current(SNAPSHOT))


def test_a_seller_is_left_out_with_all_that_its_company_sells() -> None:
    """RunPod lists its secure and its community cloud: who has seen the prices of the one has seen the other."""
    folds = {group: (out, known) for group, out, known in _folds(SNAPSHOT, "unseen seller")}
    assert "runpod-community" not in folds
    out, known = folds["runpod"]
    assert {c.provider for c in out} == {"runpod", "runpod-community"}
    assert not {c.provider for c in known} & {"runpod", "runpod-community"}


def test_a_setting_is_chosen_by_what_is_said_of_prices_left_out() -> None:
    """Against the long way: the mean of a normal given the others."""
    rng = np.random.default_rng(5)
    half = rng.normal(size=(9, 9))
    covariance, y, keys = half @ half.T + np.eye(9), rng.normal(size=9), list("aabbbccdd")
    found = errors_left_out(np.asarray(np.linalg.inv(covariance), dtype=np.float64), y, keys)
    for key in set(keys):
        out = np.array([k == key for k in keys])
        told = covariance[np.ix_(out, ~out)] @ np.linalg.solve(covariance[np.ix_(~out, ~out)], y[~out])
        assert found[out] == pytest.approx(y[out] - told, abs=1e-9)
    assert mean_error(covariance, y, [keys], np.ones(9, dtype=bool)) == pytest.approx(abs(found).mean())


def test_the_split_in_time_knows_nothing_of_today() -> None:
    """Neither its estimates nor its intervals: their width is that of the errors of its own day."""
    some = tuple(c for c in SNAPSHOT.cells if c.provider in {"vastai", "lium", "hyperstack"} and c.card in FEW)
    dearer = tuple(
        c
        if cells.era_of(cells.months_before(SNAPSHOT.as_of, c.date))
        else replace(c, usd_per_gpu_hour=c.usd_per_gpu_hour * 100)
        for c in some
    )
    quick = Settings(knot_count=2, seller_class=(0.1,))
    now, then = (next(iter(_ahead(replace(SNAPSHOT, cells=found), quick, {}))) for found in (some, dearer))
    assert now.asked == then.asked == len(cells.current(replace(SNAPSHOT, cells=some)))
    # A price a hundred times as high, told as before: all of the error but a hundredth of what was told.
    assert then.median_error_fraction == pytest.approx(0.99, abs=0.01)
    assert now.median_error_fraction is not None
    assert now.median_error_fraction < 0.5
    assert then.covered_fraction == 0
    assert now.interval_factor == then.interval_factor


def test_no_price_that_was_paid_is_among_the_shipped_ones() -> None:
    assert {kind for c in SNAPSHOT.cells for kind in c.kinds} <= {"list", "ask", "median", "lowest", "mean"}
    assert all(c.usd_per_gpu_hour > 0 for c in SNAPSHOT.cells)
    sources = {source for c in SNAPSHOT.cells for source in c.sources}
    assert sources <= set(table("market_sources")["sources"])


def test_coverage_is_judged_by_other_groups() -> None:
    calm, wild = [("calm", 0.1)] * 20, [("wild", 0.5)] * 5
    assert _quantile([e for _, e in calm + wild]) == pytest.approx(0.5)
    assert _covered(calm + wild) == pytest.approx(20 / 25)  # the wild ones by the calm, and the calm by a mix


@pytest.mark.slow
def test_sellers_never_seen_are_priced_better_than_by_a_score_or_a_look_up() -> None:
    quick = {name: b for name, b in BASELINES.items() if name not in {"ridge", "monotone boosting"}}
    lines = {line.model: line for line in backtest(SNAPSHOT, splits=["unseen seller"], baselines=quick).lines}
    ours = lines.pop("ours")
    assert ours.answered == ours.asked
    assert ours.covered_fraction == pytest.approx(0.8, abs=0.05)
    assert ours.median_error_fraction is not None
    shown = {(line.split, line.model): line for line in msgspec.convert(table("market_backtest"), Backtest).lines}
    assert ours.median_error_fraction == pytest.approx(shown["unseen seller", "ours"].median_error_fraction, abs=2e-3)
    for line in lines.values():
        assert line.median_error_fraction is not None
        assert ours.median_error_fraction < line.median_error_fraction
