"""Shapes of decoder-only transformers: what a model is made of, tensor by tensor, without a single weight.

A `ModelSpec` decides everything about a model but its numbers. The tensors' names and shapes are those that Hugging Face transformers 5
saves for the architecture (`architectures[0]` of its `config.json`, the text model alone): matrices are (outputs, inputs).

`specs` holds the shapes of the public models and is where everything here is imported from.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from harness.errors import MisuseError

__all__ = ["DeltaNet", "Experts", "LayerKind", "ModelSpec", "Rope", "Shape"]

LayerKind = Literal["full", "sliding", "delta"]
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """Rotary position embedding: which angles the pairs (i, i + half) of a head's first dimensions are turned by.

    `fraction` of the dimensions are rotated. "llama3" slows the low frequencies down by `factor`, "yarn" does so by a ramp between the
    dimensions that turn `beta_fast` and `beta_slow` times in `original_length` tokens, and scales cosine and sine by `attention_factor`
    (None: 0.1 ln(factor) + 1).
    """

    theta: float
    kind: Literal["default", "llama3", "yarn"] = "default"
    factor: float = 1.0
    low_factor: float = 1.0
    high_factor: float = 4.0
    original_length: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None
    fraction: float = 1.0

    def __post_init__(self) -> None:
        positive = ("theta", "factor", "low_factor", "high_factor", "original_length", "beta_fast", "beta_slow")
        for field in positive:
            _require(math.isfinite(getattr(self, field)) and getattr(self, field) > 0, f"rope.{field}", self, "above 0")
        if self.kind == "yarn":  # its ramp is laid out by the logarithm of theta
            _require(self.theta > 1, "rope.theta", self, "above 1 for yarn")
        _require(0 < self.fraction <= 1, "rope.fraction", self, "above 0 and at most 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """A mixture of experts in place of the dense feed-forward block.

    Router "softmax_first" takes the softmax over all experts, then the `top_k` largest, and divides them by their sum where
    `renormalise` is set; "topk_first" takes the `top_k` largest scores and the softmax over those. A shared expert of `shared_width`
    (0: none) sees every token and is weighted by a sigmoid gate. `naming` is the file's: one tensor an expert as "qwen" or "mixtral"
    name them, or "packed" as gpt-oss, where all experts are one tensor (experts, inputs, outputs) with gate and up in turn, and all have biases.
    """

    count: int
    top_k: int
    width: int
    shared_width: int = 0
    renormalise: bool = True
    router: Literal["softmax_first", "topk_first"] = "softmax_first"
    naming: Literal["qwen", "mixtral", "packed"] = "qwen"

    def __post_init__(self) -> None:
        for field in ("count", "top_k", "width"):
            _require(getattr(self, field) > 0, f"experts.{field}", self, "above 0")
        _require(self.top_k <= self.count, "experts.top_k", self, f"at most the number of experts, {self.count}")
        _require(self.shared_width >= 0, "experts.shared_width", self, "0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaNet:
    """A gated delta rule in place of attention: a state (value heads, key_dim, value_dim) that forgets and is corrected token by token.

    `conv` is the length of the causal convolution that queries, keys and values pass first. Each key head serves
    `value_heads / key_heads` consecutive value heads.
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    conv: int

    def __post_init__(self) -> None:
        for field in ("key_heads", "value_heads", "key_dim", "value_dim"):
            _require(getattr(self, field) > 0, f"delta.{field}", self, "above 0")
        _require(self.conv > 1, "delta.conv", self, "above 1")
        _require(
            self.value_heads % self.key_heads == 0,
            "delta.value_heads",
            self,
            f"a multiple of {self.key_heads} key heads",
        )

    @property
    def keys(self) -> int:
        """Width of all keys together."""
        return self.key_heads * self.key_dim

    @property
    def values(self) -> int:
        """Width of all values together."""
        return self.value_heads * self.value_dim

    @property
    def channels(self) -> int:
        """Width of what is convolved: queries, keys and values."""
        return 2 * self.keys + self.values

    @property
    def state_values(self) -> int:
        """Numbers in the recurrent state of one sequence in one layer, all float32; the convolution's tail is not among them."""
        return self.value_heads * self.key_dim * self.value_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """All of a decoder-only transformer but its weights.

    `layer_kinds` names each layer's token mixer. `window` is how many tokens a sliding layer sees, itself included. `ffn_width` is the
    dense feed-forward block's (None where every layer has experts); `dense_layers` are those that have it although the model has
    experts. `attention_bias` is on queries, keys and values, `output_bias` on attention's output, `mlp_bias` on the dense block.
    `swiglu_limit` clamps gate and up as gpt-oss does; None is the plain SwiGLU.
    """

    name: str
    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_width: int | None
    tied: bool
    norm_eps: float
    rope: Rope
    qk_norm: bool = False
    zero_centred_norms: bool = False
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    sinks: bool = False
    output_gate: bool = False
    window: int | None = None
    layer_kinds: tuple[LayerKind, ...] = ()
    experts: Experts | None = None
    dense_layers: tuple[int, ...] = ()
    delta: DeltaNet | None = None
    swiglu_limit: float | None = None
    swiglu_alpha: float = 1.702

    def __post_init__(self) -> None:
        if not self.layer_kinds:
            object.__setattr__(self, "layer_kinds", ("full",) * self.layers)
        for field in ("vocab", "hidden", "layers", "heads", "kv_heads", "head_dim", "norm_eps"):
            _require(getattr(self, field) > 0, field, self, "above 0")
        _require(self.heads % self.kv_heads == 0, "heads", self, f"a multiple of {self.kv_heads} kv heads")
        _require(len(self.layer_kinds) == self.layers, "layer_kinds", self, f"{self.layers} kinds, one a layer")
        _require(set(self.layer_kinds) <= {"full", "sliding", "delta"}, "layer_kinds", self, "full, sliding or delta")
        _require(self.window is None or self.window > 0, "window", self, "above 0 or None")
        _require("sliding" not in self.layer_kinds or self.window is not None, "window", self, "set for sliding layers")
        _require("delta" not in self.layer_kinds or self.delta is not None, "delta", self, "set for delta layers")
        _require(self.rotary % 2 == 0 and self.rotary > 0, "rotary", self, "an even number of dimensions, at least 2")
        dense = self.experts is None or bool(self.dense_layers)
        _require(not dense or (self.ffn_width or 0) > 0, "ffn_width", self, "above 0 for dense layers")
        _require(all(0 <= i < self.layers for i in self.dense_layers), "dense_layers", self, f"below {self.layers}")
        _require(self.swiglu_limit is None or self.swiglu_limit > 0, "swiglu_limit", self, "above 0 or None")
        packed = self.experts is not None and self.experts.naming == "packed"
        _require(packed == (self.swiglu_limit is not None), "swiglu_limit", self, "set for packed experts alone")

    @property
    def rotary(self) -> int:
        """How many of a head's dimensions are rotated."""
        return int(self.head_dim * self.rope.fraction)

    def has_experts(self, layer: int) -> bool:
        """Tell whether a layer's feed-forward block is a mixture of experts."""
        return self.experts is not None and layer not in self.dense_layers

    def tensors(self) -> Mapping[str, Shape]:
        """Name every tensor of the model with its shape, in the order of use."""
        return _tensors(self)

    def layer_tensors(self, layer: int) -> Mapping[str, Shape]:
        """Name the tensors of one layer, as `tensors` does."""
        return dict(_layer(self, layer))

    @property
    def parameters(self) -> int:
        """Number of weights; a tied head is counted once."""
        return sum(map(math.prod, self.tensors().values()))

    @property
    def embedding_parameters(self) -> int:
        """Weights of the table of tokens, of which one row a token is read."""
        return self.vocab * self.hidden

    @property
    def head_parameters(self) -> int:
        """Weights of the product that makes logits; where `tied`, those of the embedding."""
        return self.vocab * self.hidden

    @property
    def expert_parameters(self) -> int:
        """Weights and biases of one routed expert in one layer; 0 where there are none."""
        if self.experts is None:
            return 0
        biases = 2 * self.experts.width + self.hidden if self.experts.naming == "packed" else 0
        return 3 * self.experts.width * self.hidden + biases

    @property
    def expert_layers(self) -> int:
        """Number of layers with a mixture of experts."""
        return sum(map(self.has_experts, range(self.layers)))

    @property
    def attention_layers(self) -> int:
        """Number of layers that keep keys and values."""
        return sum(kind != "delta" for kind in self.layer_kinds)

    @property
    def delta_layers(self) -> int:
        """Number of layers that keep a recurrent state."""
        return self.layers - self.attention_layers

    @property
    def matmul_parameters_per_token(self) -> int:
        """Weights that one token is multiplied by in the layers: matrices of its chosen experts only; no head, embedding, convolution or vector."""
        return sum(map(self._layer_matmul, range(self.layers)))

    @property
    def streamed_parameters_per_token(self) -> int:
        """Weights that must be read to decode one token alone: all but unchosen experts and, where untied, the embedding."""
        unchosen = 0 if self.experts is None else self.experts.count - self.experts.top_k
        embedding = 0 if self.tied else self.embedding_parameters
        return self.parameters - embedding - self.expert_layers * unchosen * self.expert_parameters

    def kv_bytes_per_token(self, bytes_per_value: float) -> float:
        """Bytes of keys and values that one token adds over all layers; a sliding layer's too, until its window is full."""
        return self.attention_layers * 2 * self.kv_heads * self.head_dim * bytes_per_value

    def _layer_matmul(self, layer: int) -> int:
        experts = self.experts if self.has_experts(layer) else None
        total = 0
        for name, shape in _layer(self, layer):
            routed = ".experts." in name
            if len(shape) < 2 or name.endswith(("conv1d.weight", "_bias")) or routed:  # noqa: PLR2004 - vectors are no matrix
                continue
            total += math.prod(shape)
        return total + (experts.top_k * 3 * experts.width * self.hidden if experts else 0)


