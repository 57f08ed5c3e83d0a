"""Many validators' verdicts on one provider put together: evidence first, then a median under a cap on each owner's stake.

What a GPU delivers is a fact, so a vote on it is the last resort: a claim that nobody can replay weighs nothing, however much stake is
behind it, and one that says more than its replay is false and names its author. What counts is what the replay shows, not what was said of
it. Of that the weighted median is taken. Yuma's clip and the mean stand beside it to be compared with, and results are spelled as
Bittensor takes weights.

Promised: no stake makes a claim count that its replay does not support; owners of less than half of the capped weight behind the counted
claims cannot move a result beyond what the others said; an owner's keys count together; the order and the unit of stakes do not matter.
Not promised: that owners were told apart rightly (who splits into strangers escapes the cap); that a validator did not let its clock run
on, since a slack lower bound is still true, and the median is what answers it; that a replay bounds a time which no witness stamped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Literal

from harness.errors import MisuseError

__all__ = [
    "AUDIT_MADS",
    "CAP_FRACTION",
    "KAPPA",
    "Agreement",
    "Claim",
    "Refusal",
    "Validator",
    "agree",
    "capped",
    "mean_shares",
    "median_shares",
    "u16_weights",
    "weighted_median",
    "yuma_shares",
]

CAP_FRACTION = 0.05
AUDIT_MADS = 3.0
KAPPA = Fraction(32767, 65535)  # subtensor's default of every subnet
U16_MAX = 65535

Reason = Literal["no transcript", "not replayable", "false"]
Replay = Callable[["Claim"], float | None]
Amount = int | float | Decimal | Fraction
Matrix = Sequence[Sequence[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Validator:
    """A key that judges. `owner` is who gains by it: several keys of one owner are one voice."""

    key: str
    owner: str
    stake: Amount


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What one validator says a provider reaches at least, and the digest of the transcript that anybody can replay."""

    validator: str
    provider: str
    low_per_s: float
    transcript: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A claim that weighs nothing. `false` where its own evidence contradicts it: its author can be held to account."""

    validator: str
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """What the validators together say of one provider.

    `low_per_s` is None where no claim counts. `weight_fraction` is the share of all capped weight behind the counted claims: a cartel that
    can only withhold shows here. `mads` says how many median absolute deviations each counted claim lies from the median, None where all
    the weight agrees and this one does not; `audit` names those beyond the limit.
    """

    provider: str
    low_per_s: float | None
    mad_per_s: float | None
    weight_fraction: float
    mads: Mapping[str, float | None]
    audit: tuple[str, ...]
    refused: tuple[Refusal, ...]

    @property
    def rechallenge(self) -> bool:
        """Whether too little weight spoke: a committee drawn by the beacon should challenge this provider again."""
        return self.weight_fraction < 1 / 2


def agree(
    validators: Sequence[Validator],
    claims: Sequence[Claim],
    replay: Replay,
    *,
    cap_fraction: float = CAP_FRACTION,
    audit_mads: float = AUDIT_MADS,
) -> tuple[Agreement, ...]:
    """Put the claims together, provider by provider, in the order of their names.

    Args:
        validators: who may speak, with the stake behind each.
        claims: what they say, one claim a validator and provider.
        replay: re-checks a claim's transcript and returns the lower bound it supports, None where it supports none.
        cap_fraction: the most of all weight that one owner has; with few owners, an equal share each.
        audit_mads: how far a claim may lie from the median.

    Raises:
        MisuseError: a validator or claim appears twice, a claim is of nobody known, or a number makes no sense.
    """
    weights = capped(validators, cap_fraction)
    by_provider: dict[str, dict[str, Claim]] = {}
    for claim in claims:
        of_one = by_provider.setdefault(claim.provider, {})
        _check(claim, weights, of_one)
        of_one[claim.validator] = claim
    return tuple(
        _agreement(name, tuple(by_provider[name].values()), weights, replay, audit_mads) for name in sorted(by_provider)
    )


def _check(claim: Claim, weights: Mapping[str, Fraction], known: Mapping[str, Claim]) -> None:
    if claim.validator not in weights:
        msg = f"a claim about {claim.provider!r} is of {claim.validator!r}, who is not among the validators"
    elif claim.validator in known:
        msg = f"{claim.validator!r} claims twice about {claim.provider!r}: give its newest claim only"
    elif not (math.isfinite(claim.low_per_s) and claim.low_per_s >= 0):
        msg = f"{claim.validator!r} claims {claim.low_per_s!r} of {claim.provider!r}; a rate is 0 or more, and finite"
    else:
        return
    raise MisuseError(msg)


def _agreement(
    provider: str, claims: Sequence[Claim], weights: Mapping[str, Fraction], replay: Replay, audit_mads: float
) -> Agreement:
    judged = {claim.validator: _judged(claim, replay) for claim in claims}
    said = {v: low for v, low in judged.items() if isinstance(low, float) and weights[v]}
    refused = {v: why for v, why in judged.items() if isinstance(why, str)}
    mass = [weights[v] for v in said]
    centre = weighted_median([*said.values()], mass) if said else None
    mad = weighted_median([abs(x - centre) for x in said.values()], mass) if centre is not None else None
    mads = {v: _mads(x, centre, mad) for v, x in sorted(said.items()) if centre is not None and mad is not None}
    return Agreement(
        provider=provider,
        low_per_s=centre,
        mad_per_s=mad,
        weight_fraction=float(sum(mass, Fraction(0))),
        mads=mads,
        audit=tuple(v for v, far in mads.items() if far is None or far > audit_mads),
        refused=tuple(Refusal(validator=v, reason=refused[v]) for v in sorted(refused)),
    )


def _judged(claim: Claim, replay: Replay) -> float | Reason:
    """Return the lower bound that a claim's evidence supports, or why the claim weighs nothing."""
    if claim.transcript is None:
        return "no transcript"
    shown = replay(claim)
    if shown is None:
        return "not replayable"
    return "false" if claim.low_per_s > shown else float(shown)


