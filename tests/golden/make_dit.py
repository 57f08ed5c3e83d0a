"""Make dit.npz: the answers of Hugging Face diffusers to our weights and inputs. Needs torch and diffusers, which nothing else does.

pip install torch==2.13.0 diffusers==0.42.1 transformers==5.23.0 numba
PYTHONPATH=. python tests/golden/make_dit.py
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.device.cpu import CpuDevice
from harness.inference.dit import DitSpec, inputs, weights
from harness.model import Device

SEED = 20261125
SPECS = {
    "even": DitSpec(
        heads=2,
        double=2,
        single=3,
        image_tokens=16,
        text_tokens=5,
        axes=(4, 6, 6),
        channels=8,
        text_width=24,
        pooled_width=20,
    ),
    "wide": DitSpec(
        heads=3,
        double=1,
        single=1,
        image_tokens=64,
        text_tokens=8,
        axes=(2, 10, 8),
        channels=4,
        text_width=16,
        pooled_width=12,
    ),
}


def answer(spec: DitSpec, backend: Any, seed: int) -> np.ndarray[Any, Any]:
    """Run diffusers' model in float64."""
    flux = importlib.import_module("diffusers").FluxTransformer2DModel
    model = flux(
        in_channels=spec.channels,
        num_layers=spec.double,
        num_single_layers=spec.single,
        attention_head_dim=spec.head_dim,
        num_attention_heads=spec.heads,
        joint_attention_dim=spec.text_width,
        pooled_projection_dim=spec.pooled_width,
        guidance_embeds=True,
        axes_dims_rope=spec.axes,
    ).double()
    model.load_state_dict({n: torch.from_numpy(w).double() for n, w in weights(spec, backend, seed, "float32").items()})
    given = inputs(spec, backend, seed + 1)
    side = round(spec.image_tokens**0.5)
    places = torch.zeros(spec.image_tokens, 3)
    places[:, 1], places[:, 2] = (torch.arange(spec.image_tokens) // side), (torch.arange(spec.image_tokens) % side)
    with torch.no_grad():
        made = model(
            hidden_states=torch.from_numpy(given.image).double()[None],
            encoder_hidden_states=torch.from_numpy(given.text).double()[None],
            pooled_projections=torch.from_numpy(given.pooled).double(),
            timestep=torch.tensor([given.time]).double(),
            guidance=torch.tensor([given.guidance]).double(),
            img_ids=places,
            txt_ids=torch.zeros(spec.text_tokens, 3),
        )
    output: np.ndarray[Any, Any] = made.sample[0].numpy()
    return output


if __name__ == "__main__":
    cpu = CpuDevice(Device(uuid="CPU", name="CPU", kind="cpu", selector="cpu", sensors={}))
    answers: dict[str, Any] = {name: answer(spec, cpu, SEED) for name, spec in SPECS.items()}
    np.savez_compressed(Path(__file__).parent / "dit.npz", **answers)
