"""Make the golden files: tiny models of every architecture, computed by Hugging Face transformers on a CPU.

    python -m venv /tmp/golden
    /tmp/golden/bin/pip install torch transformers        # 2.13.0 and 5.24.0 made what lies here
    /tmp/golden/bin/python tests/golden/generate.py

Each file holds the configuration as transformers writes it, 416 tokens, the logits at each of them, and what the first 32 are continued
with. Weights are not stored: `hashed.py` makes them from names and shapes, which are those that transformers saves.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1]))

from golden import hashed

LENGTH, PROMPT, CONTINUED, VOCAB = 416, 32, 24, 64
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 32,
    "num_hidden_layers": 4,
    "rms_norm_eps": 1e-4,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25},
}


def rope(kind: str, theta: float, **rest: object) -> dict[str, object]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **rest}}


LLAMA3 = rope(
    "llama3", 5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=128
)
YARN = rope("yarn", 1e4, factor=8.0, original_max_position_embeddings=512)
GPT_OSS = rope(
    "yarn", 1.5e5, factor=32.0, beta_fast=32.0, beta_slow=1.0, truncate=False, original_max_position_embeddings=1024
)

# name: (class of the configuration, its fields beyond SIZES, what the experts' first matrices are multiplied by)
MODELS: dict[str, tuple[str, dict[str, object], float]] = {
    "llama": ("LlamaConfig", {"intermediate_size": 160, "rms_norm_eps": 1e-5, **LLAMA3}, 1.0),
    "llama-biased": (
        "LlamaConfig",
        {
            "intermediate_size": 96,
            "head_dim": 16,
            "num_key_value_heads": 1,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
            **rope("default", 1e4),
        },
        1.0,
    ),
    "mistral": (
        "MistralConfig",
        {"intermediate_size": 160, "sliding_window": 37, "num_key_value_heads": 4, **rope("default", 1e6)},
        1.0,
    ),
    "qwen2": (
        "Qwen2Config",
        {
            "intermediate_size": 160,
            "use_sliding_window": True,
            "sliding_window": 24,
            "max_window_layers": 1,
            **rope("default", 1e6),
        },
        1.0,
    ),
    "qwen3": ("Qwen3Config", {"intermediate_size": 160, "tie_word_embeddings": True, **YARN}, 1.0),
    "mixtral": (
        "MixtralConfig",
        {"intermediate_size": 96, "num_local_experts": 8, "num_experts_per_tok": 2, **rope("default", 1e6)},
        1.0,
    ),
    "qwen3-moe": (
        "Qwen3MoeConfig",
        {
            "intermediate_size": 128,
            "moe_intermediate_size": 32,
            "num_experts": 16,
            "num_experts_per_tok": 4,
            "norm_topk_prob": True,
            **rope("default", 1e6),
        },
        1.0,
    ),
    "qwen3-moe-plain": (
        "Qwen3MoeConfig",
        {
            "intermediate_size": 128,
            "moe_intermediate_size": 32,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "norm_topk_prob": False,
            "mlp_only_layers": [1],
            "attention_bias": True,
            **rope("default", 1e6),
        },
        1.0,
    ),
    "gpt-oss": (
        "GptOssConfig",
        {
            "intermediate_size": 48,
            "num_local_experts": 8,
            "num_experts_per_tok": 4,
            "sliding_window": 24,
            "num_hidden_layers": 4,
            **GPT_OSS,
        },
        5.0,
    ),
    "qwen3.5": ("Qwen3_5TextConfig", {"intermediate_size": 128, "attention_bias": True, **DELTA}, 1.0),
    "qwen3.5-moe": (
        "Qwen3_5MoeTextConfig",
        {
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 48,
            "num_experts": 16,
            "num_experts_per_tok": 4,
            **DELTA,
        },
        1.0,
    ),
}


def make(name: str, seed: int) -> None:
    kind, fields, loud = MODELS[name]
    fields = {**SIZES, **fields}
    if kind == "Qwen2Config":
        del fields["head_dim"]
    config = getattr(transformers, kind)(**fields)
    with tempfile.TemporaryDirectory() as folder:
        model_class = transformers.AutoModelForCausalLM
        model_class.from_config(config).save_pretrained(folder)
        file = Path(folder) / "model.safetensors"
        shapes = {tensor: array.shape for tensor, array in load_file(file).items()}
        how = {"zero_centred": kind.startswith("Qwen3_5"), "tied": config.tie_word_embeddings, "loud": loud}
        save_file(hashed.weights(shapes, seed, **how), file, {"format": "pt"})
        model = model_class.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
        written = json.loads((Path(folder) / "config.json").read_text())
    tokens = np.random.default_rng(seed).integers(0, VOCAB, LENGTH)
    with torch.inference_mode():
        logits = model(torch.from_numpy(tokens)[None]).logits[0].numpy()
        prompt = torch.from_numpy(tokens[:PROMPT])[None]
        mask = torch.ones_like(prompt)
        greedy = model.generate(prompt, attention_mask=mask, max_new_tokens=CONTINUED, do_sample=False)[0, PROMPT:]
    np.savez_compressed(
        Path(__file__).parent / "models" / f"{name}.npz",
        config=json.dumps(written, sort_keys=True),
        seed=seed,
        loud=loud,
        tokens=tokens.astype(np.uint8),
        logits=logits.astype(np.float32),
        greedy=greedy.numpy().astype(np.uint8),
    )
    count = sum(math.prod(shape) for shape in shapes.values())
    print(
        f"{name:16} {count:8,} parameters, deviation {logits.std():.4f}, {len(set(greedy.tolist()))} different tokens"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    for number, chosen in enumerate(MODELS):
        if chosen in sys.argv[1:] or len(sys.argv) == 1:
            make(chosen, 1000 + number)
