"""Keeps count of a run for whoever watches it: what is done, what runs, what waits, and about how long it will take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from harness.cluster.plan import expected_s
from harness.cluster.session import Outlook
from harness.measure.moment import Moment
from harness.model import Device, Job, Outcome, TelemetrySample
from harness.proof.verify import job_of

__all__ = ["Lane", "Tally"]

_STALE_S = 5.0  # after so long without a word, what was heard last is shown with its age


@dataclass(slots=True, kw_only=True)
class Lane:
    """One device of a run."""

    device: Device
    label: str
    waiting: list[Job] = field(default_factory=list)
    running: list[Job] = field(default_factory=list)
    began_s: float | None = None  # when what runs began
    done_count: int = 0
    failed_count: int = 0
    moment: Moment | None = None
    sample: TelemetrySample | None = None
    sample_at_s: float | None = None
    spent_s: float = 0.0  # on what is done
    expected_s: float = 0.0  # for what is done, by the plan

    @property
    def jobs_left(self) -> int:
        """How many jobs have no outcome yet."""
        return len(self.waiting) + len(self.running)

    def age_s(self, now_s: float) -> float | None:
        """Return how old the last word of the sensors is, where it is old; None where it is fresh or there is none."""
        if self.sample_at_s is None or now_s - self.sample_at_s < _STALE_S:
            return None
        return now_s - self.sample_at_s


class Tally:
    """Counts a run's jobs by device. All times are of one clock, `time.monotonic`, and are given by the caller."""

    def __init__(self, now_s: float) -> None:
        """Begin with nothing known."""
        self.lanes: list[Lane] = []
        self.total = self.done = 0
        self.began_s = now_s
        self._outlook: Outlook | None = None
        self._by_uuid: dict[str, Lane] = {}

    def planned(self, devices: Sequence[Device], jobs: Sequence[Job], already: int, outlook: Outlook | None) -> None:
        """Take in the plan."""
        self._outlook = outlook
        self.total, self.done = len(jobs) + already, already
        names = _labels(devices, outlook.nodes if outlook else {})
        self.lanes = [Lane(device=d, label=names[d.uuid]) for d in devices]
        self._by_uuid = {lane.device.uuid: lane for lane in self.lanes}
        for job in jobs:
            self._by_uuid[job.device_uuid].waiting.append(job)

    def started(self, job: Job, now_s: float) -> None:
        """Take in that a job has begun."""
        lane = self._by_uuid[job.device_uuid]
        if not lane.running:
            lane.began_s = now_s
        if job in lane.waiting:
            lane.waiting.remove(job)
        if job not in lane.running:
            lane.running.append(job)

    def ended(self, outcome: Outcome, now_s: float) -> None:
        """Take in how a job ended; its own telemetry is what is known of the device until it speaks again."""
        job = job_of(outcome)
        if job is None or job.device_uuid not in self._by_uuid:
            return
        lane = self._by_uuid[job.device_uuid]
        for jobs in (lane.waiting, lane.running):
            if job in jobs:
                jobs.remove(job)
        self.done += 1
        lane.done_count += 1
        lane.failed_count += outcome.failed is not None
        if outcome.measurement and outcome.measurement.telemetry and lane.moment is None:
            lane.sample, lane.sample_at_s = outcome.measurement.telemetry[-1], now_s
        if self._outlook and not outcome.skipped:
            lane.expected_s += expected_s(self._outlook.effort, lane.device, job)
        if not lane.running and lane.began_s is not None:
            lane.spent_s += now_s - lane.began_s
            lane.began_s = None
            lane.moment = None

    def heard(self, moments: Mapping[str, Moment]) -> None:
        """Take in what devices do at this moment, by UUID."""
        for uuid, moment in moments.items():
            lane = self._by_uuid.get(uuid)
            if lane is None or moment.job not in lane.running:
                continue
            lane.moment = moment
            if moment.sample is not None:
                lane.sample, lane.sample_at_s = moment.sample, moment.at_s

    @property
    def finished(self) -> int:
        """How many jobs are through: those with an outcome, and those that a batch has behind it and not yet handed over."""
        return self.done + sum(min(lane.moment.done_count, len(lane.running)) for lane in self.lanes if lane.moment)

    def left_s(self, now_s: float) -> float | None:
        """Return about how long the rest will take: by the plan, held against what the jobs so far took; None if nobody knows."""
        if self._outlook is None:
            return None
        spent_s, expected = sum(x.spent_s for x in self.lanes), sum(x.expected_s for x in self.lanes)
        pace = spent_s / expected if spent_s and expected else 1.0
        each = [self._lane_left_s(lane, self._outlook, pace, now_s) for lane in self.lanes]
        return (max if self._outlook.side_by_side else sum)(each or [0.0])

    def _lane_left_s(self, lane: Lane, outlook: Outlook, pace: float, now_s: float) -> float:
        if lane.spent_s and lane.expected_s:
            pace = lane.spent_s / lane.expected_s
        waiting_s = sum(expected_s(outlook.effort, lane.device, job) for job in lane.waiting)
        running_s = sum(expected_s(outlook.effort, lane.device, job) for job in lane.running)
        passed_s = now_s - lane.began_s if lane.began_s is not None else 0.0
        return pace * waiting_s + max(0.0, pace * running_s - passed_s)


def _labels(devices: Sequence[Device], nodes: Mapping[str, str]) -> dict[str, str]:
    """Name each device by its selector, after its node's name where there are several nodes."""
    several = len(set(nodes.values())) > 1
    return {d.uuid: f"{nodes[d.uuid]} {d.selector}" if several and d.uuid in nodes else d.selector for d in devices}
