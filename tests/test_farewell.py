"""How leases through Ray end, on a Ray made up of a few dictionaries: no lease outlives the next one, nor takes it along, nor ends too soon."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from fakefleet import ENVIRONMENT, QUICK

from harness import codec, registry
from harness.cluster import fanout
from harness.cluster.errand import Errand, Orders, desks
from harness.cluster.scheduler import Scheduler
from harness.cluster.signals import Event
from harness.cluster.spool import Reply
from harness.cluster.task import Inventory
from harness.errors import FailureError
from harness.model import Device, Job, Node, Outcome, Skipped

GPU = Device(uuid="GPU-1", name="x", kind="cuda", selector="cuda:0", sensors={})
JOBS = tuple(
    Job(benchmark=f"b{n}", version=1, params={}, device_uuid="GPU-1", seed="0" * 16, regime="sustained")
    for n in range(2)
)


class FakeRayError(Exception):
    """What a call to an actor that has gone ends in."""


class FakeRay:
    """One node with one GPU, whose actors answer what a test says, and when."""

    exceptions = SimpleNamespace(RayError=FakeRayError)

    def __init__(self) -> None:
        self.asked: list[str] = []  # `actor.method`, each with a mark of its own
        self.answers: dict[str, bytes | Exception] = {}
        self.killed: list[str] = []
        self.waited_s = 0.0
        self._actors = 0

    def nodes(self) -> list[dict[str, Any]]:
        return [{"NodeID": "n1", "Alive": True, "Resources": {"GPU": 1}}]

    def get_runtime_context(self) -> SimpleNamespace:
        return SimpleNamespace(gcs_address="", get_node_id=lambda: "n0")

    def remote(self, **_: object) -> Callable[[type], SimpleNamespace]:
        made = SimpleNamespace(remote=lambda *_: self._actor())
        return lambda _: SimpleNamespace(options=lambda **_: made)

    def _actor(self) -> SimpleNamespace:
        self._actors += 1
        name = f"actor{self._actors}"
        methods = ("inspect", "collect", "measure", "ping", "acknowledge")
        calls = {method: SimpleNamespace(remote=lambda *_, m=method: self._ask(f"{name}.{m}")) for method in methods}
        return SimpleNamespace(name=name, **calls)

    def _ask(self, what: str) -> str:
        self.asked.append(f"{what}#{len(self.asked)}")
        return self.asked[-1]

    def wait(self, refs: Sequence[str], **_: object) -> tuple[list[str], list[str]]:
        return [ref for ref in refs if ref in self.answers], [ref for ref in refs if ref not in self.answers]

    def get(self, ref: str, timeout: float) -> bytes:
        self.waited_s = timeout
        answer = self.answers.get(ref, FakeRayError())
        if isinstance(answer, Exception):
            raise answer
        return answer

    def kill(self, actor: SimpleNamespace) -> None:
        self.killed.append(actor.name)


class Stage:
    """The scheduler and its hand, and a clock of the test's own."""

    def __init__(self) -> None:
        self.ray = FakeRay()
        inventory = Inventory(node=Node(name="n"), place="n1", environment=ENVIRONMENT, devices=(GPU,))
        orders = Orders(effort=QUICK, started=lambda _: None, out_of_time=lambda: None)
        work = desks([Errand(inventory=inventory, jobs=JOBS, run="r")], orders, width=None)
        (self.desk,) = work.values()
        self.scheduler = Scheduler(
            [replace(self.desk.lane, allowed_s=lambda _: 10.0)], utc=lambda: "then", name="x", patience=orders.patience
        )
        self.hand = fanout._OnRay(self.ray, work, orders, {"n1": self.ray.nodes()[0]})
        self.now = 0.0
        self.go([])

    def go(self, events: list[Event] | None = None, *, after_s: float = 1.0) -> None:
        self.hand._census_at = 0.0
        self.now += after_s
        heard = self.hand.poll(0.0, self.scheduler.missing()) if events is None else events
        for command in self.scheduler.advance(self.now, heard):
            self.hand.do(command)
        self.hand.heard()

    def answer(self, data: bytes | Exception | None = None, *, after_s: float = 1.0) -> None:
        """Answer the last call that was made; a measurement with an outcome for each of its jobs."""
        asked = self.ray.asked[-1]
        if data is None and ".measure" in asked:
            start = self.hand._calls[asked].start
            assert start
            made = tuple(Outcome(skipped=Skipped(job=job, reason="a test")) for job in start.jobs)
            data = codec.encode(Reply(attempt=start.attempt, started_at="then", elapsed_s=0.0, outcomes=made))
        self.ray.answers[asked] = codec.encode(()) if data is None else data
        self.go(after_s=after_s)

    def last(self) -> str:
        return self.ray.asked[-1].partition("#")[0]


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setattr(registry, "benchmarks", dict)
    return Stage()


def test_a_lease_whose_call_broke_is_ended_before_the_next_is_asked_for(stage: Stage) -> None:
    stage.answer()  # the lease is had
    stage.answer()  # the first job, whose outcome waits in the spool to be acknowledged
    assert stage.last() == "actor1.measure"
    stage.answer(FakeRayError())
    assert (stage.last(), stage.ray.killed) == ("actor1.measure", ["actor1"])
    stage.go()
    stage.go()
    assert stage.last() == "actor2.collect"
    stage.answer()
    for _ in range(20):
        if stage.last() == "actor2.measure":
            stage.go(after_s=3.0)
    assert (stage.last(), stage.ray.killed) == ("actor2.ping", ["actor1"])


@pytest.mark.parametrize("last", [b"", FakeRayError()])
def test_a_lease_that_has_done_its_work_is_told_what_was_heard_and_ends(stage: Stage, last: bytes | Exception) -> None:
    for _ in range(3):
        stage.answer()
    assert stage.scheduler.finished
    assert (stage.last(), stage.ray.killed) == ("actor1.acknowledge", [])
    stage.answer(last)
    assert stage.ray.killed == ["actor1"]
    stage.hand.close()
    assert stage.ray.killed == ["actor1"]


def test_a_lease_that_does_not_answer_a_goodbye_ends_with_the_run(stage: Stage) -> None:
    for _ in range(3):
        stage.answer()
    stage.hand.close()
    assert stage.ray.killed == ["actor1"]


def test_a_node_is_given_as_long_to_look_around_as_it_was_told_to_watch() -> None:
    ray = FakeRay()
    with pytest.raises(FailureError, match="did not say what it has"):
        fanout.inspect_on_ray(ray, 1000.0)
    assert ray.waited_s > 2000
    assert ray.killed == ["actor1"]
