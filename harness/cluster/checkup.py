"""Looks at this machine for `doctor`: the devices in a process to spare, the rest from files of the kernel."""

from __future__ import annotations

import os
import re
import shutil
import socket
from contextlib import closing, suppress
from importlib import metadata
from pathlib import Path

from harness.cluster.doctor import Finding, GpuView, State, diagnose
from harness.cluster.local import inspect_here
from harness.cluster.task import Inventory
from harness.device.cuda import cuda_status
from harness.device.preflight import neighbours
from harness.device.sampler import SensorsLostError
from harness.device.sensors import NvmlSensors, nvml_status
from harness.errors import FailureError
from harness.model import Device

__all__ = ["doctor", "driver_version", "look"]

_NVIDIA = "0x10de"
_DISPLAY = "0x03"  # the class of display controllers
_RAY_PORT = 6379
_KNOCK_S = 0.2
_ASKED = ("cupy-cuda12x", "cupy-cuda13x", "numba-cuda", "nvidia-ml-py", "ray")


def doctor(out: str | Path = "results") -> tuple[Finding, ...]:
    """Say what this machine can measure, what it cannot, and what would mend it.

    Args:
        out: the folder that reports would go to; it is not made.
    """
    return diagnose(look(out))


def look(out: str | Path = "results", root: Path = Path("/")) -> State:
    """Look at this machine; `root` is where /proc and /sys are."""
    inventory: Inventory | None = None
    broken = None
    try:
        (inventory,) = inspect_here()
    except FailureError as err:  # a driver that hangs or crashes: ask it nothing in this process
        broken = str(err)
    devices = inventory.devices if inventory else ()
    trouble, free = _disk(Path(out))
    return State(
        broken=broken,
        cpu=next((d for d in devices if d.kind == "cpu"), None),
        gpus=tuple(_view(d) for d in devices if d.kind == "cuda"),
        environment=inventory.environment if inventory else None,
        gpus_on_bus=_on_bus(root),
        driver=driver_version(root),
        nvml_reason=None if broken else nvml_status(),
        cuda_reason=None if broken else cuda_status(),
        packages={name: version for name in _ASKED if (version := _version(name))},
        ray_port_open=_listens(_RAY_PORT),
        cpu_quota=_quota(root),
        clock_source=_text(root / "sys/devices/system/clocksource/clocksource0/current_clocksource"),
        results_folder=str(out),
        results_trouble=trouble,
        disk_free_bytes=free,
    )


def driver_version(root: Path = Path("/")) -> str | None:
    """Return the version of NVIDIA's kernel module, as it tells it itself; None where it is not loaded."""
    found = re.search(r"Kernel Module.*?\s(\d+\.\d+(?:\.\d+)?)\s", _text(root / "proc/driver/nvidia/version") or "")
    return found[1] if found else None


def _view(device: Device) -> GpuView:
    sample = None
    if device.sensors:
        with suppress(SensorsLostError), closing(NvmlSensors(device.uuid)) as sensors:
            sample = sensors.read(0.0)
    return GpuView(device=device, sample=sample, processes=neighbours(device))


def _on_bus(root: Path) -> tuple[str, ...] | None:
    """Return the addresses of NVIDIA's GPUs on the PCI bus; None where the kernel shows no bus."""
    folder = root / "sys/bus/pci/devices"
    if not folder.is_dir():
        return None
    found = (
        path.name
        for path in sorted(folder.iterdir())
        if _text(path / "vendor") == _NVIDIA and (_text(path / "class") or "").startswith(_DISPLAY)
    )
    return tuple(found)


def _quota(root: Path) -> float | None:
    """Return how many CPUs the control group grants, by version 2 or 1 of the interface; None for no limit."""
    group = root / "sys/fs/cgroup"
    limit = (_text(group / "cpu.max") or "").split()
    if not limit:
        limit = [_text(group / "cpu" / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period")]
    with suppress(ValueError):
        quota, period = map(int, limit)
        return quota / period if quota > 0 and period > 0 else None
    return None


def _disk(out: Path) -> tuple[str | None, int | None]:
    """Return why nothing can be written to a folder that may not be there yet, and how much room it has."""
    there = next((p for p in (out, *out.absolute().parents) if p.exists()), Path("/"))
    if not there.is_dir():
        return f"{str(there)!r} is not a folder", None
    if not os.access(there, os.W_OK | os.X_OK):
        return f"{str(there)!r} is not this user's to write to", None
    with suppress(OSError):
        return None, shutil.disk_usage(there).free
    return None, None


def _listens(port: int) -> bool | None:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=_KNOCK_S):
            return True
    except ConnectionRefusedError:
        return False
    except OSError:
        return None


def _version(package: str) -> str | None:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return None
