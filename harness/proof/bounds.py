"""What follows from a check that found nothing: bounds, with the confidence that belongs to them. Arithmetic alone."""

from __future__ import annotations

__all__ = ["GRINDING_BITS", "MISS_FRACTION", "most_per_s", "resident_fraction", "skipped_most_fraction"]

MISS_FRACTION = 0.1  # a verdict's bounds hold with confidence 1 - this
GRINDING_BITS = 64  # what a prover may spend on choosing the rows that are opened, where no verifier's nonce chose them


def skipped_most_fraction(openings: int, *, grinding_bits: int = 0, miss_fraction: float = MISS_FRACTION) -> float:
    """Return the largest share of rows that could be false and go unseen with probability `miss_fraction`.

    A false share s is missed with probability (1 - s)^openings; one in 2^grinding_bits tries would do.
    """
    return float(1 - (miss_fraction * 2.0**-grinding_bits) ** (1 / openings))


def most_per_s(amount: float, wall_s: float, fastest_link_s: float | None) -> float | None:
    """Return the highest rate that can have been: as if the network had taken the shortest time it ever took; None where that is unknown."""
    if fastest_link_s is None or fastest_link_s >= wall_s:
        return None
    return amount / (wall_s - fastest_link_s)


def resident_fraction(read_bytes_per_s: float, link_bytes_per_s: float, openings: int) -> float:
    """Return the least share of what was scanned that lay in the device's own memory.

    The rest would have come over its link at the same time: link / read of it at most. What was made up is missed as a false row is.
    """
    return max(0.0, 1 - link_bytes_per_s / read_bytes_per_s - skipped_most_fraction(openings))
