"""What all sides of the comparison have in common: an engine in a process of its own, which does as a line of JSON says and answers in one.

It runs under whichever Python has the engine, so it needs nothing but the standard library and NumPy.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np

__all__ = ["CAPACITY", "Engine", "serve"]

CAPACITY = 1024  # tokens of a row


class Engine(Protocol):
    """A model with a cache of some rows, each of up to `CAPACITY` tokens."""

    def reset(self, rows: int) -> None:
        """Begin anew with empty rows."""

    def rewind(self, depth: int) -> None:
        """Forget what came after so many tokens of each row."""

    def take(self, tokens: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Take in (rows, T) tokens; returns the logits of each row's last one, (rows, vocab)."""


def serve(engine: Engine, vocab: int, version: str) -> None:
    """Answer until the input ends.

    A request is {"rows": R, "depth": D, "tokens": T, "steps": N}: the time for N passes of T tokens in each of R rows which
    hold D. What the rows hold is prepared before, and the tokens are the same for all who ask. The answer has the seconds that the process
    had a CPU, those that it had to wait for one, and a few of the last logits.
    """
    print(json.dumps({"version": version}), flush=True)
    held = (0, -1)  # rows, depth
    for line in sys.stdin:
        asked = json.loads(line)
        rows, depth, size, steps = (asked[key] for key in ("rows", "depth", "tokens", "steps"))
        tokens = np.random.default_rng(5).integers(0, vocab, size=(rows, depth + size * steps))
        if held != (rows, depth):
            engine.reset(rows)
            if depth:
                engine.take(tokens[:, :depth])
            held = (rows, depth)
        engine.rewind(depth)
        waited_s, began = _waited_s(), time.process_time()
        for at in range(depth, depth + size * steps, size):
            logits = engine.take(tokens[:, at : at + size])
        time_s = time.process_time() - began
        some = [float(x) for x in np.asarray(logits)[:, ::997].ravel()[:64]]
        print(json.dumps({"time_s": time_s, "waited_s": _waited_s() - waited_s, "logits": some}), flush=True)


def _waited_s() -> float:
    """Return how long the threads of this process were ready to run and had no CPU; 0 where the kernel does not count."""
    total_ns = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        with suppress(OSError):  # the thread has ended
            total_ns += int(path.read_text().split()[1])
    return total_ns / 1e9
