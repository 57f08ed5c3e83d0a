"""Which points a preset runs, and what a benchmark may declare."""

from __future__ import annotations

import pytest

from harness import registry
from harness.cluster.plan import plan
from harness.errors import MisuseError
from harness.model import Device
from harness.registry import Case, Sized, Work, benchmark, points

CPU = Device(uuid="CPU-x", name="x", kind="cpu", selector="cpu", sensors={})
GPU = Device(uuid="GPU-x", name="Emulated x", kind="cuda", selector="cuda:0", emulated=True, sensors={})


def case() -> Case:
    return Case(run=lambda: None, work=Work(flops=1), check=lambda _: True)


@benchmark(version=1, quick={"op": ("b",)}, op=("a", "b"), n=Sized(check=1, cpu=2, cuda=3))
def sample(backend: object, seed: int, *, op: str, n: int) -> Case:
    """A benchmark to look at."""
    return case()


RECORD: registry.Benchmark = sample.__harness_benchmark__  # type: ignore[attr-defined]


def test_a_sized_axis_takes_the_size_of_the_device() -> None:
    assert [p["n"] for p in points(RECORD, CPU)] == [2, 2]
    assert [p["n"] for p in points(RECORD, GPU)] == [3, 3]
    assert [p["n"] for p in points(RECORD, GPU, small=True)] == [1, 1]


def test_quick_keeps_what_the_benchmark_names() -> None:
    assert points(RECORD, CPU, quick=True) == ({"op": "b", "n": 2},)
    assert len(points(RECORD, CPU)) == 2


def test_an_axis_that_the_function_does_not_take_is_refused() -> None:
    with pytest.raises(MisuseError, match=r"takes \['n'\] but declares the axes \['m'\]"):

        @benchmark(version=1, m=(1,))
        def wrong(backend: object, seed: int, *, n: int) -> Case:
            """Nothing."""
            return case()


def test_a_benchmark_left_out_of_quick_runs_there_only_by_name() -> None:
    left_out = {b.name for b in registry.find() if not b.in_quick}
    assert "gemv" in left_out
    assert not left_out & {job.benchmark for job in plan([CPU], (), "quick", "5")}
    assert left_out <= {job.benchmark for job in plan([CPU], (), "standard", "5")}
    assert {job.benchmark for job in plan([CPU], ("gemv",), "quick", "5")} == {"gemv"}


def test_an_emulated_device_gets_the_smallest_sizes() -> None:
    sizes = {job.params["n"] for job in plan([GPU], ("stream",), "standard", "5")}
    assert sizes == {1 << 12}
