"""Prefill: a model takes in a whole prompt. It multiplies matrices, and decides how long the first token of a reply is waited for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.inference import ledger
from harness.inference.cases import model_case
from harness.inference.presets import dense_on, small_on
from harness.inference.subject import subject
from harness.inference.truth import Truth
from harness.registry import Case, Sized, Skip, benchmark

if TYPE_CHECKING:
    from harness.device.backend import Array, Backend

_CPU_MOST = 2048  # tokens: attention grows with the square


@benchmark(
    version=1,
    metric="throughput",
    quick={"length": (512,)},
    model=Sized(check="tiny-llama:fp32", cpu=small_on, cuda=dense_on),
    length=(128, 512, 2048, 8192),
)
def prefill(backend: Backend, seed: int, *, model: str, length: int) -> Case:
    """Tokens of one prompt taken in by a model with weights of the seed, up to the logits of the last one."""
    if backend.device.kind == "cpu" and length > _CPU_MOST:
        reason = f"a prompt of {length} tokens takes a CPU tens of seconds a run; it is measured up to {_CPU_MOST}"
        raise Skip(reason)
    of = subject(backend, seed, model, batch=1, capacity=length)
    cost = ledger.prefill(of.chosen.spec, batch=1, length=length, weights=of.chosen.weights)
    runner, tokens = of.model(), of.on_device()
    cache = runner.cache(1, length)
    truth: list[Truth] = []

    def run() -> Array:
        cache.rewind(0)
        return runner.forward(tokens, cache)

    def check(answer: Array) -> bool:
        truth[:] = truth or [Truth(of, length=length, kept=1)]
        return truth[0].confirms(answer, answer.argmax(axis=-1)[:, None])

    return model_case(of, cost, tokens=length, passes=1, said="causal attention", run=run, check=check)
