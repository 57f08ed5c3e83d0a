"""Prints as JSON what every small cell answers in this process: run as a script, once for each way that kernels can be scheduled.

The schedule is fixed when a process starts. With the argument `pool-off` each array is an allocation of its own, so that the
emulator sees every access that leaves it.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import broken
import recording

from harness.device.cuda import CudaDevice, cuda_devices
from harness.registry import Case, Skip

SEED = 0x0123456789ABCDEF


def answer(case: Case, backend: CudaDevice) -> dict[str, Any]:
    """Run a case once: the digest of its answer, whether that is right, and whether it is all integers."""
    whole = case.run()
    parts = [backend.to_host(backend.xp.asarray(p)) for p in (whole if isinstance(whole, tuple) else (whole,))]
    digest = hashlib.sha256(b"".join(p.tobytes() for p in parts)).hexdigest()
    exact = all(p.dtype.kind in "iub" for p in parts)
    return {"digest": digest, "right": bool(case.check(whole)), "exact": exact}


def main() -> None:
    """Answer for the benchmarks, and for the broken kernels after them: those may leave damage behind."""
    backend = CudaDevice(cuda_devices()[0])
    if "pool-off" in sys.argv:
        backend.xp.cuda.set_allocator(None)
    found: dict[str, Any] = {}
    builds: dict[str, Callable[[], Case]] = {}
    for name, bench, params in recording.cells_of_ours(backend.device):
        builds[name] = partial(bench.build, backend, SEED, params)
    for name, body in broken.UNSAFE.items():
        builds[f"broken {name}"] = partial(body, backend, SEED)
    for name, build in builds.items():
        try:
            found[name] = answer(build(), backend)
        except Skip as skip:
            found[name] = {"skipped": str(skip)}
        except Exception as err:  # noqa: BLE001 - each cell tells its own fate
            found[name] = {"error": f"{type(err).__name__}: {err}"}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
