"""The room's numbers that are data: JSON files beside the code, read once, named by digest."""

from __future__ import annotations

import json
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.codec import digest

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["digest_of", "parameter", "table"]

_FOLDER = Path(__file__).parent / "data"


@cache
def table(name: str) -> Mapping[str, Any]:
    """Return one data file, parsed. Money in it is text, so that no price ever passes through a float."""
    text = (_FOLDER / f"{name}.json").read_text(encoding="utf-8")
    document: dict[str, Any] = json.loads(text)  # noqa: TID251 - shipped with this package
    return document


@cache
def digest_of(name: str) -> str:
    """Return the SHA-256 of a data file's canonical bytes: layout and order of keys do not count."""
    return digest(table(name))


@cache
def parameter(name: str) -> Decimal:
    """Return one of the parameters that a market price is multiplied by."""
    return Decimal(table("pricing")["parameters"][name]["value"])
