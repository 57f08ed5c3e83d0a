"""Which devices this node has: what NVML and CUDA say of each GPU put together by UUID, and the CPU."""

from __future__ import annotations

from dataclasses import fields, replace

from harness.device.cpu import cpu_device
from harness.device.cuda import cuda_devices, cuda_status
from harness.device.sensors import nvml_devices
from harness.model import Device

__all__ = ["devices", "merge"]


def devices() -> tuple[Device, ...]:
    """Find every device: the CPU first, then the GPUs in NVML's order. Opens each GPU, so call it in a process to spare."""
    reason = cuda_status()
    seen_by_cuda = () if reason else cuda_devices()
    return (cpu_device(), *merge(nvml_devices(), seen_by_cuda, reason))


def merge(by_nvml: tuple[Device, ...], by_cuda: tuple[Device, ...], cuda_reason: str | None) -> tuple[Device, ...]:
    """Put the two descriptions of each GPU together.

    A GPU that only NVML knows cannot be used, and says why. One that only CUDA knows (no NVML in the container) can, without sensors.
    """
    computing = {d.uuid: d for d in by_cuda}
    known = {d.uuid for d in by_nvml}
    merged = [_fill(d, computing.get(d.uuid), cuda_reason) for d in by_nvml]
    merged += [d for d in by_cuda if d.uuid not in known]
    return tuple(replace(d, selector=f"cuda:{i}") for i, d in enumerate(merged))


def _fill(told: Device, computing: Device | None, cuda_reason: str | None) -> Device:
    if computing is None:
        reason = (
            told.unusable_reason or cuda_reason or "NVML lists it, CUDA does not see it (CUDA_VISIBLE_DEVICES, MIG?)"
        )
        return replace(told, unusable_reason=reason)
    missing = {
        f.name: getattr(computing, f.name)
        for f in fields(Device)
        if getattr(told, f.name) is None and getattr(computing, f.name) is not None
    }
    # A name without "Emulated" on NVML's side must not hide what CUDA says.
    return replace(told, emulated=told.emulated or computing.emulated, **missing)
