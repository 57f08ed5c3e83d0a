"""Which devices this node has: what NVML and CUDA say of each GPU put together by UUID, and the CPU. And whether to believe it."""

from __future__ import annotations

import re
from dataclasses import fields, replace

from harness.device.cpu import cpu_device
from harness.device.cuda import cuda_devices, cuda_status
from harness.device.facts import Attestation
from harness.device.sampler import SensorsLostError
from harness.device.sensors import attestation, nvml_devices, nvml_identities
from harness.device.witnesses import Examined, Extra, Roots, examine_with
from harness.errors import MisuseError
from harness.model import Device

__all__ = ["devices", "evidence", "examine", "merge"]


def devices() -> tuple[Device, ...]:
    """Find every device: the CPU first, then the GPUs in NVML's order. Opens each GPU, so call it in a process to spare."""
    reason = cuda_status()
    seen_by_cuda = () if reason else cuda_devices()
    return (cpu_device(), *merge(nvml_devices(), seen_by_cuda, reason))


def examine(nonce: str | None = None, roots: Roots | None = None) -> tuple[Examined, ...]:
    """Hold what NVML, CUDA, the kernel's driver and the bus say of each device against each other. Opens each GPU, as `devices` does.

    Args:
        nonce: 64 hex digits; with it, each GPU is asked to sign its measurements over it.
        roots: where /proc and /sys are.

    Raises:
        MisuseError: the nonce is none.
    """
    if nonce is not None and not re.fullmatch(r"[0-9a-f]{64}", nonce):
        msg = f"the nonce {nonce[:80]!r} is not 64 lower-case hex digits, which a verifier draws afresh"
        raise MisuseError(msg)
    by_nvml = nvml_devices()
    by_cuda = () if cuda_status() else cuda_devices()
    more = nvml_identities()
    extras = {d.uuid: Extra(more.get(d.uuid), evidence(d.uuid, nonce) if nonce else None) for d in by_nvml}
    return examine_with(roots or Roots(), cpu_device(), by_nvml, by_cuda, extras)


def evidence(uuid: str, nonce: str) -> Attestation:
    """Collect NVIDIA's attestation evidence of a GPU over a nonce. It is not verified here: that needs NVIDIA's tools or service."""
    try:
        report, certificates = attestation(uuid, bytes.fromhex(nonce))
    except SensorsLostError as err:
        return Attestation(state="unavailable", nonce=nonce, reason=str(err))
    return Attestation(state="unverified", nonce=nonce, report=report.hex(), certificates=certificates.hex())


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
