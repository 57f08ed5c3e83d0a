"""Random inputs: the published generator, the same bits everywhere, any slice on its own."""

from __future__ import annotations

import numpy as np
import pytest

from harness.device.backend import Backend
from harness.device.philox import words

# Random123's known answers for philox4x32-10: counter, key, output (kat_vectors of the reference distribution).
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def joined(low: int, high: int) -> np.uint64:
    return np.uint64(low | high << 32)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_the_published_vectors_come_out(
    backend: Backend, counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    out = backend.xp.zeros(4, dtype=np.uint32)
    start, stream = joined(*counter[:2]), joined(*counter[2:])
    backend.compile(words)(1, joined(*key), stream, start, out)
    assert tuple(map(int, backend.to_host(out))) == expected


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_uniform_numbers_fill_the_unit_interval(backend: Backend, dtype: str) -> None:
    x = backend.to_host(backend.rng(7).uniform(1 << 14, dtype)).astype(np.float64)
    assert x.min() >= 0
    assert x.max() <= 1
    assert abs(x.mean() - 0.5) < 0.01
    assert abs(x.var() - 1 / 12) < 0.005
    assert len(np.unique(x)) > 1000  # no saturation: a constant array would be kind to the power limit


def test_bell_numbers_have_mean_zero_and_variance_one(backend: Backend) -> None:
    x = backend.to_host(backend.rng(7).bell((128, 128))).astype(np.float64)
    assert x.shape == (128, 128)
    assert abs(x.mean()) < 0.03
    assert abs(x.var() - 1) < 0.03
    assert abs((x**4).mean() - 2.85) < 0.15  # 3 - 1.2/8 for a sum of eight uniforms


def test_an_order_visits_everything_once(backend: Backend) -> None:
    order = backend.rng(3).order(1000)
    assert sorted(order) == list(range(1000))
    assert list(order) != sorted(order)


def test_each_call_takes_a_stream_of_its_own(cpu: Backend) -> None:
    rng = cpu.rng(1)
    assert not np.array_equal(rng.words(64), rng.words(64))
    assert np.array_equal(cpu.rng(1).words(64), cpu.rng(1).words(64))
    assert not np.array_equal(cpu.rng(1).words(64), cpu.rng(2).words(64))


def test_a_slice_is_made_without_what_comes_before(cpu: Backend) -> None:
    whole = cpu.rng(5).words(400)
    assert np.array_equal(cpu.rng(5).words(40, start=25), whole[100:140])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_cpu_and_gpu_give_the_same_bits(cpu: Backend, cuda: Backend, dtype: str) -> None:
    for draw in ("uniform", "bell"):
        a, b = (be.to_host(getattr(be.rng(11), draw)((33, 7), dtype)) for be in (cpu, cuda))
        assert a.tobytes() == b.tobytes()
