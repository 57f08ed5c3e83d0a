"""One suite judges every benchmark that exists, on every device that is here. A new benchmark is judged by being there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import recording

from harness import codec, registry, units
from harness.device.backend import Backend
from harness.device.sampler import FakeSensors
from harness.measure.rounds import Effort
from harness.measure.runner import measure
from harness.model import Device, Job, Outcome, Params, TelemetrySample, Work

SEED, OTHER_SEED = 0x0123456789ABCDEF, 0xFEDCBA9876543210
ANY_DEVICE = Device(
    uuid="any", name="any", kind="cuda", selector="cuda:0", sensors={}
)  # the smallest size asks nothing of it
BRIEF = Effort(warmup_s=0.0, budget_s=0.02, sample_s=1e-6, samples=2, rounds_min=2, rounds_max=3)


def smallest(bench: registry.Benchmark) -> Params:
    return next(params for _, b, params in recording.cells(ANY_DEVICE) if b == bench)


every_cell = pytest.mark.parametrize(
    ("bench", "params"), [pytest.param(b, p, id=name) for name, b, p in recording.cells(ANY_DEVICE)]
)
every_benchmark = pytest.mark.parametrize("bench", registry.find(), ids=lambda b: b.name)


def build(bench: registry.Benchmark, backend: Backend, seed: int, params: Params) -> registry.Case:
    try:
        return bench.build(backend, seed, params)
    except registry.Skip as skip:
        pytest.skip(f"the benchmark says so: {skip}")


_LAST: dict[tuple[str, str, str], registry.Case] = {}


def shared(bench: registry.Benchmark, backend: Backend, params: Params) -> registry.Case:
    """Build a cell from `SEED`, or return it as the test before left it, where that does no harm: some runs go on from the last.

    conftest lets all tests of a cell follow each other.
    """
    key = bench.name, str(params), backend.device.kind
    if key not in _LAST:
        case = build(bench, backend, SEED, params)
        _LAST.clear()  # one at a time: they hold memory
        _LAST[key] = case
    return _LAST[key]


def parts(answer: Any) -> list[np.ndarray[Any, Any]]:
    """An answer's arrays and numbers, copied to the host."""
    whole = answer if isinstance(answer, tuple) else (answer,)
    return [np.array(p.get() if hasattr(p, "get") else p) for p in whole]


def same(a: Any, b: Any) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(parts(a), parts(b), strict=True))


def bump(x: np.ndarray[Any, Any], i: int) -> None:
    """Change one element by more than any rounding could."""
    flat = x.reshape(-1)
    flat[i] = flat[i] ^ flat.dtype.type(1) if flat.dtype.kind in "iu" else flat[i] + 4 * (1 + np.abs(flat).max())


