"""Quotes as cards, and how each came about, step by step, for whoever wants to recompute one by hand."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.text import Text

from harness.model import NativePrice, Quote, Score, Terms
from harness.render.tables import blank_table
from harness.scoring.cycles import CYCLES_PER_S
from harness.scoring.pricelist import Line, MarketTable

__all__ = ["explanation", "market_markdown", "market_table", "quote_card"]

_GOOD, _FAIR = "green", "yellow"
_PREFIXES = {10**6: "M", 10**12: "T", 10**15: "P"}


def quote_card(quote: Quote) -> RenderableType:
    """Return a quote with its breakdown, or why there is none."""
    if quote.price_usd_per_hour is None:
        title = Text.assemble((f"{quote.device_name}: no price", _FAIR))
        return Group(title, *(Text(f"  {r}") for r in quote.reasons), *(Text(f"  {line}") for line in _advice(quote)))
    table = blank_table("line", "USD/h", "basis", right=["USD/h"])
    for line in quote.breakdown:
        table.add_row(f"  {line.name}", f"{line.usd_per_hour:.6f}", Text(line.basis, style="dim"))
    table.add_row("  price", Text(f"{quote.price_usd_per_hour:.6f}", style="bold"), Text("the sum", style="dim"))
    tokens = (price for price in quote.native if price.unit.startswith("token"))
    said = [*_advice(quote), *map(_native, tokens), *quote.reasons]
    return Group(_title(quote), table, *(Text(f"  {line}", style="dim") for line in said))


def _title(quote: Quote) -> Text:
    per_unit = ""
    if quote.price_usd_per_cu_hour is not None:
        per_unit = f", {quote.price_usd_per_cu_hour:.4f} USD per {quote.unit}-hour of {quote.profile}"
    interval = ""
    if quote.low_usd_per_hour is not None:
        interval = f" ({quote.low_usd_per_hour:.4f} to {quote.high_usd_per_hour:.4f})"
    return Text.assemble(
        (f"{quote.device_name} ({quote.kind}): ", "bold"),
        (f"{quote.price_usd_per_hour:.6f} USD/h", f"bold {_GOOD}"),
        f"{interval}{per_unit}, floor {quote.floor_usd_per_hour:.6f} USD/h",
    )


def _advice(quote: Quote) -> Iterator[str]:
    if quote.price_usd_per_hour is None and quote.floor_usd_per_hour is not None:
        yield f"whatever the price, below {quote.floor_usd_per_hour:.6f} USD/h standing idle is cheaper"
    if quote.method == "market" and quote.sustainable_usd_per_hour is not None:
        yield f"{quote.sustainable_usd_per_hour:.6f} USD/h would pay for its purchase, too: advice to the owner, not a price"


def _native(price: NativePrice) -> str:
    unit = _PREFIXES[price.batch_count] + ("" if price.unit in {"B", "FLOP"} else " ") + price.unit
    return f"{price.usd_per_batch:.6g} USD per {unit} ({price.point})"


def explanation(quote: Quote, score: Score | None = None) -> RenderableType:
    """Return how a quote came about: what it rests on, the speed, the factors, the bounds, and the rounding."""
    return Group(
        Text(f"{quote.device_name} ({quote.device_uuid})", style="bold"),
        _step("1 what it rests on", _ground(quote)),
        _step("2 what was asked", _asked(quote.terms)),
        _step("3 speed", _speed(quote, score)),
        _step("4 price", _price(quote)),
        _step("5 units", _units(quote)),
        _step("6 to be known", iter((*_advice(quote), *quote.reasons))),
    )


def _step(title: str, lines: Iterator[str]) -> RenderableType:
    return Group(Text(title, style="bold"), *(Text(f"  {line}") for line in lines))


def _ground(quote: Quote) -> Iterator[str]:
    yield f"report        {quote.report_digest}"
    for name, digest in sorted(quote.digests.items()):
        yield f"{name:<13} {digest}"
    for digest in quote.evidence:
        yield f"outcome       {digest}"


def _asked(terms: Terms) -> Iterator[str]:
    yield f"by {terms.basis}, for profile {terms.profile}, on {terms.at}, from a {terms.segment}"
    told = {"provider": terms.provider, "spot": terms.spot or None, "term_s": terms.term_s or None}
    yield from (f"{name} {value}" for name, value in told.items() if value is not None)
    yield from (f"{name} = {value} (given)" for name, value in sorted(terms.costs.items()))
    if terms.record:
        yield f"a history of {len(terms.record.report_digests)} reports: {', '.join(d[:12] for d in terms.record.report_digests)}"


def _speed(quote: Quote, score: Score | None) -> Iterator[str]:
    for part in score.parts if score else ():
        yield f"{part.work_class}: {part.relative_speed:.9g} of the reference node, {part.weight_fraction:.9g} of the time"
    if quote.cycles_per_s is None:
        yield f"no speed on {quote.profile}"
        return
    yield f"1 / sum(share / speed) x {CYCLES_PER_S} = {quote.cycles_per_s} cycles/s, rounded down"


def _price(quote: Quote) -> Iterator[str]:
    if quote.method == "market" and quote.price_usd_per_hour is not None:
        yield "exp(base) times each factor; the lines below are their Shapley values, shared out to the micro-dollar"
        yield from (f"x {factor.times:<14} {factor.name}: {factor.basis}" for factor in quote.factors)
        yield f"kept from {quote.low_usd_per_hour} to {quote.high_usd_per_hour}, and not below the floor of {quote.floor_usd_per_hour}"
    yield from (f"{line.usd_per_hour:>12} {line.name}: {line.basis}" for line in quote.breakdown)
    yield f"sum: {quote.price_usd_per_hour} USD/h" if quote.price_usd_per_hour is not None else "; ".join(quote.reasons)


def _units(quote: Quote) -> Iterator[str]:
    if quote.price_usd_per_mcycle is not None:
        yield f"{quote.price_usd_per_hour} / 3600 / {quote.cycles_per_s} x 1e6 = {quote.price_usd_per_mcycle} USD per Mcycle"
        yield f"x 3600 = {quote.price_usd_per_cu_hour} USD per {quote.unit}-hour"
    yield from map(_native, quote.native)


def market_table(table: MarketTable) -> RenderableType:
    """Return what well-known cards are worth for each profile."""
    drawn = blank_table("card", "market", "interval", *table.profiles, "speed from", right=["market", *table.profiles])
    for line in table.lines:
        worths = [_worth(line, name) for name in table.profiles]
        drawn.add_row(Text(line.name, style="bold"), f"{line.usd_per_hour:.2f}", _interval(line), *worths, line.basis)
    return Group(drawn, *(Text(note, style="dim") for note in table.notes))


def market_markdown(table: MarketTable) -> str:
    """Return the same table as Markdown, for the README."""
    head = ["card", "market, USD/h", "interval", *table.profiles]
    rows = [
        [line.name, f"{line.usd_per_hour:.2f}", _interval(line), *(_worth(line, n) for n in table.profiles)]
        for line in table.lines
    ]
    drawn = ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]
    return "\n".join([*drawn, "", *(f"{note}  " for note in table.notes)])


def _interval(line: Line) -> str:
    return f"{line.low_usd_per_hour:.2f} to {line.high_usd_per_hour:.2f}"


def _worth(line: Line, profile: str) -> str:
    worth = line.worths.get(profile)
    if worth is None:
        return "-"
    return f"{'~' if worth.from_sheet else ''}{worth.usd_per_hour:.2f} ({worth.difference_percent:+d} %)"
