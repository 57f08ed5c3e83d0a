"""A seller's terms in a TOML file: what does not change from offer to offer. What must be fresh each time is drawn here.

    pay_to = "0x..."            asset = "0x..."     asset_decimals = 6      chain_id = 8453

and any other field of `OfferTerms` but `now_s`, `nonce` and `device_salt`; decimals as text. `provider` is the address of the key by default.
"""

from __future__ import annotations

import secrets
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, fields
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from harness.errors import MisuseError
from harness.market.offers.offer import OfferTerms

__all__ = ["load_seller", "terms_of"]

_FRESH = ("now_s", "nonce", "device_salt")
_DECIMALS = ("usd_per_asset", "units_per_s", "sla_tolerance")
_KNOWN = tuple(field.name for field in fields(OfferTerms) if field.name not in _FRESH)


def load_seller(path: str | Path) -> dict[str, Any]:
    """Read a seller's file.

    Raises:
        MisuseError: there is no such file, it is not TOML, or a key is unknown or of another type.
    """
    try:
        found = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as err:
        message = f"cannot read the seller's terms {str(path)!r}: {err}"
        raise MisuseError(message) from err
    for name, value in found.items():
        if name not in _KNOWN:
            message = f"{str(path)!r}: no term {name!r}; there are {', '.join(_KNOWN)}"
            raise MisuseError(message)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | str)
            or (name in _DECIMALS and not isinstance(value, str))
        ):
            message = f"{str(path)!r}: {name} is {value!r}; it should be a whole number or text, decimals as text"
            raise MisuseError(message)
    return found


def terms_of(known: Mapping[str, Any], *, now_s: int, provider: str | None = None, **more: Any) -> OfferTerms:
    """Return the terms of one offer: a seller's, a fresh nonce and a fresh salt for the device.

    Args:
        known: as `load_seller` gives them.
        now_s: seconds since 1970.
        provider: the address of the key, where the file names none.
        more: fields that are given for this offer alone.

    Raises:
        MisuseError: a field that has no default is missing, or a decimal is none.
    """
    given = {"provider": provider} | dict(known) | {name: value for name, value in more.items() if value is not None}
    given |= {"now_s": now_s, "nonce": secrets.randbits(256), "device_salt": f"0x{secrets.token_hex(32)}"} | (
        {name: more[name] for name in ("nonce", "device_salt") if more.get(name) is not None}
    )
    missing = [f.name for f in fields(OfferTerms) if f.default is MISSING and given.get(f.name) is None]
    if missing:
        message = f"the seller's terms lack {', '.join(missing)}"
        raise MisuseError(message)
    for name in _DECIMALS:
        if isinstance(given.get(name), str):
            given[name] = _decimal(name, given[name])
    return OfferTerms(**given)


def _decimal(name: str, text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation as err:
        message = f"{name} is {text!r}; it should be a decimal"
        raise MisuseError(message) from err
