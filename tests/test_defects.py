"""Twenty-two defects that other suites were found to have, each held against the code here that could have it too.

They come from issue trackers and from reading: what went wrong where is said in each test's docstring.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import broken
import numpy as np
import pytest
import recording
import test_placement
from hypothesis import given
from hypothesis import strategies as st
from test_cli import Call, call, only_line
from test_compare import on_file, timed
from test_energy import measured as energy_of
from test_energy import steady, trace
from test_scoring import gemm, gpu, report, stream

from harness import registry
from harness.cluster import session
from harness.device import narrow
from harness.device.backend import CudaSource, Launcher
from harness.device.cpu import CpuDevice
from harness.device.cuda import CudaDevice
from harness.device.sampler import FakeSensors, SilentSensors
from harness.device.sensors import throttle_names
from harness.measure.ceiling import ceiling
from harness.measure.compare import compare
from harness.measure.rounds import EFFORTS, Effort, batch_for
from harness.measure.runner import measure
from harness.measure.validity import objections
from harness.model import Device, Failed, FailureKind, Job, Measurement, Outcome, TelemetrySample, Work
from harness.scoring import quote
from harness.scoring.devices import rating
from harness.scoring.placement import place
from harness.scoring.tables import table
from harness.units import Quantity, amount, engineering, quantity

__all__ = ["call"]  # the fixture

BRIEF = Effort(
    warmup_s=0.01, budget_s=0.2, samples=3, rounds_min=3, rounds_max=3, half_width_fraction=10, drift_fraction=10,
    cool_max_s=0.0, sweep_s=0.0,
)  # fmt: skip
JOB = Job(benchmark="launch", version=1, params={"launches": 64}, device_uuid="CPU-test", seed="00000000000000ff")
CPU = Device(uuid="CPU-1", name="CPU", kind="cpu", selector="cpu", sensors={})
GPU = Device(
    uuid="GPU-1", name="GPU", kind="cuda", selector="cuda:0", compute_capability="9.0", sm_count=132,
    l2_bytes=50 << 20, memory_bytes=80 << 30, sensors={},
)  # fmt: skip


class PaperDevice(CpuDevice):
    """A device on which cases of any size can be set up, as their arrays repeat one number; nothing can run there."""

    def rng(self, seed: int) -> Any:
        return _PaperRng()

    def free_bytes(self) -> int:
        return 1 << 60

    def compile(self, kernel: Callable[..., None], *, reorder: bool = False, fuse: bool = False) -> Launcher:
        return lambda *_: None

    def load(self, source: CudaSource) -> Launcher:
        return lambda *_: None


class _PaperRng:
    def bell(self, shape: Any, dtype: str = "float32") -> Any:
        one = np.ones((), dtype)
        return np.broadcast_to(one, shape) if np.prod(shape) > 1 << 20 else np.full(shape, one)

    uniform = bell

    def words(self, n: int) -> Any:
        return self.bell(n, "uint32")


def on_paper(name: str, device: Device = CPU, **params: Any) -> registry.Case:
    """Set a benchmark's case up at its real size."""
    return registry.find([name])[0].build(PaperDevice(device), 1, params)


def job_of(monkeypatch: pytest.MonkeyPatch, metric: Any = None, **parts: Any) -> Job:
    """Register a benchmark that makes a case of these parts; return a job for it."""

    @registry.benchmark(version=1, metric=metric)
    def special(backend: object, seed: int) -> registry.Case:
        """Nothing but what a test wants of it."""
        usual: dict[str, Any] = {"run": lambda: np.zeros(4), "work": Work(flops=8), "check": lambda _: True}
        return registry.Case(**(usual | parts))

    known = {**registry.benchmarks(), "special": special.__harness_benchmark__}  # type: ignore[attr-defined]
    monkeypatch.setattr(registry, "benchmarks", lambda: known)
    return replace(JOB, benchmark="special", params={})


def taken(outcome: Outcome) -> Measurement:
    assert outcome.measurement is not None, outcome
    return outcome.measurement


def run_exits(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *outcomes: Outcome) -> int:
    """Return the exit code of `harness run`, were this what it measured."""
    finished = (session.Finished(path=tmp_path / "report.json", report=report(gemm(), *outcomes)),)
    monkeypatch.setattr(session, "run", lambda *_, **__: finished)
    return call("run").code