def _mads(value: float, centre: float, mad: float) -> float | None:
    if mad > 0:
        return abs(value - centre) / mad
    return 0.0 if value == centre else None


def capped(validators: Sequence[Validator], cap_fraction: float = CAP_FRACTION) -> dict[str, Fraction]:
    """Return each key's weight, all together 1: in proportion to stake, but no owner above the cap.

    What the cap takes from one owner goes to the others in proportion, until all are at it or below ("water-filling"). Where there are too few
    owners for the cap to hold, each has the same. Exact, so that neither order nor unit matters.

    Raises:
        MisuseError: a key appears twice, a stake is negative or no number, nobody has any, or the cap is not between 0 and 1.
    """
    if not 0 < cap_fraction <= 1:
        msg = f"cap_fraction {cap_fraction!r} is not a share: above 0, at most 1"
        raise MisuseError(msg)
    stakes = _stakes(validators)
    owners: dict[str, Fraction] = {}
    for one in validators:
        owners[one.owner] = owners.get(one.owner, Fraction(0)) + stakes[one.key]
    owners = {owner: stake for owner, stake in owners.items() if stake}
    if not owners:
        msg = "no validator has any stake: there is nobody to weigh"
        raise MisuseError(msg)
    shares = _filled(owners, Fraction(str(cap_fraction)))  # a tenth is a tenth: five at that cap have half, not more
    return {
        v.key: shares[v.owner] * stakes[v.key] / owners[v.owner] if v.owner in owners else Fraction(0)
        for v in validators
    }


def _stakes(validators: Sequence[Validator]) -> dict[str, Fraction]:
    stakes: dict[str, Fraction] = {}
    for one in validators:
        if one.key in stakes:
            msg = f"validator {one.key!r} appears twice"
            raise MisuseError(msg)
        if not (math.isfinite(one.stake) and one.stake >= 0):
            msg = f"the stake of {one.key!r} is {one.stake!r}; it must be 0 or more, and finite"
            raise MisuseError(msg)
        stakes[one.key] = Fraction(one.stake)
    return stakes


def _filled(owners: Mapping[str, Fraction], cap: Fraction) -> dict[str, Fraction]:
    """Water-fill: those at the cap keep it, and the rest share what is left, until nobody of the rest is above."""
    if cap * len(owners) <= 1:
        return dict.fromkeys(owners, Fraction(1, len(owners)))
    free, left = dict(owners), Fraction(1)
    shares: dict[str, Fraction] = {}
    while True:
        scale = left / sum(free.values(), Fraction(0))
        above = [owner for owner, stake in free.items() if stake * scale > cap]
        if not above:
            return shares | {owner: stake * scale for owner, stake in free.items()}
        for owner in above:
            shares[owner] = cap
            left -= cap
            del free[owner]


