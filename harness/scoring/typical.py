"""What a card of a name does as a rule, by published measurements or, for want of them, by its sheet: what a slow one is held against."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any

from harness.model import Capability
from harness.scoring.cycles import harmonic_speed
from harness.scoring.exact import Measured, fraction_of, measured_of
from harness.scoring.profiles import Profile
from harness.scoring.sheets import plain_name, sheet_of
from harness.scoring.tables import table

__all__ = ["delivered_share", "measured_rates", "sheet_rates", "typical_rates"]

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
_KEPT = 4096
# By sheet and axis of the market model, which knows what part of it sound cards reach. Of a sheet's float32 they reach half to all: no promise.
_AXES = {
    "gemm_bf16": "fp16_flops_per_s",
    "gemm_fp16": "fp16_flops_per_s",
    "mem": "memory_bytes_per_s",
}
_WITHOUT_BF16 = frozenset(
    {"Maxwell", "Pascal", "GP100", "Volta", "TU116", "Turing"}
)  # their tensor cores, if any, do float16


@lru_cache(_KEPT)
def typical_rates(name: str, memory_bytes: int | None = None) -> Mapping[str, Fraction]:
    """Return the published rates of a card by class of work, in units a second; none for a name that nobody published of.

    A name is found as `find_sheet` finds it: how it is spelled does not matter.
    """
    rows = {row["quantity"]: Fraction(row["low"]) for row in _ranges(name, memory_bytes)}
    found = {w: max((rows[q] for q in known if q in rows), default=None) for w, known in _QUANTITIES.items()}
    found["mem"] = rows.get("triad", found["mem"])
    return {work_class: rate for work_class, rate in found.items() if rate is not None}


def measured_rates(name: str, memory_bytes: int | None) -> dict[str, Measured]:
    """Return the same as measured numbers, which the market model takes."""
    return {work_class: measured_of(rate) for work_class, rate in typical_rates(name, memory_bytes).items()}


@lru_cache(_KEPT)
def sheet_rates(name: str, memory_bytes: int | None = None) -> Mapping[str, Fraction]:
    """Return what sound cards reach of the sheet of a name, by class of work, in units a second; none for a name without a sheet."""
    sheet = sheet_of(name, memory_bytes)
    if sheet is None:
        return {}
    told = {w: a for w, a in _AXES.items() if w != "gemm_bf16" or sheet.architecture not in _WITHOUT_BF16}
    return {work_class: Fraction(getattr(sheet, axis)) * _reach(axis) for work_class, axis in told.items()}


def delivered_share(seen: Capability, profile: Profile) -> Fraction | None:
    """Return the share of what its name promises that a device does on a profile, at most 1; None where nothing can be compared.

    What was published goes before the sheet. A sheet is a maker's word and no ceiling: None, too, of a card that is held to that alone and
    does as much.
    """
    known = seen.device_name, seen.memory_bytes
    share = _share(seen, profile, typical_rates(*known))
    if share is not None:
        return share
    share = _share(seen, profile, sheet_rates(*known))
    return None if share == _ALL else share


def _share(seen: Capability, profile: Profile, promised: Mapping[str, Fraction]) -> Fraction | None:
    rates = {r.work_class: r for r in seen.rates}
    shares = {w: share for w, share in profile.fractions.items() if w in promised and w in rates}
    if not shares:
        return None
    whole = sum(shares.values(), _NONE)
    if whole != _ALL:
        shares = {w: share / whole for w, share in shares.items()}
    own = {w: fraction_of(rates[w].low_per_s) for w in shares}
    return min(harmonic_speed(shares, own, promised), _ALL)


@cache
def _reach(axis: str) -> Fraction:
    return Fraction(str(table("market_model")["axes"][axis]["reach_fraction"]))


def _ranges(name: str, memory_bytes: int | None) -> tuple[Mapping[str, Any], ...]:
    sheet = sheet_of(name, memory_bytes)
    return _published().get(sheet.key if sheet else plain_name(name), ())


@cache
def _published() -> Mapping[str, tuple[Mapping[str, Any], ...]]:
    """Return the published ranges by the key of a card's sheet; where there is none, by its name without what spellings differ in."""
    rows = ((name, tuple(card["ranges"])) for card in table("public_ranges")["cards"] for name in card["names"])
    return {(sheet.key if (sheet := sheet_of(name)) else plain_name(name)): ranges for name, ranges in rows}
