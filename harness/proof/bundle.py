"""Which rows are opened, and how their bytes lie in a file: every size follows from the challenge, so that a file is measured before it is read.

An opening of row i of step t: the row of X_t and its path, the row of Y_t = X_t B, and the path of row i of state t + 1. State 0 has no path, since anybody
can draw it. An opening of a scan: a row of a state, its path, and for each scan the sums of its group of sixteen rows with their path.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from harness.proof.challenge import framed
from harness.proof.merkle import DIGEST_BYTES, path_length

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.proof.task import Task

__all__ = [
    "GROUP",
    "cells",
    "opening_bytes",
    "row_path_bytes",
    "scan_cells",
    "scan_opening_bytes",
    "scan_path_bytes",
    "sizes",
    "way_bytes",
]

GROUP = 16  # rows whose sums share a leaf
SUM_BYTES = 8
_CELLS, _SCANNED = b"harness.proof/1 openings", b"harness.proof/1 scan openings"
Cell = tuple[int, int]


def cells(task: Task, seed: bytes, roots: tuple[str, ...], asked: str | None) -> tuple[Cell, ...]:
    """Return the pairs (step, row) to open: with repetition, so that a share skipped is missed with probability (1 - share)^openings.

    Args:
        task: the challenge's parameters.
        seed: the challenge's.
        roots: the commitment and the roots of the scans, in hex: nothing of them can be changed any more.
        asked: the verifier's nonce; None draws from the roots alone, and who commits can then try many roots.
    """
    return _drawn(task, task.openings, (_CELLS, seed, _nonce(asked), *map(bytes.fromhex, roots)))


def scan_cells(task: Task, seed: bytes, roots: tuple[str, ...], asked: str | None) -> tuple[Cell, ...]:
    """Return the pairs (state - 1, row) of the scans to open."""
    return _drawn(task, task.scan_openings, (_SCANNED, seed, _nonce(asked), *map(bytes.fromhex, roots)))


def _nonce(asked: str | None) -> bytes:
    return b"" if asked is None else b"\x01" + bytes.fromhex(asked)


def _drawn(task: Task, count: int, source: tuple[bytes, ...]) -> tuple[Cell, ...]:
    bits = hashlib.shake_256(framed(source)).digest(16 * count)
    numbers = (int.from_bytes(bits[at : at + 16], "big") for at in range(0, len(bits), 16))
    return tuple(divmod(number % (task.steps * task.n), task.n) for number in numbers)


def row_path_bytes(task: Task, state: int, row: int) -> int:
    """Return the bytes of the path of a row of a state, the digest of its sums first where it is bound to them; state 0 has none."""
    return way_bytes(task, state, row) + DIGEST_BYTES * task.binds_sums if state else 0


def way_bytes(task: Task, state: int, row: int) -> int:
    """Return the bytes of the neighbours on the way from a row's leaf to the root."""
    return DIGEST_BYTES * (path_length(row, task.n) + path_length(state - 1, task.steps))


def opening_bytes(task: Task, cell: Cell) -> int:
    """Return the bytes of an opening of the work."""
    step, row = cell
    return task.n * (1 + task.y_bytes) + row_path_bytes(task, step, row) + way_bytes(task, step + 1, row)


def scan_path_bytes(task: Task, cell: Cell) -> int:
    """Return the bytes of the path of a group of sums in one scan."""
    return DIGEST_BYTES * path_length((cell[0] * task.n + cell[1]) // GROUP, task.steps * task.n // GROUP)


def scan_opening_bytes(task: Task, cell: Cell) -> int:
    """Return the bytes of an opening of the scans."""
    group = GROUP * SUM_BYTES + scan_path_bytes(task, cell)
    return task.n + row_path_bytes(task, cell[0] + 1, cell[1]) + task.scans * group


def sizes(task: Task, opened: tuple[Cell, ...], scanned: tuple[Cell, ...]) -> Iterator[int]:
    """Yield the bytes of each opening in the order of the file."""
    yield from (opening_bytes(task, cell) for cell in opened)
    yield from (scan_opening_bytes(task, cell) for cell in scanned)
