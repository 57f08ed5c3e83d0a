"""The prover: does a challenge's work on a device, commits to every row of it, and opens what it is asked for.

    held = commit(challenge, backend)     # does all the work; `held.root` is the commitment
    held.scan(key)                        # reads all of it again, as often as the challenge says
    transcript, openings = held.transcript(asked=nonce, key=my_key)

The states stay on the device until `held` is dropped: steps * n^2 bytes. Nothing here is secret, and nothing here is believed.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.errors import FailureError, MisuseError
from harness.model import Transcript
from harness.proof import bundle, challenge, hashing, merkle, residency
from harness.proof.chain import Chain
from harness.proof.signing import Key
from harness.proof.task import Task
from harness.proof.transcript import signed

if TYPE_CHECKING:
    from harness.device.backend import Array, Backend
    from harness.model import Challenge

__all__ = ["Held", "commit"]

_PADDED = 16  # rows of a product: cuBLAS has integer kernels for such multiples only


def commit(asked: Challenge, backend: Backend, *, watch: Callable[[int, str], None] | None = None) -> Held:
    """Do the work of a challenge and commit to it.

    Args:
        asked: the challenge; whether it is stale is for the verifier to say.
        backend: the device that does the work.
        watch: called after each step with its number, from 1, and the root over its rows in hex: what a prover that is pinged in
            the middle of its work signs to show how far it is.

    Raises:
        MisuseError: the challenge is out of range, or names another device.
        FailureError: the states do not fit the device's memory.
    """
    task, seed = challenge.task(asked), challenge.seed(asked)
    if asked.device_uuid != backend.device.uuid:
        msg = f"the challenge is for device {asked.device_uuid}, this is {backend.device.uuid}"
        raise MisuseError(msg)
    _require_memory(backend, task)
    began = time.perf_counter()
    chain, hasher = Chain(backend, seed, task), hashing.Hasher(backend, seed)
    states, trees, digests = [chain.first()], [], []
    sums = chain.sums(states[0])  # one array for all steps, and the library is warm
    for number in range(1, task.steps + 1):
        states.append(chain.step(states[-1], number, sums))
        leaves, bound = _leaves(backend, hasher, number, states[-1], sums if task.binds_sums else None)
        trees.append(merkle.levels(hasher, hashing.NODE, leaves))
        digests.append(bound)
        if watch:
            watch(number, merkle.root(backend, trees[-1]).hex())
    roots = backend.xp.concatenate([tree[-1] for tree in trees])
    top = [backend.to_host(level) for level in merkle.levels(hasher, hashing.TOP, roots)]
    return Held(asked, task, backend, _Work(chain, hasher, states, trees, top, digests), time.perf_counter() - began)


def _leaves(
    backend: Backend, hasher: hashing.Hasher, number: int, state: Array, sums: Array | None
) -> tuple[Array, Array | None]:
    """Return the leaves of a state's rows, and the digests of their sums where they are bound to them."""
    if sums is None:
        return hasher.rows(hashing.LEAF, number, state), None
    bound = hasher.rows(hashing.SUMS, number, sums)
    return hasher.rows(hashing.LEAF, number, backend.xp.concatenate([state, bound], axis=1)), bound


def _require_memory(backend: Backend, task: Task) -> None:
    needed = task.n**2 * (task.steps + 1 + 2 * task.y_bytes + 8)
    if needed > backend.free_bytes():
        msg = f"{task.steps} steps of n = {task.n} need {needed / 1e9:.1f} GB, {backend.free_bytes() / 1e9:.1f} GB are free: fewer steps"
        raise FailureError(msg)


@dataclass(slots=True)
class _Work:
    """Everything that was made: states and trees on the device, the top of the tree on the host."""

    chain: Chain
    hasher: hashing.Hasher
    states: list[Array]
    trees: list[list[Array]]
    top: list[Any]
    digests: list[Array | None]  # of each state's sums, where a leaf covers them
    scans: list[residency.Scan] = field(default_factory=list)


