"""What a check must refuse at the sizes that are measured, where rounding is at its largest: work that was left out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from harness import registry
from harness.device.backend import Backend
from harness.device.cpu import CpuDevice
from harness.device.rng import Rng
from harness.model import Device

N = 1 << 24
SEED = 0x0123456789ABCDEF


def case(backend: Backend, name: str, **params: Any) -> registry.Case:
    (bench,) = registry.find([name])
    return bench.build(backend, SEED, params)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "tfloat32", "int8", "float64", "float8_e4m3"])
def test_steps_of_matrix_instructions_that_were_left_out_are_missed(dtype: str) -> None:
    """Of 2047, as on a GPU, by the twin: one, two, a span of them, all but one."""
    ada = Device(uuid="GPU-paper", name="paper", kind="cuda", selector="cuda:0", sensors={}, compute_capability="8.9")
    paper = CpuDevice(ada)  # its twins are what a GPU should do
    whole = case(paper, "mma", dtype=dtype, n=1, steps=2047)
    assert whole.check(whole.run())
    for fewer in (2046, 2045, 2047 - 16, 2047 - 32, 2047 - 64, 1):
        assert not whole.check(case(paper, "mma", dtype=dtype, n=1, steps=fewer).run()), fewer


class Gpu(CpuDevice):
    """A GPU on paper: its random numbers are drawn as a CPU's, and its lanes as many as an H100 has."""

    def rng(self, seed: int) -> Rng:
        return CpuDevice(self.device).rng(seed)

    def lanes(self, n: int) -> int:
        return min(132 * 8 * 256, n)


def gpu() -> Gpu:
    return Gpu(
        Device(uuid="GPU-paper", name="paper", kind="cuda", selector="cuda:0", sensors={}, compute_capability="9.0")
    )


@pytest.mark.parametrize(("kind", "share"), [("cpu", 1500), ("cuda", 132 * 8 * 256)])  # the last: one lane's
def test_a_share_of_a_dot_product_that_was_left_out_is_missed(cpu: Backend, kind: str, share: int) -> None:
    judge = case(cpu if kind == "cpu" else gpu(), "stream", op="dot", dtype="float32", n=N)
    a, b = judge.inputs
    products = a.astype(np.float64) * b
    whole = math.fsum(products)
    if kind == "cpu":
        assert judge.check(judge.run())
    assert judge.check(np.array([whole], dtype=np.float32))
    assert not judge.check(np.array([whole - products[-N // share :].sum()], dtype=np.float32))


@pytest.mark.parametrize(("kind", "share"), [("cpu", 1500), ("cuda", 2048 * 256)])  # the last: one thread's
def test_a_share_of_a_sum_that_was_left_out_is_missed(cpu: Backend, kind: str, share: int) -> None:
    judge = case(cpu if kind == "cpu" else gpu(), "reduce", dtype="float32", size_bytes=4 * N)
    (x,) = judge.inputs
    whole = math.fsum(x)
    if kind == "cpu":
        assert judge.check(judge.run())
    assert judge.check(np.array([whole], dtype=np.float32))
    assert not judge.check(np.array([whole - x[-N // share :].sum(dtype=np.float64)], dtype=np.float32))