def nan(x: np.ndarray[Any, Any]) -> None:
    x.reshape(-1)[x.size // 2] = np.nan


def exchange(x: np.ndarray[Any, Any]) -> None:
    flat = x.reshape(-1)
    flat[0], flat[-1] = flat[-1], flat[0]


CORRUPTIONS: dict[str, Callable[[np.ndarray[Any, Any]], object]] = {
    "first element": lambda x: bump(x, 0),
    "middle element": lambda x: bump(x, x.size // 2),
    "last element": lambda x: bump(x, x.size - 1),
    "all zero": lambda x: x.fill(0),
    "not a number": nan,
    "two exchanged": exchange,
}


@every_cell
def test_the_right_answer_is_accepted_also_when_run_again(
    bench: registry.Benchmark, params: Params, backend: Backend
) -> None:
    case = shared(bench, backend, params)
    assert case.check(case.run())
    for _ in range(3):
        again = case.run()
    assert case.check(again)


@every_cell
def test_a_wrong_answer_is_refused(bench: registry.Benchmark, params: Params, backend: Backend) -> None:
    case = shared(bench, backend, params)
    answer = case.run()
    array, *rest = answer if isinstance(answer, tuple) else (answer,)
    right = backend.to_host(array).copy()
    believed = []
    for kind, corrupt in CORRUPTIONS.items():
        if (kind == "not a number" and right.dtype.kind not in "fc") or (kind == "two exchanged" and right.size == 1):
            continue  # integers have no NaN, and one element cannot be exchanged
        host = right.copy()
        corrupt(host)
        wrong = backend.xp.asarray(host)
        if case.check((wrong, *rest) if isinstance(answer, tuple) else wrong):
            believed.append(kind)
    assert not believed


@every_cell
def test_the_same_seed_gives_the_same_answer_and_another_seed_another(
    bench: registry.Benchmark, params: Params, backend: Backend
) -> None:
    first = parts(build(bench, backend, SEED, params).run())
    again = parts(build(bench, backend, SEED, params).run())
    other = parts(build(bench, backend, OTHER_SEED, params).run())
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


@every_benchmark
def test_work_grows_along_each_axis_of_numbers(bench: registry.Benchmark, cpu: Backend) -> None:
    start = dict(registry.points(bench, ANY_DEVICE, small=True)[0])
    for name, axis in bench.axes.items():
        small = axis.check if isinstance(axis, registry.Sized) else axis[0]
        if isinstance(small, str):
            continue
        large = 2 * small if isinstance(axis, registry.Sized) else axis[1]
        low, high = (build(bench, cpu, SEED, {**start, name: v}).work for v in (small, large))
        grown = [(b > a) - (b < a) for a, b in zip(counts(low), counts(high), strict=True)]
        assert min(grown) >= 0, f"{name}: some work shrank from {low} to {high}"
        assert max(grown) > 0, f"{name}: {low} and {high} are the same work"


def counts(work: Work) -> tuple[int, int, int]:
    return work.flops, work.bytes_moved, work.items


@every_benchmark
def test_axes_begin_with_the_smallest_and_quick_names_only_what_they_hold(bench: registry.Benchmark) -> None:
    for name, axis in bench.axes.items():
        if isinstance(axis, registry.Sized):
            for kind in ("cpu", "cuda") if not isinstance(axis.check, str) else ():
                assert axis.check < axis.value(replace(ANY_DEVICE, kind=kind), small=False)  # type: ignore[operator]
        elif not isinstance(axis[0], str):
            assert list(axis) == sorted(axis)
        if name in bench.quick:
            assert not isinstance(axis, registry.Sized)
            assert set(bench.quick[name]) <= set(axis)
    assert set(bench.quick) <= set(bench.axes)


@every_cell
def test_a_measurement_survives_the_wire_and_has_a_headline(
    bench: registry.Benchmark, params: Params, cpu: Backend
) -> None:
    survives(bench, params, cpu)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("bench", "params"),
    [pytest.param(b, p, id=name) for name, b, p in recording.cells(ANY_DEVICE) if p == smallest(b)],
)
def test_a_measurement_on_a_gpu_survives_the_wire(bench: registry.Benchmark, params: Params, cuda: Backend) -> None:
    """One cell of each: what a record holds does not depend on the others' parameters, and an emulator is slow."""
    survives(bench, params, cuda)


def survives(bench: registry.Benchmark, params: Params, backend: Backend) -> None:
    job = Job(
        benchmark=bench.name,
        version=bench.version,
        params=params,
        device_uuid=backend.device.uuid,
        seed=f"{SEED:016x}",
    )
    outcome = measure(job, backend, FakeSensors([TelemetrySample(at_s=0.0, power_w=100.0)]), BRIEF)
    data = codec.encode(outcome)
    assert codec.decode(data, Outcome) == outcome
    if outcome.skipped:
        pytest.skip(f"the benchmark says so: {outcome.skipped.reason}")
    assert outcome.measurement is not None, outcome.failed
    m = outcome.measurement
    assert units.quantity(m.work, m.metric, m.time_s).value > 0
    assert m.interval.low_s <= m.time_s <= m.interval.high_s
    assert all(t > 0 for r in m.rounds for t in r.times_s)
    low, high = units.rate_interval(m)
    assert low.value <= units.quantity(m.work, m.metric, m.time_s).value <= high.value


@every_cell
def test_its_work_says_how_it_is_counted_and_its_random_inputs_are_random(
    bench: registry.Benchmark, params: Params, backend: Backend
) -> None:
    """A buffer of one repeated value takes less power and gives more speed: it would flatter every card."""
    case = shared(bench, backend, params)
    assert case.work.counting
    assert case.work.item or not case.work.items
    assert bool(case.inputs) == bool(case.distribution)
    for array in case.inputs:
        host = np.atleast_1d(backend.to_host(array))
        assert host.size == 1 or np.unique(host).size > min(host.size, 256) // 4, "almost all inputs are equal"


@every_benchmark
def test_it_is_one_file_named_as_itself_with_a_summary(bench: registry.Benchmark) -> None:
    assert bench.module.rpartition(".")[2] == bench.name
    assert bench.summary.endswith(".")
    assert 20 < len(bench.summary) <= 120


@pytest.mark.gpu
@every_cell
def test_the_gpu_agrees_with_its_cpu_twin(
    bench: registry.Benchmark, params: Params, cpu: Backend, cuda: Backend
) -> None:
    """The same seed gives the same inputs on both, so the answers may differ by rounding alone."""
    ours, theirs = (parts(build(bench, b, SEED, params).run()) for b in (cuda, cpu))
    for a, b in zip(ours, theirs, strict=True):
        if a.dtype.kind in "iu":
            assert np.array_equal(a, b)
        else:
            scale = np.abs(b).max()
            assert np.abs(a - b).max() <= 64 * np.finfo(a.dtype).eps * scale
