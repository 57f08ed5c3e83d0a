"""How concentrated a network is, and who could stop it: several numbers, because each is blind to something.

A holder with 40 % among many small ones has a low HHI and still blocks every decision; a network of a thousand equal stakes still belongs
to the one key that can pause its pay. So stake and the control plane are measured apart, and neither is folded into one score.

Promised: arithmetic on what was given, exact where it decides (a Nakamoto number never turns on rounding).
Not promised: that the holders given are different people, or that all ways to a power were named.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Literal, get_args

from harness.errors import MisuseError
from harness.scoring.consensus import KAPPA, Amount

__all__ = [
    "Concentration",
    "Control",
    "ControlPlane",
    "Power",
    "concentration",
    "control_plane",
    "demand_coverage",
    "nakamoto",
    "unverified_fraction",
]

Power = Literal["pause_pay", "change_parameters", "upgrade", "take_ownership"]
POWERS: tuple[Power, ...] = get_args(Power)


@dataclass(frozen=True, slots=True, kw_only=True)
class Concentration:
    """How a stake, a reward or a capacity is spread over its holders."""

    holder_count: int
    hhi: float  # sum of squared shares: 1 / n for equal ones, 1 for a single holder
    effective_count: float  # 1 / HHI: as many equal holders would be as concentrated
    gini: float
    top_fraction: float
    nakamoto_third: int  # fewest holders with more than this share together: enough to stop a Byzantine network
    nakamoto_half: int  # enough to decide
    nakamoto_veto: int  # more than 1 - kappa: enough to keep a weight from being backed


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """One way to a power: any `threshold_count` of these keys."""

    power: Power
    keys: tuple[str, ...]
    threshold_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlPlane:
    """The fewest holders of keys that can use each power; None where no way to it was named, which is not the same as nobody."""

    nakamoto: Mapping[Power, int | None]

    @property
    def least(self) -> int | None:
        """The fewest that can use any of the powers."""
        return min((n for n in self.nakamoto.values() if n is not None), default=None)


def concentration(holdings: Mapping[str, Amount], kappa: Fraction = KAPPA) -> Concentration:
    """Describe how holdings are spread.

    Raises:
        MisuseError: a holding is negative or not finite, or there is none above 0.
    """
    shares = _shares(holdings)
    n = len(shares)
    hhi = sum((s * s for s in shares), Fraction(0))
    ranked = sum(((2 * i - n - 1) * s for i, s in enumerate(reversed(shares), 1)), Fraction(0))
    return Concentration(
        holder_count=n,
        hhi=float(hhi),
        effective_count=float(1 / hhi),
        gini=float(ranked / n),
        top_fraction=float(shares[0]),
        nakamoto_third=_fewest(shares, Fraction(1, 3)),
        nakamoto_half=_fewest(shares, Fraction(1, 2)),
        nakamoto_veto=_fewest(shares, 1 - kappa),
    )


def nakamoto(holdings: Mapping[str, Amount], threshold: Fraction) -> int:
    """Return the fewest holders that have more than this share together.

    Raises:
        MisuseError: as `concentration`, or the threshold is not a share below 1.
    """
    if not 0 <= threshold < 1:
        msg = f"threshold {threshold!r} is not a share from 0 up to, but not, 1"
        raise MisuseError(msg)
    return _fewest(_shares(holdings), threshold)


def _shares(holdings: Mapping[str, Amount]) -> list[Fraction]:
    """Return the shares, the largest first; who holds nothing still counts as a holder."""
    for holder, held in holdings.items():
        if not (math.isfinite(held) and held >= 0):
            msg = f"{holder!r} holds {held!r}; a holding is 0 or more, and finite"
            raise MisuseError(msg)
    total = sum((Fraction(h) for h in holdings.values()), Fraction(0))
    if not total:
        msg = "nobody holds anything: there is nothing to describe"
        raise MisuseError(msg)
    return sorted((Fraction(h) / total for h in holdings.values()), reverse=True)


def _fewest(shares: Sequence[Fraction], threshold: Fraction) -> int:
    held = Fraction(0)
    for count, share in enumerate(shares, 1):
        held += share
        if held > threshold:
            return count
    return len(shares)


def control_plane(controls: Collection[Control], holder_of: Mapping[str, str] | None = None) -> ControlPlane:
    """Count the fewest holders of keys that can use each power.

    Args:
        controls: every way to a power that is known; a multisig is one, a second path around it another.
        holder_of: who holds a key; a key that is not named is its own holder. A 3-of-5 whose keys are two people's is two people's.

    Raises:
        MisuseError: a threshold can never be met, or by nobody.
    """
    found: dict[Power, int | None] = dict.fromkeys(POWERS)
    for control in controls:
        count = _holders(control, holder_of or {})
        known = found[control.power]
        found[control.power] = count if known is None else min(known, count)
    return ControlPlane(nakamoto=found)


def _holders(control: Control, holder_of: Mapping[str, str]) -> int:
    keys = set(control.keys)
    if not 1 <= control.threshold_count <= len(keys):
        msg = f"{control.threshold_count} of {len(keys)} keys can never {control.power}; a threshold is 1 to the number of keys"
        raise MisuseError(msg)
    got = 0
    for count, (_, held) in enumerate(Counter(holder_of.get(key, key) for key in keys).most_common(), 1):
        got += held
        if got >= control.threshold_count:
            return count
    raise AssertionError  # all holders together have all the keys


def demand_coverage(external_revenue_usd: Decimal | None, emission_usd: Decimal | None) -> float | None:
    """Return what outsiders pay for each unit that is paid out: below 1 the rest is inflation. None where either is unknown.

    Raises:
        MisuseError: an amount is negative, or nothing was emitted.
    """
    if external_revenue_usd is None or emission_usd is None:
        return None
    if external_revenue_usd < 0 or emission_usd <= 0:
        msg = f"revenue {external_revenue_usd} over emission {emission_usd}: the first is 0 or more, the second above 0"
        raise MisuseError(msg)
    return float(external_revenue_usd / emission_usd)


def unverified_fraction(paid: Mapping[str, Amount], proven: Collection[str]) -> float:
    """Return the share of pay that goes to providers whose work nobody can replay: what is decided by vote alone.

    Raises:
        MisuseError: as `concentration`.
    """
    _shares(paid)
    total = sum((Fraction(p) for p in paid.values()), Fraction(0))
    voted = sum((Fraction(p) for provider, p in paid.items() if provider not in proven), Fraction(0))
    return float(voted / total)
