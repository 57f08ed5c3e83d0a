"""The least change of effects by which no card is dearer than a better one of its class."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from harness.scoring.sheets import Sheet, sheets

if TYPE_CHECKING:
    import numpy as np

__all__ = ["in_order", "pairs"]

_RATES = ("fp16_flops_per_s", "memory_bytes_per_s", "memory_bytes")
_MARGIN = 4e-6  # what rounding to six digits may take away again


@cache
def pairs() -> tuple[tuple[str, str], ...]:
    """Return each (better, worse) of a class: at least as good in every rate that is priced, and better in one."""
    rows = sheets().values()
    return tuple(
        (better.key, worse.key)
        for better in rows
        for worse in rows
        if better.card_class == worse.card_class and _dominates(better, worse)
    )


def in_order(
    effects: Mapping[str, float], trust: Mapping[str, float], levels: Mapping[str, np.ndarray[Any, Any]]
) -> dict[str, float]:
    """Return effects, moved least in squares weighted by trust, so that level + effect of a better card is not below a worse one's.

    Broken pairs are mended together, and the pairs that this breaks are added, until none is left.
    """
    needed = {
        (b, w): float(max(levels[w] - levels[b])) + _MARGIN  # the least effect[b] - effect[w]
        for b, w in pairs()
        if b in effects and w in effects
    }
    held, mended = dict(effects), dict[tuple[str, str], float]()
    while broken := [
        p for p, least in needed.items() if held[p[0]] - held[p[1]] < least - _MARGIN / 2 and p not in mended
    ]:
        mended |= {pair: needed[pair] for pair in broken}
        held = _mend(effects, trust, mended)
    return held


def _mend(
    effects: Mapping[str, float], trust: Mapping[str, float], needed: Mapping[tuple[str, str], float]
) -> dict[str, float]:
    """Solve the least-distance problem by non-negative least squares (Lawson and Hanson, 1974, chapter 23)."""
    import numpy as np
    from scipy.optimize import nnls

    names = sorted({name for pair in needed for name in pair})
    at = {name: i for i, name in enumerate(names)}
    ease = np.array([1 / np.sqrt(trust[name]) for name in names])
    rows, lacks = np.zeros((len(needed), len(names))), np.zeros(len(needed))
    for i, ((better, worse), least) in enumerate(needed.items()):
        rows[i, at[better]], rows[i, at[worse]] = 1.0, -1.0
        lacks[i] = least - (effects[better] - effects[worse])
    system = np.vstack([(rows * ease).T, lacks])
    target = np.zeros(len(names) + 1)
    target[-1] = 1.0
    weights, _ = nnls(system, target, maxiter=10_000)
    left = target - system @ weights
    moved = ease * -left[:-1] / left[-1]
    return {**effects, **{name: effects[name] + float(moved[at[name]]) for name in names}}


def _dominates(better: Sheet, worse: Sheet) -> bool:
    ratios = [getattr(better, name) / getattr(worse, name) for name in _RATES]
    return better.key != worse.key and min(ratios) >= 1 and max(ratios) > 1