def weighted_median(values: Sequence[float], weights: Sequence[Fraction | int]) -> float:
    """Return the smallest value at or below which half of the weight lies.

    Raises:
        MisuseError: there is no value, or no weight.
    """
    total = sum(weights)
    if not values or total <= 0:
        msg = "a weighted median needs a value and some weight"
        raise MisuseError(msg)
    below: Fraction | int = 0
    for value, weight in sorted(zip(values, weights, strict=True)):
        below += weight
        if 2 * below >= total:
            return value
    raise AssertionError  # the last value has all of the weight at or below it


def mean_shares(rows: Matrix, weights: Sequence[Fraction]) -> list[float]:
    """Return each provider's share by the weighted mean of the validators' shares. One liar moves it as far as it likes."""
    return _normal([math.fsum(float(w) * x for w, x in zip(weights, column, strict=True)) for column in _columns(rows)])


def median_shares(rows: Matrix, weights: Sequence[Fraction]) -> list[float]:
    """Return each provider's share by the weighted median of the validators' shares."""
    whole = _whole(weights)
    return _normal([weighted_median(column, whole) for column in _columns(rows)])


def yuma_shares(rows: Matrix, weights: Sequence[Fraction], kappa: Fraction = KAPPA) -> list[float]:
    """Return each provider's incentive under Yuma consensus: shares clipped at what `kappa` of the stake backs, then averaged.

    `rows` holds each validator's weights, normalised here. Source: subtensor, `docs/consensus.md` and `weighted_median_col` (which finds
    the clip as the median with `1 - kappa` of the stake strictly below; the same value).
    """
    whole = _whole(weights)
    total = sum(whole)
    return _normal([_rank(column, whole, kappa * total, total) for column in _columns(rows)])


def _rank(column: Sequence[float], weights: Sequence[int], needed: Fraction, total: int) -> float:
    """Average a provider's shares, each clipped to the largest that enough of the stake backs."""
    backed, clip = 0, 0.0
    for value, weight in sorted(zip(column, weights, strict=True), reverse=True):
        backed += weight
        if backed >= needed:
            clip = value
            break
    return math.fsum(weight / total * min(x, clip) for weight, x in zip(weights, column, strict=True))


def _whole(weights: Sequence[Fraction]) -> list[int]:
    """Return weights in the same proportion as whole numbers, whose sums are as exact and much quicker."""
    denominator = math.lcm(*(w.denominator for w in weights))
    return [w.numerator * (denominator // w.denominator) for w in weights]


def _columns(rows: Matrix) -> list[list[float]]:
    return [list(column) for column in zip(*(_normal(row) for row in rows), strict=True)]


def _normal(values: Sequence[float]) -> list[float]:
    total = math.fsum(values)
    return [value / total for value in values] if total > 0 else [0.0 for _ in values]


def u16_weights(scores: Mapping[int, float | None]) -> tuple[tuple[int, int], ...]:
    """Return (uid, weight) as `set_weights` of Bittensor takes them: the best has 65535, those that round to 0 are left out.

    Rounded as the SDK does (`convert_weights_and_uids_for_emit`: the nearest, a half to the even). The chain then scales by the maximum
    once more (`vec_u16_max_upscale_to_u16`), which changes nothing here. A provider without a score (None) gets no weight.

    Raises:
        MisuseError: a uid is no u16, or a score is negative or not finite.
    """
    known = {uid: score for uid, score in sorted(scores.items()) if score is not None}
    for uid, score in known.items():
        if not (0 <= uid <= U16_MAX and math.isfinite(score) and score >= 0):
            msg = f"uid {uid!r} with score {score!r}: a uid is 0 to {U16_MAX}, a score 0 or more, and finite"
            raise MisuseError(msg)
    most = max(known.values(), default=0.0)
    if most <= 0:
        return ()
    spelled = ((uid, round(score / most * U16_MAX)) for uid, score in known.items())
    return tuple((uid, weight) for uid, weight in spelled if weight)
