"""What was said of a device, by whom, and what came of holding it against each other: records alone, judged by `crosscheck`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from harness.model import Device

__all__ = ["Attestation", "Check", "CpuFacts", "Duplicate", "GpuFacts", "Mount", "PciFacts"]

Verdict = Literal["agree", "disagree", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that several sides can say of a device. `reason` tells why they disagree, or why nobody knows."""

    name: str
    verdict: Verdict
    said: Mapping[str, str | None]
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """What lies over a file of /proc: the file system's type, and which part of it is shown."""

    kind: str
    root: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PciFacts:
    """What the bus says of a device, from /sys."""

    vendor_id: int | None = None
    device_id: int | None = None
    link_speed_max: str | None = None  # "32.0 GT/s PCIe"
    link_width_max: int | None = None
    numa_node: int | None = None  # None where the firmware does not say


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFacts:
    """All that was said of one GPU. What could not be read is None; `proc` of a driver without files for it is empty."""

    nvml: Device
    cuda: Device | None = None
    proc: Mapping[str, str] | None = None  # /proc/driver/nvidia/gpus/BUS/information
    pci: PciFacts | None = None
    mount: Mount | None = None  # of that file
    pci_device_id: int | None = None  # NVML's: device in the upper half, vendor in the lower
    core_count: int | None = None
    virtualization_mode: int | None = None
    module_driver: str | None = None  # the version of the loaded kernel module
    numa_nodes: frozenset[int] | None = None
    system: str = "Linux"
    kernel_release: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuFacts:
    """What was said of the CPUs of a node."""

    claimed_count: int | None = None  # that this process may use
    listed_count: int | None = None  # in /proc/cpuinfo
    present_count: int | None = None  # in /sys/devices/system/cpu/present
    mount: Mount | None = None  # of /proc/cpuinfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Attestation:
    """Evidence that a GPU signed over a nonce, in hex, to be verified by NVIDIA's tools elsewhere; never verified here.

    `unavailable` where the card, its driver or its mode gives none; then the reason says so.
    """

    state: Literal["unverified", "unavailable"]
    nonce: str
    report: str | None = None
    certificates: str | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicate:
    """One card that several providers report as theirs: none of them is to be believed until each has answered in one slot."""

    uuid: str
    claimants: tuple[str, ...]
