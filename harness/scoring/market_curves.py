"""The rising curves of a market model, prepared once for a kind of seller, so that a fleet is priced with few exponentials.

Steps along one mix of rates share an exponential,

    1 / (1 + exp(-(x - knot) / width)) = 1 / (1 + exp(knot / width) * exp(-x / width))

and a curve adds something to its own rates only: what one over two or three rates adds is shared out among these by Shapley's rule, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.scoring.market_document import Curve, Document

__all__ = ["Curves"]


@dataclass(frozen=True, slots=True)
class _Mix:
    """All curves over one weighted sum of rates."""

    shares: tuple[tuple[str, float], ...]
    slope: float
    steps: tuple[tuple[float, float], ...]  # weight, and exp(knot / width)
    width: float
    nothing: float  # their sum in the middle
    # What each rate is given of the values at all subsets of the rates (bit i of a position: rate i is in): Shapley's rule as a linear map.
    rule: tuple[tuple[float, ...], ...]

    def value(self, x: float) -> float:
        """Return the sum of the curves at one position: it rises with it."""
        return _value(x, self.slope, self.steps, self.width)

    def add(self, positions: Mapping[str, float], parts: dict[str, float]) -> None:
        """Add to each rate's part what these curves give it at a card's positions."""
        sums = [0.0]
        for name, share in self.shares:
            moved = share * positions[name]
            sums += [x + moved for x in sums]
        values = [self.nothing, *map(self.value, sums[1:])]
        for (name, _), row in zip(self.shares, self.rule, strict=True):
            parts[name] += _dot(row, values)


def _value(x: float, slope: float, steps: tuple[tuple[float, float], ...], width: float) -> float:
    try:
        decay = math.exp(-x / width)
    except OverflowError:
        decay = math.inf  # far below all knots: no step is begun
    total = slope * x
    for weight, knot in steps:
        total += weight / (1 + knot * decay)
    return total


class Curves:
    """The curves that hold for one kind of seller."""

    def __init__(self, document: Document, segment: str) -> None:
        self._axes = tuple(document.axes)
        self._mixes = tuple(_mixes(document, segment))
        self.base = math.fsum(mix.nothing for mix in self._mixes)  # at the middle of each axis

    def parts(self, positions: Mapping[str, float]) -> dict[str, float]:
        """Return what each rate adds, on average over all orders in which a middling card could be given this one's rates."""
        parts = dict.fromkeys(self._axes, 0.0)
        for mix in self._mixes:
            mix.add(positions, parts)
        return parts


def _mixes(document: Document, segment: str) -> list[_Mix]:
    groups: dict[tuple[tuple[str, float], ...], list[Curve]] = {}
    for curve in document.curves:
        if curve.segment in {None, segment}:
            groups.setdefault(tuple(sorted(curve.on.items())), []).append(curve)
    return [_mix(shares, curves, document.curve_width) for shares, curves in sorted(groups.items())]


def _mix(shares: tuple[tuple[str, float], ...], curves: Sequence[Curve], width: float) -> _Mix:
    slope = math.fsum(c.weight for c in curves if c.knot is None)
    steps = tuple((c.weight, math.exp(c.knot / width)) for c in curves if c.knot is not None)
    return _Mix(
        shares=shares,
        slope=slope,
        steps=steps,
        width=width,
        nothing=_value(0.0, slope, steps, width),
        rule=tuple(_rule(i, len(shares)) for i in range(len(shares))),
    )


def _rule(own: int, count: int) -> tuple[float, ...]:
    """Return the weight of each subset's value in what one of some players is given."""
    row = []
    for subset in range(1 << count):
        size, inside = subset.bit_count(), subset >> own & 1
        before = size - inside  # players there before this one comes
        row.append(
            (1 if inside else -1) * math.factorial(before) * math.factorial(count - before - 1) / math.factorial(count)
        )
    return tuple(row)


def _dot(row: Sequence[float], values: Sequence[float]) -> float:
    total = 0.0  # not `sum`, which rounds in another way from Python 3.12 on
    for weight, value in zip(row, values, strict=True):
        total += weight * value
    return total
