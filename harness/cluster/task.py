"""What an isolated process is asked to do, and how it does it: look at the node's devices, or carry out one job."""

from __future__ import annotations

import os
import platform
import socket
import time
import traceback
from contextlib import closing
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from harness import codec
from harness.device import identity
from harness.device.cpu import CpuDevice, meminfo_bytes
from harness.device.cuda import CudaDevice, is_out_of_memory
from harness.device.rapl import CpuSensors
from harness.device.sampler import SilentSensors
from harness.device.sensors import NvmlSensors, nvml_status
from harness.errors import FailureError, HarnessError
from harness.measure.rounds import Effort
from harness.measure.runner import measure, now
from harness.model import Device, Environment, Failed, Job, Node, Outcome

if TYPE_CHECKING:
    from harness.device.backend import Backend
    from harness.device.sampler import Sensors

__all__ = ["Inventory", "Task", "environment_for", "perform"]

_NAMED = ("numpy", "numba", "ray", "pandas", "cupy-cuda12x", "cupy-cuda13x", "numba-cuda", "nvidia-ml-py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A request to an isolated process."""

    kind: Literal["inspect", "measure"]
    job: Job | None = None
    device: Device | None = None
    effort: Effort | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """What a node has. `place` is how the fan-out finds it again: Ray's node id, or nothing for this machine."""

    node: Node
    place: str | None = None
    environment: Environment
    devices: tuple[Device, ...]


def environment_for(device: Device | None) -> dict[str, str]:
    """Return the variables that make one GPU, named by its UUID, the only one a process sees."""
    return {"CUDA_VISIBLE_DEVICES": device.uuid} if device and device.kind == "cuda" else {}


def perform(request: bytes) -> bytes:
    """Carry out a task, given and answered as canonical bytes: an `Inventory` or an `Outcome`."""
    task = codec.decode(request, Task)
    if task.kind == "inspect":
        return codec.encode(_inspect())
    if task.job is None or task.device is None or task.effort is None:
        msg = "a measuring task names a job, a device and an effort"
        raise FailureError(msg)
    return codec.encode(_measure(task.job, task.device, task.effort))


def _measure(job: Job, device: Device, effort: Effort) -> Outcome:
    started_at, began = now(), time.perf_counter()
    try:
        with closing(_sensors(device)) as sensors:
            return measure(job, _open(device), sensors, effort)
    except Exception as err:  # noqa: BLE001 - whatever a benchmark raises is an outcome
        kind: Literal["out_of_memory", "failed"] = "out_of_memory" if is_out_of_memory(err) else "failed"
        reason = str(err) if isinstance(err, HarnessError) else _where(err)
        elapsed_s = time.perf_counter() - began
        return Outcome(failed=Failed(job=job, started_at=started_at, elapsed_s=elapsed_s, outcome=kind, reason=reason))


def _where(err: Exception) -> str:
    """Say what broke and in which line: a benchmark's author needs both, in one line and of bearable length."""
    last = traceback.extract_tb(err.__traceback__)[-1]
    said = " ".join(str(err).encode(errors="replace").decode().split())[:500]  # a file's name may hold half a surrogate
    return f"{type(err).__name__}: {said} ({Path(last.filename).name}:{last.lineno})"


def _open(device: Device) -> Backend:
    return CpuDevice(device) if device.kind == "cpu" else CudaDevice(device)


def _sensors(device: Device) -> Sensors:
    if device.kind == "cpu":
        return CpuSensors()
    return SilentSensors() if nvml_status() else NvmlSensors(device.uuid)


def _inspect() -> Inventory:
    return Inventory(node=Node(name=socket.gethostname()), environment=_environment(), devices=identity.devices())


def _environment() -> Environment:
    return Environment(
        harness_version=metadata.version("gpu-assay"),
        python=platform.python_version(),
        os=platform.platform(),
        packages={d.name: d.version for d in map(_distribution, _NAMED) if d},
        cpu_limit_count=len(os.sched_getaffinity(0)),
        niceness=os.nice(0),
        load_average_1min=round(os.getloadavg()[0], 2),
        memory_free_bytes=meminfo_bytes("MemAvailable"),
        governor=_governor(),
    )


def _distribution(name: str) -> metadata.Distribution | None:
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None


def _governor() -> str | None:
    try:
        return Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text().strip()
    except OSError:
        return None
