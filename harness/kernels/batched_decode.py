"""Batched decoding: many readers are written for at once. Weights are streamed once for all of them, keys and values for each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.inference.cases import decoding_case
from harness.inference.presets import dense_on, small_on
from harness.inference.subject import subject
from harness.registry import Case, Sized, benchmark

if TYPE_CHECKING:
    from harness.device.backend import Backend


@benchmark(
    version=1,
    metric="throughput",
    quick=False,
    model=Sized(check="tiny-llama:fp32", cpu=small_on, cuda=dense_on),
    batch=(1, 4, 16, 64, 256),
    depth=Sized(check=8, cpu=64, cuda=512),
    tokens=Sized(check=2, cpu=4, cuda=32),
)
def batched_decode(backend: Backend, seed: int, *, model: str, batch: int, depth: int, tokens: int) -> Case:
    """Tokens decoded for batch rows at once, each after depth others, as long as their keys and values fit."""
    of = subject(backend, seed, model, batch=batch, capacity=depth + tokens)
    return decoding_case(of, depth=depth, steps=tokens)
