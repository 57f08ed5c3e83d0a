"""What a card draws and costs by its maker's word, for want of a measurement: found by exact name or not at all."""

from __future__ import annotations

from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.scoring.tables import table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.model import Device

__all__ = ["Rating", "rating"]

# NVML keeps a few per cent of the memory for itself (more where ECC is inline), and never shows more than is there.
_LEAST_SHOWN, _MOST_SHOWN = Decimal("0.88"), Decimal("1.03")


class Rating(NamedTuple):
    """A card's row of the device table."""

    tdp_w: Decimal
    capex_usd: Decimal
    capex_basis: str


def rating(device: Device) -> Rating | None:
    """Return a card's rating, or None where the table does not hold exactly this card.

    An L4 is not an L40S, and a 4090 D or Laptop is not a 4090. A name sold in two memory sizes needs the size to be
    known; a slice of a card (MIG) has fewer SMs than the card and is not found.
    """
    rows = [row for row in _rows().get(_name(device.name), ()) if _same(device, row)]
    if len(rows) != 1:
        return None
    row = rows[0]
    return Rating(Decimal(row["tdp_w"]), Decimal(row["capex_usd"]), row["capex_basis"])


@cache
def _rows() -> Mapping[str, Sequence[Mapping[str, Any]]]:
    """Return the table by name."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in table("devices")["devices"]:
        found.setdefault(_name(row["name"]), []).append(row)
    return found


def _same(device: Device, row: Mapping[str, Any]) -> bool:
    return device.sm_count in {None, row["sm_count"]} and (
        device.memory_bytes is None or _shows(device.memory_bytes, row["memory_gib"])
    )


def _name(name: str) -> str:
    """Return a name without the brand, which drivers before 470 leave out, and without regard to case."""
    return " ".join(name.casefold().split()).removeprefix("nvidia ")


def _shows(memory_bytes: int, memory_gib: int) -> bool:
    return _LEAST_SHOWN <= Decimal(memory_bytes) / (memory_gib << 30) <= _MOST_SHOWN
