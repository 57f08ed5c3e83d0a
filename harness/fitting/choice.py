"""A setting chosen by what a fit would say of prices that it had not seen, without fitting again.

For a normal model with covariance V of all prices, what it says of a group that is left out is off by (V^-1)_GG^-1 (V^-1 y)_G: one inverse
gives the errors of every group. Only the prices given are used, so that inside a fold of the backtest what is left out there has no say.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[np.float64]]

__all__ = ["errors_left_out", "mean_error"]


def errors_left_out(inverse: Array, y: Array, keys: Sequence[Hashable]) -> Array:
    """Return how far off each y would be told by all y of other keys: shape (n,).

    Args:
        inverse: of the covariance of y, noise included: shape (n, n).
        y: with mean 0: shape (n,).
        keys: the group of each.
    """
    import numpy as np

    groups: dict[Hashable, list[int]] = {}
    for i, key in enumerate(keys):
        groups.setdefault(key, []).append(i)
    weighed, errors = inverse @ y, np.zeros(len(y))
    for group in groups.values():
        errors[group] = np.linalg.solve(inverse[np.ix_(group, group)], weighed[group])
    return errors


def mean_error(covariance: Array, y: Array, groupings: Sequence[Sequence[Hashable]], counted: Array) -> float:
    """Return the mean absolute error over the ways to group and to leave out, of those y that count (shape (n,), bool)."""
    import numpy as np

    inverse = np.asarray(np.linalg.inv(covariance), dtype=np.float64)
    return float(np.mean([np.abs(errors_left_out(inverse, y, keys)[counted]).mean() for keys in groupings]))
