"""Offers as others publish them, read into one form: our own columns, SkyPilot's catalogues, vast.ai's search, gpuhunt.

Covers: what cannot be read is told with its line and its value, and is left out; a file without one readable offer is refused.
Does not cover: whether an offer is honest. `cells` screens what stands alone.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Literal, cast

from harness import strangers
from harness.errors import FailureError, MisuseError
from harness.scoring.market_document import Segment
from harness.scoring.sheets import find_sheet

__all__ = ["Kind", "Offer", "Origin", "Reading", "from_gpuhunt", "read_offers"]

Kind = Literal["list", "ask", "median", "lowest", "mean"]
SEGMENTS = ("hyperscaler", "neocloud", "marketplace")
_HYPERSCALERS = ("aws", "azure", "gcp", "oci", "oracle")
_MARKETPLACES = ("vastai", "akash", "lium", "salad", "clore", "simplepod", "runpod-community")
_LEAST_USD, _MOST_USD = Decimal("0.005"), Decimal(100)
_LEAST_MIB, _MOST_MIB = Decimal(1), Decimal(2**24)
_GPUHUNT_NAMES = {"verda": "datacrunch"}  # a seller that changed its name
_FORM_FACTORS = ("SXM", "PCIe", "NVL")


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What one seller asks for an hour of one GPU of a card."""

    provider: str
    segment: Segment
    card: str  # its key
    usd_per_gpu_hour: Decimal
    date: str  # ISO 8601, to the day or to the month
    exact_date: bool
    kind: Kind
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a file does not say itself."""

    provider: str | None = None
    segment: Segment | None = None
    date: str | None = None
    source: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The offers of a source, and what was left out, with why."""

    offers: tuple[Offer, ...]
    left_out: tuple[str, ...]


