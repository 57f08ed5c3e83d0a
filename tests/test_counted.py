"""What a benchmark declares as its work is what its kernels do: counted, not believed.

A rate is work by time, so a wrong count flatters as well as a fast card does. The rule: where all that a run launches are kernels of
ours, operations and bytes that are declared, and not nominal, equal those that the emulator counts. A nominal count is a convention
and 0 is "not declared"; a vendor's kernels do what they like, so runs with one of those among them are not compared. Bytes are
those of global memory, or of shared memory where `Work.counting` says so.
"""

from __future__ import annotations

import contextlib
from typing import Any

import broken
import pytest
import recording
from test_kernels import ANY_DEVICE

from harness import registry
from harness.device.cpu import CpuDevice
from harness.device.cuda import cuda_devices
from harness.model import Device, Params

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(recording.no_counting()), reason=recording.no_counting() or "")]

SEED = 0x0123456789ABCDEF
CPU = CpuDevice(Device(uuid="CPU-test", name="test", kind="cpu", selector="cpu", sensors={}))

# How many operations (item "OP") one integer instruction is taken for, by the value of the axis `op`. Integer instructions also
# count loops and addresses, so for these the emulator's count is no equal but the most that can be declared.
OPERATIONS = {"mad": 2, "dp4a": 8}


@pytest.fixture(scope="module")
def device() -> recording.RecordingDevice:
    return recording.RecordingDevice(cuda_devices()[0])


def mismatches(case: registry.Case, device: recording.RecordingDevice) -> list[str]:
    """Run a case once; say what it declares otherwise than it was counted. Skips what the rule leaves out."""
    work = case.work
    if work.nominal or not (work.flops or work.bytes_moved):
        pytest.skip("nominal: a convention" if work.nominal else "neither operations nor bytes are declared")
    device.synchronize()
    recording.counters()
    all_before, ours_before = recording.launched(), device.launches
    case.run()
    device.synchronize()
    ours = device.launches - ours_before
    if not ours or recording.launched() - all_before != ours:
        pytest.skip("a library's kernels are among those it launches")
    counted = recording.counters()
    moved = counted.shared_bytes if "shared memory" in work.counting else counted.global_bytes
    return [
        f"{what}: declared {declared}, counted {done}, {done - declared:+d}"
        for what, declared, done in (("operations", work.flops, counted.operations), ("bytes", work.bytes_moved, moved))
        if declared and declared != done
    ]


def build(bench: registry.Benchmark, device: recording.RecordingDevice, params: Params) -> registry.Case:
    with contextlib.suppress(registry.Skip):
        if bench.build(
            CPU, SEED, params
        ).work.nominal:  # in no time, where the emulator would fill a model's cache for minutes
            pytest.skip("nominal: a convention")
    try:
        return bench.build(device, SEED, params)
    except registry.Skip as skip:
        pytest.skip(f"the benchmark says so: {skip}")


@pytest.mark.parametrize(
    ("bench", "params"), [pytest.param(b, p, id=name) for name, b, p in recording.cells(ANY_DEVICE)]
)
def test_declared_work_is_counted_work(
    bench: registry.Benchmark, params: Params, device: recording.RecordingDevice
) -> None:
    problems = mismatches(build(bench, device, params), device)
    assert not problems, "; ".join(problems)


def larger() -> list[Any]:
    """The first cell of each benchmark, one axis of numbers at a time at the next size."""
    found = []
    for bench in registry.find():
        start = registry.points(bench, ANY_DEVICE, small=True)[0]
        for name, axis in bench.axes.items():
            sizes = [2 * axis.check] if isinstance(axis, registry.Sized) else list(axis[1:2])
            found += [
                pytest.param(bench, {**start, name: size}, id=f"{bench.name}-{name}-{size}")
                for size in sizes
                if not isinstance(size, str)
            ]
    return found


@pytest.mark.parametrize(("bench", "params"), larger())
def test_declared_work_is_counted_work_at_a_larger_size(
    bench: registry.Benchmark, params: Params, device: recording.RecordingDevice
) -> None:
    problems = mismatches(build(bench, device, params), device)
    assert not problems, "; ".join(problems)


def odd() -> list[Any]:
    """The first cell of each benchmark with a `Sized` axis, at one more than its check size."""
    return [
        pytest.param(bench, {**registry.points(bench, ANY_DEVICE, small=True)[0], name: axis.check + 1}, id=bench.name)
        for bench in registry.find()
        for name, axis in bench.axes.items()
        if isinstance(axis, registry.Sized) and not isinstance(axis.check, str)
    ]


@pytest.mark.parametrize(("bench", "params"), odd())
def test_declared_work_is_counted_work_at_an_odd_size(
    bench: registry.Benchmark, params: Params, device: recording.RecordingDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: object) -> None:
        pytest.skip("only range kernels take any size: a block's kernel may need a multiple of something")

    monkeypatch.setattr(device, "load", refuse)
    try:
        case = build(bench, device, params)
    except (ValueError, AssertionError) as err:
        pytest.skip(f"it takes no odd size: {err}")
    problems = mismatches(case, device)
    assert not problems, "; ".join(problems)


def merged_steps(case: registry.Case, device: recording.RecordingDevice, op: str) -> str | None:
    """Say so where fewer integer instructions are executed than the declared operations need."""
    device.synchronize()
    recording.counters()
    case.run()
    device.synchronize()
    needed, counted = case.work.items // OPERATIONS[op], recording.counters().integer_operations
    return f"{needed} instructions declared, {counted} counted" if counted < needed else None


@pytest.mark.parametrize("op", OPERATIONS)
def test_declared_integer_operations_are_executed(op: str, device: recording.RecordingDevice) -> None:
    (bench,) = registry.find(["int_mad"])
    (params,) = (p for p in registry.points(bench, ANY_DEVICE, small=True) if p["op"] == op)
    assert not merged_steps(build(bench, device, params), device, op)


def test_steps_that_the_compiler_merges_are_found(device: recording.RecordingDevice) -> None:
    assert merged_steps(broken.merged_steps(device, SEED), device, "mad")


@pytest.mark.parametrize(("name", "what"), [("dead_loop", "operations"), ("wrong_bytes", "bytes")])
def test_wrong_declarations_are_found(name: str, what: str, device: recording.RecordingDevice) -> None:
    (message,) = mismatches(broken.MISDECLARED[name](device, SEED), device)
    assert message.startswith(what)


def test_a_dead_loop_counts_no_operation(device: recording.RecordingDevice) -> None:
    (message,) = mismatches(broken.dead_loop(device, SEED), device)
    assert "counted 0" in message
