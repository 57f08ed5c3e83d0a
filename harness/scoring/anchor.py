"""A fresh index of prices against the model: by how much the market has moved since, if enough sellers say so.

Covers: a print that is thin, disputed or carried by few sellers is not used, and the reason is told. Does not cover: sellers who agree
among themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["IndexPrint", "objection"]

# The gates of henryzhangpku/gpu-price-index, METHODOLOGY 1.1: the strictest that are published.
_LEAST_SELLERS, _LEAST_OFFERS, _MOST_DISPERSION = 4, 8, 0.45


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexPrint:
    """How a class of cards is priced on a day, over what the model says of the same sellers and cards."""

    card_class: str
    date: str  # ISO 8601
    log_ratio: float  # median over sellers of their median log ratio
    seller_count: int
    offer_count: int
    log_mad: float  # median absolute deviation of the sellers' log ratios


def objection(print_: IndexPrint) -> str | None:
    """Return why a print may not be used, or None."""
    if print_.seller_count < _LEAST_SELLERS:
        return f"thin: {print_.seller_count} sellers, and {_LEAST_SELLERS} are needed"
    if print_.offer_count < _LEAST_OFFERS:
        return f"thin: {print_.offer_count} offers, and {_LEAST_OFFERS} are needed"
    if print_.log_mad > _MOST_DISPERSION:
        return f"disputed: sellers differ by {print_.log_mad:.2f} in the median, and {_MOST_DISPERSION} is the most"
    return None
