"""The costs file: what it may hold, and what is said of the rest."""

from __future__ import annotations

from dataclasses import fields
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from harness.errors import MisuseError
from harness.scoring import Costs, load_costs
from harness.scoring.costs import settings

if TYPE_CHECKING:
    from pathlib import Path

KEYS = {field.name for field in fields(Costs)}


def write(folder: Path, text: str) -> Path:
    path = folder / "costs.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(MisuseError) as caught:
        load_costs(write(folder, text))
    return str(caught.value)


def test_an_empty_file_gives_no_costs(tmp_path: Path) -> None:
    assert load_costs(write(tmp_path, "")) == Costs()


def test_every_key_is_read_exactly(tmp_path: Path) -> None:
    text = """
        electricity_usd_per_kwh = 0.123456789
        pue = 1.3
        capex_usd = 1_599
        life_years = 3
        residual_fraction = 0.2
        capital_rate = 0.08
        utilisation = 0.7
        host_usd_per_hour = 0
        wear_usd_per_hour = 0.001
        fee_fraction = 0.05
        margin_fraction = 0.15
    """
    costs = load_costs(str(write(tmp_path, text)))
    assert costs.electricity_usd_per_kwh == Decimal("0.123456789")
    assert costs.capex_usd == Decimal(1599)
    assert all(isinstance(getattr(costs, key), Decimal) for key in KEYS)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("electricity_usd_per_kwh = -0.1", "electricity_usd_per_kwh is -0.1; it should be 0 or more"),
        ("host_usd_per_hour = -1", "host_usd_per_hour is -1; it should be 0 or more"),
        ("capex_usd = -1", "capex_usd is -1; it should be 0 or more"),
        ("pue = 0.9", "pue is 0.9; it should be 1 or more"),
        ("life_years = 0", "life_years is 0; it should be more than 0"),
        ("residual_fraction = 1", "residual_fraction is 1; it should be from 0 up to, not including, 1"),
        ("capital_rate = 1.0", "capital_rate is 1.0; it should be from 0 up to, not including, 1"),
        ("fee_fraction = 1.5", "fee_fraction is 1.5; it should be from 0"),
        ("margin_fraction = -0.01", "margin_fraction is -0.01; it should be from 0"),
        ("utilisation = 0.0", "utilisation is 0.0; it should be more than 0, up to 1"),
        ("utilisation = 1.1", "utilisation is 1.1; it should be more than 0, up to 1"),
        ("pue = nan", "pue is NaN; it should be 1 or more"),
        ("pue = inf", "pue is Infinity; it should be 1 or more"),
        ("pue = '1.3'", "pue is '1.3'; it should be a number, 1 or more"),
        ("pue = true", "pue is True; it should be a number, 1 or more"),
        ("capex_usd = 1e10", "it should be at most 1,000,000,000 with at most 9 decimals"),
        ("life_years = 1e-10", "it should be at most 1,000,000,000 with at most 9 decimals"),
        ("pue = 1e999999999", "it should be at most 1,000,000,000 with at most 9 decimals"),
        (
            "electricty_usd_per_kwh = 0.1",
            "'electricty_usd_per_kwh'; did you mean 'electricity_usd_per_kwh'; there are",
        ),
        ("[costs]\npue = 1.3", "no cost 'costs'"),
        ("pue = ", "is not TOML"),
    ],
)
def test_a_bad_file_is_refused_in_one_line_that_names_it(tmp_path: Path, text: str, says: str) -> None:
    message = refusal(tmp_path, text)
    assert says in message
    assert "costs.toml" in message
    assert "\n" not in message


def test_an_unknown_key_is_answered_with_all_known_ones(tmp_path: Path) -> None:
    message = refusal(tmp_path, "zzz = 1")
    assert all(key in message for key in KEYS)
    assert "did you mean" not in message


def test_a_missing_file_is_misuse(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match=r"cannot read the costs file .*: No such file"):
        load_costs(tmp_path / "none.toml")


def test_a_folder_is_no_costs_file(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match=r"cannot read the costs file .*: Is a directory"):
        load_costs(tmp_path)


def test_a_file_that_is_not_utf_8_is_misuse(tmp_path: Path) -> None:
    path = tmp_path / "costs.toml"
    path.write_bytes(b"pue = '\xff'")
    with pytest.raises(MisuseError, match="is not TOML"):
        load_costs(path)


def test_costs_made_in_code_are_held_to_the_same_ranges() -> None:
    with pytest.raises(MisuseError, match="pue is -1; it should be 1 or more"):
        Costs(pue=Decimal(-1))


def test_a_float_is_no_cost() -> None:
    with pytest.raises(MisuseError, match=r"pue is 1\.3; it should be a Decimal, 1 or more"):
        Costs(pue=1.3)  # type: ignore[arg-type]


def test_every_default_has_its_grounds_and_a_purchase_price_has_none() -> None:
    defaults = settings(Costs())
    assert set(defaults) == KEYS - {"capex_usd"}
    assert all(x.basis.startswith("assumed: ") and len(x.basis) > 20 for x in defaults.values())
    Costs(**{name: x.value for name, x in defaults.items()})


def test_what_is_given_replaces_a_default() -> None:
    given = settings(Costs(pue=Decimal("1.3")))
    assert given["pue"] == (Decimal("1.3"), "given")
    assert given["life_years"].basis.startswith("assumed")
