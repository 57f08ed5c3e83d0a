"""No device passes its ceiling, and no honest one is refused by it: published cards and clocks, rates that cannot be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.measure.ceiling import LIMIT_FRACTION, ceiling
from harness.measure.validity import objections
from harness.model import Cache, Ceiling, Device, Metric, Params, TelemetrySample, Work
from harness.scoring.tables import table


def card(capability: str | None = "8.9", sm_count: int | None = 128, **more: Any) -> Device:
    return Device(
        uuid="GPU-1",
        name="NVIDIA GeForce RTX 4090",
        kind="cuda",
        selector="cuda:0",
        compute_capability=capability,
        sm_count=sm_count,
        sensors={},
        **more,
    )


def told(*, sm_mhz: float | None = None, memory_mhz: float | None = None) -> TelemetrySample:
    return TelemetrySample(at_s=0.0, sm_clock_mhz=sm_mhz, memory_clock_mhz=memory_mhz)


def compute(
    device: Device,
    tera_per_s: float,
    dtype: str,
    *,
    clock_mhz: float | None = None,
    telemetry: Sequence[TelemetrySample] = (),
    nominal: bool = False,
) -> Ceiling | None:
    work = Work(flops=int(tera_per_s * 1e12), nominal=nominal)
    params: Params = {"dtype": dtype, "n": 8192}
    return ceiling(device, params, work, "compute", 1.0, cache="n/a", clock_mhz=clock_mhz, telemetry=telemetry)


def memory(device: Device, giga_per_s: float, memory_mhz: float | None, *, cache: Cache = "cold") -> Ceiling | None:
    work = Work(flops=1, bytes_moved=int(giga_per_s * 1e9))
    sample = told(memory_mhz=memory_mhz)
    return ceiling(device, {}, work, "bandwidth", 1.0, cache=cache, clock_mhz=2000.0, telemetry=[sample])


def refused(found: Ceiling | None) -> bool:
    """Tell whether the ceiling is an objection to the number."""
    against = objections(card(), cache="n/a", footprint_bytes=None, metric="compute", ceiling=found, telemetry=())
    return any("physically possible" in words for words in against)


# --- arithmetic ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "capability", "sms", "boost_mhz", "dtype", "dense_tera"),
    [
        ("T4", "7.5", 40, 1590, "float32", 8.1),
        ("T4", "7.5", 40, 1590, "float16", 65),
        ("A100 SXM", "8.0", 108, 1410, "float32", 19.5),
        ("A100 SXM", "8.0", 108, 1410, "float64", 19.5),
        ("A100 SXM", "8.0", 108, 1410, "tfloat32", 156),
        ("A100 SXM", "8.0", 108, 1410, "bfloat16", 312),
        ("A100 SXM", "8.0", 108, 1410, "int8", 624),
        ("RTX A6000", "8.6", 84, 1800, "float16", 155),
        ("L40S", "8.9", 142, 2520, "float32", 91.6),
        ("L40S", "8.9", 142, 2520, "float16", 366),
        ("L40S", "8.9", 142, 2520, "float8_e4m3", 733),
        ("H100 SXM", "9.0", 132, 1980, "float32", 66.9),
        ("H100 SXM", "9.0", 132, 1980, "float64", 67),
        ("H100 SXM", "9.0", 132, 1830, "tfloat32", 494.7),
        ("H100 SXM", "9.0", 132, 1830, "float16", 989.4),
        ("H100 SXM", "9.0", 132, 1830, "float8_e4m3", 1979),
        ("RTX PRO 6000", "12.0", 188, 2617, "float32", 126),
        ("RTX PRO 6000", "12.0", 188, 2617, "bfloat16", 504),
        ("B200", "10.0", 148, 1860, "float16", 2250),
        ("B200", "10.0", 148, 1860, "float8_e4m3", 4500),
    ],
)
def test_at_its_boost_clock_the_ceiling_is_the_dense_peak_that_was_published(
    name: str, capability: str, sms: int, boost_mhz: float, dtype: str, dense_tera: float
) -> None:
    found = compute(card(capability, sms), dense_tera, dtype, clock_mhz=boost_mhz)
    assert found is not None, name
    assert found.rate_per_s / 1e12 == pytest.approx(dense_tera, rel=0.01)
    assert found.reached_fraction == pytest.approx(1, rel=0.01)
    assert not refused(found)


@pytest.mark.parametrize(
    ("capability", "sms", "boost_mhz", "sheet_tera", "reached_tera"),
    [
        ("8.6", 68, 1710, 59.5, 65.0),  # RTX 3080
        ("8.6", 82, 1695, 71.0, 76.5),  # RTX 3090
        ("8.9", 56, 2475, 71.0, 76.0),  # RTX 4070 SUPER
        ("8.9", 128, 2520, 165.0, 173.0),  # RTX 4090
        ("12.0", 170, 2407, 209.5, 242.0),  # RTX 5090
    ],
)
def test_an_honest_card_that_boosts_past_its_makers_sheet_passes(
    capability: str, sms: int, boost_mhz: float, sheet_tera: float, reached_tera: float
) -> None:
    boosted_mhz = boost_mhz * reached_tera / sheet_tera
    assert reached_tera > sheet_tera
    for dtype in ("float16", "bfloat16"):
        assert not refused(compute(card(capability, sms), reached_tera, dtype, clock_mhz=boosted_mhz))


def test_the_clock_that_was_measured_decides_not_the_one_of_the_sheet() -> None:
    """A 4090's float32 peak is 82.6 TFLOP/s at 2520 MHz and a good card's 90 at 2750: at 1500 MHz neither is possible."""
    assert not refused(compute(card(), 90.0, "float32", clock_mhz=2750.0))
    throttled = compute(card(), 82.6, "float32", clock_mhz=1500.0)
    assert refused(throttled)
    assert throttled is not None
    assert throttled.basis == "128 multiprocessors x 128 float32 multiply-adds x 1500 MHz measured"


@pytest.mark.parametrize(
    ("fraction", "is_refused"), [(0.5, False), (1.0, False), (1.019, False), (1.03, True), (9, True)]
)
def test_more_than_a_fiftieth_above_the_ceiling_is_impossible(fraction: float, *, is_refused: bool) -> None:
    peak = 2 * 128 * 128 * 2.52e9 / 1e12
    found = compute(card(), fraction * peak, "float32", clock_mhz=2520.0)
    assert found is not None
    assert found.reached_fraction == pytest.approx(fraction)
    assert refused(found) is is_refused
    assert (fraction > LIMIT_FRACTION) is is_refused


def test_without_a_measured_clock_the_highest_that_was_told_counts() -> None:
    samples = [told(), told(sm_mhz=210.0), told(sm_mhz=2520.0), told(sm_mhz=1980.0)]
    found = compute(card(), 82.0, "float32", telemetry=samples)
    assert found is not None
    assert found.basis.endswith("2520 MHz highest told")
    assert compute(card(), 82.0, "float32", telemetry=[told()]) is None
    assert compute(card(), 82.0, "float32") is None


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        (card("13.0"), "float32"),  # a new card is not refused for being new
        (card("7.0"), "float16"),
        (card("10.3"), "float64"),
        (card(None), "float32"),
        (card(sm_count=None), "float32"),
        (card("7.5"), "bfloat16"),
        (card(), "float4_e2m1"),
        (card(), ""),
    ],
)
def test_what_the_tables_do_not_know_has_no_ceiling(device: Device, dtype: str) -> None:
    assert compute(device, 1e6, dtype, clock_mhz=2520.0) is None


def test_a_cpu_an_agreed_count_and_a_latency_have_none_either() -> None:
    processor = Device(uuid="CPU-1", name="CPU", kind="cpu", selector="cpu", sensors={})
    assert compute(processor, 1e6, "float32", clock_mhz=3000.0) is None
    assert compute(card(), 1e6, "float32", clock_mhz=2520.0, nominal=True) is None
    metrics: tuple[Metric, ...] = ("throughput", "latency")
    for metric in metrics:
        work = Work(items=1, item="hash")
        assert ceiling(card(), {}, work, metric, 1.0, cache="n/a", clock_mhz=2520.0, telemetry=()) is None


# --- memory -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "bits", "memory_mhz", "sheet_giga", "measured_giga"),
    [
        ("T4, GDDR6", 256, 5001, 320, 240),
        ("L4, GDDR6", 192, 6251, 300, 235),
        ("A10, GDDR6", 384, 6251, 600, 469),
        ("L40, GDDR6", 384, 9001, 864, 846),
        ("RTX 3090, GDDR6X", 384, 9751, 936, 838),
        ("RTX 4090, GDDR6X", 384, 10501, 1008, 924),
        ("RTX 5090, GDDR7", 512, 14001, 1792, 1553),
        ("V100, HBM2", 4096, 877, 900, 895),
        ("A100-40, HBM2", 5120, 1215, 1555, 1503),
        ("A100-80, HBM2e", 5120, 1593, 2039, 1880),
        ("H100 PCIe, HBM2e", 5120, 1593, 2039, 2016),
        ("H100 SXM, HBM3", 5120, 2619, 3350, 3056),
    ],
)
def test_bus_width_and_memory_clock_give_the_published_bandwidth(
    name: str, bits: int, memory_mhz: float, sheet_giga: float, measured_giga: float
) -> None:
    found = memory(card(memory_bus_bits=bits), measured_giga, memory_mhz)
    assert found is not None, name
    assert found.rate_per_s / 1e9 == pytest.approx(sheet_giga, rel=0.01)
    assert not refused(found)
    assert found.basis == f"{bits} bits x 2 x {memory_mhz} MHz told"


def test_a_rate_out_of_a_cache_is_beyond_any_memory() -> None:
    """A working set within the 72 MB of a 4090's cache once gave 3868 GB/s."""
    assert refused(memory(card(memory_bus_bits=384), 3868, 10501))


