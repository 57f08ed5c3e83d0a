"""Models in GGUF files: metadata become a `ModelSpec`, tensors get the names and the order that the model knows them by.

Architectures: llama (Llama, SmolLM, Mistral, Mixtral), qwen3, qwen3moe. What is not understood of one, a key, a tensor, a way to scale
rotary embeddings, is refused rather than passed over. Source: ggml-org/llama.cpp, `convert_hf_to_gguf.py`: it moves the rows of
queries and keys of the llama architecture so that the numbers which are rotated together are neighbours, and `open_gguf` moves them back; it
stores all experts of a layer as one tensor, and the scaling of Llama 3's rotary embedding as the table `rope_freqs`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.errors import MisuseError
from harness.inference.container import Gguf, Metadata, open_container
from harness.inference.mapped import MAX_TENSORS
from harness.inference.specs import from_hf_config
from harness.inference.weights import check_shapes

if TYPE_CHECKING:
    from harness.device.backend import Array
    from harness.inference.specs import ModelSpec

__all__ = ["GgufWeights", "open_gguf", "text_of"]

_ENDS: Mapping[str, str] = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER: Mapping[str, str] = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_QWEN_EXPERTS = {"ffn_gate_exps": "gate_proj", "ffn_up_exps": "up_proj", "ffn_down_exps": "down_proj"}
_MIXTRAL_EXPERTS = {"ffn_gate_exps": "w1", "ffn_up_exps": "w3", "ffn_down_exps": "w2"}
_FREQUENCIES = "rope_freqs.weight"

# Keys of an architecture, without its name: as a config.json calls them, for all kinds and for single ones.
_FIELDS: Mapping[str, str] = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
_FEED_FORWARD: Mapping[str, Mapping[str, str]] = {
    "llama": {"feed_forward_length": "intermediate_size"},
    "mixtral": {
        "feed_forward_length": "intermediate_size",
        "expert_count": "num_local_experts",
        "expert_used_count": "num_experts_per_tok",
    },
    "qwen3": {"feed_forward_length": "intermediate_size"},
    "qwen3_moe": {
        "feed_forward_length": "intermediate_size",
        "expert_feed_forward_length": "moe_intermediate_size",
        "expert_count": "num_experts",
        "expert_used_count": "num_experts_per_tok",
    },
}
_KINDS = {"llama": "llama", "qwen3": "qwen3", "qwen3moe": "qwen3_moe"}
_IDLE = {
    "context_length",
    "vocab_size",
    "attention.value_length",
    "rope.dimension_count",
    "expert_count",
    "expert_used_count",
}


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor of the model is in the file: in which of the file's tensors, at which expert, with rows moved for how many heads."""

    name: str
    expert: int | None = None
    heads: int | None = None


