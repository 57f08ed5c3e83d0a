"""What models are made of: exact counts, configurations read, and those refused."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from harness.errors import MisuseError
from harness.inference.specs import SPECS, DeltaNet, Experts, ModelSpec, Rope, find, from_hf_config, sliced

# Published totals; billions of weights read for one token; bytes of keys and values a token in 16 bits.
PUBLISHED = [
    ("smollm2-135m", 134_515_008, 0.1345, 23_040),
    ("qwen3-0.6b", 596_049_920, 0.596, 114_688),
    ("llama-3.2-1b", 1_235_814_400, 1.236, 32_768),
    ("qwen3-4b", 4_022_468_096, 4.022, 147_456),
    ("llama-3.1-8b", 8_030_261_248, 7.505, 131_072),
    ("qwen3-8b", 8_190_735_360, 7.568, 147_456),
    ("qwen3-14b", 14_768_307_200, 13.99, 163_840),
    ("qwen3-32b", 32_762_123_264, 31.98, 262_144),
    ("qwen3-30b-a3b", 30_532_122_624, 3.042, 98_304),
    ("qwen3.5-35b-a3b", 34_660_610_688, 2.946, 20_480),
    ("gpt-oss-20b", 20_914_757_184, 3.608, 49_152),
    ("gpt-oss-120b", 116_829_156_672, 5.133, 73_728),
    ("mixtral-8x7b", 46_702_792_704, 12.75, 131_072),
    ("llama-3.3-70b", 70_553_706_496, 69.50, 327_680),
]

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.0",
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008],
    "max_position_embeddings": 131072,
    "pretraining_tp": 1,
    "mlp_bias": False,
    "attention_bias": False,
}
QWEN3_MOE: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_scaling": None,
    "use_sliding_window": False,
    "sliding_window": None,
    "max_window_layers": 48,
    "mlp_only_layers": [],
    "decoder_sparse_step": 1,
    "router_aux_loss_coef": 0.001,
}
GPT_OSS: dict[str, Any] = {
    "model_type": "gpt_oss",
    "vocab_size": 201088,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_hidden_layers": 24,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "num_local_experts": 32,
    "num_experts_per_tok": 4,
    "experts_per_token": 4,
    "sliding_window": 128,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "rms_norm_eps": 1e-5,
    "attention_bias": True,
    "rope_theta": 150000,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    },
    "swiglu_limit": 7.0,
    "initial_context_length": 4096,
}
QWEN35: dict[str, Any] = {
    "model_type": "qwen3_5_moe",
    "tie_word_embeddings": False,
    "vision_config": {"depth": 27},
    "text_config": {
        "model_type": "qwen3_5_moe_text",
        "vocab_size": 248320,
        "hidden_size": 2048,
        "num_hidden_layers": 40,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
        "num_experts": 256,
        "num_experts_per_tok": 8,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_conv_kernel_dim": 4,
        "full_attention_interval": 4,
        "attn_output_gate": True,
        "rms_norm_eps": 1e-6,
        "mtp_num_hidden_layers": 1,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000000,
            "partial_rotary_factor": 0.25,
            "mrope_section": [11, 11, 10],
            "mrope_interleaved": True,
        },
    },
}
QWEN2: dict[str, Any] = {**LLAMA, "model_type": "qwen2", "rope_scaling": None}
for _field in ("mlp_bias", "attention_bias"):
    del QWEN2[_field]


@pytest.mark.parametrize(("name", "total", "streamed", "kv_bytes"), PUBLISHED, ids=[row[0] for row in PUBLISHED])
def test_counts_are_the_published_ones(name: str, total: int, streamed: float, kv_bytes: int) -> None:
    spec = find(name)
    assert spec.parameters == total
    assert spec.streamed_parameters_per_token / 1e9 == pytest.approx(streamed, rel=4e-4)
    assert spec.kv_bytes_per_token(2) == kv_bytes


def test_every_public_model_is_counted() -> None:
    assert {name for name in SPECS if not name.startswith("tiny-")} == {row[0] for row in PUBLISHED}


@pytest.mark.parametrize(("name", "flops"), [("llama-3.1-8b", 7.285315e12), ("qwen3-4b", 3.875912e12)])
def test_products_per_token_agree_with_torchs_flop_counter(name: str, flops: float) -> None:
    """Counted by `torch.utils.flop_counter` on 512 tokens with the head on the last alone; it counts the full square of scores."""
    spec, tokens = find(name), 512
    scores = spec.layers * 4 * spec.heads * spec.head_dim * tokens**2
    ours = 2 * tokens * spec.matmul_parameters_per_token + 2 * spec.head_parameters + scores
    assert ours == pytest.approx(flops, rel=1e-6)


@pytest.mark.parametrize("spec", SPECS.values(), ids=lambda s: s.name)
def test_all_weights_are_a_product_a_vector_or_an_unchosen_expert(spec: ModelSpec) -> None:
    vectors = sum(
        math.prod(shape)
        for name, shape in spec.tensors().items()
        if len(shape) == 1 or name.endswith(("conv1d.weight", "_proj_bias"))
    )
    tables = (1 if spec.tied else 2) * spec.vocab * spec.hidden
    unchosen = 0
    if spec.experts:
        width = 3 * spec.experts.width * spec.hidden
        unchosen = spec.expert_layers * (spec.experts.count - spec.experts.top_k) * width
    assert spec.parameters == spec.matmul_parameters_per_token + vectors + tables + unchosen


def test_layers_make_up_the_model() -> None:
    spec = find("tiny-qwen3.5")
    names = [name for layer in range(spec.layers) for name in spec.layer_tensors(layer)]
    assert set(spec.tensors()) - set(names) == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    assert len(names) == len(set(names))


def test_a_states_size_is_that_of_its_heads() -> None:
    spec = find("qwen3.5-35b-a3b")
    assert spec.delta is not None
    assert (spec.delta_layers, spec.attention_layers) == (30, 10)
    assert 4 * spec.delta.state_values == 2 << 20  # bytes of a layer and sequence


def test_a_tied_head_is_no_tensor_of_its_own() -> None:
    tied = find("tiny-qwen3")
    assert "lm_head.weight" not in tied.tensors()
    untied = replace(tied, tied=False)
    assert untied.tensors()["lm_head.weight"] == (tied.vocab, tied.hidden)
    assert untied.parameters == tied.parameters + tied.head_parameters


def test_tensors_have_the_names_and_shapes_of_the_files() -> None:
    oss, mixtral, qwen = (find(n).tensors() for n in ("gpt-oss-20b", "mixtral-8x7b", "qwen3.5-35b-a3b"))
    assert oss["model.layers.23.mlp.experts.gate_up_proj"] == (32, 2880, 5760)
    assert oss["model.layers.0.self_attn.sinks"] == (64,)
    assert mixtral["model.layers.0.block_sparse_moe.experts.7.w2.weight"] == (4096, 14336)
    assert qwen["model.layers.3.self_attn.q_proj.weight"] == (2 * 16 * 256, 2048)
    assert qwen["model.layers.2.linear_attn.conv1d.weight"] == (8192, 1, 4)
    assert qwen["model.layers.39.mlp.shared_expert_gate.weight"] == (1, 2048)


@pytest.mark.parametrize(
    ("config", "name"),
    [(LLAMA, "llama-3.1-8b"), (QWEN3_MOE, "qwen3-30b-a3b"), (GPT_OSS, "gpt-oss-20b"), (QWEN35, "qwen3.5-35b-a3b")],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_published_configuration_gives_the_model_that_is_known(config: dict[str, Any], name: str) -> None:
    read = from_hf_config(config, name=name)
    known = find(name)
    if read.experts:  # a width that no layer uses
        read = replace(read, ffn_width=known.ffn_width)
    assert read == known


def without(config: dict[str, Any], field: str) -> dict[str, Any]:
    return {k: v for k, v in config.items() if k != field}


def scaled(kind: str, **rest: Any) -> dict[str, Any]:
    return {"rope_scaling": {"rope_type": kind, "factor": 2.0, **rest}}


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (LLAMA, {"model_type": "gemma3_text"}, "model_type is 'gemma3_text'.*one of llama, "),
    (LLAMA, {"model_type": None}, "model_type is None"),
    (LLAMA, {"hidden_act": "gelu"}, "hidden_act is 'gelu'.*must be 'silu'"),
    (LLAMA, scaled("longrope"), "rope_type is 'longrope'.*default, llama3, yarn"),
    (LLAMA, scaled("linear"), "rope_type is 'linear'"),
    (LLAMA, {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type is 'dynamic'"),
    (LLAMA, scaled("default"), r"rope_parameters\.factor is 2\.0"),
    (LLAMA, scaled("llama3"), r"rope_parameters\.low_freq_factor is None"),
    (LLAMA, scaled("yarn", long_factor=[1.0]), r"rope_parameters\.long_factor is \[1\.0\]"),
    (LLAMA, scaled("yarn", truncate=1), r"rope_parameters\.truncate is 1"),
    (LLAMA, scaled("yarn", original_max_position_embeddings="4k"), "original_max_position_embeddings is '4k'"),
    (
        LLAMA,
        scaled("yarn", original_max_position_embeddings=8192, rope_theta=1.0),
        r"rope\.theta is 1\.0; .* above 1 for yarn",
    ),
    (LLAMA, scaled("yarn", mscale=1.0, mscale_all_dim=-20.0), r"rope_parameters\.mscale_all_dim is -20\.0"),
    (LLAMA, {"rope_scaling": {"rope_type": ["yarn"]}}, r"rope_type is \['yarn'\]"),
    (LLAMA, {"rope_theta": 10**400}, "rope_theta is 1000"),
    (QWEN2, {"use_sliding_window": True, "max_window_layers": "28"}, "max_window_layers is '28'"),
    (QWEN3_MOE, {"mlp_only_layers": [[0]]}, r"mlp_only_layers is \[\[0\]\]"),
    (LLAMA, {"rope_scaling": 8.0}, "rope_parameters is 8.0"),
    (QWEN3_MOE, {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, r"rope_parameters\.full_attention is"),
    (LLAMA, {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    (LLAMA, {"rope_interleaved": True}, "rope_interleaved is True"),
    (LLAMA, {"quantization_config": {"quant_method": "mxfp4"}}, "quantization_config is {'quant_method': 'mxfp4'}"),
    (LLAMA, {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
    (LLAMA, {"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    (LLAMA, {"num_hidden_layers": 2**40}, "num_hidden_layers is 1099511627776"),
    (LLAMA, {"hidden_size": "4096"}, "hidden_size is '4096'"),
    (LLAMA, {"num_attention_heads": True}, "num_attention_heads is True"),
    (LLAMA, {"num_key_value_heads": 5}, "heads is 32; it must be a multiple of 5"),
    (LLAMA, {"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
    (LLAMA, {"attention_bias": "yes"}, "attention_bias is 'yes'"),
    (LLAMA, {"vocab_size": None}, "vocab_size is None"),
    (QWEN35["text_config"], {"layer_types": ["sliding_attention"] * 40}, "layer_types is 'sliding_attention'"),
    (LLAMA, {"original_max_position_embeddings": 0}, "original_max_position_embeddings is 0"),
    (QWEN2, {"layer_types": ["linear_attention"] * 32}, "layer_types is 'linear_attention'"),
    (QWEN2, {"layer_types": ["full_attention"] * 31}, "layer_types is .*32 of"),
    (QWEN2, {"layer_types": ["chunked_attention"] * 32}, "layer_types is .*chunked_attention"),
    (QWEN2, {"layer_types": [["full_attention"]] * 32}, "layer_types is "),
    (QWEN3_MOE, {"mlp_only_layers": 3}, "mlp_only_layers is 3"),
    (QWEN3_MOE, {"num_experts_per_tok": 200}, "top_k is 200.*128"),
    (QWEN3_MOE, {"n_shared_experts": 1}, "n_shared_experts is 1"),
    (GPT_OSS, {"swiglu_limit": -1.0}, "swiglu_limit is -1.0"),
    (GPT_OSS, {"sliding_window": None}, "sliding_window is None"),
]


@pytest.mark.parametrize(("config", "change", "said"), REFUSED, ids=[said[:40] for _, _, said in REFUSED])
def test_what_is_not_supported_is_refused_by_field_and_value(
    config: dict[str, Any], change: dict[str, Any], said: str
) -> None:
    from_hf_config(config)
    with pytest.raises(MisuseError, match=said):
        from_hf_config({**config, **change})


def test_a_text_models_gate_must_be_there() -> None:
    text = {**QWEN35["text_config"], "attn_output_gate": False}
    with pytest.raises(MisuseError, match="attn_output_gate is False"):
        from_hf_config({**QWEN35, "text_config": text})


def test_a_seeing_models_head_is_tied_where_the_whole_says_so() -> None:
    text = {**QWEN35["text_config"], "tie_word_embeddings": False}
    assert from_hf_config({**QWEN35, "text_config": text, "tie_word_embeddings": True}).tied


def test_fields_without_effect_are_passed_over() -> None:
    extra = {
        "_name_or_path": "me/mine",
        "image_token_id": 7,
        "mtp_use_dedicated_embeddings": False,
        "some_future": None,
    }
    assert from_hf_config({**LLAMA, **extra}) == replace(find("llama-3.1-8b"), name="me/mine")


def test_windows_are_where_each_kind_has_them() -> None:
    mistral = from_hf_config(
        {**without(LLAMA, "mlp_bias"), "model_type": "mistral", "sliding_window": 4096} | {"attention_bias": None}
    )
    assert (mistral.window, set(mistral.layer_kinds)) == (4096, {"sliding"})
    qwen = from_hf_config({**QWEN2, "use_sliding_window": True, "sliding_window": 64, "max_window_layers": 28})
    assert (qwen.window, qwen.layer_kinds.index("sliding"), qwen.layer_kinds.count("sliding")) == (64, 28, 4)
    off = from_hf_config({**QWEN2, "use_sliding_window": False, "sliding_window": 64})
    assert (off.window, set(off.layer_kinds)) == (None, {"full"})


MISTRAL = {**without(without(LLAMA, "mlp_bias"), "attention_bias"), "model_type": "mistral", "rope_scaling": None}


@pytest.mark.parametrize(
    ("config", "null", "absent"),
    [  # as transformers 5.24 reads them
        (MISTRAL, None, 4096),
        ({**MISTRAL, "model_type": "mixtral"}, None, None),
        ({**QWEN2, "use_sliding_window": True, "max_window_layers": 0}, None, 4096),
        ({**QWEN2, "model_type": "qwen3", "use_sliding_window": True, "max_window_layers": 0}, None, 4096),
        ({**QWEN3_MOE, "use_sliding_window": True}, None, 4096),
    ],
    ids=lambda x: str(x["model_type"]) if isinstance(x, dict) else "",
)
def test_a_window_that_is_null_is_none_and_one_that_is_absent_the_kinds_own(
    config: dict[str, Any], null: int | None, absent: int | None
) -> None:
    for read, window in (
        (from_hf_config({**config, "sliding_window": None}), null),
        (from_hf_config(without(config, "sliding_window")), absent),
    ):
        assert read.window == window
        assert set(read.layer_kinds) == ({"sliding"} if window else {"full"})


def test_two_accounts_of_the_rope_must_agree() -> None:
    plain = {"rope_type": "default", "rope_theta": 1e6}
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
    with pytest.raises(
        MisuseError, match=r"rope_scaling is .*'yarn'.* absent or the same as rope_parameters, .*'default'"
    ):
        from_hf_config({**QWEN2, "rope_parameters": plain, "rope_scaling": yarn})
    assert from_hf_config({**QWEN2, "rope_parameters": yarn, "rope_scaling": dict(yarn)}).rope.kind == "yarn"
    assert from_hf_config({**QWEN2, "rope_parameters": plain, "rope_scaling": None}).rope.theta == 1e6


def test_yarn_scales_by_what_the_file_says() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
    plain = from_hf_config({**LLAMA, "rope_scaling": yarn}).rope
    assert (plain.kind, plain.attention_factor, plain.beta_fast, plain.truncate) == ("yarn", None, 32.0, True)
    given = from_hf_config({**LLAMA, "rope_scaling": {**yarn, "attention_factor": 1.5}}).rope
    assert given.attention_factor == 1.5
    scaled = from_hf_config({**LLAMA, "rope_scaling": {**yarn, "mscale": 1.0, "mscale_all_dim": 0.5}}).rope
    assert scaled.attention_factor == pytest.approx((0.1 * math.log(4) + 1) / (0.05 * math.log(4) + 1))
    assert (
        from_hf_config(
            {**LLAMA, "rope_scaling": without(yarn, "original_max_position_embeddings")}
        ).rope.original_length
        == 131072
    )


def test_dense_layers_among_experts_are_those_the_file_names() -> None:
    spec = from_hf_config({**QWEN3_MOE, "mlp_only_layers": [0, 5], "decoder_sparse_step": 2})
    assert spec.dense_layers == tuple(sorted({5, *range(0, 48, 2)}))
    assert spec.expert_layers == 48 - len(spec.dense_layers)
    assert "model.layers.5.mlp.gate_proj.weight" in spec.tensors()


TINY = find("tiny-llama")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"heads": 3}, "heads is 3; it must be a multiple of 2"),
        ({"hidden": 0}, "hidden is 0"),
        ({"head_dim": 15}, "rotary is 15; it must be an even number"),
        ({"layer_kinds": ("full",)}, "layer_kinds is .*3 kinds"),
        ({"layer_kinds": ("full", "sliding", "full")}, "window is None; it must be set for sliding layers"),
        ({"layer_kinds": ("full", "delta", "full")}, "delta is None; it must be set for delta layers"),
        ({"layer_kinds": ("full", "dense", "full")}, "layer_kinds is .*full, sliding or delta"),
        ({"window": 0}, "window is 0"),
        ({"ffn_width": None}, "ffn_width is None"),
        ({"dense_layers": (3,)}, "dense_layers is .*below 3"),
        ({"swiglu_limit": 7.0}, "swiglu_limit is 7.0"),
        ({"norm_eps": 0.0}, "norm_eps is 0.0"),
    ],
    ids=str,
)
def test_an_impossible_model_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(MisuseError, match=said):
        replace(TINY, **change)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Rope(theta=0.0),
        lambda: Rope(theta=1e4, fraction=1.5),
        lambda: Rope(theta=float("inf")),
        lambda: Rope(theta=1.0, kind="yarn"),
        lambda: Experts(count=4, top_k=5, width=8),
        lambda: Experts(count=4, top_k=2, width=0),
        lambda: DeltaNet(key_heads=3, value_heads=4, key_dim=8, value_dim=8, conv=4),
        lambda: DeltaNet(key_heads=2, value_heads=4, key_dim=8, value_dim=8, conv=1),
    ],
)
def test_impossible_parts_are_refused(make: Any) -> None:
    with pytest.raises(MisuseError):
        make()


def test_a_slice_is_the_first_layers() -> None:
    whole = find("gpt-oss-20b")
    part = sliced(whole, 3)
    assert (part.layers, part.layer_kinds, part.name) == (3, ("sliding", "full", "sliding"), "gpt-oss-20b[:3]")
    assert set(part.tensors()) < set(whole.tensors())
    assert sliced(whole, whole.layers) is whole
    for wrong in (0, 25):
        with pytest.raises(MisuseError, match=str(wrong)):
            sliced(whole, wrong)


def test_an_unknown_name_is_answered_with_those_there_are() -> None:
    with pytest.raises(MisuseError, match=r"no model 'llama-9'; there are .*llama-3\.1-8b"):
        find("llama-9")
