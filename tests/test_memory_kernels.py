"""The CUDA sources of the memory benchmarks do what NumPy says, by themselves; on a CPU their twins do."""

from __future__ import annotations

import numpy as np
import pytest

from harness.device.backend import Backend
from harness.kernels import l2_sweep, reduce, scan, scatter_atomic, transpose


def test_the_tile_is_turned(backend: Backend) -> None:
    a = backend.rng(1).uniform((96, 96))
    out = backend.xp.zeros_like(a)
    backend.load(transpose.TRANSPOSE)(9, 256, np.uint64(96), a, out)
    assert (backend.to_host(out) == backend.to_host(a).T).all()


@pytest.mark.parametrize("dtype", reduce.REDUCE)
def test_a_block_adds_up_whatever_number_of_vectors(backend: Backend, dtype: str) -> None:
    x = (backend.rng(1).words(4 * 1001) % np.uint32(100)).astype(dtype)  # small integers: exact in every type and order
    total = backend.xp.zeros(1, dtype=dtype)
    backend.load(reduce.REDUCE[dtype])(1, 256, np.uint64(1001), x, total)
    assert backend.to_host(total)[0] == backend.to_host(x).sum()


@pytest.mark.parametrize(("tiles", "chunks"), [(1, 1), (3, 2), (300, 1)])
def test_the_phases_of_a_scan_make_a_prefix_sum(backend: Backend, tiles: int, chunks: int) -> None:
    x = backend.rng(1).words(tiles * chunks * 1024)
    sums, out = backend.xp.zeros(tiles, dtype=np.uint32), backend.xp.zeros_like(x)
    backend.load(scan.TOTALS)(tiles, 256, np.uint32(chunks), x, sums)
    backend.load(scan.STARTS)(1, 256, np.uint32(tiles), sums)
    backend.load(scan.SCAN)(tiles, 256, np.uint32(chunks), x, sums, out)
    assert (backend.to_host(out) == np.cumsum(backend.to_host(x), dtype=np.uint32)).all()


def test_keys_are_counted_under_their_mask(backend: Backend) -> None:
    keys, counts = backend.rng(1).words(1000), backend.xp.zeros(64, dtype=np.uint32)
    for _ in range(2):
        backend.load(scatter_atomic.COUNT)(4, 256, np.uint64(1000), np.uint32(63), keys, counts)
    assert (backend.to_host(counts) == 2 * np.bincount(backend.to_host(keys) & 63, minlength=64)).all()


def test_each_pass_of_a_sweep_adds_all_words(backend: Backend) -> None:
    x, total = backend.rng(1).words(4 * 1024), backend.xp.zeros(1, dtype=np.uint32)
    backend.load(l2_sweep.SWEEP)(3, 256, np.uint32(1024), np.uint32(5), x, total)
    assert int(total[0]) == 5 * int(backend.to_host(x).sum(dtype=np.uint64)) % 2**32
