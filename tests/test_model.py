"""The records: frozen, and no number without its unit."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from decimal import Decimal

import pytest

from harness import model

RECORDS = [kind for kind in map(model.__dict__.get, model.__all__) if isinstance(kind, type)]
SUFFIXES = (
    "_s",
    "_w",
    "_j",
    "_c",
    "_mhz",
    "_bytes",
    "_bytes_per_s",
    "_fraction",
    "_count",
    "_per_s",
    "_per_min",
    "_bits",
    "_per_byte",
    "_per_hour",
    "_per_cu_hour",
    "_per_batch",
    "_per_mcycle",
)
# Numbers that have no unit, each for a reason.
PURE = {
    "batch": "how many runs one sample times",
    "bytes_moved": "bytes: the name begins with its unit",
    "epoch": "the number of a period",
    "flops": "floating-point operations: the name is the unit",
    "joules": "the name is the unit",
    "items": "counted in what `item` names",
    "load_average_1min": "a queue length, averaged over the time in its name",
    "params": "a benchmark's own, by its names",
    "pcie_generation": "a generation",
    "pcie_generation_max": "a generation",
    "pcie_width": "lanes",
    "pcie_width_max": "lanes",
    "number": "which of several tries",
    "niceness": "the scheduler's own scale",
    "relative_speed": "a ratio to the reference node",
    "version": "a version",
}


def kinds_in(annotation: object) -> Iterator[object]:
    """Yield the plain types that an annotation is made of, however deep."""
    inner = typing.get_args(annotation)
    if not inner or typing.get_origin(annotation) is typing.Literal:
        yield annotation
    for part in inner:
        yield from kinds_in(part)


def numbers() -> Iterator[tuple[str, str]]:
    for record in RECORDS:
        for name, hint in typing.get_type_hints(record).items():
            if {int, float, Decimal} & set(kinds_in(hint)):
                yield record.__name__, name


def names_its_unit(name: str) -> bool:
    return name.endswith(SUFFIXES)


@pytest.mark.parametrize(("record", "name"), sorted(numbers()))
def test_every_number_names_its_unit_or_is_on_the_short_list_of_pure_ones(record: str, name: str) -> None:
    assert names_its_unit(name) or name in PURE, f"{record}.{name}: in which unit?"


def test_the_list_of_pure_numbers_is_short_and_has_nothing_left_over() -> None:
    assert set(PURE) <= {name for _, name in numbers()}
    assert not [name for name in PURE if names_its_unit(name)]


@pytest.mark.parametrize("name", ["power", "price", "time", "clock", "temperature", "memory", "rate", "ms"])
def test_a_number_without_a_unit_would_be_found(name: str) -> None:
    assert not names_its_unit(name)
    assert name not in PURE


def test_numbers_are_found_inside_tuples_and_unions() -> None:
    found = set(numbers())
    assert {("Round", "times_s"), ("TelemetrySample", "power_w"), ("Quote", "price_usd_per_hour")} <= found
    assert ("Device", "emulated") not in found


def test_money_is_decimal_and_nothing_else_is() -> None:
    for record in RECORDS:
        for name, hint in typing.get_type_hints(record).items():
            assert ("usd" in name) == (Decimal in set(kinds_in(hint))), f"{record.__name__}.{name}"


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_a_record_is_frozen_slotted_keyword_only_and_has_no_methods(record: type) -> None:
    params = record.__dataclass_params__  # type: ignore[attr-defined]
    assert (params.frozen, params.eq) == (True, True)
    assert "__slots__" in vars(record)
    assert all(field.kw_only for field in dataclasses.fields(record))
    own = {n for n, v in vars(record).items() if callable(v) and not n.startswith("_")}
    assert not own


def test_the_public_names_are_the_records_in_order() -> None:
    assert model.__all__ == sorted(model.__all__)
    defined = {n for n, v in vars(model).items() if dataclasses.is_dataclass(v)}
    assert set(model.__all__) == defined