def _require(fine: bool, field: str, record: object, right: str) -> None:
    if not fine:
        value = getattr(record, field.rpartition(".")[2])
        msg = f"{field} is {value!r}; it must be {right}"
        raise MisuseError(msg)


@functools.lru_cache(maxsize=64)
def _tensors(spec: ModelSpec) -> Mapping[str, Shape]:
    named: dict[str, Shape] = {"model.embed_tokens.weight": (spec.vocab, spec.hidden)}
    for layer in range(spec.layers):
        named.update(_layer(spec, layer))
    named["model.norm.weight"] = (spec.hidden,)
    if not spec.tied:
        named["lm_head.weight"] = (spec.vocab, spec.hidden)
    return MappingProxyType(named)


def _layer(spec: ModelSpec, layer: int) -> Iterator[tuple[str, Shape]]:
    at = f"model.layers.{layer}."
    yield f"{at}input_layernorm.weight", (spec.hidden,)
    mixer = _delta(spec) if spec.layer_kinds[layer] == "delta" else _attention(spec)
    yield from ((f"{at}{name}", shape) for name, shape in mixer)
    yield f"{at}post_attention_layernorm.weight", (spec.hidden,)
    block = _experts(spec) if spec.has_experts(layer) else _dense(spec)
    yield from ((f"{at}{name}", shape) for name, shape in block)


