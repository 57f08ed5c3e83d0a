"""Sheets of cards: their rates by their maker's word, found by key, by NVML's name, or by a price list's spelling of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Literal

from harness.scoring.tables import table

__all__ = ["Sheet", "find_sheet", "plain_name", "sheet_of", "sheets"]

# NVML keeps a few per cent of the memory for itself (more where ECC is inline), and never shows more than is there.
_LEAST_SHOWN, _MOST_SHOWN = 0.88, 1.03


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """One card as its maker describes it."""

    key: str
    architecture: str
    card_class: Literal["datacenter", "workstation", "consumer"]
    launched_year: float  # the middle of the month it came out in
    memory_bytes: float
    fp16_flops_per_s: float
    fp32_flops_per_s: float
    fp64_flops_per_s: float
    memory_bytes_per_s: float
    tdp_w: float


@cache
def sheets() -> dict[str, Sheet]:
    """Return each sheet by its key."""
    return {row["key"]: _sheet(row) for row in table("cards")["cards"]}


def find_sheet(name: str, memory_bytes: float | None = None) -> Sheet | None:
    """Return the sheet of a card, or None where the name is unknown, or is sold in several sizes and the size is not told.

    Args:
        name: its key (`RTX-4090`), NVML's name or a price list's; case, spaces, dashes and the maker do not matter.
        memory_bytes: as the driver shows it; a card of another size is another card.
    """
    found = [key for key in _by_name().get(plain_name(name), ()) if _shows(memory_bytes, sheets()[key])]
    return sheets()[found[0]] if len(found) == 1 else None


@lru_cache(4096)
def sheet_of(name: str, memory_bytes: float | None = None) -> Sheet | None:
    """Return the sheet of a name: of the card of this size, or, where none has it, of the only one there is."""
    return find_sheet(name, memory_bytes) or find_sheet(name)


def _shows(memory_bytes: float | None, sheet: Sheet) -> bool:
    return memory_bytes is None or _LEAST_SHOWN <= memory_bytes / sheet.memory_bytes <= _MOST_SHOWN


@cache
def _by_name() -> dict[str, tuple[str, ...]]:
    found: dict[str, dict[str, None]] = {}
    for row in table("cards")["cards"]:
        for name in _spellings(row):
            found.setdefault(plain_name(name), {})[row["key"]] = None
    return {name: tuple(keys) for name, keys in found.items()}


def _spellings(row: dict[str, Any]) -> Iterator[str]:
    yield row["key"]
    yield from row["names"]
    yield from row["aliases"]


def plain_name(name: str) -> str:
    """Return a name without what its spellings differ in: case, spaces, dashes and the maker."""
    folded = re.sub(r"[^a-z0-9]+", "", name.casefold())
    return re.sub(r"^(nvidia)?(geforce|tesla)?", "", folded)


def _sheet(row: dict[str, Any]) -> Sheet:
    year, month = map(int, row["launched"].split("-"))
    return Sheet(
        key=row["key"],
        architecture=row["architecture"],
        card_class=row["card_class"],
        launched_year=year + (month - 0.5) / 12,
        memory_bytes=float(row["memory_gib"] << 30),
        fp16_flops_per_s=row["fp16_tflops"] * 1e12,
        fp32_flops_per_s=row["fp32_tflops"] * 1e12,
        fp64_flops_per_s=row["fp64_tflops"] * 1e12,
        memory_bytes_per_s=row["memory_gb_per_s"] * 1e9,
        tdp_w=row["tdp_w"],
    )
