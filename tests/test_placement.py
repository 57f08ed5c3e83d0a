"""Where results lie among public numbers, and whether those numbers can be right at all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from harness import registry
from harness.model import Ceiling, Device, Interval, Job, Measurement, Outcome, Report, State, Work
from harness.scoring.devices import rating
from harness.scoring.placement import gate, no_public_numbers, place, placements
from harness.scoring.tables import table

if TYPE_CHECKING:
    from harness.model import Metric, Param

PUBLIC = table("public_ranges")
RTX_4090 = Device(
    uuid="GPU-1",
    name="NVIDIA GeForce RTX 4090",
    kind="cuda",
    selector="cuda:0",
    memory_bytes=25757220864,
    sm_count=128,
    l2_bytes=72 << 20,
    pcie_generation_max=4,
    pcie_width_max=16,
    sensors={},
)
RANGES = [(card["names"][0], r) for card in PUBLIC["cards"] for r in card["ranges"]]
RANGES += [(f"PCIe {link['generation']} x{link['width']}", r) for link in PUBLIC["links"] for r in link["ranges"]]
EACH_RANGE = pytest.mark.parametrize(
    ("owner", "entry"), RANGES, ids=[f"{owner}, {entry['quantity']}" for owner, entry in RANGES]
)


def measured(
    benchmark: str, work: Work, metric: Metric, *, state: State = "valid", reason: str = "", **params: Param
) -> Measurement:
    return Measurement(
        job=Job(benchmark=benchmark, version=1, params=params, device_uuid="GPU-1", seed="0" * 16),
        started_at="2026-11-24T12:00:00Z",
        elapsed_s=2.0,
        work=work,
        metric=metric,
        state=state,
        reason=reason,
        time_s=1.0,
        interval=Interval(low_s=1.0, high_s=1.0, confidence_fraction=0.95),
        warmup_times_s=(),
        rounds=(),
        telemetry=(),
        telemetry_lost=None,
        answer_digest="",
    )


def copied(bytes_moved: float, **change: Any) -> Measurement:
    return measured(
        "stream", Work(bytes_moved=int(bytes_moved)), "bandwidth", op="copy", dtype="float64", n=1 << 27, **change
    )


def sentence(device: Device, measurement: Measurement, *causes: str) -> str:
    placement = place(device, measurement, causes)
    assert placement is not None
    return placement.sentence


# --- the table ---------------------------------------------------------------------------------------------------


@EACH_RANGE
def test_a_public_range_is_finite_in_order_and_has_a_source(owner: str, entry: Mapping[str, Any]) -> None:
    assert 0 < entry["low"] <= entry["high"] < math.inf
    assert entry["sources"]
    assert all(entry["sources"])
    assert entry["quantity"] in PUBLIC["quantities"]


def peak_of(name: str) -> Mapping[str, float]:
    return next((card["peak"] for card in PUBLIC["cards"] if name in card["names"]), {})


def ceiling(name: str, peak: Mapping[str, float], quantity: str) -> float | None:
    """Return what arithmetic allows a card in a quantity; None where its clock, units or bus are not known."""
    sms: int | None = next((row["sm_count"] for row in table("devices")["devices"] if row["name"] == name), None)
    if PUBLIC["quantities"][quantity]["unit"] == "B/s":
        return peak.get("memory_bytes_per_s") if quantity in {"copy", "scale", "triad", "dot"} else None
    if sms is None or "boost_mhz" not in peak:
        return None
    single, half = (
        2.0 * sms * peak[f"{kind}_fma_per_clock"] * peak["boost_mhz"] * 1e6 for kind in ("float32", "float16")
    )
    return {
        "gemm float32": single,
        "fma float64": single / 2,
        "fma float32": single,
        "fma float16": 2 * single,
        "int_mad mad": single,
        "int_mad dp4a": 4 * single,
        "gemm tfloat32": half / 2,
        "gemm float8_e4m3": 2 * half,
    }.get(quantity, half)


@EACH_RANGE
def test_no_public_number_is_beyond_the_physics_of_its_card(owner: str, entry: Mapping[str, Any]) -> None:
    limit = ceiling(owner, peak_of(owner), entry["quantity"])
    assert limit is None or entry["high"] <= 1.2 * limit
    assert limit is None or entry["low"] >= 0.2 * limit or entry["quantity"] == "fma float64", (
        "too low: a typing error?"
    )


@pytest.mark.parametrize("link", PUBLIC["links"], ids=lambda link: f"{link['generation']} x{link['width']}")
def test_no_link_is_faster_than_its_lanes(link: Mapping[str, Any]) -> None:
    lane_bytes_per_s = 2 ** link["generation"] * 1e9 * 128 / 130 / 8
    for entry in link["ranges"]:
        assert 0.7 < entry["high"] / (lane_bytes_per_s * link["width"]) < 1, entry["quantity"]


def test_most_cards_have_a_ceiling_to_be_judged_by() -> None:
    judged = [
        r for card in PUBLIC["cards"] for r in card["ranges"] if ceiling(card["names"][0], card["peak"], r["quantity"])
    ]
    assert len(judged) > 0.75 * sum(len(card["ranges"]) for card in PUBLIC["cards"])


def test_a_unit_typed_wrong_would_be_found() -> None:
    limit = ceiling(RTX_4090.name, peak_of(RTX_4090.name), "copy")
    assert limit is not None
    assert 924 * 2**30 < 1.2 * limit < 9240e9
    assert 0.2 * limit > 92.4e9


def test_no_card_stands_in_the_table_twice() -> None:
    names = [name for card in PUBLIC["cards"] for name in card["names"]]
    assert len(names) == len(set(names))
    for card in PUBLIC["cards"]:
        quantities = [r["quantity"] for r in card["ranges"]]
        assert len(quantities) == len(set(quantities)), card["names"]


def test_every_quantity_is_used_and_is_of_a_benchmark_with_such_an_axis() -> None:
    used = {entry["quantity"] for _, entry in RANGES}
    assert used == set(PUBLIC["quantities"])
    for name, quantity in PUBLIC["quantities"].items():
        (bench,) = registry.find([quantity["benchmark"]])
        for axis, value in quantity["params"].items():
            values = bench.axes[axis]
            assert isinstance(values, tuple), name
            assert value in values, name
    assert {gate["quantity"] for gate in PUBLIC["gates"]} <= used


# --- a result's place --------------------------------------------------------------------------------------------


def test_a_slow_copy_is_placed_with_what_may_hold_it_back() -> None:
    expected = "copy 570 GB/s: 62% of what RTX 4090s reach (912 to 924 GB/s); power limit 250 of 450 W; PCIe x4 of x16"
    assert sentence(RTX_4090, copied(570e9), "power limit 250 of 450 W", "PCIe x4 of x16") == expected


@pytest.mark.parametrize(
    ("bytes_moved", "lies"),
    [(570e9, "below"), (880e9, "below"), (890e9, "within"), (918e9, "within"), (950e9, "within"), (960e9, "above")],
)
def test_a_result_lies_below_within_or_above(bytes_moved: float, lies: str) -> None:
    placement = place(RTX_4090, copied(bytes_moved))
    assert placement is not None
    assert placement.lies == lies
    assert (placement.low_per_s, placement.high_per_s, placement.unit) == (912e9, 924e9, "B/s")
    assert placement.reached_fraction == pytest.approx(bytes_moved / 924e9)
    assert len(placement.sources) == 2


def test_causes_are_kept_but_excuse_only_what_is_slow() -> None:
    placement = place(RTX_4090, copied(918e9), ["power limit 400 of 450 W"])
    assert placement is not None
    assert placement.causes == ("power limit 400 of 450 W",)
    assert placement.sentence == "copy 918 GB/s: 99% of what RTX 4090s reach (912 to 924 GB/s)"


def test_a_state_is_a_cause() -> None:
    hot = copied(500e9, state="throttled", reason="hw_thermal in 40% of the samples")
    assert sentence(RTX_4090, hot).endswith("(912 to 924 GB/s); hw_thermal in 40% of the samples")


def test_a_range_of_one_number_and_one_of_two_prefixes_read_well() -> None:
    gemm = measured("gemm", Work(flops=1_000_000_000_000), "compute", dtype="float64", n=8192)
    assert place(RTX_4090, gemm) is None
    tf32 = replace(gemm, work=Work(flops=85_000_000_000_000), job=replace(gemm.job, params={"dtype": "tfloat32"}))
    assert sentence(RTX_4090, tf32) == "gemm tfloat32 85.0 TFLOP/s: 99% of what RTX 4090s reach (85.7 TFLOP/s)"


def test_a_link_is_placed_by_what_the_card_and_its_slot_are_made_for() -> None:
    slow = measured("pcie", Work(bytes_moved=6_500_000_000), "bandwidth", direction="h2d", memory="pinned", n=1)
    expected = "pcie h2d 6.50 GB/s: 24% of what PCIe 4 x16 links reach (25.5 to 27.1 GB/s); PCIe x4 of x16"
    assert sentence(RTX_4090, slow, "PCIe x4 of x16") == expected
    assert sentence(replace(RTX_4090, name="NVIDIA Unheard Of"), slow, "PCIe x4 of x16") == expected
    assert place(replace(RTX_4090, pcie_width_max=None), slow) is None
    assert (
        place(RTX_4090, replace(slow, job=replace(slow.job, params={"direction": "h2d", "memory": "pageable"}))) is None
    )


def test_a_driver_before_470_leaves_out_the_brand() -> None:
    assert place(replace(RTX_4090, name="GeForce  RTX 4090"), copied(918e9)) is not None


@pytest.mark.parametrize(
    "change",
    [
        {"name": "NVIDIA GeForce RTX 4090 Laptop GPU"},
        {"sm_count": 64},  # a slice, or another card of that name
        {"memory_bytes": 48 << 30},
        {"kind": "cpu"},
        {"emulated": True},
    ],
)
def test_what_is_not_exactly_such_a_card_has_no_place(change: dict[str, Any]) -> None:
    assert place(replace(RTX_4090, **change), copied(918e9)) is None


def test_a_stream_out_of_a_cache_has_no_place() -> None:
    assert place(RTX_4090, copied(100e6)) is None
    assert place(RTX_4090, replace(copied(918e9), cache="hot")) is None
    assert place(replace(RTX_4090, l2_bytes=None), copied(100e6)) is not None


def test_an_unknown_model_is_said_to_be_unknown() -> None:
    unknown = replace(RTX_4090, name="NVIDIA Unheard Of")
    assert no_public_numbers(unknown) == "no public numbers for NVIDIA Unheard Of yet"
    assert no_public_numbers(RTX_4090) is None
    assert no_public_numbers(replace(unknown, emulated=True)) is None
    assert no_public_numbers(replace(unknown, kind="cpu")) is None


def test_a_report_has_the_places_of_its_real_gpus() -> None:
    other = replace(copied(918e9), job=replace(copied(1).job, device_uuid="CPU-1"))
    unplaced = measured("sha256", Work(items=5, item="hash"), "throughput", n=1)
    outcomes = [Outcome(measurement=m) for m in (copied(570e9), other, unplaced)] + [Outcome()]
    report = cast("Report", SimpleNamespace(emulated=False, devices=(RTX_4090,), outcomes=tuple(outcomes)))
    (placement,) = placements(report, {"GPU-1": ["PCIe x4 of x16"]})
    assert (placement.device_uuid, placement.quantity, placement.causes) == ("GPU-1", "copy", ("PCIe x4 of x16",))
    assert placements(report)[0].causes == ()
    emulated = cast("Report", SimpleNamespace(emulated=True, devices=(RTX_4090,), outcomes=tuple(outcomes)))
    assert placements(emulated) == ()


@pytest.mark.parametrize(
    ("reached", "words"),
    [
        (None, None),
        (
            0.30,
            "copy: 30% of the bus peak at the measured memory clock, expected 65% to 97%: find out what holds it back",
        ),
        (0.80, None),
        (1.10, "do not believe it"),
    ],
)
def test_a_gate_names_what_is_too_little_or_too_much(reached: float | None, words: str | None) -> None:
    found = None if reached is None else Ceiling(rate_per_s=1e12, reached_fraction=reached, basis="")
    said = gate(replace(copied(918e9), ceiling=found))
    assert (said is None) == (words is None)
    assert words is None or words in str(said)


def test_what_no_gate_is_for_passes() -> None:
    scaled = replace(copied(1), job=replace(copied(1).job, params={"op": "scale"}))
    assert gate(replace(scaled, ceiling=Ceiling(rate_per_s=1e12, reached_fraction=0.01, basis=""))) is None


def test_cards_of_the_device_table_are_spelled_as_there() -> None:
    rated = {row["name"] for row in table("devices")["devices"]}
    strangers = {name for card in PUBLIC["cards"] for name in card["names"]} - rated
    assert strangers == {"NVIDIA GB200", "NVIDIA H20", "NVIDIA L20"}
    assert rating(RTX_4090) is not None


def test_what_cannot_be_true_has_no_place() -> None:
    assert place(RTX_4090, copied(0.9e12)) is not None
    assert place(RTX_4090, copied(0.9e12, state="invalid", reason="above the physics")) is None
