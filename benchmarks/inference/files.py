"""One model of Llama's architecture in the two forms that the engines read: safetensors with its configuration, and GGUF. All float32."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from harness.inference.specs import ModelSpec

__all__ = ["write"]

Host = np.ndarray[Any, Any]
_ALIGNMENT = 32
_UINT32, _FLOAT32, _STRING = 4, 6, 8  # types of GGUF's values
_PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_ENDS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def write(folder: Path, spec: ModelSpec, weights: Mapping[str, Host], length: int) -> None:
    """Write a dense model with plain rotary embeddings, good for `length` positions, into a folder."""
    _write_config(folder / "config.json", spec, length)
    _write_safetensors(folder / "model.safetensors", weights)
    _write_gguf(folder / "model.gguf", spec, weights, length)


def _write_config(path: Path, spec: ModelSpec, length: int) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "vocab_size": spec.vocab,
        "hidden_size": spec.hidden,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "intermediate_size": spec.ffn_width,
        "tie_word_embeddings": spec.tied,
        "rms_norm_eps": spec.norm_eps,
        "rope_theta": spec.rope.theta,
        "max_position_embeddings": length,
    }
    path.write_text(json.dumps(config))


def _write_safetensors(path: Path, weights: Mapping[str, Host]) -> None:
    header, at = {}, 0
    for name, array in weights.items():
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in weights.values():
            file.write(np.ascontiguousarray(array, dtype=np.float32).data)


def _write_gguf(path: Path, spec: ModelSpec, weights: Mapping[str, Host], length: int) -> None:
    values = {
        "general.architecture": "llama",
        "general.file_type": 0,
        "llama.vocab_size": spec.vocab,
        "llama.context_length": length,
        "llama.embedding_length": spec.hidden,
        "llama.block_count": spec.layers,
        "llama.feed_forward_length": spec.ffn_width or 0,
        "llama.attention.head_count": spec.heads,
        "llama.attention.head_count_kv": spec.kv_heads,
        "llama.attention.layer_norm_rms_epsilon": float(spec.norm_eps),
        "llama.rope.dimension_count": spec.head_dim,
        "llama.rope.freq_base": float(spec.rope.theta),
        "tokenizer.ggml.model": "no_vocab",
    }
    tensors = {_gguf_name(name): _paired(spec, name, array) for name, array in weights.items()}
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values))
    header += b"".join(_text(key) + _value(value) for key, value in values.items())
    at = 0
    for name, array in tensors.items():
        shape = array.shape[::-1]
        header += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, at)
        at += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
    with path.open("wb") as file:
        file.write(header + bytes(-len(header) % _ALIGNMENT))
        for array in tensors.values():
            file.write(array.data)
            file.write(bytes(-array.nbytes % _ALIGNMENT))


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _value(value: object) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    return struct.pack("<If", _FLOAT32, value) if isinstance(value, float) else struct.pack("<II", _UINT32, value)


def _gguf_name(name: str) -> str:
    if name in _ENDS:
        return _ENDS[name]
    number, _, part = name.removeprefix("model.layers.").partition(".")
    return f"blk.{number}.{_PARTS[part.removesuffix('.weight')]}.weight"


def _paired(spec: ModelSpec, name: str, array: Host) -> Host:
    """Put the rows of queries and keys that are rotated together side by side, as llama.cpp wants them for this architecture."""
    for part, heads in (("q_proj", spec.heads), ("k_proj", spec.kv_heads)):
        if f".{part}." in name:
            array = array.reshape(heads, 2, -1, array.shape[-1]).swapaxes(1, 2).reshape(array.shape)
    return np.ascontiguousarray(array, dtype=np.float32)
