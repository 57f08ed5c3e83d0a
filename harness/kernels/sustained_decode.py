"""Decoding without a rest, each run held bit for bit against the first: what a card still gives, and still gets right, when it is hot."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from harness.inference.cases import decoding_case
from harness.inference.presets import dense_on, small_on
from harness.inference.subject import subject
from harness.registry import Case, Sized, benchmark

if TYPE_CHECKING:
    from harness.device.backend import Array, Backend


@benchmark(
    version=1,
    metric="throughput",
    quick=False,
    sustained=True,
    model=Sized(check="tiny-llama:fp32", cpu=small_on, cuda=dense_on),
    batch=Sized(check=1, cpu=4, cuda=16),
    tokens=Sized(check=2, cpu=8, cuda=64),
)
def sustained_decode(backend: Backend, seed: int, *, model: str, batch: int, tokens: int) -> Case:
    """Tokens decoded for batch rows, each run compared with the first one's last logits; any difference fails the check."""
    xp = backend.xp
    case = decoding_case(subject(backend, seed, model, batch=batch, capacity=tokens), depth=0, steps=tokens)
    first: list[Array] = []
    errors = xp.zeros(1, dtype=np.int64)

    def run() -> tuple[Array, Array, Array]:
        logits, picks = case.run()
        first[:] = first or [logits.copy()]
        errors[0] += (logits != first[0]).sum()  # also where either is not a number
        return logits, picks, errors

    def check(answer: tuple[Array, Array, Array]) -> bool:
        logits, picks, found = answer
        return not bool(found.any()) and case.check((logits, picks))

    return replace(case, run=run, check=check)
