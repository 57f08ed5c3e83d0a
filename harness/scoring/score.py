"""From capability to compute units: speed on a workload against a frozen reference node.

Covers: excelling in one class of work cannot buy the others (time adds, so the mean is harmonic); a class that was not
measured is missing, never zero and never guessed; a workload that does not fit into the memory is not scored.
Does not cover: versions of the unit, which are never compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from functools import cache

from harness.model import Capability, Rate, Report, Score, ScorePart
from harness.scoring.capability import capability
from harness.scoring.cycles import harmonic_speed, whole_cycles_per_s
from harness.scoring.exact import fraction_of
from harness.scoring.profiles import Profile, profile_of
from harness.scoring.tables import digest_of, table

__all__ = ["score", "score_of", "speed_of"]

_GIB = 1 << 30


def score(*reports: Report, profile: str | Profile = "general") -> tuple[Score, ...]:
    """Score each device of each report on a profile, in compute units per hour.

    One CU-hour is the work that the reference node does in one hour. A score is a lower bound, as its rates are.

    Raises:
        MisuseError: there is no such profile.
    """
    chosen = profile_of(profile)
    return tuple(score_of(c, chosen) for report in reports for c in capability(report))


def score_of(seen: Capability, profile: Profile) -> Score:
    """Score one device's capability on a profile."""
    rates, shares = {r.work_class: r for r in seen.rates}, profile.fractions
    used = [w for w in shares if w in rates]
    missing = tuple(w for w in shares if w not in rates)
    too_small = _too_small(seen, profile)
    speed, high = (None, None) if missing or too_small else (_speed(shares, rates), _high(profile, rates))
    return Score(
        report_digest=seen.report_digest,
        device_uuid=seen.device_uuid,
        device_name=seen.device_name,
        kind=seen.kind,
        emulated=seen.emulated,
        profile=profile.name,
        unit=table("reference")["unit"],
        cu_per_hour=None if speed is None else float(speed),
        high_cu_per_hour=high,
        cycles_per_s=None if speed is None else whole_cycles_per_s(speed),
        too_small=too_small,
        parts=tuple(_part(profile, rates[w]) for w in used),
        missing=missing,
        excluded=seen.excluded,
        reference_digest=digest_of("reference"),
    )


def speed_of(seen: Capability, profile: Profile) -> Fraction | None:
    """Return a device's speed on a profile as an exact fraction of the reference node's; None where it has no score."""
    rates, shares = {r.work_class: r for r in seen.rates}, profile.fractions
    if any(w not in rates for w in shares) or _too_small(seen, profile):
        return None
    return _speed(shares, rates)


def _speed(shares: Mapping[str, Fraction], rates: Mapping[str, Rate]) -> Fraction:
    return harmonic_speed(shares, {w: fraction_of(rates[w].low_per_s) for w in shares}, _reference())


def _high(profile: Profile, rates: Mapping[str, Rate]) -> float:
    """Return the speed by the fast ends, to be looked at: nothing is computed from it."""
    reference = _reference()
    return 1 / math.fsum(float(s) * float(reference[w]) / rates[w].high_per_s for w, s in profile.shares.items())


def _too_small(seen: Capability, profile: Profile) -> str | None:
    if profile.memory_bytes is None:
        return None
    needs = f"{profile.name} needs {profile.memory_bytes / _GIB:.4g} GiB"
    if seen.memory_bytes is None:
        return f"{needs}; how much the device has is not known"
    return None if seen.memory_bytes >= profile.memory_bytes else f"{needs}; it has {seen.memory_bytes / _GIB:.4g} GiB"


@cache
def _reference() -> Mapping[str, Fraction]:
    return {work_class: Fraction(row["value"]) for work_class, row in table("reference")["rates"].items()}


def _part(profile: Profile, rate: Rate) -> ScorePart:
    return ScorePart(
        work_class=rate.work_class,
        weight_fraction=float(profile.shares[rate.work_class]),
        relative_speed=rate.low_per_s / float(_reference()[rate.work_class]),
        regime=rate.regime,
        evidence=rate.evidence,
    )
