"""Judges one opening at a time: its paths, what follows from its sums, and the sums themselves by projection."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from harness.proof import bundle, chain, hashing, merkle, residency
from harness.proof.generator import random_bytes
from harness.proof.projection import Projection, tolerance

if TYPE_CHECKING:
    from harness.model import Transcript
    from harness.proof.task import Task

__all__ = ["Opened", "Rows"]

Opened = Callable[[bundle.Cell, bytes], str | None]
_SUMS = {"int8": "<i4", "float64": "<f8"}


class Rows:
    """What all openings of one transcript are judged by: its roots, and projections that it could not know."""

    def __init__(self, transcript: Transcript, task: Task, seed: bytes, secret: bytes) -> None:
        self._task, self._seed = task, seed
        self._root = bytes.fromhex(transcript.commitment)
        self._scan_roots = tuple(map(bytes.fromhex, transcript.scan_roots))
        keys = (transcript.scan_key or transcript.commitment, *transcript.scan_roots)
        self._scan_keys = [(bytes.fromhex(k), residency.key_words(k, task.n)) for k in keys[: task.scans]]
        self._secret = secret
        self._drawn: Projection | None = None
        self._tolerance = tolerance(task.mode, task.n)

    def work_fault(self, cell: bundle.Cell, opening: bytes) -> str | None:
        """Return what is wrong with an opening of a row of a step, None if nothing is."""
        task, (step, row) = self._task, cell
        n, at = task.n, task.n + bundle.row_path_bytes(task, step, row)
        end = at + n * task.y_bytes
        before, codes = opening[:n], np.frombuffer(opening, dtype=np.uint8, count=n)
        sums = np.frombuffer(opening, dtype=_SUMS.get(task.mode, "<f4"), count=n, offset=at)
        if step == 0:
            if codes.tobytes() != random_bytes(self._seed, "X", row * n // 16, n // 16).tobytes():
                return f"row {row} of the first state is not the seed's"
        elif self._climbed(step, row, before, opening[n:at]) != self._root:
            return f"row {row} of state {step} is not the one that was committed to"
        if task.mode != "int8" and not np.isfinite(sums).all():
            return f"a sum of row {row} of step {step} is not a number"
        after = chain.advance(task.mode, sums, self._seed, step + 1, row).tobytes()
        bound = hashing.row_digest(hashing.SUMS, step + 1, row, opening[at:end], self._seed) if task.binds_sums else b""
        if self._climbed(step + 1, row, after, bound + opening[end:]) != self._root:
            return f"row {row} of state {step + 1} does not follow from its sums"
        apart = self._projection().residual(codes, sums)
        if not apart <= self._tolerance:
            size = "" if task.mode == "int8" else f": {apart:.2g} apart, allowed are {self._tolerance:.2g}"
            return f"the sums of row {row} of step {step} are not the product{size}"
        return None

    def _projection(self) -> Projection:
        """Draw the projections once something has come that all else is right with: they take nearly all of the time."""
        if self._drawn is None:
            self._drawn = Projection(self._task.mode, self._task.n, self._seed, self._secret)
        return self._drawn

    def scan_fault(self, cell: bundle.Cell, opening: bytes) -> str | None:
        """Return what is wrong with an opening of a row in the scans, None if nothing is."""
        task, (before, row) = self._task, cell
        state, at = before + 1, task.n + bundle.row_path_bytes(task, before + 1, row)
        if self._climbed(state, row, opening[: task.n], opening[task.n : at]) != self._root:
            return f"row {row} of state {state}, scanned, is not the one that was committed to"
        number, rows = before * task.n + row, task.steps * task.n
        group, count = number // bundle.GROUP, rows // bundle.GROUP
        width, way = bundle.GROUP * bundle.SUM_BYTES, bundle.scan_path_bytes(task, cell)
        for scan, (key, words) in enumerate(self._scan_keys):
            sums, path = opening[at : at + width], opening[at + width : at + width + way]
            at += width + way
            leaf = hashing.row_digest(hashing.SCAN, 0, group, sums, key)
            if merkle.climb(hashing.SCAN_NODE, leaf, (group, count), path, self._seed) != self._scan_roots[scan]:
                return f"the sums of group {group} are not those of scan {scan}"
            mine = number % bundle.GROUP * bundle.SUM_BYTES
            if int.from_bytes(sums[mine : mine + 8], "little") != residency.row_sum(words, opening[: task.n]):
                return f"scan {scan} has another sum of row {row} of state {state}"
        return None

    def _climbed(self, state: int, row: int, codes: bytes, way: bytes) -> bytes:
        """Return the root that a row of a state leads to, through its state's tree and the tree of states."""
        task, seed = self._task, self._seed
        begin = merkle.DIGEST_BYTES * task.binds_sums
        split = begin + merkle.DIGEST_BYTES * merkle.path_length(row, task.n)
        leaf = hashing.row_digest(hashing.LEAF, state, row, codes + way[:begin], seed)
        top = merkle.climb(hashing.NODE, leaf, (row, task.n), way[begin:split], seed)
        return merkle.climb(hashing.TOP, top, (state - 1, task.steps), way[split:], seed)
