"""What the sensors of this machine's devices say, again and again, with nothing else going on: `harness watch`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from harness.cluster.plan import choose
from harness.device.cpu import cpu_device
from harness.device.rapl import CpuSensors
from harness.device.sampler import Sampler, Sensors, SensorsLostError, SilentSensors
from harness.device.sensors import NvmlSensors, nvml_devices
from harness.errors import MisuseError
from harness.measure.runner import now
from harness.model import Device, TelemetrySample

__all__ = ["Glimpse", "watch"]

_LEAST_S, _MOST_S = 0.05, 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Glimpse:
    """What a device said at one moment; no sample means that it has not said anything yet, or is lost."""

    at: str  # UTC, RFC 3339
    device: Device
    sample: TelemetrySample | None
    lost: str | None = None


def watch(device: str = "all", every_s: float = 1.0, count: int | None = None) -> Iterator[tuple[Glimpse, ...]]:
    """Yield what each device's sensors say, one glimpse a device, every so many seconds.

    Reads NVML and sysfs only: no device is opened, and no CUDA context takes memory. A run beside it is disturbed as by any other reader.

    Args:
        device: `all`, `cpu` or `cuda:N`.
        every_s: seconds from one look to the next.
        count: how many looks; without end by default.

    Raises:
        MisuseError: there is no such device, or the period or the count makes no sense.
    """
    if not _LEAST_S <= every_s <= _MOST_S:
        msg = f"a look each {every_s!r} s is not between {_LEAST_S:g} and {_MOST_S:g} s"
        raise MisuseError(msg)
    if count is not None and count < 1:
        msg = f"{count!r} looks are none: 1 or more"
        raise MisuseError(msg)
    chosen = choose((cpu_device(), *nvml_devices()), device)
    return _looks(chosen, every_s, count)


def _looks(chosen: tuple[Device, ...], every_s: float, count: int | None) -> Iterator[tuple[Glimpse, ...]]:
    with ExitStack() as held:
        opened = [_open(one) for one in chosen]
        for sensors in opened:
            held.callback(sensors.close)
        # A thread each: a driver that hangs holds up its own device only.
        samplers = [held.enter_context(Sampler(sensors, period_s=every_s)) for sensors in opened]
        began, looks = time.monotonic(), 0
        while True:
            yield tuple(_glimpse(*pair) for pair in zip(chosen, samplers, strict=True))
            looks += 1
            if looks == count:
                return
            time.sleep(max(0.0, began + looks * every_s - time.monotonic()))


def _open(device: Device) -> Sensors:
    if device.kind == "cpu":
        return CpuSensors()
    try:
        return NvmlSensors(device.uuid)
    except SensorsLostError:
        return SilentSensors()


def _glimpse(device: Device, sampler: Sampler) -> Glimpse:
    heard = sampler.latest()
    return Glimpse(at=now(), device=device, sample=heard, lost=sampler.lost)
