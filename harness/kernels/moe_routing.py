"""Decoding with a mixture of experts, whose speed depends on how many experts a batch wakes: all alike, a few favourites, or as weights say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

from harness.inference.cases import decoding_case
from harness.inference.presets import mixture_on
from harness.inference.subject import subject
from harness.registry import Case, Sized, benchmark

if TYPE_CHECKING:
    from harness.device.backend import Backend


@benchmark(
    version=1,
    metric="throughput",
    quick=False,
    model=Sized(check="tiny-qwen3-moe:fp32", cpu="tiny-qwen3-moe:fp32", cuda=mixture_on),
    path=("array", "fused"),
    routing=("uniform", "zipf", "natural"),
    batch=(1, 16, 64),
    tokens=Sized(check=2, cpu=16, cuda=32),
)
def moe_routing(backend: Backend, seed: int, *, model: str, path: str, routing: str, batch: int, tokens: int) -> Case:
    """Tokens decoded for batch rows by a mixture of experts; bytes are those of the experts that were seen to be used."""
    mode = cast('Literal["uniform", "zipf", "natural"]', routing)
    of = subject(backend, seed, model, batch=batch, capacity=8 + tokens, routing=mode)
    return decoding_case(of, depth=8, steps=tokens, path=path)
