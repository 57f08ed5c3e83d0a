"""What all tests share: devices to run on, and the rule for tests that need a GPU."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest

# Two workers share two cores: OpenBLAS with threads of its own in each waits for itself most of the time. Read when NumPy is loaded.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from harness.device.cpu import CpuDevice
from harness.device.cuda import CudaDevice, cuda_devices, cuda_status
from harness.model import Device


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `gpu` where CUDA cannot be used, saying why; keep the tests of a cell together (`_cell`)."""
    places = [
        i for i, item in enumerate(items) if item.path.name == "test_kernels.py" and "params" in _parameters(item)
    ]
    for place, item in zip(places, sorted((items[i] for i in places), key=_cell), strict=True):
        items[place] = item
        item.add_marker(pytest.mark.xdist_group(str(_cell(item))))
    marked = [item for item in items if item.get_closest_marker("gpu")]
    reason = cuda_status() if marked else None
    if reason:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=reason))


def _parameters(item: pytest.Item) -> dict[str, Any]:
    return item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}


def _cell(item: pytest.Item) -> tuple[bool, str]:
    """Return what device and which cell a test is about: tests in this order build it once."""
    given = _parameters(item)
    on_gpu = item.get_closest_marker("gpu") is not None
    return on_gpu, f"{given['bench'].name} {given['params']}"


@pytest.fixture(autouse=True)
def _limit_on_recursion() -> None:
    """Take back what py_ecc does when eth-account imports it: with its 100,000 levels, parsers written in C overflow the stack before they stop."""
    sys.setrecursionlimit(1000)


@pytest.fixture(scope="session")
def cpu() -> CpuDevice:
    return CpuDevice(Device(uuid="CPU-test", name="test", kind="cpu", selector="cpu", sensors={}))


@pytest.fixture(scope="session")
def cuda() -> CudaDevice:
    return CudaDevice(cuda_devices()[0])


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def backend(request: pytest.FixtureRequest) -> CpuDevice | CudaDevice:
    """Each kind of device: what holds on one must hold on the other."""
    opened: CpuDevice | CudaDevice = request.getfixturevalue(request.param)
    return opened
