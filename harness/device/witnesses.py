"""Collects what is said of this machine's devices, side by side: NVML, CUDA, the driver's files in /proc, the bus in /sys.

Reads small files below two roots, which a test may move. What cannot be read is None; a file of more than 64 KiB is cut.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from harness.device.crosscheck import attested, bus_id, cpu_checks, gpu_checks
from harness.device.facts import Attestation, Check, CpuFacts, GpuFacts, Mount, PciFacts
from harness.device.sensors import NvmlIdentity
from harness.model import Device

__all__ = ["Examined", "Extra", "Roots", "cpu_facts", "examine_with", "gpu_facts", "mount_of"]

_MOST_BYTES = 1 << 16
_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Roots:
    """Where the kernel's file systems are."""

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """A device and what came of holding its views against each other; the evidence that its GPU signed, where it was asked for."""

    device: Device
    checks: tuple[Check, ...]
    attestation: Attestation | None = None


class Extra(NamedTuple):
    """What NVML was asked of one GPU beyond its `Device`."""

    identity: NvmlIdentity | None = None
    attestation: Attestation | None = None


def examine_with(
    roots: Roots, cpu: Device, by_nvml: tuple[Device, ...], by_cuda: tuple[Device, ...], extras: Mapping[str, Extra]
) -> tuple[Examined, ...]:
    """Judge the CPU and each GPU of NVML by what the roots say. `extras` are by uuid."""
    examined = [Examined(device=cpu, checks=cpu_checks(cpu_facts(roots, cpu)))]
    for device in by_nvml:
        more, signed = extras.get(device.uuid, Extra())
        checks = (*gpu_checks(gpu_facts(roots, device, by_cuda, more)), *((attested(signed),) if signed else ()))
        examined.append(Examined(device=device, checks=checks, attestation=signed))
    return tuple(examined)


def gpu_facts(roots: Roots, device: Device, by_cuda: tuple[Device, ...], more: NvmlIdentity | None = None) -> GpuFacts:
    """Gather what is said of one GPU. It is found on the other sides by its place on the bus, the one thing all of them know."""
    bus = bus_id(device.pci_bus_id)
    folder = PurePosixPath("/proc/driver/nvidia/gpus") / (bus or "none") / "information"
    return GpuFacts(
        nvml=device,
        cuda=next((d for d in by_cuda if bus and bus_id(d.pci_bus_id) == bus), None),
        proc=_information(roots, bus),
        pci=_pci(roots, bus),
        mount=mount_of(folder, _read(roots.proc / "self/mountinfo")),
        pci_device_id=more.pci_device_id if more else None,
        core_count=more.core_count if more else None,
        virtualization_mode=more.virtualization_mode if more else None,
        module_driver=_module_driver(roots),
        numa_nodes=_ranges(_read(roots.sys / "devices/system/node/online")),
        system=platform.system(),
        kernel_release=platform.release(),
    )


def cpu_facts(roots: Roots, cpu: Device) -> CpuFacts:
    """Gather what is said of the CPUs."""
    listed = _read(roots.proc / "cpuinfo")
    present = _ranges(_read(roots.sys / "devices/system/cpu/present"))
    return CpuFacts(
        claimed_count=cpu.thread_count,
        listed_count=len(re.findall(r"^processor\s*:", listed, re.MULTILINE)) or None if listed else None,
        present_count=len(present) if present is not None else None,
        mount=mount_of(PurePosixPath("/proc/cpuinfo"), _read(roots.proc / "self/mountinfo")),
    )


def _read(path: Path) -> str | None:
    with suppress(OSError), path.open("rb") as file:
        # /proc/cpuinfo of a large machine is the one file that is longer; its lines are counted, so it is read whole.
        return file.read(_MOST_BYTES if path.name != "cpuinfo" else 1 << 24).decode(errors="replace").strip()
    return None


def _information(roots: Roots, bus: str | None) -> dict[str, str] | None:
    """Return the fields of a card's file, {} where the driver has files but none for this card, None where it has none at all."""
    folder = roots.proc / "driver/nvidia/gpus"
    with suppress(OSError):
        cards = [card.name for card in folder.iterdir()]
        name = next((card for card in cards if bus and bus_id(card) == bus), None)
        if name is None:
            return {} if cards else None
        lines = (_read(folder / name / "information") or "").splitlines()
        return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines) if value}
    return None


def _pci(roots: Roots, bus: str | None) -> PciFacts | None:
    folder = roots.sys / "bus/pci/devices" / (bus or "none")
    if not folder.is_dir():
        return None
    node = _number(_read(folder / "numa_node"))
    return PciFacts(
        vendor_id=_number(_read(folder / "vendor")),
        device_id=_number(_read(folder / "device")),
        link_speed_max=_read(folder / "max_link_speed"),
        link_width_max=_number(_read(folder / "max_link_width")),
        numa_node=node if node is not None and node >= 0 else None,
    )


def _number(text: str | None) -> int | None:
    with suppress(ValueError):
        return int(text, 0) if text else None
    return None


def _module_driver(roots: Roots) -> str | None:
    """Return the loaded module's version: from /sys, else from the driver's own file, which a container may hold a copy of."""
    version = _read(roots.sys / "module/nvidia/version")
    if version:
        return version
    found = re.search(r"^NVRM version:.*?\s(\d{3}\.\d+(?:\.\d+)?)\s", _read(roots.proc / "driver/nvidia/version") or "")
    return found[1] if found else None


def _ranges(text: str | None) -> frozenset[int] | None:
    """Read the kernel's lists, such as `0-3,8`."""
    if not text:
        return None
    numbers: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        with suppress(ValueError):
            numbers.update(range(int(first), int(last or first) + 1))
    return frozenset(numbers)


@dataclass(frozen=True, slots=True)
class _Line:
    number: str
    parent: str
    root: str
    point: PurePosixPath
    kind: str


def mount_of(path: PurePosixPath, mountinfo: str | None) -> Mount | None:
    """Return what a path leads to by the kernel's table of mounts, walked as the kernel walks it; None where there is no table.

    A later mount on a parent folder hides an earlier one below it, so the longest match is not always the one that counts.
    Source: proc_pid_mountinfo(5).
    """
    lines = [line for text in (mountinfo or "").splitlines() if (line := _line(text)) is not None]
    numbers = {line.number for line in lines}
    here = next((line for line in lines if line.parent not in numbers or line.parent == line.number), None)
    while here is not None:
        lines.remove(here)  # a table that somebody made up may run in circles
        below = [m for m in lines if m.parent == here.number and path.is_relative_to(m.point)]
        if not below:
            return Mount(kind=here.kind, root=here.root)
        here = min(below, key=lambda m: len(m.point.parts))
    return None


def _line(text: str) -> _Line | None:
    before, _, after = text.partition(" - ")
    fields, kinds = before.split(" "), after.split(" ")
    if len(fields) < 6 or not kinds[0]:  # noqa: PLR2004 - as many come before the optional ones
        return None
    number, parent, _, root, point = fields[:5]
    return _Line(number, parent, _plain(root), PurePosixPath(_plain(point)), kinds[0])


def _plain(text: str) -> str:
    return _OCTAL.sub(lambda found: chr(int(found[1], 8)), text)
