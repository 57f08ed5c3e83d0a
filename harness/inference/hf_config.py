"""From the `config.json` of a Hugging Face model to a `ModelSpec`, refusing what would be computed otherwise than the model does.

Fields are those that transformers 5 writes, and those that the models were published with (version 4). A field that is known to have no
effect on what a trained text model answers is passed over; any other that is not understood is refused, by name and value.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from harness.errors import MisuseError
from harness.inference.shapes import DeltaNet, Experts, LayerKind, ModelSpec, Rope

__all__ = ["from_hf_config"]

_MOST = 1 << 24  # no dimension of a model comes near it: above, the file is damaged

# Fields that name things, steer training or sampling, or repeat another one.
_IDLE = frozenset(
    {
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "attn_implementation",
        "auto_map",
        "base_model_tp_plan",
        "chunk_size_feed_forward",
        "dtype",
        "embd_pdrop",
        "experts_per_token",
        "full_attention_interval",
        "hidden_dropout",
        "id2label",
        "initial_context_length",
        "initializer_range",
        "is_encoder_decoder",
        "is_llama_config",
        "label2id",
        "mamba_ssm_dtype",
        "max_position_embeddings",
        "max_window_layers",
        "model_type",
        "mtp_num_hidden_layers",
        "mtp_use_dedicated_embeddings",
        "name_or_path",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "pretraining_tp",
        "problem_type",
        "resid_pdrop",
        "return_dict",
        "router_aux_loss_coef",
        "router_jitter_noise",
        "torch_dtype",
        "transformers.js_config",
        "transformers_version",
        "use_cache",
    }
)

# Fields that change the answer, and the one value each that is computed here.
_FIXED: Mapping[str, object] = {
    "hidden_act": "silu",
    "rope_interleaved": False,
    "attn_output_gate": True,
    "is_decoder": False,
    "add_cross_attention": False,
}

_ROPE_IDLE = frozenset({"mrope_section", "mrope_interleaved", "type", "rope_type", "rope_theta"})


class _Config:
    """A configuration that remembers which of its fields were read."""

    def __init__(self, fields: Mapping[str, object]) -> None:
        self.fields = fields
        self.read: set[str] = set()

    def get(self, field: str, default: object = None) -> Any:
        self.read.add(field)
        value = self.fields.get(field)
        return default if value is None else value

    def integer(self, field: str, default: int | None = None, *, least: int = 1) -> int:
        value = self.get(field, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _MOST:
            _refuse(field, value, f"an integer from {least} to {_MOST}")
        return value

    def number(self, field: str, default: float | None = None) -> float:
        value = self.get(field, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
            _refuse(field, value, "a number")
        return float(value)

    def flag(self, field: str, *, default: bool = False) -> bool:
        value = self.get(field, default)
        if not isinstance(value, bool):
            _refuse(field, value, "true or false")
        return value

    def refuse_the_rest(self) -> None:
        for field, value in self.fields.items():
            idle = field in _IDLE or field.endswith(("_token_id", "_token_index", "_dropout"))
            if field in self.read or idle or value is None:
                continue
            if field in _FIXED:
                if value != _FIXED[field]:
                    _refuse(field, value, repr(_FIXED[field]))
                continue
            _refuse(field, value, "a field that this model's kind has")


def _refuse(field: str, value: object, right: str) -> NoReturn:
    msg = f"config.json: {field} is {value!r}, which is not supported; it must be {right}"
    raise MisuseError(msg)


def from_hf_config(config: Mapping[str, object], *, name: str | None = None) -> ModelSpec:
    """Read a model's shape from its `config.json`.

    Args:
        config: the file's content. Of a model that also sees, `text_config` is read.
        name: what to call the model; by default what the file calls it, else its `model_type`.

    Raises:
        MisuseError: a field has a value that is not supported, or is missing; the message names field and value.
    """
    text = config.get("text_config")
    if isinstance(text, Mapping):
        inherited = {k: config[k] for k in ("tie_word_embeddings", "quantization_config") if k in config}
        return from_hf_config({**text, **inherited}, name=name or _named(config))
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in _KINDS:
        _refuse("model_type", kind, f"one of {', '.join(_KINDS)}")
    fields = _Config(config)
    spec = _KINDS[kind](fields, name or _named(config) or kind)
    fields.refuse_the_rest()
    return spec


def _named(config: Mapping[str, object]) -> str | None:
    named = config.get("_name_or_path")
    return named if isinstance(named, str) and named else None


def _rope(fields: _Config, default_theta: float, *, fraction: float | None = None) -> Rope:
    """Read the rotary embedding; `fraction` is the kind's default where it can rotate a part of a head alone."""
    new, old = fields.get("rope_parameters") or {}, fields.get("rope_scaling") or {}
    if new and old and new != old:  # Hugging Face takes the old one, and its default theta
        _refuse("rope_scaling", old, f"absent or the same as rope_parameters, {new!r}")
    given = new or old
    if not isinstance(given, Mapping):
        _refuse("rope_parameters", given, "a mapping")
    theta = fields.number("rope_theta", default_theta)
    rotated = fields.number("partial_rotary_factor", fraction or 1.0)
    inner = _Config({f"rope_parameters.{key}": value for key, value in given.items()})
    at = "rope_parameters."
    rotated = inner.number(f"{at}partial_rotary_factor", rotated)
    if fraction is None and rotated != 1:
        _refuse("partial_rotary_factor", rotated, "1 for this model_type")
    theta = inner.number(f"{at}rope_theta", theta)
    kind = inner.get(f"{at}rope_type", inner.get(f"{at}type", "default"))
    if not isinstance(kind, str) or kind not in _ROPES:
        _refuse("rope_type", kind, f"one of {', '.join(_ROPES)}")
    rope = _ROPES[kind](inner, fields, theta, rotated)
    for key, value in given.items():
        if key not in _ROPE_IDLE and f"{at}{key}" not in inner.read and value is not None:
            _refuse(f"{at}{key}", value, f"a field of rope_type {kind!r}")
    return rope


