"""What follows from a check that found nothing: bounds, with the confidence that belongs to them. Arithmetic alone.

A row is false if it does not follow from the one before it. Who may choose a false row chooses one whose product is known, such as zeros: it saves the
product that the row should have come from, and its own. What follows from it is as random as an honest row, by the pad, and so costs what that costs.
"""

from __future__ import annotations

__all__ = [
    "GRINDING_BITS",
    "MISS_FRACTION",
    "false_most_fraction",
    "most_per_s",
    "resident_fraction",
    "skipped_most_fraction",
]

MISS_FRACTION = 0.1  # a verdict's bounds hold with confidence 1 - this
GRINDING_BITS = 64  # what a prover may spend on choosing the rows that are opened, where no verifier's nonce chose them


_SAVED_BY_A_FALSE_ROW = 2  # products


def false_most_fraction(openings: int, *, grinding_bits: int = 0, miss_fraction: float = MISS_FRACTION) -> float:
    """Return the largest share of rows that could be false and go unseen with probability `miss_fraction`.

    A false share s is missed with probability (1 - s)^openings; one in 2^grinding_bits tries would do.
    """
    return float(1 - (miss_fraction * 2.0**-grinding_bits) ** (1 / openings))


def skipped_most_fraction(openings: int, *, grinding_bits: int = 0, miss_fraction: float = MISS_FRACTION) -> float:
    """Return the largest share of the work that could be left out and go unseen with probability `miss_fraction`."""
    false = false_most_fraction(openings, grinding_bits=grinding_bits, miss_fraction=miss_fraction)
    return min(1.0, _SAVED_BY_A_FALSE_ROW * false)


def most_per_s(amount: float, wall_s: float, fastest_link_s: float | None) -> float | None:
    """Return the highest rate that can have been: as if the network had taken the shortest time it ever took; None where that is unknown."""
    if fastest_link_s is None or fastest_link_s >= wall_s:
        return None
    return amount / (wall_s - fastest_link_s)


def resident_fraction(
    read_bytes_per_s: float, *, link_bytes_per_s: float, rebuilt_bytes_per_s: float, openings: int, scan_openings: int
) -> float:
    """Return the least share of what was scanned that lay in the device's own memory.

    The rest came over its link at the same time, or was computed again: link / read and rebuilt / read of it at most. Rows that were never computed
    need not be kept, nor what follows from them at once, and sums that were made up are missed as a false row is.
    """
    elsewhere = (link_bytes_per_s + rebuilt_bytes_per_s) / read_bytes_per_s
    return max(0.0, 1 - elsewhere - skipped_most_fraction(openings) - false_most_fraction(scan_openings))