def _linear(name: str, outputs: int, inputs: int, *, bias: bool = False) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (outputs, inputs)
    if bias:
        yield f"{name}.bias", (outputs,)


def _attention(spec: ModelSpec) -> Iterator[tuple[str, Shape]]:
    queries, keys = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    gated = 2 if spec.output_gate else 1  # each head's query is followed by its gate
    yield from _linear("self_attn.q_proj", gated * queries, spec.hidden, bias=spec.attention_bias)
    yield from _linear("self_attn.k_proj", keys, spec.hidden, bias=spec.attention_bias)
    yield from _linear("self_attn.v_proj", keys, spec.hidden, bias=spec.attention_bias)
    yield from _linear("self_attn.o_proj", spec.hidden, queries, bias=spec.output_bias)
    if spec.qk_norm:
        yield "self_attn.q_norm.weight", (spec.head_dim,)
        yield "self_attn.k_norm.weight", (spec.head_dim,)
    if spec.sinks:
        yield "self_attn.sinks", (spec.heads,)


def _delta(spec: ModelSpec) -> Iterator[tuple[str, Shape]]:
    net = spec.delta
    assert net is not None  # noqa: S101 - ModelSpec has checked it
    yield "linear_attn.dt_bias", (net.value_heads,)
    yield "linear_attn.A_log", (net.value_heads,)
    yield "linear_attn.conv1d.weight", (net.channels, 1, net.conv)
    yield "linear_attn.norm.weight", (net.value_dim,)
    yield from _linear("linear_attn.out_proj", spec.hidden, net.values)
    yield from _linear("linear_attn.in_proj_qkv", net.channels, spec.hidden)
    yield from _linear("linear_attn.in_proj_z", net.values, spec.hidden)
    yield from _linear("linear_attn.in_proj_b", net.value_heads, spec.hidden)
    yield from _linear("linear_attn.in_proj_a", net.value_heads, spec.hidden)


def _dense(spec: ModelSpec) -> Iterator[tuple[str, Shape]]:
    width = spec.ffn_width
    assert width is not None  # noqa: S101 - ModelSpec has checked it
    yield from _linear("mlp.gate_proj", width, spec.hidden, bias=spec.mlp_bias)
    yield from _linear("mlp.up_proj", width, spec.hidden, bias=spec.mlp_bias)
    yield from _linear("mlp.down_proj", spec.hidden, width, bias=spec.mlp_bias)


def _experts(spec: ModelSpec) -> Iterator[tuple[str, Shape]]:
    experts = spec.experts
    assert experts is not None  # noqa: S101 - `has_experts` said so
    hidden, width, count = spec.hidden, experts.width, experts.count
    if experts.naming == "packed":
        yield from _linear("mlp.router", count, hidden, bias=True)
        yield "mlp.experts.gate_up_proj", (count, hidden, 2 * width)
        yield "mlp.experts.gate_up_proj_bias", (count, 2 * width)
        yield "mlp.experts.down_proj", (count, width, hidden)
        yield "mlp.experts.down_proj_bias", (count, hidden)
        return
    at, gate, up, down = (
        ("block_sparse_moe", "w1", "w3", "w2")
        if experts.naming == "mixtral"
        else ("mlp", "gate_proj", "up_proj", "down_proj")
    )
    yield from _linear(f"{at}.gate", count, hidden)
    for expert in range(count):
        yield from _linear(f"{at}.experts.{expert}.{gate}", width, hidden)
        yield from _linear(f"{at}.experts.{expert}.{up}", width, hidden)
        yield from _linear(f"{at}.experts.{expert}.{down}", hidden, width)
    if experts.shared_width:
        yield from _linear("mlp.shared_expert.gate_proj", experts.shared_width, hidden)
        yield from _linear("mlp.shared_expert.up_proj", experts.shared_width, hidden)
        yield from _linear("mlp.shared_expert.down_proj", hidden, experts.shared_width)
        yield from _linear("mlp.shared_expert_gate", 1, hidden)