def _default_rope(_inner: _Config, _fields: _Config, theta: float, fraction: float) -> Rope:
    return Rope(theta=theta, fraction=fraction)


def _original(inner: _Config, fields: _Config) -> int:
    field = "original_max_position_embeddings"
    if fields.get(field) is not None:
        return fields.integer(field)
    if inner.get(f"rope_parameters.{field}") is not None:
        return inner.integer(f"rope_parameters.{field}")
    return fields.integer("max_position_embeddings")


def _llama3_rope(inner: _Config, fields: _Config, theta: float, fraction: float) -> Rope:
    at = "rope_parameters."
    return Rope(
        theta=theta,
        kind="llama3",
        factor=inner.number(f"{at}factor"),
        low_factor=inner.number(f"{at}low_freq_factor"),
        high_factor=inner.number(f"{at}high_freq_factor"),
        original_length=_original(inner, fields),
        fraction=fraction,
    )


def _yarn_rope(inner: _Config, fields: _Config, theta: float, fraction: float) -> Rope:
    at = "rope_parameters."
    factor = inner.number(f"{at}factor")
    return Rope(
        theta=theta,
        kind="yarn",
        factor=factor,
        original_length=_original(inner, fields),
        beta_fast=inner.number(f"{at}beta_fast", 32.0),
        beta_slow=inner.number(f"{at}beta_slow", 1.0),
        truncate=inner.flag(f"{at}truncate", default=True),
        attention_factor=_attention_factor(inner, factor),
        fraction=fraction,
    )


def _attention_factor(inner: _Config, factor: float) -> float | None:
    at = "rope_parameters."
    given, some, all_ = (inner.get(f"{at}{key}") for key in ("attention_factor", "mscale", "mscale_all_dim"))
    if given is not None:
        return inner.number(f"{at}attention_factor")
    if not (some and all_):
        return None
    scale = math.log(factor) / 10 if factor > 1 else 0.0
    whole = scale * inner.number(f"{at}mscale_all_dim") + 1
    if not whole > 0:
        _refuse(f"{at}mscale_all_dim", all_, "a number that leaves a positive scale")
    return (scale * inner.number(f"{at}mscale") + 1) / whole


_ROPES: Mapping[str, Callable[[_Config, _Config, float, float], Rope]] = {
    "default": _default_rope,
    "llama3": _llama3_rope,
    "yarn": _yarn_rope,
}

_LAYER_KINDS: Mapping[object, LayerKind] = {
    "full_attention": "full",
    "sliding_attention": "sliding",
    "linear_attention": "delta",
}


