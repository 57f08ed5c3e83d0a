"""The memory test finds the errors that are put into memory, and says where they are."""

from __future__ import annotations

import numpy as np
import pytest

from harness.device.backend import Array, Backend
from harness.kernels import memtest

KEY, WORDS = 0x0123456789ABCDEF, 5000
PATTERNS = len(memtest.patterns(KEY))
every_pattern = pytest.mark.parametrize("pattern", range(PATTERNS))


def report(backend: Backend, pattern: int, places: tuple[int, ...], bit: int) -> tuple[list[int], list[int]]:
    """Flip a bit of some words under one pattern, and return the numbers of errors and the first places."""

    def flip(number: int, buffer: Array) -> None:
        for place in places if number == pattern else ():
            buffer[place] ^= np.uint64(1 << bit)

    buffer = backend.xp.zeros(WORDS, dtype=np.uint64)
    answer = backend.to_host(memtest.examine(backend, KEY, buffer, flip)())
    errors, first, _ = answer.tolist()
    return errors, first


@every_pattern
@pytest.mark.parametrize("bit", [0, 63])
def test_flipped_bits_are_counted_and_located(backend: Backend, pattern: int, bit: int) -> None:
    errors, first = report(backend, pattern, (WORDS - 1, 1234, 4321), bit)
    assert errors == [3 * (i == pattern) for i in range(PATTERNS)]
    assert first == [1234 if i == pattern else int(memtest.NOWHERE) for i in range(PATTERNS)]


def test_sound_memory_has_no_errors(backend: Backend) -> None:
    errors, first = report(backend, 0, (), 0)
    assert errors == [0] * PATTERNS
    assert first == [int(memtest.NOWHERE)] * PATTERNS


def test_the_benchmark_refuses_what_a_flipped_bit_leaves(backend: Backend) -> None:
    case = memtest.memtest(backend, KEY, size_bytes=8 * WORDS)
    assert case.check(case.run())

    def flip(number: int, buffer: Array) -> None:
        buffer[number] ^= np.uint64(1)

    buffer = backend.xp.zeros(WORDS, dtype=np.uint64)
    assert not case.check(memtest.examine(backend, KEY, buffer, flip)())


def test_each_pattern_is_another_and_every_second_one_a_complement(backend: Backend) -> None:
    seen: list[np.ndarray[tuple[int], np.dtype[np.uint64]]] = []

    def keep(_number: int, buffer: Array) -> None:
        seen.append(backend.to_host(buffer).copy())

    memtest.examine(backend, KEY, backend.xp.zeros(WORDS, dtype=np.uint64), keep)()
    assert len({words.tobytes() for words in seen}) == PATTERNS
    assert all((a == ~b).all() for a, b in zip(seen[::2], seen[1::2], strict=True))
    assert (seen[0] == np.arange(WORDS, dtype=np.uint64)).all()
    assert (np.bitwise_count(seen[2]) == 1).all()
