"""A quote as a waterfall: where each line's bar begins, what the sum is, and between what bounds it lies."""

from __future__ import annotations

from decimal import Decimal

from harness.model import Quote
from harness.render.report.views import Bill, BillLine
from harness.render.report.words import money, tame

__all__ = ["bill"]

_WORDS = (("_flops_per_s", " rate"), ("memory_bytes_per_s", "memory bandwidth"), ("memory_bytes", "memory size"))


def bill(quote: Quote) -> Bill:
    """Return a quote taken apart; the lines sum to the price, as the quote's do."""
    at, lines = Decimal(0), []
    for line in quote.breakdown:
        lines.append(BillLine(_called(line.name), line.usd_per_hour, at, tame(line.basis)))
        at += line.usd_per_hour
    return Bill(
        method=quote.method,
        price_usd_per_hour=quote.price_usd_per_hour,
        low_usd_per_hour=quote.low_usd_per_hour,
        high_usd_per_hour=quote.high_usd_per_hour,
        floor_usd_per_hour=quote.floor_usd_per_hour,
        sustainable_usd_per_hour=quote.sustainable_usd_per_hour,
        lines=tuple(lines),
        reasons=tuple(tame(r) for r in quote.reasons),
        said=_said(quote),
    )


def _called(name: str) -> str:
    """Return a line's name as people say it: the market model calls its features by field."""
    for field, word in _WORDS:
        name = name.replace(field, word)
    return tame(name.replace("_", " "), 40)


def _said(quote: Quote) -> str:
    if quote.price_usd_per_hour is None:
        why = "; ".join(tame(r) for r in quote.reasons) or "no reason was given"
        return f"No price: {why}."
    basis = "by what its hour costs its owner" if quote.method == "cost" else "by what the market pays"
    ends = ""
    if quote.low_usd_per_hour is not None and quote.high_usd_per_hour is not None:
        ends = f" Four of five such prices lie between {money(quote.low_usd_per_hour)} and {money(quote.high_usd_per_hour)}."
    floor = ""
    if quote.floor_usd_per_hour is not None:
        floor = f" Below {money(quote.floor_usd_per_hour)} standing idle is cheaper."
    return f"{money(quote.price_usd_per_hour)} an hour, {basis}.{ends}{floor}"
