"""Memory errors: patterns written over much of the memory, read back and compared.

What it does not find: errors in the rest of the memory, and those that take hours to show. A wrong word fails the check like any other
wrong answer; how many there were in each pattern, and where the first, stands in the answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harness.registry import Case, Sized, Work, benchmark, cache_bytes, require_memory, rotation

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.device.backend import Array, Backend
    from harness.model import Device

NOWHERE = np.uint64(2**64 - 1)  # where no word was wrong, the place of the first
_ONES = 2**64 - 1
_EVENS = 0x5555555555555555
_ODD = 0x9E3779B97F4A7C15


def patterns(key: int) -> list[tuple[int, int, int, int]]:
    """Return each pattern as `mul`, `add`, `turn` and `flip`: word i holds ((i mul + add) << (i & turn)) ^ flip, modulo 2^64.

    They are the word's own address, walking ones, a checkerboard and a random sequence, each followed by its complement.
    """
    forms = (1, 0, 0), (0, 1, 63), (0, _EVENS, 1), (_ODD, key, 0)
    return [(*form, flip) for form in forms for flip in (0, _ONES)]


def write(lane, first, count, step, mul, add, turn, flip, buffer):  # type: ignore[no-untyped-def]
    """Write a pattern over the buffer."""
    for k in range(count):
        i = first + k * step
        buffer[i] = ((i * mul + add) << (i & turn)) ^ flip


def compare(lane, first, count, step, mul, add, turn, flip, buffer, errors, places, sums):  # type: ignore[no-untyped-def]
    """Count the words of a lane that are not as written, find the first, and add all words up."""
    wrong, place, total = np.uint64(0), NOWHERE, np.uint64(0)
    for k in range(count):
        i = first + k * step
        found = buffer[i]
        differs = found != ((i * mul + add) << (i & turn)) ^ flip
        wrong += np.uint64(differs)
        place = min(place, i if differs else NOWHERE)
        total += found
    errors[lane], places[lane], sums[lane] = wrong, place, total


def _sum(n: int, mul: int, add: int, turn: int, flip: int) -> int:
    """Return what the n words of a pattern add up to, modulo 2^64: they come round after as many words as it has turns."""
    rounds, rest = divmod(n, turn + 1)
    shifts: int = rounds * (2 ** (turn + 1) - 1) + 2**rest - 1  # of a one: each turn is a power of two
    total = mul * (n * (n - 1) // 2) + add * shifts  # mul is 0 where there are turns
    return (n * _ONES - total if flip else total) % 2**64


def examine(
    backend: Backend, key: int, buffer: Array, disturb: Callable[[int, Array], None] | None = None
) -> Callable[[], Array]:
    """Return a function that goes over the buffer with each pattern and reports in an array of shape (3, patterns).

    Its rows tell of each pattern how many words were wrong, the index of the first or `NOWHERE`, and the sum of all words read.

    Args:
        backend: the device.
        key: decides the random pattern.
        buffer: 64-bit words.
        disturb: called with the pattern's number and the buffer between writing and reading: a test of the test.
    """
    xp, n, forms = backend.xp, buffer.size, [tuple(map(np.uint64, form)) for form in patterns(key)]
    # Lanes beyond the last word report nothing: their first place must not read as 0.
    reports = [[xp.full(backend.lanes(n), start) for start in (np.uint64(0), NOWHERE, np.uint64(0))] for _ in forms]
    writer, reader = backend.compile(write), backend.compile(compare)

    def run() -> Array:
        for number, (form, report) in enumerate(zip(forms, reports, strict=True)):
            writer(n, *form, buffer)
            if disturb:
                disturb(number, buffer)
            reader(n, *form, buffer, *report)
        errors, places, sums = (xp.stack(kind) for kind in zip(*reports, strict=True))
        return xp.stack((errors.sum(axis=1), places.min(axis=1), sums.sum(axis=1)))

    return run


def _on_cpu(device: Device) -> int:
    """5 caches or 64 MiB."""
    return max(1 << 26, 5 * cache_bytes(device))


def _on_cuda(device: Device) -> int:
    """40 % of the memory."""
    return int(0.4 * (device.memory_bytes or 1 << 33)) >> 20 << 20


@benchmark(version=1, metric="bandwidth", quick=False, size_bytes=Sized(check=1 << 15, cpu=_on_cpu, cuda=_on_cuda))
def memtest(backend: Backend, seed: int, *, size_bytes: int) -> Case:
    """Eight patterns written over size_bytes of memory, read back and compared; one wrong bit fails the check."""
    require_memory(backend, size_bytes)
    n, forms = size_bytes // 8, patterns(seed)
    sums = [_sum(n, *form) for form in forms]
    truth = np.array([[0] * len(forms), [int(NOWHERE)] * len(forms), sums], dtype=np.uint64)

    def check(answer: Array) -> bool:
        return bool((backend.to_host(answer) == truth).all())

    return Case(
        run=examine(backend, seed, backend.xp.zeros(n, dtype=np.uint64)),
        work=Work(
            bytes_moved=2 * size_bytes * len(forms),
            counting="written + read, once in each pattern; the reports of the lanes are not counted",
            nominal=True,
        ),
        check=check,
        cache="cold" if rotation(backend, size_bytes) == 1 else "hot",
        footprint_bytes=size_bytes,
    )