def _layer_kinds(fields: _Config, layers: int, default: Callable[[int], LayerKind]) -> tuple[LayerKind, ...]:
    given = fields.get("layer_types")
    if given is None:
        return tuple(map(default, range(layers)))
    named = isinstance(given, list | tuple) and all(isinstance(kind, str) and kind in _LAYER_KINDS for kind in given)
    if not named or len(given) != layers:
        _refuse("layer_types", given, f"{layers} of {', '.join(map(str, _LAYER_KINDS))}")
    return tuple(_LAYER_KINDS[kind] for kind in given)


def _spec(fields: _Config, name: str, *, head_dim: int | None = None, **parts: Any) -> ModelSpec:
    """Read what all kinds have in common; `head_dim` is the kind's default, None its share of the hidden size."""
    heads, hidden = fields.integer("num_attention_heads"), fields.integer("hidden_size")
    return ModelSpec(
        name=name,
        vocab=fields.integer("vocab_size"),
        hidden=hidden,
        layers=fields.integer("num_hidden_layers"),
        heads=heads,
        kv_heads=fields.integer("num_key_value_heads", heads),
        head_dim=fields.integer("head_dim", head_dim or hidden // heads),
        tied=fields.flag("tie_word_embeddings"),
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        **parts,
    )


def _llama(fields: _Config, name: str) -> ModelSpec:
    bias = fields.flag("attention_bias")
    return _spec(
        fields,
        name,
        ffn_width=fields.integer("intermediate_size"),
        rope=_rope(fields, 1e4),
        attention_bias=bias,
        output_bias=bias,
        mlp_bias=fields.flag("mlp_bias"),
    )


def _window(fields: _Config, default: int | None) -> int | None:
    """Read a window: null is none, and only a file that says nothing of it has the kind's default."""
    if fields.get("sliding_window") is None and "sliding_window" in fields.fields:
        return None
    return None if fields.get("sliding_window", default) is None else fields.integer("sliding_window", default)


def _all_sliding(fields: _Config, default: int | None) -> dict[str, Any]:
    """Read a window that, where there is one, is every layer's."""
    window = _window(fields, default)
    if window is None:
        return {}
    return {"window": window, "layer_kinds": ("sliding",) * fields.integer("num_hidden_layers")}


def _mistral(fields: _Config, name: str) -> ModelSpec:
    width = fields.integer("intermediate_size")
    return _spec(fields, name, ffn_width=width, rope=_rope(fields, 1e4), **_all_sliding(fields, 4096))


def _mixtral(fields: _Config, name: str) -> ModelSpec:
    experts = Experts(
        count=fields.integer("num_local_experts", 8),
        top_k=fields.integer("num_experts_per_tok", 2),
        width=fields.integer("intermediate_size"),
        naming="mixtral",
    )
    return _spec(fields, name, ffn_width=None, rope=_rope(fields, 1e6), experts=experts, **_all_sliding(fields, None))


def _some_sliding(fields: _Config) -> dict[str, Any]:
    """Read a window that is the later layers' alone, and only where it is switched on."""
    layers, on = fields.integer("num_hidden_layers"), fields.flag("use_sliding_window")
    window = _window(fields, 4096) if on else None
    fields.get("sliding_window")
    first = fields.integer("max_window_layers", 28, least=0)
    kinds = _layer_kinds(fields, layers, lambda i: "sliding" if window is not None and i >= first else "full")
    if "delta" in kinds:
        _refuse("layer_types", "linear_attention", "full_attention or sliding_attention")
    return {"window": window, "layer_kinds": kinds}


def _qwen2(fields: _Config, name: str) -> ModelSpec:
    width = fields.integer("intermediate_size")
    return _spec(fields, name, ffn_width=width, rope=_rope(fields, 1e4), attention_bias=True, **_some_sliding(fields))


def _qwen3(fields: _Config, name: str) -> ModelSpec:
    bias = fields.flag("attention_bias")
    return _spec(
        fields,
        name,
        head_dim=128,
        ffn_width=fields.integer("intermediate_size"),
        rope=_rope(fields, 1e4),
        qk_norm=True,
        attention_bias=bias,
        output_bias=bias,
        **_some_sliding(fields),
    )


def _expert_count(fields: _Config) -> int:
    other = fields.get("num_local_experts")
    return fields.integer("num_experts", other)


def _qwen3_moe(fields: _Config, name: str) -> ModelSpec:
    layers, bias = fields.integer("num_hidden_layers"), fields.flag("attention_bias")
    dense, step = fields.get("mlp_only_layers", ()), fields.integer("decoder_sparse_step", 1)
    if not isinstance(dense, list | tuple) or not all(isinstance(i, int) for i in dense):
        _refuse("mlp_only_layers", dense, "a list of layers")
    dense = frozenset(dense)
    window = _all_sliding(fields, 4096) if fields.flag("use_sliding_window") else {}
    fields.get("sliding_window")
    experts = Experts(
        count=_expert_count(fields),
        top_k=fields.integer("num_experts_per_tok"),
        width=fields.integer("moe_intermediate_size"),
        renormalise=fields.flag("norm_topk_prob"),
    )
    return _spec(
        fields,
        name,
        ffn_width=fields.integer("intermediate_size"),
        rope=_rope(fields, 1e4),
        qk_norm=True,
        attention_bias=bias,
        output_bias=bias,
        experts=experts,
        dense_layers=tuple(i for i in range(layers) if i in dense or (i + 1) % step),
        **window,
    )


def _gpt_oss(fields: _Config, name: str) -> ModelSpec:
    layers, bias = fields.integer("num_hidden_layers"), fields.flag("attention_bias", default=True)
    experts = Experts(
        count=_expert_count(fields),
        top_k=fields.integer("num_experts_per_tok"),
        width=fields.integer("intermediate_size"),
        router="topk_first",
        naming="packed",
    )
    return _spec(
        fields,
        name,
        head_dim=64,
        ffn_width=None,
        rope=_rope(fields, 1.5e5),
        attention_bias=bias,
        output_bias=bias,
        sinks=True,
        window=fields.integer("sliding_window"),
        layer_kinds=_layer_kinds(fields, layers, lambda i: "full" if i % 2 else "sliding"),
        experts=experts,
        swiglu_limit=fields.number("swiglu_limit", 7.0),
        swiglu_alpha=fields.number("swiglu_alpha", 1.702),
    )


def _qwen35(fields: _Config, name: str, **feed_forward: Any) -> ModelSpec:
    layers, bias = fields.integer("num_hidden_layers"), fields.flag("attention_bias")
    every = fields.integer("full_attention_interval", 4)
    delta = DeltaNet(
        key_heads=fields.integer("linear_num_key_heads"),
        value_heads=fields.integer("linear_num_value_heads"),
        key_dim=fields.integer("linear_key_head_dim"),
        value_dim=fields.integer("linear_value_head_dim"),
        conv=fields.integer("linear_conv_kernel_dim", 4),
    )
    kinds = _layer_kinds(fields, layers, lambda i: "delta" if (i + 1) % every else "full")
    if "sliding" in kinds:
        _refuse("layer_types", "sliding_attention", "full_attention or linear_attention")
    return _spec(
        fields,
        name,
        head_dim=256,
        rope=_rope(fields, 1e4, fraction=0.25),
        qk_norm=True,
        zero_centred_norms=True,
        attention_bias=bias,
        output_bias=bias,
        output_gate=True,
        layer_kinds=kinds,
        delta=delta,
        **feed_forward,
    )


def _qwen35_dense(fields: _Config, name: str) -> ModelSpec:
    return _qwen35(fields, name, ffn_width=fields.integer("intermediate_size"))


def _qwen35_moe(fields: _Config, name: str) -> ModelSpec:
    experts = Experts(
        count=_expert_count(fields),
        top_k=fields.integer("num_experts_per_tok"),
        width=fields.integer("moe_intermediate_size"),
        shared_width=fields.integer("shared_expert_intermediate_size"),
    )
    return _qwen35(fields, name, ffn_width=None, experts=experts)


_KINDS: Mapping[str, Callable[[_Config, str], ModelSpec]] = {
    "llama": _llama,
    "mistral": _mistral,
    "mixtral": _mixtral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3_moe,
    "qwen3_5_text": _qwen35_dense,
    "qwen3_5_moe_text": _qwen35_moe,
    "gpt_oss": _gpt_oss,
}
