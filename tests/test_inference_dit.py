"""The DiT step: equal to diffusers' Flux, its count equal to what was counted there, and nothing about it left to chance."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.device.backend import Backend
from harness.errors import MisuseError
from harness.inference import ledger
from harness.inference.dit import FLUX, Dit, DitSpec, cost, inputs, weights

GOLDEN = Path(__file__).parent / "golden"
SEED = 20261125  # of tests/golden/make_dit.py, as are the specs
SPECS = {
    "even": DitSpec(
        heads=2, double=2, single=3, image_tokens=16, text_tokens=5, axes=(4, 6, 6), channels=8, text_width=24, pooled_width=20
    ),
    "wide": DitSpec(
        heads=3, double=1, single=1, image_tokens=64, text_tokens=8, axes=(2, 10, 8), channels=4, text_width=16, pooled_width=12
    ),
}  # fmt: skip
FP16 = ledger.FORMATS["fp16"]


def run(spec: DitSpec, backend: Backend, dtype: str = "float32", changed: str | None = None) -> np.ndarray[Any, Any]:
    tensors = weights(spec, backend, SEED, "float32")
    if changed:
        tensors[changed] *= 1.5
    return Dit(spec, tensors, backend.xp, dtype=dtype).step(inputs(spec, backend, SEED + 1))  # type: ignore[no-any-return]


def off(answer: np.ndarray[Any, Any], name: str) -> float:
    golden = np.load(GOLDEN / "dit.npz")[name]
    return float(np.abs(answer - golden).max() / golden.std())


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize(("dtype", "most"), [("float64", 1e-4), ("float32", 1e-4), ("float16", 1e-2)])
def test_it_is_the_step_of_diffusers_flux(name: str, dtype: str, most: float, cpu: Backend) -> None:
    """Diffusers takes the angles of time and place in float32, so no other computation comes nearer than 3e-5."""
    assert off(run(SPECS[name], cpu, dtype), name) <= most


@pytest.mark.parametrize(
    "tensor",
    [
        "transformer_blocks.0.attn.norm_added_q.weight",
        "transformer_blocks.0.norm1_context.linear.weight",
        "single_transformer_blocks.0.attn.norm_k.weight",
        "time_text_embed.guidance_embedder.linear_1.weight",
        "norm_out.linear.bias",
    ],
)
def test_each_tensor_matters(tensor: str, cpu: Backend) -> None:
    assert off(run(SPECS["wide"], cpu, changed=tensor), "wide") > 3e-4


def test_flux_has_the_published_size_and_the_counted_operations() -> None:
    """Counted by torch.utils.flop_counter over diffusers 0.42.1 on the meta device."""
    assert FLUX.parameters == 11_901_408_320
    assert cost(FLUX, FP16).flops == 74_384_653_418_496
    assert cost(replace(FLUX, image_tokens=256, text_tokens=32), FP16).flops == 3_783_758_708_736


def test_its_cost_is_what_its_products_do(cpu: Backend) -> None:
    """Counted here in the products that NumPy is asked for."""
    for spec in SPECS.values():
        counted = CountingModule()
        tensors = weights(spec, cpu, SEED, "float32")
        Dit(spec, tensors, counted).step(inputs(spec, cpu, SEED + 1))
        assert counted.flops == cost(spec, FP16).flops


class CountingModule:
    """NumPy, but for a `matmul` that counts."""

    flops = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def matmul(self, a: np.ndarray[Any, Any], b: np.ndarray[Any, Any], **options: Any) -> Any:
        made = np.matmul(a, b, **options)
        self.flops += 2 * made.size * a.shape[-1]
        return made


def test_each_weight_is_read_once_in_the_ledger() -> None:
    spec = replace(FLUX, double=2, single=3)
    matrices = sum(2 * math.prod(s) for s in spec.tensors().values() if len(s) > 1)
    attention = sum(p.bytes_moved for p in cost(spec, FP16).parts if p.name.endswith("attention"))
    assert cost(spec, FP16).bytes_moved - attention == matrices


def test_the_blocks_are_told_to_who_watches(cpu: Backend) -> None:
    spec, told = SPECS["even"], []
    model = Dit(spec, weights(spec, cpu, SEED, "float32"), cpu.xp)
    given = inputs(spec, cpu, SEED + 1)
    answer = model.step(given, watch=lambda block, name, states: told.append((block, name, states)))
    assert len(told) == 2 * (spec.double + spec.single)
    _, _, modulation = model.embedded(given)
    block, name, (both, nothing) = told[-1]
    assert (block, name, nothing) == ("single_transformer_blocks.2", "out", None)
    assert np.array_equal(model.projected(both[spec.text_tokens :], modulation), answer)


def test_tensors_that_do_not_fit_are_refused_by_name(cpu: Backend) -> None:
    tensors = weights(SPECS["even"], cpu, SEED, "float32")
    del tensors["proj_out.bias"]
    with pytest.raises(MisuseError, match=r"1 tensors do not fit, first 'proj_out.bias': missing, must be \(8,\)"):
        Dit(SPECS["even"], tensors, np)
    odd = replace(SPECS["even"], axes=(3, 7, 6))
    tensors = weights(odd, cpu, SEED, "float32")
    with pytest.raises(MisuseError, match="must be even"):
        Dit(odd, tensors, np)


def test_the_specs_are_those_of_the_golden_answers() -> None:
    source = (GOLDEN / "make_dit.py").read_text()
    assert f"SEED = {SEED}" in source
    assert importlib.util.find_spec("harness.inference.dit")
    for spec in SPECS.values():
        assert (
            f"heads={spec.heads}, double={spec.double}, single={spec.single}, image_tokens={spec.image_tokens}"
            in " ".join(source.split()).replace("( ", "(")
        )
