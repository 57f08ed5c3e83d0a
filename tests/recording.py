"""A GPU that remembers which kernels of ours ran on it, and what the emulator says of itself."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from harness import registry
from harness.device.backend import CudaSource, Launcher
from harness.device.cuda import CudaDevice, cuda_devices
from harness.model import Device, Params

__all__ = ["Counted", "RecordingDevice", "cells", "counters", "emulator", "launched", "no_counting", "signatures"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """What kernels did, by the emulator's counters; a fused multiply-add is two operations."""

    operations: int
    integer_operations: int  # those of loops and addresses among them
    global_bytes: int
    shared_bytes: int


class RecordingDevice(CudaDevice):
    """A GPU that counts the launches of kernels that were made by `compile` or `load`."""

    launches = 0

    def compile(self, kernel: Callable[..., None], *, reorder: bool = False, fuse: bool = False) -> Launcher:
        """Compile a range kernel, and count its launches."""
        return self._recorded(super().compile(kernel, reorder=reorder, fuse=fuse))

    def load(self, source: CudaSource) -> Launcher:
        """Compile a CUDA source, and count its launches."""
        return self._recorded(super().load(source))

    def _recorded(self, inner: Launcher) -> Launcher:
        def launch(*args: Any, **options: Any) -> None:
            self.launches += 1
            inner(*args, **options)

        return launch


# A prompt of 128 tokens, the shortest that is worth measuring, takes the emulator half a minute and shows no more than these.
_SHORTER: dict[str, Params] = {"prefill": {"length": 16}}

# One routing by the array module and one by kernels of ours: the others differ in which experts are drawn, not in what runs.
_ROUTINGS = {("array", "uniform"), ("array", "natural"), ("fused", "zipf")}

# What these launch is CuPy's and cuBLAS's, and the kernels that make weights, which `decode` launches too.
_BY_LIBRARIES = frozenset({"prefill", "batched_decode", "sustained_decode", "dit_step"})


def cells(device: Device) -> Iterator[tuple[str, registry.Benchmark, Params]]:
    """Every choice of every benchmark at its smallest size or smaller, and what to call it."""
    for bench in registry.find():
        for smallest in registry.points(bench, device, small=True):
            params = {**smallest, **_SHORTER.get(bench.name, {})}
            if "routing" in params and (params["path"], params["routing"]) not in _ROUTINGS:
                continue
            yield f"{bench.name}-{'-'.join(map(str, params.values()))}", bench, params


def cells_of_ours(device: Device) -> Iterator[tuple[str, registry.Benchmark, Params]]:
    """Leave out those that launch no kernel of ours but the makers of weights, which other cells launch as well: they are slow."""
    for name, bench, params in cells(device):
        if bench.name not in _BY_LIBRARIES and params.get("path") != "array":
            yield name, bench, params


def signatures() -> list[tuple[Callable[..., None], Any]]:
    """Run every small cell once; return the range kernels that were launched, with the types of what they were launched with."""
    backend = RecordingDevice(cuda_devices()[0])
    for _, bench, params in cells_of_ours(backend.device):
        try:
            bench.build(backend, 1, params).run()
        except registry.Skip:
            continue
    backend.synchronize()
    return [(kernel, types) for kernel, entry in backend._entries.items() for types in entry.signatures]


def emulator() -> Any:
    """Return the emulator's module; None on a real GPU."""
    try:
        module = importlib.import_module("cuda_emulator")
    except ImportError:
        return None
    return module if module.active() else None


def no_counting() -> str | None:
    """Return None where the work of kernels is counted, else the reason why it is not."""
    if emulator() is None:
        return "only the emulator counts what kernels do"
    return None if os.environ.get("EMU_COUNT") == "1" else "the emulator counts what kernels do with EMU_COUNT=1"


def counters() -> Counted:
    """Return what kernels did since the last call."""
    now = emulator().counters()
    return Counted(
        operations=now["f16_flop"] + now["f32_flop"] + now["f64_flop"] + now["tensor_op"],
        integer_operations=now["int_op"],
        global_bytes=now["global_load_bytes"] + now["global_store_bytes"],
        shared_bytes=now["shared_bytes"],
    )


def launched() -> int:
    """Return how many kernels, of whomever, this process has launched."""
    return int(emulator().stats()["launches"])
