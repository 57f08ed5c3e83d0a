"""A device's scores among those of other cards, by what was published of them, and its results among those of its own model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from functools import cache

from harness.model import Capability, Score
from harness.render.report.views import Peer, Standing
from harness.render.report.words import number, signed_percent, tame, work_name
from harness.scoring.cycles import harmonic_speed
from harness.scoring.placement import Placement
from harness.scoring.profiles import Profile, profiles
from harness.scoring.score import score_of
from harness.scoring.tables import table
from harness.scoring.typical import typical_rates

__all__ = ["FAMILIES", "against_middle", "published_scores", "standings"]

# What an operator calls the part of a card that a public quantity is about.
FAMILIES: Mapping[str, tuple[str, ...]] = {
    "memory": ("copy", "scale", "triad", "dot"),
    "arithmetic": ("gemm",),
    "PCIe link": ("pcie",),
    "peer link": ("p2p",),
}


def standings(seen: Capability) -> tuple[Standing, ...]:
    """Return a device's place on each workload for which it has a score, and why the others have none."""
    return tuple(_standing(score_of(seen, profile), profile) for profile in profiles().values())


def _standing(scored: Score, profile: Profile) -> Standing:
    peers = published_scores(profile.name)
    own = next((p.cu_per_hour for p in peers if _plain(p.name) == _plain(scored.device_name)), None)
    value = scored.cu_per_hour
    lacking = f"not measured: {', '.join(map(work_name, scored.missing))}" if scored.missing else scored.too_small or ""
    return Standing(
        profile=profile.name,
        unit=f"{scored.unit}/h",
        cu_per_hour=value,
        high_cu_per_hour=scored.high_cu_per_hour,
        missing=tame(lacking),
        peers=peers,
        own_kind=own,
        said=" ".join(_said(value, own, peers)) if value is not None else f"no score: {tame(lacking)}",
    )


def _said(value: float, own: float | None, peers: Sequence[Peer]) -> Iterator[str]:
    if not peers:
        yield f"{number(value)}: no model of GPU has published results of all its parts to compare it with."
        return
    below = sum(p.cu_per_hour < value for p in peers)
    yield f"{number(value)}: above {below} of {len(peers)} models of GPU with published results" + (
        "." if own is None else ";"
    )
    if own:
        yield f"{signed_percent(value / own - 1)} against the low end published of its own model."


@cache
def published_scores(profile: str) -> tuple[Peer, ...]:
    """Return what the low ends of published results of each model come to on a profile, the slowest first.

    A model of which a class of the profile was not published is left out.
    """
    shares = profiles()[profile].fractions
    reference = {w: Fraction(row["value"]) for w, row in table("reference")["rates"].items()}
    found = []
    for card in table("public_ranges")["cards"]:
        rates = typical_rates(card["names"][0])
        if all(w in rates for w in shares):
            speed = harmonic_speed(shares, {w: rates[w] / reference[w] for w in shares})
            found.append(Peer(card["names"][0].removeprefix("NVIDIA "), float(speed)))
    return tuple(sorted(found, key=lambda p: p.cu_per_hour))


def against_middle(placed: Sequence[Placement]) -> float | None:
    """Return how far results lie above or below the middle of what was published of the model: the median over quantities."""
    changes = sorted(p.value_per_s / math.sqrt(p.low_per_s * p.high_per_s) - 1 for p in placed if p.low_per_s > 0)
    if not changes:
        return None
    half = len(changes) // 2
    return changes[half] if len(changes) % 2 else (changes[half - 1] + changes[half]) / 2


def _plain(name: str) -> str:
    return " ".join(name.casefold().split()).removeprefix("nvidia ")
