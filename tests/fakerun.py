"""The command line with a run that only pretends: two GPUs that tell a story, each job in a quarter of a second.

Run as `python fakerun.py run ...`. With FAKE_STALL it stops after the first result, as a benchmark that takes long does.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import cli
from harness.cluster import board, session
from harness.cluster.plan import plan
from harness.cluster.session import Finished, Outlook, Progress
from harness.errors import FailureError
from harness.measure.rounds import EFFORTS
from harness.model import Device, Outcome, Skipped, TelemetrySample

GPU = Device(uuid="GPU-1", name="NVIDIA Example", kind="cuda", selector="cuda:0", sensors={"power": "ok"})
GPUS = (GPU, replace(GPU, uuid="GPU-2", selector="cuda:1"))
HOT = TelemetrySample(
    at_s=0.0, power_w=412.0, sm_clock_mhz=1755.0, temperature_c=84.0, throttle_reasons=("sw_power_cap",)
)


def run(*_: str, progress: Progress, live: str, **__: Any) -> tuple[Finished, ...]:
    jobs = [job for gpu in GPUS for job in plan((gpu,), ("chase",), "quick", "00")]
    outlook = Outlook(effort=EFFORTS["quick"], nodes={}, side_by_side=False)
    progress.planned(GPUS, jobs, 0, outlook)
    tellers = {gpu.uuid: board.teller(str(board.place(Path(live), gpu))) for gpu in GPUS}
    for job in jobs:
        progress.started(job)
        for n in range(2):
            sampler: Any = type("Heard", (), {"samples": (HOT,)})
            tellers[job.device_uuid].tell(job, "measuring", round_count=n, sampler=sampler)
            time.sleep(0.3)
        progress.ended(Outcome(skipped=Skipped(job=job, reason="this is a story")))
        if "FAKE_STALL" in os.environ:
            time.sleep(60)
    msg = "the story is over"
    raise FailureError(msg)


if __name__ == "__main__":
    vars(session).update(run=run)
    cli.main()
