"""What an isolated process is asked to do, and how it does it: look at the node's devices, or carry out one job."""

from __future__ import annotations

import os
import platform
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from harness import codec
from harness.cluster import board
from harness.device import identity
from harness.device.cpu import CpuDevice, meminfo_bytes
from harness.device.cuda import CudaDevice
from harness.device.preflight import neighbours, objections
from harness.device.rapl import CpuSensors
from harness.device.sampler import Sampler, SilentSensors
from harness.device.sensors import GpuProcess, NvmlSensors, nvml_devices, nvml_status
from harness.errors import FailureError, ForgeryError
from harness.measure.energy import idle_power_w
from harness.measure.rounds import Effort
from harness.measure.runner import measure_together
from harness.model import Device, Environment, Failed, Job, Node, Outcome, Preflight, TelemetrySample
from harness.proof.verify import job_of

if TYPE_CHECKING:
    from harness.device.backend import Backend
    from harness.device.sampler import Sensors

__all__ = ["Inventory", "Look", "Task", "answered", "answers", "environment_for", "perform"]

_NAMED = ("numpy", "numba", "ray", "pandas", "cupy-cuda12x", "cupy-cuda13x", "numba-cuda", "nvidia-ml-py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A request to an isolated process."""

    kind: Literal["inspect", "look", "measure"]
    jobs: tuple[Job, ...] = ()
    device: Device | None = None
    effort: Effort | None = None
    idle_w: float | None = None
    idle_s: float = 0.0  # how long to watch the devices at rest
    live: str | None = None  # the file to pin each moment to


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """What a node has. `place` is how the fan-out finds it again: Ray's node id, or nothing for this machine."""

    node: Node
    place: str | None = None
    environment: Environment
    devices: tuple[Device, ...]
    preflight: tuple[Preflight, ...] = ()

    def seen(self, uuid: str) -> Preflight | None:
        """Return what was seen of a device before it had work."""
        return next((p for p in self.preflight if p.device_uuid == uuid), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """Whether a device is there, and who else computes on it; nobody knows where that is None."""

    present: bool
    neighbours: tuple[GpuProcess, ...] | None = None
    why: str = ""  # it could not be looked at


def environment_for(device: Device | None, peers: Sequence[str] = ()) -> dict[str, str]:
    """Return the variables that make one GPU the only one a process sees, or the first, before its peers; all named by UUID."""
    return {"CUDA_VISIBLE_DEVICES": ",".join((device.uuid, *peers))} if device and device.kind == "cuda" else {}


def perform(request: bytes) -> Iterator[bytes]:
    """Carry out a task given as canonical bytes; yield its answers likewise: an `Inventory`, or an `Outcome` a line."""
    task = codec.decode(request, Task)
    if task.kind == "inspect":
        yield codec.encode(_inspect(task.idle_s))
        return
    if task.kind == "look" and task.device is not None:
        yield codec.encode(_look(task.device))
        return
    if not task.jobs or task.device is None or task.effort is None:
        msg = "a measuring task names jobs, a device and an effort"
        raise FailureError(msg)
    with closing(_sensors(task.device)) as sensors:
        backend = _open(task.device)
        teller = board.teller(task.live)
        for outcome in measure_together(task.jobs, backend, sensors, task.effort, idle_w=task.idle_w, teller=teller):
            teller.done_count += 1
            yield _spelled(outcome) + b"\n"  # canonical JSON has no line breaks of its own


def _spelled(outcome: Outcome) -> bytes:
    """Return the bytes of an outcome, or of a failure where it holds what no report can: the other jobs' outcomes must not end with it."""
    try:
        return codec.encode(outcome)
    except FailureError as err:
        made = outcome.measurement or outcome.failed
        if made is None:
            raise
        told = Failed(
            job=made.job, started_at=made.started_at, elapsed_s=made.elapsed_s, outcome="failed", reason=str(err)
        )
        return codec.encode(Outcome(failed=told))


def answered(data: bytes, jobs: Sequence[Job]) -> tuple[Outcome, ...]:
    """Read the outcomes, one a line, that came back for some jobs; the last line may be cut short.

    Raises:
        ForgeryError: a line is no outcome, or one of a job that was not asked for, or that has answered before.
    """
    return answers([codec.decode(line, Outcome) for line in data.split(b"\n")[:-1]], jobs)


def answers(outcomes: Sequence[Outcome], jobs: Sequence[Job]) -> tuple[Outcome, ...]:
    """Return outcomes as they are, if each is of another one of some jobs.

    Raises:
        ForgeryError: one is no outcome, or of a job that was not asked for, or of one that has answered before.
    """
    open_jobs = list(jobs)
    for outcome in outcomes:
        job = job_of(outcome)
        if job is None or job not in open_jobs:
            what = "not the outcome of a job that was asked for"
            raise ForgeryError(what)
        open_jobs.remove(job)
    return tuple(outcomes)


def _open(device: Device) -> Backend:
    return CpuDevice(device) if device.kind == "cpu" else CudaDevice(device)


def _sensors(device: Device) -> Sensors:
    if device.kind == "cpu":
        return CpuSensors()
    return SilentSensors() if nvml_status() else NvmlSensors(device.uuid)


def _inspect(idle_s: float) -> Inventory:
    """Look at the devices: first at rest and from outside, then opened."""
    environment = _environment()
    watched = watch([device for device in nvml_devices() if device.unusable_reason is None], idle_s)
    devices = identity.devices()
    watched |= watch([device for device in devices if device.kind == "cpu"], idle_s)
    return Inventory(
        node=Node(name=socket.gethostname()),
        environment=environment,
        devices=devices,
        preflight=tuple(_preflight(device, watched.get(device.uuid), environment, idle_s) for device in devices),
    )


def _look(device: Device) -> Look:
    if device.driver is None:  # NVML did not list it in the first place, so it cannot say that it has gone
        return Look(present=True)
    found = next((d for d in nvml_devices() if d.uuid == device.uuid), None)
    return Look(
        present=found is not None and found.unusable_reason is None,
        neighbours=neighbours(device),
        why=(found.unusable_reason if found else nvml_status()) or "",
    )


def _preflight(device: Device, seen: Watched | None, environment: Environment, idle_s: float) -> Preflight:
    """Put together what speaks against measuring a device; the node's own troubles are told once, with its CPU."""
    samples, processes = (seen.samples, seen.processes) if seen else ((), None)
    host = environment if device.kind == "cpu" else None
    return Preflight(
        device_uuid=device.uuid,
        idle_power_w=idle_power_w(samples) if idle_s else None,
        notes=objections(device, samples, processes=processes, environment=host),
    )


class Watched(NamedTuple):
    """What the sensors of a device at rest said, and who else computes on it."""

    samples: tuple[TelemetrySample, ...]
    processes: tuple[GpuProcess, ...] | None


def watch(devices: Sequence[Device], idle_s: float) -> dict[str, Watched]:
    """Watch devices at rest, all at the same time; return what each showed, by its UUID."""
    with ExitStack() as held:
        samplers = [held.enter_context(Sampler(held.enter_context(closing(_sensors(device))))) for device in devices]
        time.sleep(idle_s if devices else 0.0)
    return {d.uuid: Watched(sampler.samples, neighbours(d)) for d, sampler in zip(devices, samplers, strict=True)}


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