class GgufWeights(Mapping[str, Any]):
    """A file's tensors by the names and in the order of the model, each expanded to float32 when it is asked for."""

    def __init__(self, file: Gguf, places: Mapping[str, _Place]) -> None:
        self.file = file
        self._places = places

    def __getitem__(self, name: str) -> Array:
        """Expand one tensor to a new float32 array."""
        place = self._places[name]
        values = self.file.part(place.name, place.expert)
        return values if place.heads is None else _halves_apart(values, place.heads)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of every tensor."""
        of = self.file.tensors
        return {n: of[p.name].shape[0 if p.expert is None else 1 :] for n, p in self._places.items()}

    @property
    def nbytes(self) -> int:
        """Return how many bytes the tensors take in the file."""
        return self.file.nbytes

    def sha256(self) -> Mapping[str, str]:
        """Return the digest of the file by its name; reads all of it."""
        return self.file.sha256()


def _halves_apart(rows: Array, heads: int) -> Array:
    """Move each head's rows from neighbours that are rotated together to halves that are."""
    pairs = rows.reshape(heads, -1, 2, rows.shape[-1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def open_gguf(path: Path | str) -> tuple[ModelSpec, GgufWeights, Metadata]:
    """Open a model: its shape, its tensors by the model's names, and what else the file says of itself.

    Raises:
        MisuseError: there is no such file, or it is a model that is not understood here, or its tensors are not the model's.
        ForgeryError: the file is damaged; the error tells where and what would be right.
    """
    file = open_container(path)
    spec = _spec(file, Path(path).stem)
    weights = GgufWeights(file, _places(file, spec))
    check_shapes(spec, weights.shapes)
    return spec, weights, file.metadata


# --- the model's shape ------------------------------------------------------------------------------------------------


def _spec(file: Gguf, fallback: str) -> ModelSpec:
    metadata = file.metadata
    parts = _scalar(metadata, "split.count", 1)
    if parts not in (0, 1):
        msg = f"the model is split into {parts} files; join them with llama-gguf-split --merge"
        raise MisuseError(msg)
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in _KINDS:
        msg = f"general.architecture is {architecture!r}; there are {', '.join(_KINDS)}"
        raise MisuseError(msg)
    kind = _KINDS[architecture]
    if kind == "llama" and _scalar(metadata, "llama.expert_count"):
        kind = "mixtral"
    config = {"model_type": kind, **_config(file, architecture, {**_FIELDS, **_FEED_FORWARD[kind]})}
    if kind == "qwen3_moe":
        config["norm_topk_prob"] = True  # not in the file: llama.cpp does so for every model of this architecture
    name = metadata.get("general.name")
    return from_hf_config(config, name=name if isinstance(name, str) and name else fallback)


def _scalar(metadata: Metadata, key: str, default: object = None) -> object:
    """Read what must be one number or text: an array would break the comparisons that it meets."""
    value = metadata.get(key, default)
    if isinstance(value, tuple | np.ndarray):
        msg = f"{key} is an array of {len(value)}; only one value for the whole model is understood"
        raise MisuseError(msg)
    return value


def _config(file: Gguf, architecture: str, fields: Mapping[str, str]) -> dict[str, object]:
    """Translate the architecture's keys, refusing any that is neither known nor known to be idle."""
    given = {k.partition(".")[2]: k for k in file.metadata if k.startswith(f"{architecture}.")}
    config: dict[str, object] = {}
    for key, full in given.items():
        if key in fields:
            config[fields[key]] = _scalar(file.metadata, full)
        elif key == "rope.scaling.type" and _scalar(file.metadata, full) in ("none", ""):
            continue
        elif key not in _IDLE:
            msg = f"{full} is {file.metadata[full]!r}, which is not understood; known are {', '.join(sorted(fields))}"
            raise MisuseError(msg)
    _check_layers(file, given.get("block_count", ""), config.get("num_hidden_layers"))
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        msg = f"there is no token_embd.weight among the file's {len(file)} tensors"
        raise MisuseError(msg)
    config |= {"vocab_size": embedding.shape[0], "tie_word_embeddings": "output.weight" not in file}
    _check_heads(file.metadata, architecture, config)
    if _FREQUENCIES in file:
        config["rope_parameters"] = _llama3(file[_FREQUENCIES], config)
    return config


def _check_layers(file: Gguf, key: str, claimed: object) -> None:
    """Hold the number of layers to the tensors that are there, before anything is made for each of so many."""
    there = len({name.split(".")[1] for name in file if name.startswith("blk.")})
    if claimed != there:
        msg = f"{key or 'block_count'} is {claimed!r}; the file has the tensors of {there} layers"
        raise MisuseError(msg)


def _check_heads(metadata: Metadata, architecture: str, config: dict[str, object]) -> None:
    """Make sure that keys and values are of one size and rotated whole: nothing else is computed."""
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if not isinstance(hidden, int) or not isinstance(heads, int) or heads < 1:
        msg = f"embedding_length is {hidden!r} and attention.head_count {heads!r}; both must be integers above 0"
        raise MisuseError(msg)
    size = config.setdefault("head_dim", hidden // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        value = _scalar(metadata, f"{architecture}.{key}", size)
        if value != size:
            msg = f"{architecture}.{key} is {value!r}; only {size!r}, the size of a head's key, is computed"
            raise MisuseError(msg)


def _llama3(factors: Array, config: Mapping[str, object]) -> dict[str, object]:
    """Recognise the scaling of Llama 3 by its table of factors: one a frequency, from 1 to the factor of the whole."""
    theta, size = config.get("rope_theta", 1e4), config["head_dim"]
    given = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    if isinstance(theta, float) and isinstance(size, int) and factors.size == size // 2 and factors.max() >= 1:
        factor = float(factors.max())
        turns = given["original_max_position_embeddings"] / (2 * math.pi) * theta ** -(np.arange(0, size, 2) / size)
        smooth = np.clip((turns - 1.0) / (4.0 - 1.0), 0, 1)
        expected = 1 / ((1 - smooth) / factor + smooth)
        if np.allclose(factors, expected, rtol=1e-4):
            return {"rope_type": "llama3", "factor": factor, **given}
    msg = f"{_FREQUENCIES} holds {factors.size} factors up to {factors.max():.6g} that are not Llama 3's scaling from 8192 tokens"
    raise MisuseError(msg)


# --- the model's tensors ----------------------------------------------------------------------------------------------


def _places(file: Gguf, spec: ModelSpec) -> dict[str, _Place]:
    """Find the model's tensors in the file."""
    permuted = file.metadata["general.architecture"] == "llama"
    heads = {"attn_q": spec.heads, "attn_k": spec.kv_heads} if permuted else {}
    mixtral = spec.experts is not None and spec.experts.naming == "mixtral"
    block, experts = ("block_sparse_moe", _MIXTRAL_EXPERTS) if mixtral else ("mlp", _QWEN_EXPERTS)
    found: dict[str, _Place] = {}
    for name, tensor in file.tensors.items():
        prefix, _, rest = name.partition(".")
        number, _, part = rest.partition(".")
        stem = part.removesuffix(".weight")
        at = f"model.layers.{number}."
        if name in _ENDS:
            found[_ENDS[name]] = _Place(name)
        elif name == _FREQUENCIES:
            continue
        elif prefix != "blk" or not part.endswith(".weight"):
            _refuse(name)
        elif stem in experts:
            if len(found) + tensor.shape[0] > MAX_TENSORS:
                msg = f"{name!r} claims {tensor.shape[0]} experts; no known model has {MAX_TENSORS} tensors"
                raise MisuseError(msg)
            found |= {
                f"{at}{block}.experts.{e}.{experts[stem]}.weight": _Place(name, e) for e in range(tensor.shape[0])
            }
        elif stem == "ffn_gate_inp":
            found[f"{at}{block}.gate.weight"] = _Place(name)
        elif stem in _LAYER:
            found[f"{at}{_LAYER[stem]}.weight"] = _Place(name, heads=heads.get(stem))
        else:
            _refuse(name)
    return found


def _refuse(name: str) -> None:
    msg = f"tensor {name[:100]!r} is none that this architecture is known to have"
    raise MisuseError(msg)


# --- text -------------------------------------------------------------------------------------------------------------


def _byte_of() -> dict[str, int]:
    """Return the bytes that the characters of a byte-level vocabulary stand for: printable ones themselves, the others 256 and on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def text_of(tokens: Iterable[int], metadata: Mapping[str, Any]) -> str:
    """Return the text that tokens stand for, by the file's own vocabulary; bytes that are no UTF-8 become the replacement character.

    Raises:
        MisuseError: the vocabulary is not of the byte-level kind ("gpt2") or is missing, or a token is none of it.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind != "gpt2":
        msg = f"the vocabulary is of kind {kind!r}; only 'gpt2', pairs of bytes, is read"
        raise MisuseError(msg)
    vocabulary, byte_of = metadata.get("tokenizer.ggml.tokens"), _byte_of()
    if not isinstance(vocabulary, tuple | list):
        msg = f"tokenizer.ggml.tokens is {vocabulary!r:.100}; it must be the vocabulary's texts"
        raise MisuseError(msg)
    raw = bytearray()
    for token in map(int, tokens):
        if not 0 <= token < len(vocabulary):
            msg = f"token {token} is none of the vocabulary's, which are 0 to {len(vocabulary) - 1}"
            raise MisuseError(msg)
        for character in vocabulary[token]:
            raw += bytes([byte_of[character]]) if character in byte_of else character.encode()
    return raw.decode(errors="replace")
