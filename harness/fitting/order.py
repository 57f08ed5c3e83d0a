"""The least change of effects by which no card is dearer than a better one of its class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from harness.scoring.sheets import Sheet, sheets

if TYPE_CHECKING:
    import numpy as np

__all__ = ["in_order", "pairs"]

_RATES = ("fp16_flops_per_s", "memory_bytes_per_s", "memory_bytes")
_ENOUGH = 1e-9
_MOST_SWEEPS = 5000
_MARGIN = 2e-6  # what rounding six digits may take away again


def pairs() -> Iterator[tuple[str, str]]:
    """Yield each (better, worse) of a class: at least as good in every rate that is priced, and better in one."""
    rows = list(sheets().values())
    for better in rows:
        for worse in rows:
            if better.card_class == worse.card_class and _dominates(better, worse):
                yield better.key, worse.key


def in_order(
    effects: Mapping[str, float], trust: Mapping[str, float], levels: Mapping[str, np.ndarray[Any, Any]]
) -> dict[str, float]:
    """Return effects, moved least in squares weighted by trust, so that level + effect of a better card is not below a worse one's.

    Hildreth's method: each broken pair is mended in turn by moving both, and takes back what it no longer needs.
    """
    needed = {
        (b, w): float(max(levels[w] - levels[b])) + _MARGIN  # the least effect[b] - effect[w]
        for b, w in pairs()
        if b in effects and w in effects
    }
    held, push = dict(effects), dict.fromkeys(needed, 0.0)
    active = [pair for pair in needed if held[pair[0]] - held[pair[1]] < needed[pair]]
    for _ in range(_MOST_SWEEPS):
        moved = 0.0
        for better, worse in active:
            lacks = needed[better, worse] - (held[better] - held[worse])
            step = max(lacks / (1 / trust[better] + 1 / trust[worse]), -push[better, worse])
            push[better, worse] += step
            held[better] += step / trust[better]
            held[worse] -= step / trust[worse]
            moved = max(moved, abs(step) / trust[better], abs(step) / trust[worse])
        if moved < _ENOUGH:
            broken = [p for p in needed if p not in set(active) and held[p[0]] - held[p[1]] < needed[p] - _ENOUGH]
            if not broken:
                break
            active += broken
    return held


def _dominates(better: Sheet, worse: Sheet) -> bool:
    ratios = [getattr(better, name) / getattr(worse, name) for name in _RATES]
    return better.key != worse.key and min(ratios) >= 1 and max(ratios) > 1
