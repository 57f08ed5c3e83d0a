"""The page for people at the root of `harness serve`: each device's price, its interval, what it is made of, its history and its evidence.

Rendered here, whole, by Jinja2, whose only door this is: no script, no font, no picture, nothing fetched from elsewhere, and no build step. What a
stranger's report says is text, escaped, and kept in its own direction; links lead only to this server.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote as quoted

from harness import codec
from harness.errors import FailureError
from harness.market.sales.shop import Shelved
from harness.model import Device, NativePrice, Quote

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["CSP", "HEADERS", "Listing", "listing", "page"]

_FOLDER = Path(__file__).parent / "templates"
_CSS = (_FOLDER / "page.css").read_text(encoding="utf-8")
_HASH = base64.b64encode(hashlib.sha256(_CSS.encode()).digest()).decode()
CSP = f"default-src 'none'; style-src 'sha256-{_HASH}'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_PROGRAMS = (
    ("Devices as JSON", "/v1/devices"),
    ("OpenAPI", "/openapi.json"),
    ("Agent card", "/.well-known/agent-card.json"),
    ("Agent registration", "/.well-known/agent-registration.json"),
)
_GIB = 1 << 30
_NOTES_MOST = 12
_HISTORY_MOST = 200  # reports; older ones are in the folder
_PREFIXES = {10**6: "M", 10**12: "T", 10**15: "P"}
_WANTED = "the page needs the extra `serve`: pip install 'gpu-assay[serve]'"
_DECIMALS_MOST = 6  # a price is whole micro-dollars
_WORDS = {  # of lines that are named after features
    "fp16_flops_per_s": "half-precision speed",
    "fp32_flops_per_s": "single-precision speed",
    "memory_bytes": "memory",
    "memory_bytes_per_s": "memory bandwidth",
    "launched": "age of the model",
    "class": "class of card",
    "segment": "kind of seller",
    "name": "what its name brings",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """One device to show."""

    quote: Quote
    device: Device | None = None
    history: tuple[Quote, ...] = ()  # oldest first
    links: Mapping[str, str] = field(default_factory=dict)  # label to a path on this server
    report_url: str | None = None


def listing(shelved: Shelved) -> Listing:
    """Return a device of a shop as the page takes it, with links to its documents."""
    return Listing(
        quote=shelved.quote,
        device=shelved.device,
        history=shelved.history,
        links={"Price with its derivation": _document(codec.digest(shelved.quote))},
        report_url=_document(shelved.quote.report_digest),
    )


def _document(digest: str) -> str:
    return f"/v1/evidence/{quoted(digest, safe='')}"


def page(listings: Sequence[Listing], *, now: datetime, title: str = "GPU hours, measured and priced") -> str:
    """Return the page as HTML. Send `HEADERS` with it.

    Args:
        listings: devices, in the order to show them; none gives a page that says so.
        now: the server's time, with its zone.
        title: of the page.

    Raises:
        FailureError: Jinja2 is not installed.
    """
    most = max((_top(one.quote) for one in listings), default=Decimal(0))
    cards = [_card(one, f"device-{at}", now, most) for at, one in enumerate(listings, 1)]
    return _template().render(
        title=title, css=_CSS, cards=cards, programs=_PROGRAMS, now=_when(now), summary=_summary(listings)
    )


@functools.cache
def _template() -> Template:
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as err:
        raise FailureError(_WANTED) from err
    room = Environment(loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return room.get_template("page.html")


def _summary(listings: Sequence[Listing]) -> str:
    prices = [one.quote.price_usd_per_hour for one in listings if one.quote.price_usd_per_hour is not None]
    if not listings:
        return "No devices yet"
    devices = f"{len(listings)} device{'s' if len(listings) > 1 else ''}"
    return f"{devices}, from {_usd(min(prices))} USD an hour" if prices else f"{devices}, none with a price"


# --- one device -------------------------------------------------------------------------------------------------------


def _card(one: Listing, anchor: str, now: datetime, most: Decimal) -> dict[str, Any]:
    quote = one.quote
    priced = quote.price_usd_per_hour is not None
    return {
        "anchor": anchor,
        "name": quote.device_name,
        "about": " · ".join(_about(one)),
        "price": _usd(quote.price_usd_per_hour) if quote.price_usd_per_hour is not None else None,
        "exact": f"{quote.price_usd_per_hour:.6f}" if priced else None,
        "interval": _interval(quote) if priced else "no price",
        "per_unit": _per_unit(quote),
        "gauge": _gauge(quote, most),
        "notes": quote.reasons[:_NOTES_MOST],
        "facts": list(_facts(quote, now)),
        "lines": list(_lines(quote)),
        "factors": quote.factors,
        "native": [
            {"unit": _unit(price), "usd": f"{price.usd_per_batch:.6g}", "point": price.point} for price in quote.native
        ],
        "history": _history(one.history[-_HISTORY_MOST:]),
        "links": list(one.links.items()),
        "report": {"digest": quote.report_digest, "url": one.report_url},
        "evidence": [{"digest": digest, "url": None} for digest in quote.evidence],
        "digests": sorted(quote.digests.items()),
    }


def _about(one: Listing) -> Iterator[str]:
    yield {"cuda": "GPU", "cpu": "CPU"}.get(one.quote.kind, one.quote.kind)
    if one.device and one.device.memory_bytes:
        yield f"{one.device.memory_bytes / _GIB:.0f} GiB"
    if one.device and one.device.driver:
        yield f"driver {one.device.driver}"
    yield one.quote.device_uuid


def _facts(quote: Quote, now: datetime) -> Iterator[tuple[str, str]]:
    """Yield what is known beside the price, as term and value; what is not known is left out."""
    if quote.floor_usd_per_hour is not None:
        yield "Floor: below it, idle is cheaper", f"{quote.floor_usd_per_hour:.6f} USD/h"
    if quote.sustainable_usd_per_hour is not None:
        yield "Would pay for the purchase", f"{quote.sustainable_usd_per_hour:.6f} USD/h"
    if quote.cycles_per_s is not None:
        yield f"Speed on {quote.profile}", f"{quote.cycles_per_s:,} cycles/s".replace(",", "\N{NARROW NO-BREAK SPACE}")
    if quote.price_usd_per_mcycle is not None:
        yield "A million cycles", f"{quote.price_usd_per_mcycle:.6g} USD"
    sold = f"the market of {quote.terms.at}{', spot' if quote.terms.spot else ''}, {quote.terms.segment}"
    yield "Priced by", sold if quote.method == "market" else "its owner's costs"
    until = _time(quote.issued_at) + timedelta(seconds=quote.valid_for_s)
    yield "Measured", _when(_time(quote.issued_at))
    yield "This price", f"good until {_when(until)}" if now < until else "as of the measurement; ask for a signed quote"


def _lines(quote: Quote) -> Iterator[dict[str, Any]]:
    """Yield the breakdown; each bar begins where the one before ended, so that they add up by eye."""
    ends, at = [Decimal(0)], Decimal(0)
    for line in quote.breakdown:
        at += line.usd_per_hour
        ends.append(at)
    low, span = min(ends), (max(ends) - min(ends)) or Decimal(1)
    bases = ["", *(line.basis for line in quote.breakdown)]
    for line, before, first, last in zip(quote.breakdown, bases, ends, ends[1:], strict=False):
        yield {
            "name": _WORDS.get(line.name, line.name.replace("_", " ")),
            "usd": _signed(line.usd_per_hour),
            "basis": "as above" if line.basis == before else line.basis,
            "adds": line.usd_per_hour >= 0,
            "from_percent": _percent(min(first, last) - low, span),
            "percent": max(_percent(abs(last - first), span), 0.8) if line.usd_per_hour else 0,
        }


def _gauge(quote: Quote, most: Decimal) -> dict[str, Any]:
    """Return where price, interval and floor lie, in percent of a scale that all devices share."""
    places = {
        "price": quote.price_usd_per_hour,
        "low": quote.low_usd_per_hour,
        "high": quote.high_usd_per_hour,
        "floor": quote.floor_usd_per_hour,
    }
    return {name: None if usd is None else _percent(usd, most) for name, usd in places.items()} | {"says": _says(quote)}


def _says(quote: Quote) -> str:
    if quote.price_usd_per_hour is None:
        return "no price"
    said = f"{_usd(quote.price_usd_per_hour)} USD an hour"
    if quote.low_usd_per_hour is not None:
        said += f"; four of five such prices lie from {_interval(quote)}"
    if quote.floor_usd_per_hour is not None:
        said += f"; the floor is {_usd(quote.floor_usd_per_hour)}"
    return said


def _interval(quote: Quote) -> str:
    if quote.low_usd_per_hour is None or quote.high_usd_per_hour is None:
        return "by cost: no interval"
    return f"{_usd(quote.low_usd_per_hour)} to {_usd(quote.high_usd_per_hour)}"


def _per_unit(quote: Quote) -> str | None:
    if quote.price_usd_per_cu_hour is None:
        return None
    return f"{_usd(quote.price_usd_per_cu_hour)} per {quote.unit}-hour"


# --- history ----------------------------------------------------------------------------------------------------------


def _history(quotes: Sequence[Quote]) -> dict[str, Any]:
    """Return a curve over reports in a box of 100 by 100, its band, and the same in words and rows."""
    priced = [one for one in quotes if one.price_usd_per_hour is not None]
    rows = [
        {
            "at": _when(_time(one.issued_at)),
            "usd": "none" if one.price_usd_per_hour is None else f"{one.price_usd_per_hour:.6f}",
            "interval": "none" if one.low_usd_per_hour is None else _interval(one),
        }
        for one in reversed(quotes)
    ]
    if len(priced) < 2:  # noqa: PLR2004 - of a curve
        return {"points": "", "band": "", "rows": rows, "says": "One report so far: a history begins with the second."}
    prices = [one.price_usd_per_hour for one in priced if one.price_usd_per_hour is not None]
    first, last = (_when(_time(one.issued_at)) for one in (priced[0], priced[-1]))
    says = f"{len(priced)} prices from {first} to {last}: lowest {_usd(min(prices))}, highest {_usd(max(prices))}, last {_usd(prices[-1])} USD an hour"
    return {"points": _curve(priced, "price"), "band": _band(priced), "rows": rows, "says": says}


def _places(quotes: Sequence[Quote]) -> list[float]:
    """Return where each report lies on the axis of time, in percent."""
    times = [_time(one.issued_at).timestamp() for one in quotes]
    span = times[-1] - times[0]
    return [(at - times[0]) / span * 100 if span else i * 100 / (len(times) - 1) for i, at in enumerate(times)]


def _curve(quotes: Sequence[Quote], which: str) -> str:
    most = max(_top(one) for one in quotes)
    heights = (100 - _percent(getattr(one, f"{which}_usd_per_hour"), most) for one in quotes)
    return " ".join(f"{x:.2f},{y:.2f}" for x, y in zip(_places(quotes), heights, strict=False))


def _band(quotes: Sequence[Quote]) -> str:
    if any(one.low_usd_per_hour is None or one.high_usd_per_hour is None for one in quotes):
        return ""
    back = " ".join(reversed(_curve(quotes, "high").split()))
    return f"M{_curve(quotes, 'low')} L{back} Z"


# --- numbers and times ------------------------------------------------------------------------------------------------


def _top(quote: Quote) -> Decimal:
    shown = (quote.price_usd_per_hour, quote.high_usd_per_hour, quote.floor_usd_per_hour)
    return max((usd for usd in shown if usd is not None), default=Decimal(0))


def _percent(part: Decimal, whole: Decimal) -> float:
    return round(float(part / whole) * 100, 2) if whole else 0.0


def _usd(usd: Decimal) -> str:
    """Return three digits that count, and no less than cents."""
    if usd >= 1 or not usd:
        return f"{usd:.2f}"
    return f"{usd:.{min(2 - usd.adjusted(), _DECIMALS_MOST)}f}"


def _signed(usd: Decimal) -> str:
    return f"{usd:.6f}".replace("-", "\N{MINUS SIGN}")


def _unit(price: NativePrice) -> str:
    prefix = _PREFIXES.get(price.batch_count)
    if prefix is None:
        return f"{price.batch_count} {price.unit}"
    return prefix + ("" if price.unit in {"B", "FLOP"} else " ") + price.unit


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def _when(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
