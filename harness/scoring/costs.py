"""What an hour of a device costs its owner: the costs file, its checks, and the defaults with their grounds."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from decimal import Decimal
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from harness.errors import MisuseError
from harness.scoring.exact import plain
from harness.scoring.tables import table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Costs", "Setting", "given_costs", "load_costs", "settings", "told_costs"]


class Setting(NamedTuple):
    """A number that enters a price, and where it comes from."""

    value: Decimal
    basis: str  # given, assumed, measured or rated; then how


class _Range(NamedTuple):
    words: str
    holds: Callable[[Decimal], bool]


_PRICE = _Range("0 or more", lambda x: x >= 0)
_FRACTION = _Range("from 0 up to, not including, 1", lambda x: 0 <= x < 1)
_RANGES: Mapping[str, _Range] = {
    "capex_usd": _PRICE,
    "capital_rate": _FRACTION,
    "electricity_usd_per_kwh": _PRICE,
    "fee_fraction": _FRACTION,
    "host_usd_per_hour": _PRICE,
    "life_years": _Range("more than 0", lambda x: x > 0),
    "margin_fraction": _FRACTION,
    "pue": _Range("1 or more", lambda x: x >= 1),
    "residual_fraction": _FRACTION,
    "utilisation": _Range("more than 0, up to 1", lambda x: 0 < x <= 1),
    "wear_usd_per_hour": _PRICE,
}
# Keeps every quotient of two costs well inside the precision that prices are computed in.
_LARGEST, _DECIMALS = Decimal(10) ** 9, 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What an owner says his costs are; None is not said, and a default with its grounds is used.

    Raises:
        MisuseError: a value is not a Decimal in its range.
    """

    electricity_usd_per_kwh: Decimal | None = None
    pue: Decimal | None = None  # power drawn by the building for each watt of the device
    capex_usd: Decimal | None = None  # purchase of this one device
    life_years: Decimal | None = None
    residual_fraction: Decimal | None = None  # of the purchase, left at the end of life
    capital_rate: Decimal | None = None  # a year, on the money tied up
    utilisation: Decimal | None = None  # fraction of all hours that are rented out
    host_usd_per_hour: Decimal | None = None  # the device's share of its host and network, for each rented hour
    wear_usd_per_hour: Decimal | None = None  # fans, paste, power supplies: what running costs beside power
    fee_fraction: Decimal | None = None  # of the price, kept by the marketplace
    margin_fraction: Decimal | None = None  # on top of all costs

    def __post_init__(self) -> None:
        """Refuse what no cost can be."""
        for name, value in _said(self).items():
            _check(name, value)


def load_costs(path: str | Path) -> Costs:
    """Read a costs file: TOML, any of the keys of `Costs`, all of them optional.

    Raises:
        MisuseError: the file cannot be read, or holds an unknown key or a value out of range.
    """
    document = _parse(Path(path))
    try:
        return Costs(**{_known(key): _decimal(key, value) for key, value in document.items()})
    except MisuseError as err:
        message = f"{path}: {err}"
        raise MisuseError(message) from err


def settings(costs: Costs) -> Mapping[str, Setting]:
    """Return every cost with its basis: as given, or the default. A purchase price has no default."""
    said = {name: Setting(value, "given") for name, value in _said(costs).items()}
    return _defaults() | said


def told_costs(costs: Costs) -> dict[str, str]:
    """Return what was said, as text, for a quote to keep."""
    return {name: plain(value) for name, value in _said(costs).items()}


def given_costs(told: Mapping[str, str]) -> Costs:
    """Return the costs that a quote kept.

    Raises:
        MisuseError: one is unknown, no number, or out of range.
    """
    try:
        return Costs(**{_known(key): Decimal(text) for key, text in told.items()})
    except ArithmeticError as err:
        message = f"costs {dict(told)!r}; each should be a number as text"
        raise MisuseError(message) from err


def _defaults() -> dict[str, Setting]:
    rows = table("cost_defaults")["defaults"]
    return {name: Setting(Decimal(row["value"]), f"assumed: {row['basis']}") for name, row in rows.items()}


def _said(costs: Costs) -> dict[str, Decimal]:
    values = {field.name: getattr(costs, field.name) for field in fields(costs)}
    return {name: value for name, value in values.items() if value is not None}


def _parse(path: Path) -> Mapping[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"), parse_float=Decimal)
    except OSError as err:
        message = f"cannot read the costs file {str(path)!r}: {err.strerror}"
        raise MisuseError(message) from err
    except ValueError as err:  # not UTF-8, or not TOML
        message = f"the costs file {str(path)!r} is not TOML: {err}"
        raise MisuseError(message) from err


def _known(key: str) -> str:
    if key in _RANGES:
        return key
    near = get_close_matches(key, _RANGES, n=1)
    hint = f"; did you mean {near[0]!r}" if near else ""
    message = f"no cost {key!r}{hint}; there are {', '.join(_RANGES)}"
    raise MisuseError(message)


def _decimal(key: str, value: object) -> Decimal:
    if isinstance(value, Decimal):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return Decimal(value)
    message = f"{key} is {value!r}; it should be a number, {_RANGES[key].words}"
    raise MisuseError(message)


def _check(name: str, value: object) -> None:
    if not isinstance(value, Decimal):
        message = f"{name} is {value!r}; it should be a Decimal, {_RANGES[name].words}"
        raise MisuseError(message)
    if not value.is_finite() or not _RANGES[name].holds(value):
        message = f"{name} is {value}; it should be {_RANGES[name].words}"
        raise MisuseError(message)
    if value > _LARGEST or value != round(value, _DECIMALS):
        message = f"{name} is {value}; it should be at most {_LARGEST:,} with at most {_DECIMALS} decimals"
        raise MisuseError(message)
