"""The prover's CUDA path gives the CPU's bits: digests, states, sums, roots, scans, openings."""

from __future__ import annotations

import hashlib
import io
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from harness.device.backend import Backend
from harness.model import Challenge
from harness.proof import chain, challenge, hashing, merkle, prover, residency, verifier
from harness.proof.generator import random_bytes
from harness.proof.task import MODES, task_of

SEED = bytes(range(32))
NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)


def issued(device_uuid: str, **params: Any) -> Challenge:
    whole = {"mode": "int8", "n": 48, "steps": 3, "openings": 8, "scans": 2, "scan_openings": 3, **params}
    return challenge.issue(
        provider="p", device_uuid=device_uuid, epoch=1, params=whole, now=NOW, nonce="ab" * 32, beacon="drand 1"
    )


# --- digests ----------------------------------------------------------------------------------------------------------


def test_the_constants_are_those_of_fips_180() -> None:
    assert hashing._K.startswith("0x428a2f98u,0x71374491u,0xb5c0fbcfu")
    assert hashing._K.endswith("0xa4506cebu,0xbef9a3f7u,0xc67178f2u")
    assert hashing._H.startswith("0x6a09e667u,0xbb67ae85u")


@pytest.mark.parametrize("row_bytes", [4, 48, 52, 56, 60, 64, 128, 1040])
def test_rows_have_the_digests_that_hashlib_gives(backend: Backend, row_bytes: int) -> None:
    rows = np.random.default_rng(row_bytes).integers(0, 256, (5, row_bytes), dtype=np.uint8)
    found = backend.to_host(hashing.Hasher(backend, SEED).rows(hashing.LEAF, 7, backend.xp.asarray(rows)))
    assert found.shape == (5, 32)
    for i, row in enumerate(rows):
        head = b"leaf" + (7).to_bytes(4, "big") + i.to_bytes(4, "big") + row_bytes.to_bytes(4, "big") + bytes(16) + SEED
        assert found[i].tobytes() == hashlib.sha256(head + row.tobytes()).digest()


@pytest.mark.parametrize("count", [1, 2, 3, 7, 16])
def test_each_leaf_climbs_to_the_root_and_no_other_does(backend: Backend, count: int) -> None:
    hasher = hashing.Hasher(backend, SEED)
    leaves = np.random.default_rng(count).integers(0, 256, (count, 32), dtype=np.uint8)
    tree = [backend.to_host(level) for level in merkle.levels(hasher, hashing.NODE, backend.xp.asarray(leaves))]
    for i, leaf in enumerate(leaves):
        way = merkle.path(tree, i)
        assert len(way) == 32 * merkle.path_length(i, count)
        assert merkle.climb(hashing.NODE, leaf.tobytes(), (i, count), way, SEED) == tree[-1].tobytes()
        for other in set(range(count)) - {i}:
            if merkle.path_length(other, count) == merkle.path_length(i, count):
                assert merkle.climb(hashing.NODE, leaf.tobytes(), (other, count), way, SEED) != tree[-1].tobytes()


# --- the same bits everywhere -----------------------------------------------------------------------------------------


def test_a_row_is_drawn_without_what_comes_before_it(cpu: Backend) -> None:
    work = chain.Chain(cpu, SEED, task_of(issued("x").params))
    assert random_bytes(SEED, "X", 7 * 48 // 16, 3).tobytes() == work.first()[7].tobytes()


@pytest.mark.gpu
@pytest.mark.parametrize("mode", MODES)
def test_the_gpu_does_the_same_work(cpu: Backend, cuda: Backend, mode: str) -> None:
    task = task_of(issued("x", mode=mode).params)
    here, there = (chain.Chain(device, SEED, task) for device in (cpu, cuda))
    state, other = here.first(), there.first()
    assert state.tobytes() == cuda.to_host(other).tobytes()
    sums, others = here.sums(state), cuda.to_host(there.sums(other))
    if mode == "int8":
        assert (sums == others).all()
    else:
        assert np.allclose(sums, others, rtol=0, atol=1e-4)
    right = np.stack([chain.advance(mode, row, SEED, 3, i) for i, row in enumerate(others)])
    assert (cuda.to_host(there.step(other, 3)) == right).all()


@pytest.mark.gpu
def test_the_gpu_commits_scans_and_opens_alike(cpu: Backend, cuda: Backend) -> None:
    roots, answers = [], []
    for device in (cpu, cuda):
        held = prover.commit(issued("GPU-1"), _named(device, "GPU-1"))
        roots.append((held.root, held.scan("cd" * 32)))
        answers.append(held.open("ef" * 32))
    assert roots[0] == roots[1]
    assert answers[0] == answers[1]


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["bfloat16", "float32"])
def test_what_a_gpu_did_in_floats_passes(cuda: Backend, mode: str) -> None:
    held = prover.commit(issued("GPU-1", mode=mode, scans=0, scan_openings=0), _named(cuda, "GPU-1"))
    transcript, openings = held.transcript("ef" * 32)
    assert verifier.faults_of(transcript, io.BytesIO(openings)) == ()


def _named(backend: Backend, uuid: str) -> Backend:
    """Return the same device under another name, so that one challenge can be given to two."""
    import copy
    from dataclasses import replace

    other = copy.copy(backend)
    other.device = replace(backend.device, uuid=uuid)
    return other


def test_a_scan_is_linear_in_the_rows_and_keyed(cpu: Backend) -> None:
    states = [np.random.default_rng(1).integers(0, 256, (16, 16), dtype=np.uint8)]
    root, scan = residency.scan(cpu, hashing.Hasher(cpu, SEED), states, "cd" * 32)
    words = residency.key_words("cd" * 32, 16)
    for i, row in enumerate(states[0]):
        by_hand = sum(int(w) * int(k) for w, k in zip(row.view("<u8"), words, strict=True)) % 2**64
        assert int(scan.sums[i]) == by_hand == residency.row_sum(words, row.tobytes())
    assert residency.scan(cpu, hashing.Hasher(cpu, SEED), states, "ce" * 32)[0] != root