def failed(kind: FailureKind) -> Outcome:
    return Outcome(failed=Failed(job=JOB, started_at="", elapsed_s=0.0, outcome=kind, reason=kind))


def test_01_no_rate_of_zero_reads_healthy(cpu: CpuDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """A burn-in tool reported cards at 0 GFLOP/s as healthy."""
    for metric in ("compute", "bandwidth", "throughput", "latency", None):
        outcome = measure(job_of(monkeypatch, metric=metric, work=Work()), cpu, SilentSensors(), BRIEF)
        assert outcome.failed is not None
        assert "no work" in outcome.failed.reason

    class Slow(CpuDevice):
        """Its timer is ten times too slow, so that its rates would be ten times too high."""

        def stopwatch(self, *, hold: bool = False) -> Any:
            return _Slow(super().stopwatch(hold=hold))

    found = taken(measure(job_of(monkeypatch), Slow(cpu.device), SilentSensors(), BRIEF))
    assert found.state == "invalid", found.reason
    assert "passed at the host" in found.reason


class _Slow:
    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __enter__(self) -> Any:
        self._watch = self._inner.__enter__()
        return self._watch

    def __exit__(self, *exc: object) -> None:
        self._inner.__exit__(*exc)
        self._watch.device_s /= 10


def test_02_a_failure_is_seen_in_the_exit_code(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A burn-in tool found wrong results and a comparison found regressions, and both exited 0."""
    kinds: tuple[FailureKind, ...] = ("wrong_answer", "failed", "crashed", "timeout", "out_of_memory")
    assert run_exits(call, monkeypatch, tmp_path) == 0
    assert [run_exits(call, monkeypatch, tmp_path, failed(kind)) for kind in kinds] == [3, 1, 1, 1, 1]
    before = on_file(tmp_path, 1.0, "before.json")
    now = on_file(tmp_path, 1.2, "now.json")
    worse, better = call("compare", before, now), call("compare", now, before)
    assert (worse.code, better.code) == (1, 0)
    assert "slower" in worse.out
    assert "faster" in better.out


def test_03_what_could_not_be_allocated_did_not_pass(
    cpu: CpuDevice, call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A diagnosis printed PASS below the message that its buffers could not be allocated."""

    class OutOfMemoryError(Exception):
        """As CuPy calls it."""

    for error in (MemoryError("8 TB"), OutOfMemoryError("8 TB")):

        def run(error: Exception = error) -> Any:
            raise error

        outcome = measure(job_of(monkeypatch, run=run), cpu, SilentSensors(), BRIEF)
        assert outcome.failed is not None
        assert outcome.failed.outcome == "out_of_memory"
        assert run_exits(call, monkeypatch, tmp_path, outcome) == 1


@pytest.mark.parametrize(
    ("mask", "state"),
    [
        (0x08, "throttled"),
        (0x08 | 0x04, "throttled"),
        (0x40 | 0x20 | 0x04 | 0x02, "throttled"),
        (0x80 | 0x100, "throttled"),
        (1 << 50 | 0x40, "throttled"),
        (0x20 | 0x04, "thermally_limited"),
        (0x04 | 0x10, "power_capped"),
        (0x100 | 0x10, "valid"),
    ],
)
def test_04_throttle_reasons_are_bits_that_stand_together(cpu: CpuDevice, mask: int, state: str) -> None:
    """A mask was compared with one reason by equality, so two reasons at once were none."""
    told = TelemetrySample(at_s=0.0, throttle_reasons=throttle_names(mask))
    assert taken(measure(JOB, cpu, FakeSensors([told]), BRIEF)).state == state


def test_05_a_giga_is_a_thousand_million() -> None:
    """Operations were divided by 1024 three times and called GFLOPS: 7 % lower than everybody else's."""
    assert engineering(quantity(Work(flops=10**9), "compute", 1.0)) == Quantity(1.0, "GFLOP/s")
    assert engineering(quantity(Work(bytes_moved=1 << 30), "bandwidth", 1.0)) == Quantity(1.073741824, "GB/s")
    assert engineering(Quantity(39e12, "FLOP/s")) == Quantity(39.0, "TFLOP/s")


@pytest.mark.parametrize(
    ("name", "params", "flops", "bytes_moved"),
    [
        # Not 2k - 1 for each element (1 099 444 518 912), not with a beta (1 100 048 498 688).
        ("gemm", {"dtype": "float32", "n": 8192}, 1_099_511_627_776, 3 * 4 * 8192**2),
        ("gemm", {"dtype": "float64", "n": 8192}, 1_099_511_627_776, 3 * 8 * 8192**2),
        # With its diagonal: 137 472 507 904 at dimension 128, and ours is 64. Without it, half of all would be 68 719 476 736.
        ("attention", {"heads": 32, "length": 4096}, 137_472_507_904 // 2, 4 * 64 * 4096 * (2 * 32 + 2 * 8)),
        ("stream", {"op": "triad", "dtype": "float32", "n": 1 << 28}, 2 << 28, 3_221_225_472),
        ("stream", {"op": "copy", "dtype": "float32", "n": 1 << 28}, 0, 2_147_483_648),
        ("stream", {"op": "nstream", "dtype": "float64", "n": 1 << 26}, 3 << 26, 4 * 8 << 26),
    ],
)
def test_06_operations_and_bytes_are_counted_as_everybody_counts(
    name: str, params: dict[str, Any], flops: int, bytes_moved: int
) -> None:
    """Three suites had three counts of the operations of one matrix product."""
    work = on_paper(name, **params).work
    assert (work.flops, work.bytes_moved) == (flops, bytes_moved)


@pytest.mark.gpu
def test_06_the_bandwidth_of_an_all_reduce_is_that_of_its_links(cuda: CudaDevice) -> None:
    """For n GPUs the factor is 2 (n - 1) / n: 1 for two, 1.75 for eight."""
    count = int(cuda.xp.cuda.runtime.getDeviceCount())
    if count < 2:
        pytest.skip("it takes two GPUs")
    case = registry.find(["allreduce"])[0].build(cuda, 1, {"algorithm": "ring", "n": 4096})
    assert case.work.bytes_moved == 4 * 4096 * 2 * (count - 1) // count
    assert f"2 ({count} - 1) / {count}" in case.work.counting


def test_07_inputs_that_saturated_are_seen_in_the_record(cpu: CpuDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random words cast to fp8 all became its largest number, zeros were never random: power and clock were flattered."""

    def entropy(array: Any) -> float:
        job = job_of(monkeypatch, inputs=(array,), distribution="said to be random")
        inputs = taken(measure(job, cpu, SilentSensors(), BRIEF)).inputs
        assert inputs is not None
        return inputs.entropy_bits_per_byte

    rng = cpu.rng(7)
    saturated = narrow.to_e4m3(rng.words(1 << 16).astype(np.float32) + 1e6)
    assert len(np.unique(saturated)) == 1
    assert entropy(saturated) == entropy(np.zeros(1 << 16, np.float32)) == 0
    ours = narrow.to_e4m3(rng.bell(1 << 16))
    assert len(np.unique(ours)) > 100
    assert entropy(ours) > 5
    assert entropy(rng.words(1 << 14)) > 7.9
    assert entropy(rng.bell(1 << 14)) > 5


def test_08_what_stays_in_a_cache_is_no_memory_bandwidth(cpu: CpuDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """A 4090's cache of 72 MB was quoted as 3868 GB/s of memory."""
    device = CpuDevice(replace(cpu.device, l3_bytes=72 << 20))
    work = Work(bytes_moved=32 << 20)
    for footprint, state in ((32 << 20, "invalid"), (144 << 20, "invalid"), (1 << 30, "valid")):
        job = job_of(monkeypatch, work=work, cache="cold", footprint_bytes=footprint)
        assert taken(measure(job, device, SilentSensors(), BRIEF)).state == state
    small = on_paper("stream", GPU, op="triad", dtype="float32", n=1 << 20)
    (n,) = {p["n"] for p in registry.points(registry.find(["stream"])[0], replace(GPU, l2_bytes=72 << 20))}
    large = on_paper("stream", replace(GPU, l2_bytes=72 << 20), op="copy", dtype="float32", n=n)
    assert small.cache == "hot"
    assert large.cache == "cold"
    assert (large.footprint_bytes or 0) >= 16 * (72 << 20)


@pytest.mark.gpu
def test_09_no_part_of_the_cache_is_set_aside(cuda: CudaDevice) -> None:
    """What a carve-out of the cache kept from run to run was quoted as 3530 GB/s of an L40S's memory."""
    runtime, limit = cuda.xp.cuda.runtime, 6
    try:
        runtime.deviceSetLimit(limit, 1 << 20)
    except runtime.CUDARuntimeError:
        pytest.skip("this device has no such carve-out")
    CudaDevice(cuda.device)
    assert runtime.deviceGetLimit(limit) == 0


@pytest.mark.parametrize(
    ("card", "quantity_", "mistyped"),
    [
        ("NVIDIA H200", "triad", 2333e6),  # a thousand times too low
        ("NVIDIA H100 80GB HBM3", "copy", 122.25e9),  # ten times
        ("NVIDIA L40", "triad", 49.05e9),
        ("NVIDIA B200", "gemm float32", 3416250e9 * 1.0737),  # a hundred times too high
        ("NVIDIA GeForce RTX 4090", "copy", 3868e9),
    ],
)
def test_10_a_range_with_a_unit_mistyped_does_not_get_in(card: str, quantity_: str, mistyped: float) -> None:
    """Six floors of a vendor's own table were off by 10, 100 or 1000."""

    def is_possible(name: str, entry: Mapping[str, Any], quantity_: str) -> bool:
        limit = test_placement.ceiling(name, test_placement.peak_of(name), quantity_)
        return limit is None or (0.2 * limit <= entry["low"] and entry["high"] <= 1.2 * limit)

    assert not is_possible(card, {"low": mistyped, "high": mistyped}, quantity_)
    (row,) = (c for c in table("public_ranges")["cards"] if card in c["names"])
    honest = [r for r in row["ranges"] if r["quantity"] == quantity_] or row["ranges"]
    assert all(is_possible(card, r, r["quantity"]) for r in honest)


@pytest.mark.parametrize("capability", ["10.1", "11.0", "13.0", "99.9"])
def test_11_a_gpu_that_is_newer_than_the_tables_runs_and_has_no_ceiling(capability: str) -> None:
    """Each new architecture broke lists of architectures in the code of a suite, several times over."""
    new = replace(GPU, compute_capability=capability)
    for least, what in (("7.5", "int8 tensor cores"), ("8.0", "bfloat16 tensor cores"), ("8.9", "fp8 tensor cores")):
        registry.require_capability(PaperDevice(new), least, what)
    for dtype in ("float16", "bfloat16", "tfloat32", "int8", "float64"):
        case = on_paper("mma", new, dtype=dtype, n=4, steps=63)
        found = ceiling(new, {"dtype": dtype}, case.work, "compute", 1e-30, cache="n/a", clock_mhz=1980.0, telemetry=())
        assert found is None


def test_12_where_every_round_was_discarded_there_is_a_number_and_it_says_throttled(cpu: CpuDevice) -> None:
    """When all samples were judged throttled, a suite's table was empty and its means were NaN."""
    hot = TelemetrySample(at_s=0.0, temperature_c=95.0, throttle_reasons=("hw_thermal",))
    found = taken(measure(JOB, cpu, FakeSensors([hot]), BRIEF))
    assert found.state == "throttled"
    assert all(r.discarded == "hw_thermal in a round" for r in found.rounds)
    assert 0 < found.interval.low_s <= found.time_s <= found.interval.high_s < math.inf
    assert "hw_thermal" in found.reason


def test_13_geforce_cards_are_placed_and_priced_as_any_others() -> None:
    """A suite does not officially support what half of its users have."""
    names = {row["name"] for row in table("devices")["devices"] if "GeForce" in row["name"]}
    placed = {name for c in table("public_ranges")["cards"] for name in c["names"] if "GeForce" in name}
    assert len(names) >= 20
    assert len(placed) >= 10
    assert placed <= names
    card = gpu("NVIDIA GeForce RTX 4090", memory_gib=24)
    (own,) = quote(report(gemm(), gemm(8e13, "float16"), stream(power_w=300.0), device=card))
    assert (own.status, own.for_gpu_market) == ("priced", True), own.reasons
    assert rating(card) is not None
    assert place(test_placement.RTX_4090, test_placement.copied(918e9)) is not None


def test_14_every_rate_says_in_words_how_it_is_counted(cpu: CpuDevice) -> None:
    """1116 GB/s of a copy looked like a defect, because nobody said whether it was counted one way or both."""
    seen = 0
    for name, bench, params in recording.cells(cpu.device):
        try:
            case = bench.build(cpu, 1, params)
        except registry.Skip:
            continue
        seen += 1
        metric = bench.metric or ("compute" if case.work.flops else "bandwidth")
        assert amount(case.work, metric)[0] > 0, name
        assert len(case.work.counting.split()) >= 2 or not (case.work.flops or case.work.bytes_moved), name
        if bench.name == "stream" and params["op"] == "copy":
            assert case.work.counting == "read + written"
    assert seen > 30


@given(st.integers(1 << 10, 1 << 32), st.sampled_from([4 << 20, 50 << 20, 126 << 20, None]))
def test_15_queued_runs_never_meet_an_operand_that_is_still_in_the_cache(operand: int, l2_bytes: int | None) -> None:
    """Runs replayed from a graph, without a flush between them, looked up to 1.6 times as fast."""
    backend = PaperDevice(replace(GPU, l2_bytes=l2_bytes))
    sets, cache = registry.rotation(backend, operand), registry.cache_bytes(backend.device)
    refused = objections(
        backend.device, cache="cold", footprint_bytes=sets * operand, metric="bandwidth", ceiling=None, telemetry=()
    )
    between = (sets - 1) * operand  # bytes of other sets between two uses of one
    assert sets == 1 or between >= cache or any(refused)
    assert sets * operand >= 5 * cache or operand < cache / 6


def test_15_runs_that_follow_each_other_take_other_operands(cpu: CpuDevice) -> None:
    chase = registry.find(["chase"])[0].build(cpu, 1, {"size_bytes": 1 << 14})
    assert len({chase.run()[1] for _ in range(4)}) == 4


def test_16_a_sample_of_a_short_kernel_lasts_a_millisecond(cpu: CpuDevice) -> None:
    """Pairs of events around kernels of less than 10 µs read six times their time."""
    for run_s in (1e-7, 2e-6, 7e-6, 1e-3):
        assert batch_for(run_s, EFFORTS["standard"]) * run_s >= 1e-3
    found = taken(measure(JOB, cpu, SilentSensors(), BRIEF))
    assert all(r.batch * max(r.times_s) >= 0.5 * BRIEF.sample_s for r in found.rounds)
    assert found.rounds[0].batch > 1


def test_17_a_counter_that_disagrees_with_power_is_disputed_with_both_numbers() -> None:
    """In five idle seconds a counter said 187 J, power over time 327 J."""
    found = energy_of([replace(s, power_w=300 * 327 / 187) for s in trace(steady)])
    assert found.disputed is not None
    assert found.integral_j == pytest.approx(found.joules * 327 / 187, rel=0.03)
    assert f"{found.joules:.0f} J" in found.disputed


@pytest.mark.parametrize(("told", "scope"), [("module", "module"), ("gpu", "gpu"), (None, "gpu")])
def test_18_energy_of_a_module_is_not_called_that_of_its_gpu(cpu: CpuDevice, told: Any, scope: str) -> None:
    """On a superchip the counter includes the CPU."""
    device = CpuDevice(replace(cpu.device, kind="cuda", energy_scope=told))
    effort = replace(BRIEF, soak_min_s=0.1, soak_max_s=0.2, energy_s=0.8, space_s=0.05)
    story = FakeSensors([TelemetrySample(at_s=0.0, power_w=600.0)])
    found = taken(measure(replace(JOB, regime="sustained"), device, story, effort))
    assert found.energy is not None
    assert found.energy.scope == scope


def test_19_a_baseline_is_a_file_that_somebody_names(call: Call, tmp_path: Path) -> None:
    """The last run was the baseline: after a lucky one every honest run failed."""
    path = on_file(tmp_path, 1.0, "report.json")
    for arguments in ([], [path]):
        assert "Missing argument" in only_line(call("compare", *arguments))
    lucky, honest = report(timed(0.9, 0.06)), report(timed(1.0, 0.06))
    (found,) = compare(lucky, honest)
    assert found.decision == "ambiguous"  # a wide interval decides nothing, lucky or not
    assert "nothing can differ" in call("compare", path, path).out


# What a kernel computes in float64 on purpose, or at no cost: (kernel, variable) -> the reason.
IN_DOUBLE = {("harness.kernels.fma.vector_chains", "width"): "a length, once for each tile of many steps"}


class _Watching(CpuDevice):
    """A CPU that remembers which range kernels it ran, and with what types."""

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        self.seen: dict[tuple[str, tuple[Any, ...]], Any] = {}

    def compile(self, kernel: Callable[..., None], *, reorder: bool = False, fuse: bool = False) -> Launcher:
        inner = super().compile(kernel, reorder=reorder, fuse=fuse)

        def launch(n: int, *args: Any) -> None:
            from numba import typeof, types

            kinds = (types.uint64,) * 4 + tuple(map(typeof, args))
            self.seen.setdefault((kernel.__module__ + "." + kernel.__name__, kinds), kernel)
            inner(n, *args)

        return launch


def _doubles(kernel: Callable[..., None], kinds: tuple[Any, ...]) -> list[str]:
    """Return the variables of a range kernel that Numba takes for float64 numbers."""
    from numba import njit, types

    compiled = njit(kernel)
    compiled.compile(kinds)
    (overload,) = compiled.overloads.values()
    typed = overload.type_annotation.typemap.items()
    name = f"{kernel.__module__}.{kernel.__name__}"
    return [variable for variable, kind in typed if kind == types.float64 and (name, variable) not in IN_DOUBLE]


def _in_single(device: _Watching) -> Iterator[tuple[str, Callable[..., None], tuple[Any, ...]]]:
    for (name, kinds), kernel in device.seen.items():
        if not any("float64" in str(kind) for kind in kinds):
            yield name, kernel, kinds


@pytest.mark.slow
def test_20_no_kernel_on_single_precision_or_integers_computes_in_double(cpu: CpuDevice) -> None:
    """An untyped 0.4 makes a float32 triad do float64 arithmetic, at a 64th of the rate on a GeForce."""
    device = _Watching(cpu.device)
    for _, bench, params in recording.cells(device.device):
        try:
            bench.build(device, 1, params).run()
        except registry.Skip:
            continue
    found = {name: _doubles(kernel, kinds) for name, kernel, kinds in _in_single(device)}
    assert len(found) > 10
    assert not {name: names for name, names in found.items() if names}


def test_20_an_untyped_literal_is_found() -> None:
    from numba import types

    array = types.Array(types.float32, 1, "C")
    assert _doubles(broken.untyped, (*(types.uint64,) * 4, array, array))


@pytest.mark.gpu
@pytest.mark.skipif(bool(recording.no_counting()), reason=recording.no_counting() or "")
@pytest.mark.parametrize("op", ["triad", "copy", "scale", "add", "dot", "nstream"])
def test_20_a_stream_in_float32_executes_no_operation_in_float64(cuda: CudaDevice, op: str) -> None:
    for dtype, is_double in (("float32", False), ("float64", op != "copy")):
        case = registry.find(["stream"])[0].build(cuda, 1, {"op": op, "dtype": dtype, "n": 4096})
        cuda.synchronize()
        recording.emulator().counters()
        case.run()
        cuda.synchronize()
        assert bool(recording.emulator().counters()["f64_flop"]) is is_double


@pytest.mark.parametrize(
    ("capability", "runs"),
    [("7.5", False), ("8.0", False), ("8.6", False), ("8.9", True), ("9.0", False), ("10.0", False), ("12.0", True)],
)
def test_21_fp8_instructions_are_timed_only_where_there_are_units_for_them(capability: str, *, runs: bool) -> None:
    """On Hopper and data-centre Blackwell `mma.sync` of fp8 runs on the float16 units, at half the rate or less."""
    device = replace(GPU, compute_capability=capability)
    if runs:
        assert on_paper("mma", device, dtype="float8_e4m3", n=4, steps=63).work.flops > 0
    else:
        with pytest.raises(registry.Skip, match=capability.replace(".", r"\.")):
            on_paper("mma", device, dtype="float8_e4m3", n=4, steps=63)


@pytest.mark.parametrize("dtype", ["bfloat16", "tfloat32"])
@pytest.mark.parametrize("name", ["gemm", "mma"])
def test_22_types_without_units_are_told_by_capability_not_by_failing(name: str, dtype: str) -> None:
    """Before 8.0 a library emulates bfloat16 at a 20th of the rate: nothing fails, and the figure is worthless."""
    size: dict[str, Any] = {"n": 128} if name == "gemm" else {"n": 4, "steps": 63}
    for capability in ("7.0", "7.5"):
        with pytest.raises(registry.Skip, match=r"8\.0"):
            on_paper(name, replace(GPU, compute_capability=capability), dtype=dtype, **size)
    if name == "mma":
        assert on_paper(name, replace(GPU, compute_capability="8.0"), dtype=dtype, **size).work.flops > 0
