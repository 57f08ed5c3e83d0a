"""The public models whose shapes are known here, and tiny ones of the same kinds for tests. No weights.

Sources: the configurations that Hugging Face transformers 5.23 carries as defaults and the models' own cards; every total equals the
published count. Qwen3.6-35B-A3B has the shape of Qwen3.5-35B-A3B.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType

from harness.errors import MisuseError
from harness.inference.hf_config import from_hf_config
from harness.inference.shapes import DeltaNet, Experts, LayerKind, ModelSpec, Rope, Shape

__all__ = [
    "SPECS",
    "DeltaNet",
    "Experts",
    "LayerKind",
    "ModelSpec",
    "Rope",
    "Shape",
    "find",
    "from_hf_config",
    "sliced",
]


def find(name: str) -> ModelSpec:
    """Return the spec of this name.

    Raises:
        MisuseError: there is none.
    """
    if name not in SPECS:
        msg = f"no model {name!r}; there are {', '.join(SPECS)}"
        raise MisuseError(msg)
    return SPECS[name]


def sliced(spec: ModelSpec, layers: int) -> ModelSpec:
    """Return the model of the first layers alone, for one that is too big.

    Raises:
        MisuseError: it has not as many layers, or fewer than one are asked for.
    """
    if not 1 <= layers <= spec.layers:
        msg = f"{spec.name} has {spec.layers} layers; {layers!r} of them cannot be taken"
        raise MisuseError(msg)
    if layers == spec.layers:
        return spec
    return replace(
        spec,
        name=f"{spec.name}[:{layers}]",
        layers=layers,
        layer_kinds=spec.layer_kinds[:layers],
        dense_layers=tuple(i for i in spec.dense_layers if i < layers),
    )


_Size = tuple[int, int, int, int, int]  # layers, hidden, heads, kv heads, a head's dimensions


def _llama(name: str, vocab: int, size: _Size, width: int | None) -> ModelSpec:
    layers, hidden, heads, kv_heads, head_dim = size
    return ModelSpec(
        name=name,
        vocab=vocab,
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn_width=width or 1,  # one where the caller puts experts in its place
        tied=False,
        norm_eps=1e-5,
        rope=Rope(theta=5e5, kind="llama3", factor=8.0),
    )


def _qwen3(name: str, vocab: int, size: _Size, width: int | None) -> ModelSpec:
    return replace(_llama(name, vocab, size, width), norm_eps=1e-6, rope=Rope(theta=1e6), qk_norm=True)


def _mixtral(name: str, vocab: int, size: _Size, experts: Experts) -> ModelSpec:
    return replace(_llama(name, vocab, size, None), ffn_width=None, rope=Rope(theta=1e6), experts=experts)


def _qwen3_moe(name: str, vocab: int, size: _Size, experts: Experts) -> ModelSpec:
    return replace(_qwen3(name, vocab, size, None), ffn_width=None, experts=experts)


def _qwen35(name: str, vocab: int, size: _Size, experts: Experts, delta: DeltaNet) -> ModelSpec:
    kinds: tuple[LayerKind, ...] = ("delta", "delta", "delta", "full")
    return replace(
        _qwen3_moe(name, vocab, size, experts),
        rope=Rope(theta=1e7, fraction=0.25),
        zero_centred_norms=True,
        output_gate=True,
        layer_kinds=kinds * (size[0] // 4),
        delta=delta,
    )


def _gpt_oss(name: str, vocab: int, size: _Size, experts: Experts, window: int) -> ModelSpec:
    kinds: tuple[LayerKind, ...] = ("sliding", "full")
    return replace(
        _llama(name, vocab, size, None),
        ffn_width=None,
        rope=Rope(theta=1.5e5, kind="yarn", factor=32.0, original_length=4096, truncate=False),
        attention_bias=True,
        output_bias=True,
        sinks=True,
        window=window,
        layer_kinds=kinds * (size[0] // 2),
        experts=experts,
        swiglu_limit=7.0,
    )


def _dense_models() -> Iterator[ModelSpec]:
    llama, qwen = 128256, 151936
    smollm2 = _llama("smollm2-135m", 49152, (30, 576, 9, 3, 64), 1536)
    yield replace(smollm2, tied=True, rope=Rope(theta=1e5))
    yield replace(_qwen3("qwen3-0.6b", qwen, (28, 1024, 16, 8, 128), 3072), tied=True)
    small = _llama("llama-3.2-1b", llama, (16, 2048, 32, 8, 64), 8192)
    yield replace(small, tied=True, rope=replace(small.rope, factor=32.0))
    yield replace(_qwen3("qwen3-4b", qwen, (36, 2560, 32, 8, 128), 9728), tied=True)
    yield _llama("llama-3.1-8b", llama, (32, 4096, 32, 8, 128), 14336)
    yield _qwen3("qwen3-8b", qwen, (36, 4096, 32, 8, 128), 12288)
    yield _qwen3("qwen3-14b", qwen, (40, 5120, 40, 8, 128), 17408)
    yield _qwen3("qwen3-32b", qwen, (64, 5120, 64, 8, 128), 25600)
    yield _llama("llama-3.3-70b", llama, (80, 8192, 64, 8, 128), 28672)


def _expert_models() -> Iterator[ModelSpec]:
    experts = Experts(count=128, top_k=8, width=768)
    yield _qwen3_moe("qwen3-30b-a3b", 151936, (48, 2048, 32, 4, 128), experts)
    experts = Experts(count=256, top_k=8, width=512, shared_width=512)
    delta = DeltaNet(key_heads=16, value_heads=32, key_dim=128, value_dim=128, conv=4)
    yield _qwen35("qwen3.5-35b-a3b", 248320, (40, 2048, 16, 2, 256), experts, delta)
    experts = Experts(count=32, top_k=4, width=2880, router="topk_first", naming="packed")
    yield _gpt_oss("gpt-oss-20b", 201088, (24, 2880, 64, 8, 64), experts, 128)
    yield _gpt_oss("gpt-oss-120b", 201088, (36, 2880, 64, 8, 64), replace(experts, count=128), 128)
    experts = Experts(count=8, top_k=2, width=14336, naming="mixtral")
    yield _mixtral("mixtral-8x7b", 32000, (32, 4096, 32, 8, 128), experts)


def _tiny_models() -> Iterator[ModelSpec]:
    """Yield one model of each kind, small enough for a test; most heads are wider than their share of `hidden`."""
    llama = _llama("tiny-llama", 96, (3, 64, 4, 2, 16), 160)
    yield replace(llama, rope=replace(llama.rope, original_length=64))
    yield replace(_qwen3("tiny-qwen3", 96, (3, 64, 4, 2, 32), 160), tied=True)
    experts = Experts(count=4, top_k=2, width=96, naming="mixtral")
    yield _mixtral("tiny-mixtral", 96, (3, 64, 4, 1, 32), experts)
    yield _qwen3_moe("tiny-qwen3-moe", 96, (3, 64, 8, 2, 16), Experts(count=16, top_k=4, width=32))
    experts = Experts(count=16, top_k=4, width=32, shared_width=48)
    delta = DeltaNet(key_heads=2, value_heads=4, key_dim=16, value_dim=32, conv=4)
    yield _qwen35("tiny-qwen3.5", 96, (4, 64, 4, 2, 32), experts, delta)
    experts = Experts(count=8, top_k=4, width=48, router="topk_first", naming="packed")
    gpt_oss = _gpt_oss("tiny-gpt-oss", 96, (4, 64, 8, 2, 32), experts, 24)
    yield replace(gpt_oss, rope=replace(gpt_oss.rope, original_length=64))


SPECS: Mapping[str, ModelSpec] = MappingProxyType(
    {spec.name: spec for models in (_dense_models, _expert_models, _tiny_models) for spec in models()}
)
