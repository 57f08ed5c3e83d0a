"""The live view: counted, drawn at any width, and fed without asking a device for anything."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from test_ray import HASTE, FakeRay, RayError, Ref, errand, skip

from harness import codec
from harness.cli.follow import LOOKS_PER_S
from harness.cluster import board
from harness.cluster.errand import Orders
from harness.cluster.fanout import run_on_ray
from harness.cluster.lease import Lease, Order
from harness.cluster.plan import expected_s, plan
from harness.cluster.remote import Remote
from harness.cluster.session import Outlook
from harness.cluster.spool import Reply
from harness.cluster.tally import Tally
from harness.device.backend import Stopwatch
from harness.device.cpu import CpuDevice
from harness.device.sampler import FakeSensors, Sampler
from harness.measure.moment import Moment, Teller
from harness.measure.rounds import EFFORTS, Effort
from harness.measure.runner import measure_together
from harness.model import Device, Failed, Job, Outcome, Skipped, TelemetrySample
from harness.render.live import clock, screen
from harness.render.watch import course

QUICK = EFFORTS["quick"]
BRIEF = Effort(warmup_s=0.01, budget_s=0.02, samples=2, rounds_min=2, rounds_max=3, soak_min_s=0.02, soak_max_s=0.05, space_s=0.01, energy_s=0.0)  # fmt: skip
GPU = Device(uuid="GPU-1", name="NVIDIA Example", kind="cuda", selector="cuda:0", sensors={"power": "ok"})
CPU = Device(uuid="CPU-test", name="Example CPU", kind="cpu", selector="cpu", sensors={})
HOT = TelemetrySample(
    at_s=1.0, power_w=412.4, sm_clock_mhz=1755.0, temperature_c=84.0, throttle_reasons=("hw_thermal", "sw_power_cap")
)


def jobs_of(device: Device, *names: str) -> tuple[Job, ...]:
    return plan((device,), names or ("stream", "chase"), "quick", "00")


def tally_of(*devices: Device, side_by_side: bool = False, nodes: dict[str, str] | None = None) -> Tally:
    tally = Tally(0.0)
    jobs = [job for device in devices for job in jobs_of(device)]
    tally.planned(devices, jobs, 0, Outlook(effort=QUICK, nodes=nodes or {}, side_by_side=side_by_side))
    return tally


def drawn(tally: Tally, now_s: float, width: int, height: int = 24, **options: Any) -> list[str]:
    console = Console(width=width, height=height, color_system=None, legacy_windows=False)
    with console.capture() as taken:
        console.print(screen(tally, now_s, width=width, height=height, **options))
    return taken.get().splitlines()


# --- counting ----------------------------------------------------------------------------------------------------------


def test_the_time_left_is_the_plans_at_first_and_then_what_was_seen() -> None:
    tally = tally_of(CPU)
    (lane,) = tally.lanes
    jobs = list(lane.waiting)
    whole_s = sum(expected_s(QUICK, CPU, job) for job in jobs)
    assert tally.left_s(0.0) == pytest.approx(whole_s)
    tally.started(jobs[0], 0.0)
    assert tally.left_s(1.0) == pytest.approx(whole_s - 1.0)
    twice_s = 2 * expected_s(QUICK, CPU, jobs[0])
    tally.ended(Outcome(failed=Failed(job=jobs[0], started_at="", elapsed_s=0.0, outcome="failed", reason="")), twice_s)
    assert tally.left_s(twice_s) == pytest.approx(2 * (whole_s - expected_s(QUICK, CPU, jobs[0])))
    assert Tally(0.0).left_s(0.0) is None


def test_devices_that_work_side_by_side_are_waited_for_once() -> None:
    other = replace(GPU, uuid="GPU-2", selector="cuda:1")
    turns, together = tally_of(GPU, other), tally_of(GPU, other, side_by_side=True)
    assert turns.left_s(0.0) == pytest.approx(2 * (together.left_s(0.0) or 0.0))


def test_a_batch_that_is_under_way_moves_the_count_before_it_is_handed_over() -> None:
    tally = tally_of(GPU)
    jobs = list(tally.lanes[0].waiting)[:4]
    for job in jobs:
        tally.started(job, 0.0)
    tally.heard({"GPU-1": Moment(at_s=1.0, job=jobs[0], phase="measuring", done_count=3, sample=HOT)})
    assert (tally.done, tally.finished) == (0, 3)
    assert drawn(tally, 1.0, 80)[0].startswith("0 of 7 saved  0:01  3 more measured")
    for job in jobs:
        tally.ended(Outcome(skipped=Skipped(job=job, reason="")), 2.0)
    assert (tally.done, tally.finished) == (4, 4)
    tally.heard({"GPU-1": Moment(at_s=3.0, job=jobs[0], phase="measuring", done_count=4)})  # it comes too late
    assert tally.finished == 4


# --- drawing -----------------------------------------------------------------------------------------------------------


def at_work() -> Tally:
    tally = tally_of(CPU, GPU)
    job = tally.lanes[1].waiting[0]
    tally.started(job, 5.0)
    tally.heard({"GPU-1": Moment(at_s=6.0, job=job, phase="measuring", round_count=3, sample=HOT)})
    return tally


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 160, 300])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    lines = drawn(at_work(), 7.0, width)
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("0 of 14 saved  0:07")
    assert len(lines) == (5 if width >= 100 else 7)  # cut, not wrapped


@pytest.mark.parametrize("width", [60, 160])
def test_it_tells_what_runs_what_is_left_and_what_the_sensors_said(width: int) -> None:
    lines = drawn(at_work(), 7.0, width)
    said = "\n".join(lines)
    for words in (
        "cuda:0",
        "round 4",
        "412 W",
        "1755 MHz",
        "84 \N{DEGREE SIGN}C",
        "too hot, power cap",
        "about",
        "left: chase x6, stream x8",
    ):
        assert words in said, said
    assert "no sensors answer" in said  # of the CPU, which waits
    assert len(lines) == (7 if width == 60 else 5)


def test_what_the_sensors_said_long_ago_is_told_with_its_age() -> None:
    assert "ago" not in "\n".join(drawn(at_work(), 9.0, 160))
    assert "0:24 ago" in "\n".join(drawn(at_work(), 30.0, 160))


@pytest.mark.parametrize("width", [60, 160])
def test_a_fleet_has_one_line_a_device_and_the_rest_is_counted(width: int) -> None:
    gpus = [replace(GPU, uuid=f"GPU-{n}") for n in range(40)]
    tally = tally_of(*gpus, side_by_side=True, nodes={d.uuid: f"node{n:02}" for n, d in enumerate(gpus)})
    tally.started(tally.lanes[39].waiting[0], 0.0)
    lines = drawn(tally, 1.0, width, height=20)
    assert len(lines) <= 20
    assert max(map(len, lines)) <= width
    assert any(line.startswith("node39 cuda:0") for line in lines)  # who works is shown before who waits
    assert "and 25 more: 0 at work, 25 waiting, 0 done" in lines


def test_a_terminal_without_unicode_gets_a_bar_that_it_can_show() -> None:
    assert all(line.isascii() for line in drawn(tally_of(replace(GPU, sensors={})), 1.0, 60, ascii_only=True))


def test_drawing_takes_a_small_part_of_a_cpu() -> None:
    gpus = [replace(GPU, uuid=f"GPU-{n}", selector=f"cuda:{n}") for n in range(8)]
    tally = tally_of(*gpus)
    looks = 50
    drawn(tally, 0.0, 160)
    began_s = time.process_time()
    for now_s in range(looks):
        drawn(tally, float(now_s), 160)
    assert (time.process_time() - began_s) / (looks / LOOKS_PER_S) < 0.02


def test_a_device_whose_sensors_are_silent_says_so_although_it_was_asked() -> None:
    tally = at_work()
    (job, *_) = tally.lanes[0].waiting
    tally.started(job, 7.0)
    tally.heard({CPU.uuid: Moment(at_s=7.0, job=job, phase="measuring", sample=TelemetrySample(at_s=1.0))})
    assert "no sensors answer" in "\n".join(drawn(tally, 8.0, 160))


def test_times_and_courses_are_told_shortly() -> None:
    assert [clock(t) for t in (0, 59.9, 61, 3661)] == ["0:00", "0:59", "1:01", "1:01:01"]
    assert course([1.0, 1.0]) == "\N{LOWER ONE EIGHTH BLOCK}" * 2
    assert course([0.0, 10.0])[-1] == "\N{FULL BLOCK}"


# --- what feeds it -----------------------------------------------------------------------------------------------------


class Watched(CpuDevice):
    """A CPU that knows when it is being timed."""

    timing = False

    @contextmanager
    def stopwatch(self, *, hold: bool = False) -> Iterator[Stopwatch]:
        with super().stopwatch(hold=hold) as watch:
            self.timing = True
            try:
                yield watch
            finally:
                self.timing = False


@pytest.mark.parametrize("regime", ["burst", "sustained"])
def test_a_moment_is_told_between_rounds_and_never_while_something_is_timed(regime: Any) -> None:
    device, told = Watched(CPU), list[Moment]()

    def write(moment: Moment) -> None:
        assert not device.timing
        told.append(moment)

    jobs = [replace(job, regime=regime) for job in jobs_of(CPU, "launch")]
    teller = Teller(write)
    teller._write = write  # an assertion must not be taken for a full disk
    outcomes = list(measure_together(jobs, device, FakeSensors([HOT]), BRIEF, teller=teller))
    assert all(o.measurement for o in outcomes), outcomes
    phases = [m.phase for m in told]
    assert "measuring" in phases
    assert ("soaking" in phases) == (regime == "sustained")
    assert {m.job.params["launches"] for m in told} == {64, 512}
    assert any(m.sample and m.sample.power_w == HOT.power_w for m in told)


def test_a_teller_asks_no_sensor_and_is_silent_most_of_the_time() -> None:
    now, told = [0.0], list[Moment]()
    sensors, (job, *_) = FakeSensors([HOT]), jobs_of(CPU, "launch")
    with Sampler(sensors, period_s=60.0) as sampler:
        before = sensors.reads
        teller = Teller(told.append, clock=lambda: now[0])
        for n in range(100):
            now[0] = n / 100
            teller.tell(job, "measuring", round_count=n, sampler=sampler)
        teller.tell(job, "soaking", sampler=sampler)  # what is new is told at once
        assert sensors.reads == before
    assert 4 <= len(told) - 1 <= 5
    assert told[-1].phase == "soaking"
    assert (told[-1].sample or HOT).power_w == HOT.power_w


class Glancing(FakeRay):
    """A cluster whose lease at work can be asked what it does."""

    moment: object = b""

    def __init__(self, answers: Callable[[Job], object]) -> None:
        super().__init__(answers)
        self.byes: list[tuple[str, ...]] = []

    def _acknowledged(self, told: tuple[str, ...]) -> Ref:
        self.byes.append(told)
        return Ref(b"")

    def remote(self, **options: Any) -> Any:
        actor = super().remote(**options)(None).options().remote()
        actor.glance = SimpleNamespace(remote=lambda: Ref(self.moment))
        actor.acknowledge = SimpleNamespace(remote=self._acknowledged)
        return lambda _: SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda *_: actor))


@pytest.mark.parametrize("answer", ["a moment", b"no moment", b"", RayError("gone"), None])
def test_a_lease_at_work_is_asked_what_it_does_and_its_answer_harms_nothing(answer: object) -> None:
    work, told = errand("GPU-1"), list[tuple[str, Moment]]()
    moment = Moment(at_s=1e9, job=work.jobs[0], phase="measuring", sample=HOT)
    silent: Iterator[object] = iter([...])  # the first try takes longer than it may
    ray = Glancing(answers=lambda job: next(silent, skip(job)))
    ray.moment = codec.encode(moment) if answer == "a moment" else answer
    orders = Orders(
        effort=Effort(warmup_s=0.0, budget_s=0.0),
        started=lambda _: None,
        out_of_time=lambda: None,
        patience=HASTE,
        glanced=lambda uuid, heard: told.append((uuid, heard)),
    )
    ((_, outcome),) = run_on_ray([work], orders, ray)
    assert outcome.skipped
    assert [attempt.ended for attempt in outcome.attempts] == ["timeout"]
    if answer != "a moment":
        assert told == []
        return
    (uuid, heard), *_ = told
    assert (uuid, heard.job, heard.sample) == ("GPU-1", work.jobs[0], HOT)
    assert abs(heard.at_s - time.monotonic()) < 60  # by the clock of who watches


def test_a_lease_that_never_says_what_it_does_is_told_goodbye_all_the_same() -> None:
    ray = Glancing(answers=skip)
    ray.moment = ...
    orders = Orders(
        effort=Effort(warmup_s=0.0, budget_s=0.0),
        started=lambda _: None,
        out_of_time=lambda: None,
        glanced=lambda *_: None,
    )
    assert len(list(run_on_ray([errand("CPU-1")], orders, ray))) == 1
    assert [len(told) for told in ray.byes] == [1]  # so its node can forget what it kept


def test_a_lease_pins_its_moments_up_where_it_can_be_asked_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    (tmp_path / "harness" / "spool").mkdir(parents=True)
    (job, *_) = jobs_of(CPU, "launch")

    class Busy(Lease):
        def carry_out(self, order: Order) -> Reply:
            board.teller(order.live).tell(job, "soaking")
            return Reply(attempt=order.attempt, started_at="", elapsed_s=0.0, outcomes=())

    remote = Remote((), lambda _: Busy())
    assert remote.glance() == b""
    for live, seen in ((None, False), ("", True)):
        order = Order(attempt="1", jobs=(job,), device=CPU, effort=BRIEF, live=live)
        remote.measure(codec.encode(order), ())
        assert bool(remote.glance()) == seen
    assert codec.decode(remote.glance(), Moment).phase == "soaking"


def test_a_full_disk_stops_the_telling_and_nothing_else() -> None:
    def full(_: Moment) -> None:
        raise OSError(28, "No space left on device")

    (job, *_) = jobs_of(CPU, "launch")
    teller = Teller(full)
    teller.tell(job, "measuring")
    teller.tell(job, "soaking")


def test_what_is_pinned_up_is_read_whole_or_not_at_all(tmp_path: Path) -> None:
    (job, *_) = jobs_of(CPU, "launch")
    assert board.pinned(tmp_path, CPU) is None
    path = board.place(tmp_path, CPU)
    board.teller(str(path)).tell(job, "measuring", round_count=2)
    found = board.pinned(tmp_path, CPU)
    assert found
    assert (found.job, found.round_count) == (job, 2)
    path.write_bytes(path.read_bytes()[:40])
    assert board.pinned(tmp_path, CPU) is None
    told: Callable[..., None] = board.teller(None).tell
    told(job, "measuring")  # nobody watches
