"""From work and time to a number a person can read, with its unit."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.model import Interval, Job, Measurement, Work
from harness.units import Quantity, amount, engineering, metric_of, quantity, rate_interval

if TYPE_CHECKING:
    from harness.model import Metric

WORK = Work(flops=8, bytes_moved=24, items=4, item="hop")


@pytest.mark.parametrize(
    ("work", "metric"),
    [
        (WORK, "compute"),
        (Work(bytes_moved=1, items=1), "bandwidth"),
        (Work(items=1), "throughput"),
        (Work(), "throughput"),
    ],
)
def test_the_headline_of_work_is_flops_then_bytes_then_items(work: Work, metric: Metric) -> None:
    assert metric_of(work) == metric


@pytest.mark.parametrize(
    ("metric", "count", "value"),
    [
        ("compute", (8, "FLOP"), (16.0, "FLOP/s")),
        ("bandwidth", (24, "B"), (48.0, "B/s")),
        ("throughput", (4, "hop"), (8.0, "hop/s")),
        ("latency", (4, "hop"), (0.125, "s/hop")),
    ],
)
def test_each_metric_counts_its_own_work(metric: Metric, count: tuple[int, str], value: tuple[float, str]) -> None:
    assert amount(WORK, metric) == count
    assert quantity(WORK, metric, 0.5) == value


@pytest.mark.parametrize("metric", ["compute", "latency"])
def test_the_interval_of_a_value_runs_from_low_to_high(metric: Metric) -> None:
    job = Job(benchmark="x", version=1, params={}, device_uuid="", seed="")
    measurement = Measurement(
        job=job,
        started_at="",
        elapsed_s=1.0,
        work=WORK,
        metric=metric,
        state="valid",
        reason="",
        time_s=2.0,
        interval=Interval(low_s=1.0, high_s=4.0, confidence_fraction=0.95),
        warmup_times_s=(),
        rounds=(),
        telemetry=(),
        telemetry_lost=None,
        answer_digest="",
    )
    low, high = rate_interval(measurement)
    assert (low.value, high.value) == ((2.0, 8.0) if metric == "compute" else (0.25, 1.0))
    assert low.unit == high.unit


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (3.2e10, "B/s", (32.0, "GB/s")),
        (989e12, "FLOP/s", (989.0, "TFLOP/s")),
        (1.5e15, "FLOP/s", (1.5, "PFLOP/s")),
        (11e6, "hash/s", (11.0, "M hash/s")),
        (7.0, "hash/s", (7.0, "hash/s")),
        (0.5, "B/s", (0.5, "B/s")),
        (0.0, "B/s", (0.0, "B/s")),
        (4.1e-9, "s/hop", (4.1, "ns/hop")),
        (2.5e-6, "s/launch", (2.5, "µs/launch")),
        (3e-3, "s", (3.0, "ms")),
        (90.0, "s", (90.0, "s")),
        (5e-15, "s/hop", (0.005, "ps/hop")),
    ],
)
def test_a_value_is_shown_with_the_prefix_that_fits(value: float, unit: str, shown: tuple[float, str]) -> None:
    number, name = engineering(Quantity(value, unit))
    assert name == shown[1]
    assert number == pytest.approx(shown[0])


FACTORS = {"P": 1e15, "T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3, "": 1.0}


@given(st.floats(1.0, 1e18))
def test_a_prefix_changes_the_writing_and_not_the_value(value: float) -> None:
    number, name = engineering(Quantity(value, "B/s"))
    assert math.isclose(number * FACTORS[name.removesuffix("B/s")], value)
    assert 1 <= number < 1000 or name == "PB/s"
