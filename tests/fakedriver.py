"""The command line as a driver to be killed: it uses one fake node of a cluster, or `all`, and each try is short.

Run as `python fakedriver.py NODE run ARGUMENTS`, which is what `Driver` does.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from fakefleet import QUICK, FakeLease
from test_isolate import marked, wait_for

import harness
from harness import cli, codec
from harness.cluster import fanout, plan, session
from harness.cluster.errand import Orders
from harness.cluster.task import Inventory
from harness.model import Outcome, Report
from harness.proof.verify import job_of

__all__ = ["Driver", "each_once"]


class Driver:
    """`harness run` on one node of a cluster of fake ones, in a process of its own."""

    def __init__(self, node: str, folder: Path, *args: str, env: Mapping[str, str] = os.environ) -> None:
        """Start it, with what it says in a file of a folder."""
        self.log = folder / "said"
        self._mark = f"DRIVER_OF_THIS_TEST={secrets.token_hex(8)}"
        name, value = self._mark.split("=")
        command = [sys.executable, __file__, node, "run", *args]
        with self.log.open("w") as file:
            self.process = subprocess.Popen(command, env={**env, name: value}, stdout=file, stderr=file)

    def told(self, words: str) -> int:
        """Return how many lines begin so."""
        return sum(line.startswith(words) for line in self.log.read_text().splitlines())

    def work_until(self, outcomes: int, timeout_s: float = 60) -> None:
        """Wait until it has told so many outcomes."""
        wait_for(lambda: self.told("[") >= outcomes or self.over, timeout_s)
        assert not self.over, self.log.read_text()

    @property
    def over(self) -> bool:
        """Whether it has ended, and the child that does its work as well."""
        return self.process.poll() is not None and not marked(self._mark)

    def code(self, timeout_s: float = 90) -> int:
        """Wait for its end, and return its exit code."""
        return self.process.wait(timeout_s)


def each_once(final: Path) -> tuple[Outcome, ...]:
    """Return the outcomes of a report, which must be complete, verify, and have measured each job of its plan once."""
    (verdict,) = harness.verify(final)
    assert (verdict.accepted, verdict.complete) == (True, True), verdict
    report = codec.read(final, Report)
    assert sorted(str(job_of(o)) for o in report.outcomes) == sorted(map(str, report.plan))
    assert all(o.measurement for o in report.outcomes)
    return report.outcomes


def main(node: str) -> None:
    """Do what the rest of the command line says."""
    inspect = partial(fanout.inspect_on_ray, lease=FakeLease) if node == "all" else partial(alone, node)
    vars(session).update(inspect_on_ray=inspect, Orders=partial(Orders, lease=FakeLease), effort_for=lambda *_: QUICK)
    plan._TOGETHER = 2
    cli.main()


def alone(node: str, ray: Any, idle_s: float = 0.0) -> tuple[Inventory, ...]:
    """Return what one node has, which is told in this process as well, and not asked of it: that takes a while."""
    (place,) = [known["NodeID"] for known in ray.nodes() if known["Alive"] and node in known["Resources"]]
    os.environ["FAKE_NODE"] = node
    with FakeLease() as lease:
        return (replace(lease.inspect(), place=place),)


if __name__ == "__main__":
    main(sys.argv.pop(1))
