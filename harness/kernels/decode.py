"""Decoding: a model writes one token after another for one reader. It streams all weights for each, so memory decides."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.inference.cases import decoding_case
from harness.inference.presets import dense_on, small_on
from harness.inference.subject import subject
from harness.registry import Case, Sized, Skip, benchmark

if TYPE_CHECKING:
    from harness.device.backend import Backend

_CPU_MOST = 2048  # tokens of depth, which must be filled first


@benchmark(
    version=1,
    metric="throughput",
    quick={"depth": (0,)},
    model=Sized(check="tiny-llama:fp32", cpu=small_on, cuda=dense_on),
    path=("array", "fused"),
    depth=(0, 2048, 8192, 32768),
    tokens=Sized(check=2, cpu=16, cuda=128),
)
def decode(backend: Backend, seed: int, *, model: str, path: str, depth: int, tokens: int) -> Case:
    """Tokens decoded one by one after depth others, through the array module or by fused kernels of ours; batch 1."""
    if backend.device.kind == "cpu" and depth > _CPU_MOST:
        reason = f"a CPU takes minutes to fill a cache with {depth} tokens; it is measured down to {_CPU_MOST}"
        raise Skip(reason)
    of = subject(backend, seed, model, batch=1, capacity=depth + tokens)
    return decoding_case(of, depth=depth, steps=tokens, path=path)
