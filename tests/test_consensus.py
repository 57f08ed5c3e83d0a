"""What validators say together: evidence before stake, a cap on each owner, and no gain for a cartel. And who could stop a network."""

from __future__ import annotations

import importlib.util
import random
import sys
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import MisuseError
from harness.scoring.consensus import (
    Agreement,
    Claim,
    Refusal,
    Validator,
    agree,
    capped,
    u16_weights,
    weighted_median,
)
from harness.scoring.governance import (
    Control,
    concentration,
    control_plane,
    demand_coverage,
    nakamoto,
    unverified_fraction,
)

FOLDER = Path(__file__).parent.parent / "benchmarks"


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


cartel = script("cartel")


def validators(*stakes: float | Fraction) -> list[Validator]:
    return [Validator(key=f"v{i}", owner=f"o{i}", stake=stake) for i, stake in enumerate(stakes)]


def claims(*values: float, transcript: str | None = "t") -> list[Claim]:
    return [Claim(validator=f"v{i}", provider="p", low_per_s=x, transcript=transcript) for i, x in enumerate(values)]


def honest(claim: Claim) -> float:
    return claim.low_per_s


def one(agreed: tuple[Agreement, ...]) -> Agreement:
    (only,) = agreed
    return only


# Evidence


def test_a_claim_without_a_transcript_weighs_nothing_whatever_its_stake() -> None:
    said = [*claims(1e9, transcript=None), *claims(0, 10.0, 11.0, 12.0)[1:]]
    found = one(agree(validators(1_000_000, 1, 1, 1), said, honest, cap_fraction=1))
    assert found.low_per_s == 11.0
    assert found.refused == (Refusal(validator="v0", reason="no transcript"),)
    assert found.rechallenge  # its stake is silent, which is told


def test_a_claim_beyond_its_own_evidence_is_false_and_one_that_cannot_be_replayed_is_none() -> None:
    replayed = {"v0": 10.0, "v1": None, "v2": 10.0}
    found = one(agree(validators(1, 1, 1), claims(10.1, 10.0, 9.0), lambda c: replayed[c.validator]))
    assert {r.validator: r.reason for r in found.refused} == {"v0": "false", "v1": "not replayable"}
    assert found.low_per_s == 10.0  # what the replay shows, not the little that v2 made of it


def test_no_claim_that_counts_is_no_value_and_not_zero() -> None:
    found = one(agree(validators(1), claims(5.0, transcript=None), honest))
    assert (found.low_per_s, found.mad_per_s, found.weight_fraction) == (None, None, 0.0)


def test_who_lies_beyond_three_deviations_goes_to_audit() -> None:
    found = one(agree(validators(1, 1, 1, 1, 1), claims(98.0, 99.0, 100.0, 101.0, 104.0), honest))
    assert (found.low_per_s, found.mad_per_s) == (100.0, 1.0)
    assert found.audit == ("v4",)
    assert found.mads["v4"] == 4.0
    unanimous = one(agree(validators(1, 1, 1), claims(7.0, 7.0, 7.1), honest))
    assert unanimous.audit == ("v2",)
    assert unanimous.mads == {"v0": 0.0, "v1": 0.0, "v2": None}


@pytest.mark.parametrize(
    ("who", "said", "words"),
    [
        ([1], claims(1.0, 2.0), "not among the validators"),
        ([1], [*claims(1.0), *claims(2.0)], "claims twice"),
        ([1], claims(float("nan")), "a rate is 0 or more"),
        ([-1], claims(1.0), "must be 0 or more"),
        ([0], claims(1.0), "nobody to weigh"),
    ],
)
def test_bad_input_is_named(who: Sequence[float], said: list[Claim], words: str) -> None:
    with pytest.raises(MisuseError, match=words):
        agree(validators(*who), said, honest)


# Properties, over whole stakes

VOICES = st.lists(st.tuples(st.integers(1, 10**6), st.floats(0, 1e6)), min_size=1, max_size=12)
CAPS = st.sampled_from([0.05, 0.2, 1.0])


@settings(max_examples=60, deadline=None)
@given(VOICES, CAPS, st.randoms(use_true_random=False), st.integers(1, 10**12))
def test_neither_order_nor_the_unit_of_stake_matters(
    voices: list[tuple[int, float]], cap: float, shuffle: random.Random, unit: int
) -> None:
    who, said = validators(*(s for s, _ in voices)), claims(*(x for _, x in voices))
    first = agree(who, said, honest, cap_fraction=cap)
    shuffle.shuffle(who)
    shuffle.shuffle(said)
    scaled = [Validator(key=v.key, owner=v.owner, stake=Fraction(v.stake) / unit) for v in who]
    assert agree(scaled, said, honest, cap_fraction=cap) == first


