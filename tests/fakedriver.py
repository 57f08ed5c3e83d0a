"""A driver to be killed: carries a run out on one fake node of a cluster, and says when each job has ended.

Run as `python fakedriver.py ADDRESS NODE FOLDER [REPORT TO RESUME]`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from fakefleet import QUICK, FakeLease

from harness.cluster import plan, session
from harness.cluster.errand import Orders
from harness.cluster.fanout import inspect_on_ray
from harness.cluster.session import Silent
from harness.cluster.task import Inventory
from harness.model import Outcome


class Loud(Silent):
    """Says on a line of its own what has ended."""

    def ended(self, outcome: Outcome) -> None:
        print("ended", flush=True)


def main(address: str, node: str, folder: str, resume: str | None = None) -> None:
    """Measure, or go on measuring."""

    def inspect(ray: Any, idle_s: float = 0.0) -> Sequence[Inventory]:
        return [found for found in inspect_on_ray(ray, lease=FakeLease) if found.node.name == node]

    vars(session).update(inspect_on_ray=inspect, Orders=partial(Orders, lease=FakeLease), effort_for=lambda *_: QUICK)
    plan._TOGETHER = 2
    if resume:
        session.run(ray=address, resume=resume, progress=Loud())
    else:
        session.run("paced", ray=address, out=folder, device="cuda:0", progress=Loud())


if __name__ == "__main__":
    main(*sys.argv[1:])
