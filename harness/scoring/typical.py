"""What a card of a name does as a rule, by published measurements of other people: what a slow one of that name is held against."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from functools import cache
from typing import Any

from harness.model import Capability
from harness.scoring.cycles import harmonic_speed
from harness.scoring.exact import Measured, fraction_of, measured_of
from harness.scoring.profiles import Profile
from harness.scoring.tables import table

__all__ = ["delivered_share", "promised_rates", "typical_rates"]

# Of a published range, the low end, as a device's own rate is a low end. Memory is a triad; where none is published, the best of the
# others comes nearest.
_QUANTITIES = {
    "gemm_bf16": ("gemm bfloat16",),
    "gemm_fp16": ("gemm float16",),
    "gemm_fp32": ("gemm float32",),
    "gemm_fp8": ("gemm float8_e4m3",),
    "gemm_tf32": ("gemm tfloat32",),
    "mem": ("copy", "scale", "dot"),
    "p2p": ("p2p to",),
}


_NONE, _ALL = Fraction(0), Fraction(1)


@cache
def typical_rates(name: str) -> Mapping[str, Fraction]:
    """Return the published rates of a card by class of work, in units a second; none for a name that nobody published of."""
    rows = {row["quantity"]: Fraction(row["low"]) for row in _ranges(name)}
    found = {w: max((rows[q] for q in known if q in rows), default=None) for w, known in _QUANTITIES.items()}
    found["mem"] = rows.get("triad", found["mem"])
    return {work_class: rate for work_class, rate in found.items() if rate is not None}


def promised_rates(name: str) -> dict[str, Measured]:
    """Return the same as measured numbers, which the market model takes."""
    return {work_class: measured_of(rate) for work_class, rate in typical_rates(name).items()}


def delivered_share(seen: Capability, profile: Profile) -> Fraction | None:
    """Return the share of what its name promises that a device does on a profile, at most 1; None where nothing can be compared."""
    promised, rates = typical_rates(seen.device_name), {r.work_class: r for r in seen.rates}
    shares = {w: share for w, share in profile.fractions.items() if w in promised and w in rates}
    if not shares:
        return None
    whole = sum(shares.values(), _NONE)
    if whole != _ALL:
        shares = {w: share / whole for w, share in shares.items()}
    own = {w: fraction_of(rates[w].low_per_s) for w in shares}
    return min(harmonic_speed(shares, own, promised), _ALL)


@cache
def _ranges(name: str) -> tuple[Mapping[str, Any], ...]:
    for card in table("public_ranges")["cards"]:
        if _plain(name) in map(_plain, card["names"]):
            return tuple(card["ranges"])
    return ()


def _plain(name: str) -> str:
    return " ".join(name.casefold().split()).removeprefix("nvidia ")