@settings(max_examples=60, deadline=None)
@given(VOICES, CAPS, st.lists(st.integers(1, 1000), min_size=2, max_size=6))
def test_who_splits_a_stake_over_keys_gains_nothing(
    voices: list[tuple[int, float]], cap: float, parts: list[int]
) -> None:
    who, said = validators(*(s for s, _ in voices)), claims(*(x for _, x in voices))
    whole = one(agree(who, said, honest, cap_fraction=cap))
    keys = [
        Validator(key=f"k{i}", owner="o0", stake=Fraction(part * voices[0][0], sum(parts)))
        for i, part in enumerate(parts)
    ]
    spoken = [Claim(validator=k.key, provider="p", low_per_s=voices[0][1], transcript="t") for k in keys]
    split = one(agree([*who[1:], *keys], [*said[1:], *spoken], honest, cap_fraction=cap))
    assert (split.low_per_s, split.mad_per_s) == (whole.low_per_s, whole.mad_per_s)
    assert sum(w for k, w in capped([*who[1:], *keys], cap).items() if k[0] == "k") == capped(who, cap)["v0"]


@settings(max_examples=60, deadline=None)
@given(VOICES, st.data())
def test_liars_with_less_than_half_of_the_weight_stay_within_what_the_others_said(
    voices: list[tuple[int, float]], data: st.DataObject
) -> None:
    weights = [*capped(validators(*(s for s, _ in voices)), 1.0).values()]
    values = [x for _, x in voices]
    liars: list[int] = []
    for i in data.draw(st.permutations(range(len(voices)))):
        if sum(weights[j] for j in [*liars, i]) < Fraction(1, 2):
            liars.append(i)
    truth = [x for i, x in enumerate(values) if i not in liars]
    for i in liars:
        values[i] = data.draw(st.sampled_from([0.0, -1e300, 1e300]))
    assert min(truth) <= weighted_median(values, weights) <= max(truth)


def test_half_of_the_weight_is_where_it_breaks() -> None:
    assert weighted_median([0.0, 10.0], [Fraction(49), Fraction(51)]) == 10.0
    assert weighted_median([0.0, 10.0], [Fraction(50), Fraction(50)]) == 0.0


def test_a_capped_owner_has_the_cap_and_the_rest_keep_their_proportions() -> None:
    weights = capped(validators(70, 22, 5, 3), 0.4)
    assert weights["v0"] == Fraction(2, 5)
    assert weights["v1"] == Fraction(2, 5)  # what was taken from v0 lifted it to the cap as well
    assert weights["v2"] / weights["v3"] == Fraction(5, 3)
    assert sum(weights.values()) == 1
    assert set(capped(validators(97, 2, 1), 0.05).values()) == {Fraction(1, 3)}  # three owners cannot all be below 5 %


# The published table


def test_a_cartel_gains_as_published_and_nothing_where_evidence_comes_first() -> None:
    def gains(name: str, attack: str, trials: int = 4) -> list[float]:
        return [cartel.gain(name, attack, stake, trials) for stake in cartel.STAKES]

    mean, median = gains("mean", "zero"), gains("median", "zero")
    yuma, cap = gains("Yuma, kappa 0.5", "zero"), gains("median, 5 % cap", "zero")
    assert mean == pytest.approx([2.14, 4.42, 6.59, 6.82], rel=0.03)
    assert median[:3] == pytest.approx([1.01, 1.05, 1.16], rel=0.1)
    assert yuma[:3] == pytest.approx([1.11, 1.42, 2.02], rel=0.1)
    assert cap == pytest.approx([1.02, 1.03, 1.03, 1.03], rel=0.03)
    assert all(a < b < c for a, b, c in zip(median[:3], yuma[:3], mean[:3], strict=True))
    assert [median[3], yuma[3]] == pytest.approx(
        [12.4, 12.4], rel=0.01
    )  # past one half there is no honest majority to find
    for attack in ("inflate", "zero"):
        assert gains("evidence first", attack, 1) == pytest.approx([1.0] * 4, abs=0.03)
    assert cartel.gain("evidence first", "inflate", 0.99, 1) == pytest.approx(1.0, abs=0.03)  # whatever its stake


