"""What a GPU's own performance counters say it did between two moments: GPM, which NVML has from Hopper on.

The counters run by themselves, and the driver refreshes its copy about ten times a second: two looks that are too close tell zeros.
This module is handed `pynvml` and a device's handle by `harness.device.sensors`, the one door to both.
"""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from harness.model import Activity

__all__ = ["Counters", "Mark", "probe"]

# Metrics, by the field of `Activity` that takes each. Their numbers are NVML's ABI.
_FRACTIONS: Mapping[str, int] = {
    "sm_fraction": 2,
    "sm_occupancy_fraction": 3,
    "integer_fraction": 4,
    "tensor_fraction": 5,
    "dfma_tensor_fraction": 6,
    "hmma_tensor_fraction": 7,
    "imma_tensor_fraction": 9,
    "dram_fraction": 10,
    "fp64_fraction": 11,
    "fp32_fraction": 12,
    "fp16_fraction": 13,
}
_RATES: Mapping[str, int] = {"pcie_tx_bytes_per_s": 20, "pcie_rx_bytes_per_s": 21}
_METRICS = (*_FRACTIONS.items(), *_RATES.items())
_MIB = 1 << 20  # NVML tells these rates in MiB/s
_PERCENT_MOST = (
    101.0  # two clocks meet in a ratio; what is further off is garbage, such as the 2^47 of a counter not there
)
_WINDOW_LEAST_S = (
    0.3  # each end may be a refresh, 0.1 s, too old: the least of which most is the window that was asked for
)

_NOT_SUPPORTED = 3

_Nvml = Any  # the pynvml module, which has no types
_Gpu = Any  # its handle of a device


class Mark:
    """The counters at one moment: NVML's sample of them, and when it was taken."""

    def __init__(self, sample: Any) -> None:
        """Keep a sample that has been filled in just now."""
        self.sample = sample
        self.at_s = time.perf_counter()


class Counters:
    """The counters of one GPU that passed `probe`. A mark's memory is NVML's, and goes back when nobody holds the mark."""

    def __init__(self, nvml: _Nvml, gpu: _Gpu) -> None:
        """Remember whom to ask."""
        self._nvml = nvml
        self._gpu = gpu
        self._open = True

    def mark(self) -> Mark | None:
        """Read the counters now; None if they do not answer."""
        try:
            sample = self._nvml.nvmlGpmSampleAlloc()
        except self._nvml.NVMLError:
            return None
        try:
            self._nvml.nvmlGpmSampleGet(self._gpu, sample)
        except self._nvml.NVMLError:
            self._free(sample)
            return None
        mark = Mark(sample)
        weakref.finalize(mark, self._free, sample).atexit = False
        return mark

    def between(self, first: Mark, last: Mark) -> Activity | None:
        """Return what was counted from one mark to a later one; None if they are too close to tell, or NVML will not."""
        window_s = last.at_s - first.at_s
        if window_s < _WINDOW_LEAST_S:
            return None
        query = self._nvml.c_nvmlGpmMetricsGet_t()
        query.version = self._nvml.NVML_GPM_METRICS_GET_VERSION
        query.numMetrics = len(_METRICS)
        query.sample1, query.sample2 = first.sample, last.sample
        for metric, (_, number) in zip(
            query.metrics, _METRICS, strict=False
        ):  # the array has room for all that NVML knows
            metric.metricId = number
        try:
            self._nvml.nvmlGpmMetricsGet(query)
        except self._nvml.NVMLError:
            return None
        told = {name: m.value for m, (name, _) in zip(query.metrics, _METRICS, strict=False) if m.nvmlReturn == 0}
        values = {name: _fraction(told.get(name)) for name in _FRACTIONS}
        values |= {name: _bytes_per_s(told.get(name)) for name in _RATES}
        if all(value is None for value in values.values()):
            return None
        return replace(Activity(window_s=window_s), **values)  # type: ignore[arg-type]  # each named field is such a number

    def close(self) -> None:
        """Ask NVML nothing more, not even to take memory back: after its shutdown that would be no longer safe."""
        self._open = False

    def _free(self, sample: Any) -> None:
        if self._open:
            with suppress(self._nvml.NVMLError):
                self._nvml.nvmlGpmSampleFree(sample)


def probe(nvml: _Nvml, gpu: _Gpu) -> None:
    """Read the counters once. Raises `NVMLError` where that is not possible: before Hopper, or without permission."""
    if not nvml.nvmlGpmQueryDeviceSupport(gpu).isSupportedDevice:
        raise nvml.NVMLError(_NOT_SUPPORTED)
    sample = nvml.nvmlGpmSampleAlloc()
    try:
        nvml.nvmlGpmSampleGet(gpu, sample)
    finally:
        nvml.nvmlGpmSampleFree(sample)


def _fraction(percent: float | None) -> float | None:
    if percent is None or not 0 <= percent <= _PERCENT_MOST:  # NaN is neither
        return None
    return min(percent / 100, 1.0)


def _bytes_per_s(mib_per_s: float | None) -> float | None:
    return mib_per_s * _MIB if mib_per_s is not None and math.isfinite(mib_per_s) and mib_per_s >= 0 else None
