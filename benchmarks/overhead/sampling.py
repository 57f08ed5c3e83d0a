"""What it costs to listen to sensors 20 times a second: the whole CPU time of a process that does nothing else.

Run as a program, it samples all GPUs that NVML finds and prints the shares of a CPU that this took.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from cost import Line, line

from harness.device.sampler import FakeSensors, Sampler, Sensors
from harness.device.sensors import NvmlSensors, nvml_devices
from harness.model import TelemetrySample

__all__ = ["lines"]

_PERIOD_S = 0.05  # 20 Hz, the harness's own
_WATCHED_S = 2.0
_TIMES = 5
_LIMIT_PERCENT = 1.0
_NVML = "libnvidia-ml.so.1"
_SOURCE = Path(__file__).parents[2] / "tests" / "fakenvml" / "fake_nvml.c"


def lines() -> Iterator[Line]:
    """Sample sensors that answer at once, then two GPUs through an NVML library that is not NVIDIA's."""
    known = TelemetrySample(at_s=0.0, power_w=250.0, energy_j=1.0, temperature_c=60.0)
    rate = f"{1 / _PERIOD_S:g} Hz, CPU time of an else idle process"
    how = f"sensors that answer at once, {rate}"
    yield line("sampler", _shares([FakeSensors([known])]), "% of a CPU", how, limit=_LIMIT_PERCENT)
    how = f"two GPUs, {rate}; a library with NVML's interface, a driver's own cost is not in it"
    yield line("sampler with NVML", _by_nvml(), "% of a CPU", how, limit=_LIMIT_PERCENT)


def _shares(sensors: Sequence[Sensors]) -> list[float]:
    shares = []
    for _ in range(_TIMES):
        cpu_s, began = time.process_time(), time.perf_counter()
        with ExitStack() as stack:
            for one in sensors:
                stack.enter_context(Sampler(one, period_s=_PERIOD_S))
            time.sleep(_WATCHED_S)
        shares.append((time.process_time() - cpu_s) / (time.perf_counter() - began) * 100)
    return shares


def _by_nvml() -> list[float]:
    """Sample in a process that finds the tests' NVML where it looks for the driver's."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ["-O1", "-shared", "-fPIC", "-pthread", f"-Wl,-soname,{_NVML}"]
        subprocess.run(["cc", *flags, "-o", Path(folder) / _NVML, _SOURCE], check=True)
        env = os.environ | {"LD_LIBRARY_PATH": folder}
        found = subprocess.run([sys.executable, __file__], env=env, check=True, capture_output=True, text=True)
    shares: list[float] = json.loads(found.stdout)
    return shares


if __name__ == "__main__":
    print(json.dumps(_shares([NvmlSensors(device.uuid) for device in nvml_devices()])))
