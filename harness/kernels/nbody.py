"""All-pairs gravity: much arithmetic on little data, with a reciprocal square root in each pair."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from harness.registry import Case, Sized, Work, benchmark

if TYPE_CHECKING:
    from harness.device.backend import Array, Backend

_SOFT = np.float32(0.01)  # keeps the force of a body on itself, and of close pairs, finite
_ROWS = 256  # checked at a time, in float64


def forces(lane, first, count, step, n, one, x, y, z, mass, out):  # type: ignore[no-untyped-def]
    """Add up the acceleration of body i by all n bodies; three components a body."""
    for k in range(count):
        i = first + k * step
        ax = ay = az = one - one
        for j in range(n):
            dx = x[j] - x[i]
            dy = y[j] - y[i]
            dz = z[j] - z[i]
            r2 = dx * dx + dy * dy + dz * dz + _SOFT
            inverse = one / np.float32(math.sqrt(r2))
            pull = mass[j] * inverse * inverse * inverse
            ax += pull * dx
            ay += pull * dy
            az += pull * dz
        at = np.uint64(3) * i
        out[at] = ax
        out[at + np.uint64(1)] = ay
        out[at + np.uint64(2)] = az


@benchmark(version=1, metric="compute", quick=False, n=Sized(check=256, cpu=2048, cuda=65536))
def nbody(backend: Backend, seed: int, *, n: int) -> Case:
    """Accelerations of n bodies by all n in float32; nominal 20 operations a pair."""
    xp = backend.xp
    rng = backend.rng(seed)
    x, y, z, mass = (rng.uniform(n) for _ in range(4))
    out = xp.zeros(3 * n, dtype=np.float32)
    launch = backend.compile(forces, reorder=True, fuse=True)

    def run() -> Array:
        launch(n, np.uint64(n), np.float32(1), x, y, z, mass, out)
        return out

    def check(answer: Array) -> bool:
        at = xp.stack([x, y, z], axis=1).astype(xp.float64)
        heavy, got = mass.astype(xp.float64), answer.reshape(n, 3)
        for i in range(0, n, _ROWS):
            d = at[None] - at[i : i + _ROWS, None]
            pull = heavy / ((d * d).sum(axis=2) + float(_SOFT)) ** 1.5
            truth = (pull[:, :, None] * d).sum(axis=1)
            # Each of n terms is rounded a few times at the size of the pulls, which do not cancel as the sum does.
            allowed = 32 * float(np.finfo(np.float32).eps) * pull.sum(axis=1)[:, None]
            if not bool((xp.abs(got[i : i + _ROWS] - truth) <= allowed).all()):
                return False
        return True

    return Case(
        run=run,
        work=Work(flops=20 * n * n, bytes_moved=4 * 7 * n, counting="20 per pair; each array once", nominal=True),
        check=check,
        inputs=(x, y, z, mass),
        distribution="uniform in [0, 1)",
    )
