"""From capability to compute units: speed on a workload against a frozen reference node.

Covers: excelling in one class of work cannot buy the others (time adds, so the mean is harmonic); a class that was not
measured is missing, never zero and never guessed.
Does not cover: memory size, which is a gate and not a rate; versions of the unit, which are never compared.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

from harness.errors import MisuseError
from harness.model import Capability, Rate, Report, Score, ScorePart
from harness.scoring.capability import capability
from harness.scoring.tables import digest_of, table

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["harmonic_speed", "profiles", "score", "score_of"]


def profiles() -> Mapping[str, Mapping[str, float]]:
    """Return the workload profiles: the share of the reference node's time in each class of work."""
    shares: Mapping[str, Mapping[str, float]] = table("profiles")["profiles"]
    return shares


def score(*reports: Report, profile: str = "general") -> tuple[Score, ...]:
    """Score each device of each report on a profile, in compute units per hour.

    One CU-hour is the work that the reference node does in one hour. A score is a lower bound, as its rates are.

    Raises:
        MisuseError: there is no such profile.
    """
    return tuple(score_of(c, profile) for report in reports for c in capability(report))


def score_of(seen: Capability, profile: str) -> Score:
    """Score one device's capability on a profile."""
    shares = _shares(profile)
    rates = {r.work_class: r for r in seen.rates}
    reference = _reference()
    used = [w for w in shares if w in rates and w in reference]
    missing = tuple(w for w in shares if w not in used)
    low = {w: rates[w].low_per_s / reference[w] for w in used}
    high = {w: rates[w].high_per_s / reference[w] for w in used}
    return Score(
        report_digest=seen.report_digest,
        device_uuid=seen.device_uuid,
        device_name=seen.device_name,
        kind=seen.kind,
        emulated=seen.emulated,
        profile=profile,
        unit=table("reference")["unit"],
        cu_per_hour=None if missing else harmonic_speed(shares, low),
        high_cu_per_hour=None if missing else harmonic_speed(shares, high),
        parts=tuple(_part(shares[w], low[w], rates[w]) for w in used),
        missing=missing,
        excluded=(*seen.excluded, *(_no_reference(w) for w in missing if w in rates)),
        reference_digest=digest_of("reference"),
    )


def harmonic_speed(shares: Mapping[str, float], speeds: Mapping[str, float]) -> float:
    """Return the speed on a mix of work: shares of the reference's time, each divided by the speed in its class."""
    return 1 / sum(share / speeds[work_class] for work_class, share in shares.items())


def _shares(profile: str) -> Mapping[str, float]:
    known = profiles()
    if profile in known:
        return known[profile]
    near = get_close_matches(profile, known, n=1)
    hint = f"; did you mean {near[0]!r}" if near else ""
    message = f"no profile {profile!r}{hint}; there are {', '.join(sorted(known))}"
    raise MisuseError(message)


def _reference() -> Mapping[str, float]:
    return {work_class: row["value"] for work_class, row in table("reference")["rates"].items()}


def _part(share: float, speed: float, rate: Rate) -> ScorePart:
    return ScorePart(
        work_class=rate.work_class,
        weight_fraction=share,
        relative_speed=speed,
        regime=rate.regime,
        evidence=rate.evidence,
    )


def _no_reference(work_class: str) -> str:
    unit, node = table("reference")["unit"], table("reference")["node"]
    return f"{work_class}: measured, but {unit} knows no public number of a {node} to set it against"