def read_offers(path: Path, origin: Origin) -> Reading:
    """Read a file of offers, whatever its form.

    Raises:
        MisuseError: there is no such file, its form is unknown, or it does not say what `origin` leaves open.
        FailureError: no offer in it can be used.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        msg = f"cannot read offers from {str(path)!r}: {err}"
        raise MisuseError(msg) from err
    if text.lstrip().startswith(("{", "[")):
        return _collect(_vast_rows(path, text), lambda row: _vast_offer(row, origin), str(path))
    rows = list(csv.DictReader(text.splitlines()))
    columns = set(rows[0]) if rows else set()
    if {"provider", "gpu_key", "price_usd_per_gpu_hour"} <= columns:
        return _collect(rows, _own_offer, str(path))
    if {"AcceleratorName", "AcceleratorCount", "Price"} <= columns:
        complete = _needs(origin, path)
        return _collect(rows, lambda row: _skypilot_offer(row, complete), str(path))
    msg = f"{str(path)!r} is no file of offers: its columns are {', '.join(sorted(columns)) or 'none'}; {_FORMS}"
    raise MisuseError(msg)


_FORMS = (
    "known are our own (provider, segment, gpu_key, price_usd_per_gpu_hour, spot, date, kind, source), "
    "SkyPilot's (AcceleratorName, AcceleratorCount, Price) and vast.ai's JSON (offers)"
)


def from_gpuhunt(providers: tuple[str, ...] = ()) -> Reading:
    """Fetch today's offers through gpuhunt, which downloads its catalogues.

    Raises:
        MisuseError: gpuhunt is not installed.
        FailureError: the catalogues cannot be had.
    """
    try:
        import gpuhunt
    except ImportError as err:
        msg = "gpuhunt is not installed: pip install 'gpu-assay[gpuhunt]'"
        raise MisuseError(msg) from err
    try:
        items = gpuhunt.query(provider=list(providers) or None, min_gpu_count=1, spot=False)
    except Exception as err:
        msg = f"gpuhunt could not fetch its catalogues: {err}"
        raise FailureError(msg) from err
    return _collect(items, _gpuhunt_offer, "gpuhunt")


def _collect(rows: Iterable[Any], read: Callable[[Any], Offer | None], name: str) -> Reading:
    """Read each row; a row that is not meant (spot, no GPU) is passed over in silence, one that is bad is told."""
    offers, left_out = [], []
    for number, row in enumerate(rows, start=1):
        try:
            offer = read(row)
        except MisuseError as err:
            left_out.append(f"{name}, offer {number}: {err}")
        except (ArithmeticError, LookupError, TypeError, ValueError) as err:  # of a form that nobody thought of
            left_out.append(f"{name}, offer {number}: cannot be read: {type(err).__name__}: {err}")
        else:
            offers += [offer] if offer else []
    if not offers:
        told = "; ".join(left_out[:3]) or "none of them is an on-demand offer of a GPU"
        msg = f"no offer of {name!r} can be used: {told}"
        raise FailureError(msg)
    return Reading(offers=tuple(offers), left_out=tuple(left_out))


def _own_offer(row: Mapping[str, str]) -> Offer | None:
    _need(row, "provider", "segment", "gpu_key", "price_usd_per_gpu_hour", "date", "source")
    kind = row.get("kind") or "list"
    # A reserve price opens an auction and is no ask; what was paid is kept apart, to judge by and not to fit.
    if _is_spot(row.get("spot", "0")) or re.search(r"reserve|RENTED|transaction", kind) or row["provider"] == "mithril":
        return None
    return Offer(
        provider=row["provider"],
        segment=_segment(row["segment"]),
        card=_card(row["gpu_key"], None),
        usd_per_gpu_hour=_usd(row["price_usd_per_gpu_hour"]),
        date=_day(row["date"]),
        exact_date=not (row.get("date_quality") or "exact").startswith("inferred"),
        kind=_kind(kind, row["provider"]),
        source=re.split(r"[@:(=]", row["source"])[0].strip(),
    )


def _need(row: Mapping[str, Any], *names: str) -> None:
    lacking = [name for name in names if row.get(name) is None]
    if lacking:
        msg = f"lacks {', '.join(lacking)}"
        raise MisuseError(msg)


def _is_spot(text: str) -> bool:
    if text not in {"0", "1"}:  # what is not known to be on demand must not be taken for it
        msg = f"spot is {text!r}, which should be 0 or 1"
        raise MisuseError(msg)
    return text == "1"


def _kind(text: str, provider: str) -> Kind:
    if "cheapest" in text or "starting at" in text:
        return "lowest"
    if "mean" in text:
        return "mean"
    if text.startswith("median") or ("median" in text and provider == "vastai"):
        return "median"
    return "ask" if "ask" in text else "list"


def _skypilot_offer(row: Mapping[str, str], origin: Origin) -> Offer | None:
    _need(row, "AcceleratorName", "AcceleratorCount", "Price")
    if not row["AcceleratorName"] or not row["Price"]:
        return None
    count = _number(row["AcceleratorCount"], least=Decimal(0))
    if count < 1:
        return None  # a slice of a GPU
    provider = str(origin.provider)
    return Offer(
        provider=provider,
        segment=origin.segment or _segment_of(provider),
        card=_card(row["AcceleratorName"], _memory_bytes(row.get("GpuInfo") or ""), row.get("InstanceType") or ""),
        usd_per_gpu_hour=_usd(str(_usd(row["Price"], most=_MOST_USD * 16) / count)),
        date=_day(str(origin.date)),
        exact_date=True,
        kind="list" if _segment_of(provider) != "marketplace" else "ask",
        source=origin.source or "skypilot-org/skypilot-catalog",
    )


def _memory_bytes(gpu_info: str) -> float | None:
    """Return what SkyPilot's column says of memory, which is Python's spelling of a dictionary, in MiB."""
    found = re.search(r"""SizeInMiB['"]:\s*([\d.]+)""", gpu_info)
    return float(found[1]) * 2**20 if found else None


def _vast_rows(path: Path, text: str) -> list[Any]:
    try:
        document = strangers.loads(text)
    except ValueError as err:
        msg = f"{str(path)!r} is not JSON: {err}"
        raise MisuseError(msg) from err
    rows = document.get("offers") if isinstance(document, dict) else document
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        msg = f"{str(path)!r} holds no list of offers; vast.ai's search gives an object with `offers`"
        raise MisuseError(msg)
    return rows


def _vast_offer(row: Mapping[str, Any], origin: Origin) -> Offer | None:
    if row.get("is_bid") or row.get("rentable") is False:
        return None
    _need(row, "gpu_name", "num_gpus", "dph_total")
    count = _number(str(row["num_gpus"]), least=Decimal(0))
    memory = (
        float(_number(str(row["gpu_ram"]), least=_LEAST_MIB, most=_MOST_MIB)) * 2**20 if row.get("gpu_ram") else None
    )
    return Offer(
        provider="vastai",
        segment="marketplace",
        card=_card(str(row["gpu_name"]), memory),
        usd_per_gpu_hour=_usd(str(_usd(str(row["dph_total"]), most=_MOST_USD * 16) / max(count, Decimal(1)))),
        date=_day(origin.date or _today()),
        exact_date=True,
        kind="ask",
        source=origin.source or "vast.ai search",
    )


def _gpuhunt_offer(item: Any) -> Offer | None:
    if item.spot or not item.gpu_count or (item.gpu_vendor and "nvidia" not in str(item.gpu_vendor).casefold()):
        return None
    memory = float(item.gpu_memory) * 2**30 if item.gpu_memory else None
    return Offer(
        provider=_GPUHUNT_NAMES.get(item.provider, item.provider),
        segment=_segment_of(item.provider),
        card=_card(str(item.gpu_name), memory, str(item.instance_name)),
        usd_per_gpu_hour=_usd(str(Decimal(str(item.price)) / item.gpu_count)),
        date=_today(),
        exact_date=True,
        kind="ask" if _segment_of(item.provider) == "marketplace" else "list",
        source="dstackai/gpuhunt",
    )


def _needs(origin: Origin, path: Path) -> Origin:
    lacking = [name for name in ("provider", "date") if getattr(origin, name) is None]
    if lacking:
        msg = f"{str(path)!r} does not say {' or '.join(lacking)}: give --{' and --'.join(lacking)}"
        raise MisuseError(msg)
    return origin


def _segment_of(provider: str) -> Segment:
    plain = provider.casefold().replace(".", "")
    return "hyperscaler" if plain in _HYPERSCALERS else "marketplace" if plain in _MARKETPLACES else "neocloud"


def _segment(text: str) -> Segment:
    if text not in SEGMENTS:
        msg = f"no kind of seller {text!r}; there are {', '.join(SEGMENTS)}"
        raise MisuseError(msg)
    return cast("Segment", text)


def _card(name: str, memory_bytes: float | None, hint: str = "") -> str:
    """Return a card's key; where a name is sold in several forms, what the instance is called may tell which."""
    size = f"{round((memory_bytes or 0) / 2**30)}GB"
    form = next((form for form in _FORM_FACTORS if form.casefold() in hint.casefold()), "")
    spellings = (name, f"{name} {size}", f"{name} {form}", f"{name} {form} {size}")
    found = {sheet.key for spelling in spellings if (sheet := find_sheet(spelling, memory_bytes))}
    if len(found) != 1:
        msg = f"no card {name!r}" + (f" of {memory_bytes / 2**30:.0f} GiB" if memory_bytes else "")
        raise MisuseError(msg)
    return found.pop()


def _usd(text: str, most: Decimal = _MOST_USD) -> Decimal:
    return _number(text, least=_LEAST_USD, most=most)


def _number(text: str, *, least: Decimal, most: Decimal = _MOST_USD) -> Decimal:
    try:
        value = Decimal(text)
    except InvalidOperation as err:
        msg = f"{text!r} is no number"
        raise MisuseError(msg) from err
    if not (value.is_finite() and least <= value <= most):
        msg = f"{text} is not between {least} and {most}"
        raise MisuseError(msg)
    return value


def _day(text: str) -> str:
    try:
        date.fromisoformat(text if len(text) > len("2026-10") else f"{text}-15")
    except ValueError as err:
        msg = f"{text!r} is no date, which would be as 2026-10-31 or 2026-10"
        raise MisuseError(msg) from err
    if text > _today()[: len(text)]:  # it would make all other prices old
        msg = f"{text} is after today"
        raise MisuseError(msg)
    return text


def _today() -> str:
    return datetime.now(UTC).date().isoformat()