# As the chain takes it


def test_weights_are_spelled_as_the_chain_takes_them() -> None:
    assert u16_weights({7: 1.0, 3: 0.5, 5: 1e-6, 9: None, 1: 0.0}) == ((3, 32768), (7, 65535))
    assert u16_weights({0: 0.0, 1: None}) == ()
    assert u16_weights({0: 2.5, 1: 65535.0}) == ((0, 2), (1, 65535))  # a half to the even
    with pytest.raises(MisuseError, match="uid 70000"):
        u16_weights({70000: 1.0})


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.integers(0, 65535), st.floats(0, 1e12), max_size=20), st.floats(1e-6, 1e6))
def test_weights_keep_the_order_and_forget_the_scale(scores: dict[int, float], scale: float) -> None:
    weights = dict(u16_weights(scores))
    assert max(weights.values(), default=65535) == 65535
    assert all(weights.get(a, 0) <= weights.get(b, 0) for a in scores for b in scores if scores[a] <= scores[b])
    scaled = dict(u16_weights({uid: score * scale for uid, score in scores.items()}))
    assert all(abs(scaled.get(uid, 0) - weights.get(uid, 0)) <= 1 for uid in scores)


# Governance


def pareto(seed: int) -> dict[str, float]:
    rng = random.Random(seed)  # noqa: S311 - a simulation
    return {str(i): rng.paretovariate(1.2) for i in range(32)}


def test_pareto_stakes_are_as_concentrated_as_published_and_a_cap_mends_it() -> None:
    found = concentration(pareto(258))  # a draw as steep as the published one
    assert found.hhi == pytest.approx(0.296, abs=0.03)
    assert found.effective_count == pytest.approx(1 / found.hhi)
    assert found.gini == pytest.approx(0.76, abs=0.04)
    assert (found.nakamoto_third, found.nakamoto_half) == (1, 1)
    who = [Validator(key=k, owner=k, stake=s) for k, s in pareto(258).items()]
    mended = concentration(capped(who, 0.10))
    assert mended.hhi == pytest.approx(0.063, abs=0.01)
    assert mended.nakamoto_half == 6


def test_one_holder_of_two_fifths_hides_from_the_hhi_and_not_from_the_nakamoto_number() -> None:
    found = concentration({"big": 40} | {str(i): 60 / 31 for i in range(31)})
    assert found.hhi == pytest.approx(0.172, abs=0.001)
    assert (found.nakamoto_third, found.nakamoto_half) == (1, 7)


@pytest.mark.parametrize("n", [1, 4, 10])
def test_equal_holders_are_as_many_as_they_are(n: int) -> None:
    found = concentration({str(i): 3.7 for i in range(n)})
    assert [found.effective_count, found.gini, found.top_fraction] == pytest.approx([n, 0, 1 / n])
    assert found.nakamoto_half == n // 2 + 1  # exactly half is not more than half
    assert nakamoto({str(i): 3.7 for i in range(n)}, Fraction(1, 3)) == n // 3 + 1


def test_the_control_plane_counts_people_and_the_easiest_way() -> None:
    multisig = Control(power="take_ownership", keys=("a", "b", "c", "d", "e"), threshold_count=3)
    root = Control(power="pause_pay", keys=("root",), threshold_count=1)
    found = control_plane([multisig, root])
    assert found.nakamoto == {"pause_pay": 1, "change_parameters": None, "upgrade": None, "take_ownership": 3}
    assert found.least == 1
    theatre = control_plane([multisig], {"a": "x", "b": "x", "c": "y", "d": "y", "e": "z"})
    assert theatre.nakamoto["take_ownership"] == 2
    around = Control(power="take_ownership", keys=("sudo",), threshold_count=1)
    assert control_plane([multisig, around]).nakamoto["take_ownership"] == 1
    with pytest.raises(MisuseError, match="can never"):
        control_plane([Control(power="upgrade", keys=("a", "a"), threshold_count=2)])


def test_demand_and_evidence_behind_the_pay() -> None:
    assert demand_coverage(Decimal(20), Decimal(80)) == 0.25
    assert demand_coverage(None, Decimal(80)) is None
    assert unverified_fraction({"a": 30, "b": 70}, {"a"}) == 0.7
    with pytest.raises(MisuseError, match="the second above 0"):
        demand_coverage(Decimal(1), Decimal(0))
    with pytest.raises(MisuseError, match="nobody holds anything"):
        concentration({"a": 0})