def test_memory_that_is_clocked_above_its_sheet_is_held_to_its_own_clock() -> None:
    assert not refused(memory(card(memory_bus_bits=384), 1018, 11501))
    assert refused(memory(card(memory_bus_bits=384), 1040, 10501))


def test_what_a_cache_may_serve_or_no_clock_is_known_of_has_no_ceiling() -> None:
    wide = card(memory_bus_bits=384)
    assert memory(wide, 1e6, None) is None
    assert memory(card(), 1e6, 10501) is None
    assert memory(wide, 1e6, 10501, cache="hot") is None
    assert memory(wide, 1e6, 10501, cache="n/a") is None


@given(st.floats(300, 3000), st.integers(1, 200), st.floats(1, 1000))
def test_twice_the_clock_is_twice_the_ceiling(clock_mhz: float, sms: int, tera: float) -> None:
    one, two = (compute(card(sm_count=sms), tera, "float32", clock_mhz=clock_mhz * k) for k in (1, 2))
    assert one is not None
    assert two is not None
    assert two.rate_per_s == pytest.approx(2 * one.rate_per_s)
    assert two.reached_fraction == pytest.approx(one.reached_fraction / 2)


# --- public numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "capability"),
    [
        ("Tesla T4", "7.5"),
        ("NVIDIA A100-SXM4-80GB", "8.0"),
        ("NVIDIA GeForce RTX 3080", "8.6"),
        ("NVIDIA GeForce RTX 3090", "8.6"),
        ("NVIDIA L4", "8.9"),
        ("NVIDIA L40S", "8.9"),
        ("NVIDIA GeForce RTX 4070 SUPER", "8.9"),
        ("NVIDIA GeForce RTX 4090", "8.9"),
        ("NVIDIA H100 80GB HBM3", "9.0"),
        ("NVIDIA H200", "9.0"),
        ("NVIDIA B200", "10.0"),
        ("NVIDIA GeForce RTX 5060", "12.0"),
        ("NVIDIA GeForce RTX 5090", "12.0"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "12.0"),
    ],
)
def test_what_others_measured_passes_at_a_clock_that_is_known_of_such_cards(name: str, capability: str) -> None:
    """GeForce cards are seen up to 16 % above the boost clock of their sheet."""
    (entry,) = (c for c in table("public_ranges")["cards"] if name in c["names"])
    (row,) = (r for r in table("devices")["devices"] if r["name"] == name)
    clock_mhz = 1.16 * entry["peak"]["boost_mhz"]
    rates = [(r["quantity"].split(), r["high"] / 1e12) for r in entry["ranges"]]
    rates = [(words[1], tera) for words, tera in rates if words[0] in {"gemm", "fma", "mma"}]
    assert rates
    for dtype, tera in rates:
        found = compute(card(capability, row["sm_count"]), tera, dtype, clock_mhz=clock_mhz)
        assert found is not None, dtype
        assert not refused(found), (dtype, found)
