"""One denoising step of a diffusion transformer in Flux's shape: products of matrices, attention over all tokens, and modulation between."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from harness.inference import dit, ledger
from harness.inference.cases import DISTRIBUTION
from harness.inference.roof import roof, roof_bytes
from harness.registry import Case, Sized, Skip, Work, benchmark, require_memory

if TYPE_CHECKING:
    from harness.device.backend import Array, Backend
    from harness.model import Device

_FORMS = {"float32": "fp32", "float16": "fp16"}
_FREE_FRACTION = 0.85  # of a card's memory, for weights; activations have the rest
_STATES_BYTES = 2_000_000_000  # of Flux's tokens: states, their projections, the scores of 512 queries


def _fitting(device: Device) -> int:
    """As many of Flux's 19 as fit."""
    room = _FREE_FRACTION * (device.memory_bytes or 0) - _STATES_BYTES
    fits = [k for k in range(1, dit.FLUX.double + 1) if 2 * _shape(24, k, 4096).parameters <= room]
    return max(fits, default=2)


def _shape(heads: int, blocks: int, image_tokens: int) -> dit.DitSpec:
    return replace(
        dit.FLUX,
        heads=heads,
        double=blocks,
        single=2 * blocks,
        image_tokens=image_tokens,
        text_tokens=image_tokens // 8,
    )


@benchmark(
    version=1,
    metric="compute",
    quick=False,
    dtype=("float32", "float16"),
    heads=Sized(check=1, cpu=4, cuda=24),
    blocks=Sized(check=1, cpu=2, cuda=_fitting),
    image_tokens=Sized(check=16, cpu=256, cuda=4096),
)
def dit_step(backend: Backend, seed: int, *, dtype: str, heads: int, blocks: int, image_tokens: int) -> Case:
    """A step with heads of 128, blocks double blocks and twice as many single ones, and an eighth as many text tokens."""
    if dtype == "float16" and backend.device.kind == "cpu":
        reason = "NumPy multiplies float16 matrices without BLAS: its rate would say nothing about this CPU"
        raise Skip(reason)
    xp, spec = backend.xp, _shape(heads, blocks, image_tokens)
    cost = dit.cost(spec, ledger.FORMATS[_FORMS[dtype]])
    states = 40 * spec.tokens * spec.hidden * 4
    require_memory(backend, spec.parameters * np.dtype(dtype).itemsize + states + roof_bytes(backend))
    tensors, given = dit.weights(spec, backend, seed, dtype), dit.inputs(spec, backend, seed ^ 1)
    model = dit.Dit(spec, tensors, xp, dtype=dtype)
    wide = dit.Dit(spec, tensors, xp, dtype="float64")
    roofed = roof(backend, cost, dtype)

    truths: list[Array | None] = []

    def check(answer: Array) -> bool:
        truths[:] = truths or [dit.truth(model, wide, given, chosen=seed)]
        return truths[0] is not None and dit.near(answer, truths[0], model)

    whole = f"{spec.double} + {spec.single} of Flux's 19 + 38 blocks"
    return Case(
        run=lambda: model.step(given),
        check=check,
        work=Work(
            flops=cost.flops,
            bytes_moved=cost.bytes_moved,
            items=1,
            item="step",
            counting=f"{whole}; products of matrices, 2 a multiply-add; each weight, query, key and value once",
            nominal=True,
        ),
        cache="cold" if roofed else "n/a",
        footprint_bytes=cost.bytes_moved,
        inputs=(given.image, tensors["x_embedder.weight"]),
        distribution=DISTRIBUTION,
        hide_launches=False,
        roof=roofed,
    )