class Held:
    """A commitment, and the work behind it."""

    def __init__(self, asked: Challenge, task: Task, backend: Backend, work: _Work, elapsed_s: float) -> None:
        self.challenge, self.elapsed_s = asked, elapsed_s
        self.root = work.top[-1].tobytes().hex()
        self.scan_key: str | None = None
        self.scan_roots: tuple[str, ...] = ()
        self._task, self._backend, self._work = task, backend, work

    def scan(self, key: str) -> tuple[str, ...]:
        """Scan the states as often as the challenge says, and return each scan's root; `key` is 64 hex digits of the verifier's."""
        self._scan(key)
        self.scan_key = key
        return self.scan_roots

    def _scan(self, key: str) -> None:
        found, self._work.scans = [], []
        for _ in range(self._task.scans):
            root, done = residency.scan(self._backend, self._work.hasher, self._work.states[1:], key)
            found.append(root)
            self._work.scans.append(done)
            key = root
        self.scan_roots = tuple(found)

    def open(self, asked: str | None) -> bytes:
        """Return the openings that a nonce asks for, None for those that the commitment asks for itself."""
        task, roots = self._task, (self.root, *self.scan_roots)
        if len(self.scan_roots) != task.scans:
            self._scan(self.root)
            roots = (self.root, *self.scan_roots)
        seed = challenge.seed(self.challenge)
        opened = bundle.cells(task, seed, roots, asked)
        parts = [self._opening(cell, sums) for cell, sums in zip(opened, self._sums(opened), strict=True)]
        parts += [self._scan_opening(cell) for cell in bundle.scan_cells(task, seed, roots, asked)]
        return b"".join(parts)

    def transcript(self, asked: str | None, key: Key | None = None) -> tuple[Transcript, bytes]:
        """Return the answer as a record, signed if there is a key, and the openings that go with it."""
        openings = self.open(asked)
        drafted = Transcript(
            schema="harness.transcript/2",
            challenge=self.challenge,
            commitment=self.root,
            scan_key=self.scan_key,
            scan_roots=self.scan_roots,
            asked=asked,
            openings_digest=hashlib.sha256(openings).hexdigest(),
            elapsed_s=self.elapsed_s,
            public_key=key.public_hex if key else None,
            signature=None,
        )
        return (signed(drafted, key) if key else drafted), openings

    def _sums(self, opened: tuple[tuple[int, int], ...]) -> Any:
        """Return the products of the opened rows on the host: they were not kept, and are made again.

        Integers together. Floats by the same products of whole states, since another shape may sum in another order.
        """
        xp, states = self._backend.xp, self._work.states
        if self._task.mode != "int8":
            found: list[Any] = [None] * len(opened)
            for step in {step for step, _ in opened}:
                whole = self._work.chain.sums(states[step])
                for at, (other, row) in enumerate(opened):
                    if other == step:
                        found[at] = self._backend.to_host(whole[row])
            return found
        rows = xp.zeros((-(-len(opened) // _PADDED) * _PADDED, self._task.n), dtype=np.uint8)
        for at, (step, row) in enumerate(opened):
            rows[at] = states[step][row]
        return self._backend.to_host(self._work.chain.sums(rows))[: len(opened)]

    def _opening(self, cell: tuple[int, int], sums: Any) -> bytes:
        step, row = cell
        return b"".join((self._row(step, row), self._proof(step, row), sums.tobytes(), self._path(step + 1, row)))

    def _scan_opening(self, cell: tuple[int, int]) -> bytes:
        state, row = cell[0] + 1, cell[1]
        sums = (done.opening(cell[0] * self._task.n + row) for done in self._work.scans)
        return b"".join((self._row(state, row), self._proof(state, row), *sums))

    def _row(self, state: int, row: int) -> bytes:
        return self._backend.to_host(self._work.states[state][row]).tobytes()

    def _proof(self, state: int, row: int) -> bytes:
        """Return what shows that a row is the committed one: the digest of its sums where it is bound to them, and its path."""
        bound = self._work.digests[state - 1] if state else None
        return (b"" if bound is None else self._backend.to_host(bound[row]).tobytes()) + self._path(state, row)

    def _path(self, state: int, row: int) -> bytes:
        if not state:
            return b""
        tree = self._work.trees[state - 1]
        if not isinstance(tree[0], np.ndarray):
            tree = self._work.trees[state - 1] = [self._backend.to_host(level) for level in tree]
        return merkle.path(tree, row) + merkle.path(self._work.top, state - 1)
