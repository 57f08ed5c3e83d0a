"""The transformer against Hugging Face's, on tiny models of every architecture; and that nothing but the tokens decides what it answers."""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden import hashed
from guarded import GuardedModule, HiddenTransferError

from harness.device.cuda import CudaDevice
from harness.errors import MisuseError
from harness.inference import feedforward, rope
from harness.inference.cache import Cache, KeyValues
from harness.inference.delta import unit_lower_inverse
from harness.inference.feedforward import ExpertBlock, route
from harness.inference.model import Model, generate
from harness.inference.ops import Ops
from harness.inference.quant import quantisable, quantise
from harness.inference.specs import SPECS, Experts, ModelSpec, Rope, from_hf_config, sliced

Host = np.ndarray[Any, Any]
FOLDER = Path(__file__).parent / "golden" / "models"
NAMES = sorted(path.stem for path in FOLDER.glob("*.npz"))
BOUND = 2e-5  # of the logits' standard deviation
every_model = pytest.mark.parametrize("name", NAMES)


@dataclass(frozen=True)
class Golden:
    spec: ModelSpec
    weights: Mapping[str, Host]
    tokens: Host
    logits: Host
    greedy: Host

    @property
    def deviation(self) -> float:
        return float(self.logits.std())

    def distance(self, ours: Host, theirs: Host | None = None) -> float:
        """The largest difference, in standard deviations."""
        return float(np.abs(ours - (self.logits if theirs is None else theirs)).max()) / self.deviation


@functools.cache
def golden(name: str) -> Golden:
    with np.load(FOLDER / f"{name}.npz") as file:
        spec = from_hf_config(json.loads(str(file["config"])), name=name)
        how = {"zero_centred": spec.zero_centred_norms, "tied": spec.tied, "loud": float(file["loud"])}
        return Golden(
            spec,
            hashed.weights(spec.tensors(), int(file["seed"]), **how),
            file["tokens"].astype(np.int64),
            file["logits"],
            file["greedy"].astype(np.int64),
        )


@functools.cache
def reference(name: str) -> Model:
    return Model(golden(name).spec, golden(name).weights, np)


def logits_of(model: Model, tokens: Any, cache: Cache, counts: Any = None) -> Host:
    """Logits at every position, (batch, T, vocab)."""
    out: Host = model.forward(tokens, cache, counts=counts, logits="all")
    return out


def all_logits(model: Model, tokens: Host) -> Host:
    """Logits at every position of one row."""
    out: Host = logits_of(model, tokens[None], model.cache(1, len(tokens)))[0]
    return out


# --- against Hugging Face ---------------------------------------------------------------------------------------------


def test_there_is_a_golden_model_of_every_architecture() -> None:
    kinds = {str(json.loads(str(np.load(FOLDER / f"{n}.npz")["config"]))["model_type"]) for n in NAMES}
    wanted = {
        "llama",
        "mistral",
        "mixtral",
        "qwen2",
        "qwen3",
        "qwen3_moe",
        "qwen3_5_text",
        "qwen3_5_moe_text",
        "gpt_oss",
    }
    assert kinds == wanted
    specs = [golden(n).spec for n in NAMES]
    assert {s.tied for s in specs} == {s.attention_bias for s in specs} == {True, False}
    assert {s.rope.kind for s in specs} == {"default", "llama3", "yarn"}
    assert {s.heads // s.kv_heads for s in specs} == {1, 2, 4}
    assert any(s.head_dim != s.hidden // s.heads for s in specs)
    assert {s.experts.renormalise for s in specs if s.experts} == {True, False}
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 2_000_000


@every_model
def test_logits_are_those_of_hugging_face(name: str) -> None:
    truth = golden(name)
    assert len(truth.tokens) >= 400
    assert truth.distance(all_logits(reference(name), truth.tokens)) <= BOUND


@every_model
def test_greedy_tokens_are_those_of_hugging_face(name: str) -> None:
    truth = golden(name)
    assert generate(reference(name), truth.tokens[:32], len(truth.greedy)).tolist() == truth.greedy.tolist()


@pytest.mark.parametrize("name", ["llama-biased", "qwen3.5-moe", "gpt-oss"])
def test_float64_stays_float64(name: str) -> None:
    truth = golden(name)
    wide = all_logits(Model(truth.spec, truth.weights, np, dtype="float64"), truth.tokens)
    assert wide.dtype == np.float64
    assert truth.distance(wide) <= BOUND
    finer = all_logits(
        Model(truth.spec, {k: v.astype(np.float64) for k, v in truth.weights.items()}, np, dtype="float64"),
        truth.tokens[:64],
    )
    assert np.abs(finer - wide[:64]).max() < 1e-10 * truth.deviation  # nothing on the way was rounded to float32


def changed(spec: ModelSpec, **fields: Any) -> ModelSpec:
    """Change a spec; `rope__factor=1` changes a field of its part."""
    for field, value in fields.items():
        part, _, inner = field.partition("__")
        spec = replace(spec, **({part: replace(getattr(spec, part), **{inner: value})} if inner else {part: value}))
    return spec


SENSITIVE: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"norm_eps": 1e-6}),
    ("llama", {"rope": Rope(theta=5e5)}),
    ("llama", {"rope__factor": 7.0}),
    ("llama", {"rope__low_factor": 1.5}),
    ("llama", {"rope__high_factor": 3.0}),
    ("llama", {"rope__theta": 4.9e5}),
    ("mistral", {"window": 36}),
    ("mistral", {"window": 38}),
    ("mistral", {"layer_kinds": ("sliding", "sliding", "full")}),
    ("qwen2", {"layer_kinds": ("sliding", "sliding", "sliding")}),
    ("qwen3", {"norm_eps": 1e-5}),
    ("qwen3", {"rope__truncate": False}),
    ("qwen3", {"rope__attention_factor": 1.0}),
    ("gpt-oss", {"rope__beta_fast": 30.0}),
    ("gpt-oss", {"rope__beta_slow": 1.1}),
    ("qwen3-moe", {"experts__renormalise": False}),
    ("qwen3-moe-plain", {"experts__renormalise": True}),
    ("qwen3-moe-plain", {"experts__router": "topk_first"}),
    ("mixtral", {"experts__top_k": 3}),
    ("gpt-oss", {"swiglu_limit": 7.5}),
    ("gpt-oss", {"swiglu_alpha": 1.7}),
    ("gpt-oss", {"window": 23}),
    ("gpt-oss", {"window": 25}),
    ("gpt-oss", {"rope__truncate": True}),
    ("qwen3.5", {"zero_centred_norms": False}),
    ("qwen3.5", {"rope__fraction": 0.5}),
    ("qwen3.5-moe", {"norm_eps": 1e-5}),
    ("qwen3.5-moe", {"experts__renormalise": False}),
]


@pytest.mark.parametrize(("name", "fields"), SENSITIVE, ids=[f"{n}-{next(iter(f))}" for n, f in SENSITIVE])
def test_a_wrong_setting_is_seen(name: str, fields: dict[str, Any]) -> None:
    truth = golden(name)
    wrong = Model(changed(truth.spec, **fields), truth.weights, np)
    assert truth.distance(all_logits(wrong, truth.tokens)) > 3 * BOUND


@pytest.mark.parametrize(
    ("name", "part", "wrong"),
    [
        ("gpt-oss", "sinks", lambda x: np.full_like(x, -100)),
        ("gpt-oss", "gate_up_proj_bias", np.zeros_like),
        ("gpt-oss", "experts.gate_up_proj", lambda x: np.concatenate([x[..., 1::2], x[..., ::2]], axis=-1)),
        ("gpt-oss", "router.bias", np.zeros_like),
        ("llama-biased", "q_proj.bias", np.zeros_like),
        ("llama-biased", "o_proj.bias", np.zeros_like),
        ("llama-biased", "mlp.down_proj.bias", np.zeros_like),
        ("qwen3", "k_norm.weight", np.ones_like),
        ("qwen3.5-moe", "shared_expert_gate.weight", np.zeros_like),
        ("qwen3.5-moe", "dt_bias", np.zeros_like),
        ("qwen3.5-moe", "conv1d.weight", lambda x: x[..., ::-1].copy()),
        ("qwen3.5-moe", "in_proj_z.weight", lambda x: -x),
        ("qwen3.5", "linear_attn.norm.weight", lambda x: x + 1),
        (
            "qwen3.5",
            "q_proj.weight",
            lambda x: x.reshape(4, 2, 32, -1)[:, ::-1].reshape(x.shape),
        ),  # query and gate exchanged
    ],
)
def test_every_kind_of_tensor_matters(name: str, part: str, wrong: Callable[[Host], Host]) -> None:
    truth = golden(name)
    weights = {n: wrong(w) if n.endswith(part) else w for n, w in truth.weights.items()}
    assert any(n.endswith(part) for n in weights)
    assert truth.distance(all_logits(Model(truth.spec, weights, np), truth.tokens)) > 3 * BOUND


# --- however the tokens come in ---------------------------------------------------------------------------------------


@every_model
def test_token_by_token_is_prefill(name: str) -> None:
    truth, model = golden(name), reference(name)
    tokens = truth.tokens[:80]
    cache = model.cache(1, len(tokens))
    single = np.concatenate([logits_of(model, t[None, None], cache)[0] for t in tokens])
    assert truth.distance(single, truth.logits[: len(tokens)]) <= BOUND
    assert cache.lengths.tolist() == [len(tokens)]


@every_model
def test_chunks_are_prefill(name: str) -> None:
    truth, model = golden(name), reference(name)
    cache = model.cache(1, len(truth.tokens))
    ends = [1, 2, 9, 73, 74, 201, 330, len(truth.tokens)]
    parts = [logits_of(model, truth.tokens[None, a:b], cache)[0] for a, b in itertools.pairwise([0, *ends])]
    assert truth.distance(np.concatenate(parts)) <= BOUND


@every_model
@pytest.mark.parametrize("block", [1 << 10, 1 << 24])
def test_the_size_of_blocks_changes_nothing(name: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = golden(name)
    monkeypatch.setattr(Ops, "block_values", block)
    monkeypatch.setattr(feedforward, "_ROWS", 16)
    assert truth.distance(all_logits(reference(name), truth.tokens)) <= BOUND


@every_model
def test_ragged_rows_are_each_as_if_alone(name: str) -> None:
    """Rows of different lengths, steps that bring each row another number of tokens, one none at all."""
    truth, model = golden(name), reference(name)
    starts, takes = (0, 100, 7), [(61, 5, 0), (0, 1, 3), (1, 1, 1), (30, 17, 64), (1, 1, 1)]
    cache = model.cache(3, 300)
    done = np.zeros(3, dtype=int)
    expected = [all_logits(model, truth.tokens[s:]) for s in starts]
    for counts in takes:
        width = max(counts) + (2 if max(counts) > 1 else 0)  # padding for all where there is some
        tokens = np.full((3, width), 5)
        for row, count in enumerate(counts):
            tokens[row, :count] = truth.tokens[starts[row] + done[row] :][:count]
        logits = logits_of(model, tokens, cache, counts)
        for row, count in enumerate(counts):
            wanted = expected[row][done[row] : done[row] + count]
            assert count == 0 or truth.distance(logits[row, :count], wanted) <= BOUND
        done += counts
        assert cache.lengths.tolist() == done.tolist()


@every_model
def test_the_last_logits_are_the_last_of_all(name: str) -> None:
    truth, model = golden(name), reference(name)
    tokens, counts = np.tile(truth.tokens[:40], (2, 1)), [40, 13]
    every = logits_of(model, tokens, model.cache(2, 40), counts)
    last = model.forward(tokens, model.cache(2, 40), counts=counts)
    assert truth.distance(last, every[[0, 1], [39, 12]]) <= BOUND
    assert model.forward(tokens, model.cache(2, 40), logits="none") is None


@every_model
def test_rows_can_be_permuted(name: str) -> None:
    truth, model = golden(name), reference(name)
    rows = np.stack([truth.tokens[i : i + 50] for i in (0, 60, 120, 180)])
    order = [2, 0, 3, 1]
    straight, mixed = (logits_of(model, r, model.cache(4, 50)) for r in (rows, rows[order]))
    assert truth.distance(mixed, straight[order]) <= BOUND
    assert not np.allclose(straight[0], straight[1], atol=0.1)


@every_model
def test_a_rewound_cache_is_as_good_as_new(name: str) -> None:
    truth, model = golden(name), reference(name)
    cache = model.cache(2, 128)
    rows = np.stack([truth.tokens[:64], truth.tokens[100:164]])
    model.forward(rows, cache)
    cache.mark()
    other = np.stack([truth.tokens[200:230], truth.tokens[300:330]])
    model.forward(other, cache)
    cache.rewind([64, 64])
    again = model.forward(truth.tokens[None, [64, 65, 66]].repeat(2, axis=0), cache)
    assert truth.distance(again[0], truth.logits[66]) <= BOUND
    cache.rewind([0, 67])
    fresh = model.forward(rows, cache, counts=[64, 0])
    assert truth.distance(fresh[0], truth.logits[63]) <= BOUND
    assert cache.lengths.tolist() == [64, 67]


def test_attention_can_be_rewound_to_any_length() -> None:
    truth, model = golden("gpt-oss"), reference("gpt-oss")
    cache = model.cache(1, 128)
    model.forward(truth.tokens[None, :100], cache)
    cache.rewind(71)
    after = model.forward(truth.tokens[None, 71:90], cache)
    assert truth.distance(after[0], truth.logits[89]) <= BOUND


def test_a_state_that_cannot_be_undone_is_not_rewound() -> None:
    truth, model = golden("qwen3.5"), reference("qwen3.5")
    cache = model.cache(2, 64)
    model.forward(truth.tokens[:20].reshape(2, 10), cache)
    with pytest.raises(MisuseError, match=r"row 1 cannot be rewound to 7 tokens.*after 0 and 10"):
        cache.rewind([0, 7])
    assert cache.lengths.tolist() == [10, 10]  # nothing was changed
    cache.mark()
    model.forward(truth.tokens[20:30].reshape(2, 5), cache)
    with pytest.raises(MisuseError, match=r"after 0, 10 \(marked\) and 15"):
        cache.rewind(12)
    cache.rewind([15, 10])
    assert cache.lengths.tolist() == [15, 10]


def test_a_cache_does_not_grow_and_is_not_copied() -> None:
    model = reference("mistral")
    cache = model.cache(1, 32)
    held = [s for s in cache.layers.values() if isinstance(s, KeyValues)]
    places = [(s.keys.ctypes.data, s.values.ctypes.data) for s in held]
    assert cache.nbytes == 32 * model.spec.kv_bytes_per_token(4)
    model.forward(golden("mistral").tokens[None, :30], cache)
    model.forward([[1]], cache)
    assert [
        (s.keys.ctypes.data, s.values.ctypes.data) for s in cache.layers.values() if isinstance(s, KeyValues)
    ] == places
    with pytest.raises(MisuseError, match="row 0 holds 31 of 32 tokens; 2 more do not fit"):
        model.forward([[1, 2]], cache)
    assert cache.lengths.tolist() == [31]


# --- parts ------------------------------------------------------------------------------------------------------------


@every_model
def test_one_layer_alone_is_that_layer(name: str) -> None:
    """What a receipt's checker does: a layer's own tensors, its input, its output."""
    truth = golden(name)
    seen: dict[tuple[int, str], Host] = {}

    def watch(index: int, what: str, array: Host) -> None:
        seen[index, what] = array

    model = reference(name)
    tokens = truth.tokens[:96].reshape(2, 48)
    cache = model.cache(2, 64)
    model.forward(tokens[:, :30], cache)
    model.forward(tokens[:, 30:], cache, watch=watch)
    before = {key: value.copy() for key, value in seen.items()}
    full: dict[tuple[int, str], Host] = {}
    model.forward(tokens, model.cache(2, 48), watch=lambda i, what, a: full.__setitem__((i, what), a))
    assert all(np.array_equal(seen[key], before[key]) for key in seen)  # nothing shown was changed afterwards
    for index in range(truth.spec.layers):
        own = {n: w for n, w in truth.weights.items() if n in truth.spec.layer_tensors(index)}
        alone = Model(truth.spec, own, np, layers=[index])
        memory = alone.cache(2, 48)
        parts = [alone.layer(index, full[index, "in"][:, :30], memory)]
        memory.advance([30, 30])
        parts.append(alone.layer(index, full[index, "in"][:, 30:], memory))
        added = full[index, "out"] - full[index, "in"]
        ours = np.concatenate(parts, axis=1) - full[index, "in"]
        assert np.abs(ours - added).max() <= BOUND * added.std()
        assert seen[index, "out"].shape == (2, 18, truth.spec.hidden)
        if truth.spec.has_experts(index):
            assert truth.spec.experts
            assert seen[index, "experts"].shape == (2, 18, truth.spec.experts.top_k)
            assert np.unique(seen[index, "experts"]).size > 2
    with pytest.raises(MisuseError, match="only the layers"):
        alone.forward(tokens, alone.cache(2, 48))


def test_a_slice_takes_the_whole_models_tensors() -> None:
    truth = golden("gpt-oss")
    part = Model(sliced(truth.spec, 2), truth.weights, np)
    assert len(part.cache(1, 8).layers) == 2
    assert generate(part, truth.tokens[:8], 2).shape == (2,)


@pytest.mark.parametrize("router", ["softmax_first", "topk_first"])
@pytest.mark.parametrize("renormalise", [True, False])
def test_routers_do_as_they_are_defined(router: Any, *, renormalise: bool) -> None:
    experts = Experts(count=12, top_k=3, width=1, router=router, renormalise=renormalise)
    scores = np.random.default_rng(1).normal(size=(50, 12)).astype(np.float32)
    routing = route(Ops(np, "float32"), experts, scores)
    for row, chosen, weights in zip(scores, routing.experts, routing.weights, strict=True):
        assert set(chosen) == set(np.argsort(-row)[:3])
        kept = row[chosen] if router == "topk_first" else row
        share = np.exp(row[chosen]) / np.exp(kept).sum()
        if router == "softmax_first" and renormalise:
            share /= share.sum()
        assert np.allclose(weights, share, rtol=1e-5)


@pytest.mark.parametrize("name", ["gpt-oss", "qwen3.5-moe", "mixtral"])
def test_experts_copied_and_experts_sorted_are_the_same(name: str) -> None:
    model = reference(name)
    x = np.random.default_rng(2).normal(size=(9, model.spec.hidden)).astype(np.float32)
    block = model._layers[0].block
    assert isinstance(block, ExpertBlock)
    copied, ordered = (block(model.spec, model.ops, x, gather=g) for g in (True, False))
    assert np.abs(copied - ordered).max() <= 1e-5 * np.abs(ordered).max()


def test_rotation_tables_keep_lengths_and_relative_angles() -> None:
    cos, sin = rope.tables(Rope(theta=1e8), 16, 50, np.float32)
    rng = np.random.default_rng(3)
    q, k = (rng.normal(size=(1, 1, 24)).astype(np.float32) for _ in range(2))
    turned = [[rope.rotate(np, a, cos[i], sin[i]) for i in (3, 10, 30, 37)] for a in (q, k)]
    assert np.array_equal(turned[0][0][..., 16:], q[..., 16:])
    first, second, angle = q[0, 0, 1], q[0, 0, 9], 3 * 0.1  # 1e8 ** (-2 / 16) is 0.1
    by_hand = first * math.cos(angle) - second * math.sin(angle), second * math.cos(angle) + first * math.sin(angle)
    assert turned[0][0][0, 0, [1, 9]] == pytest.approx(by_hand, rel=1e-5)
    assert np.allclose(np.linalg.norm(turned[0][2]), np.linalg.norm(q), rtol=1e-6)
    near, far = (float((turned[0][i] * turned[1][i + 1]).sum()) for i in (0, 2))
    assert near == pytest.approx(far, abs=1e-4)


def test_a_ramp_without_length_is_a_step() -> None:
    """Where YaRN's two dimensions are one, the dimensions below keep their frequency and those above are slowed down."""
    yarn = Rope(theta=1e4, kind="yarn", factor=4.0, original_length=4096, beta_fast=8.0, beta_slow=8.0, truncate=False)
    frequency, _ = rope.frequencies(yarn, 32)
    plain, _ = rope.frequencies(Rope(theta=1e4), 32)
    assert np.allclose(plain / frequency, [1] * 8 + [4] * 8)


def test_a_triangular_system_of_like_keys_is_solved_exactly() -> None:
    """All ones: the powers of such a matrix reach 10^17, its inverse holds nothing beyond one."""
    size = 64
    ones = np.tril(np.ones((2, size, size), dtype=np.float32), -1)
    inverse = unit_lower_inverse(np, ones)
    assert np.array_equal(inverse, np.tile(np.eye(size) - np.eye(size, k=-1), (2, 1, 1)))
    random = np.tril(np.random.default_rng(4).normal(size=(3, 2, size, size)) / 8, -1)
    assert np.allclose(unit_lower_inverse(np, random) @ (np.eye(size) + random), np.eye(size), atol=1e-9)


def test_norms_and_residual_do_not_overflow_in_half_precision() -> None:
    """One channel of 400, as real models have them: its square is beyond float16, though no weight is."""
    truth = golden("llama")
    weights = dict(truth.weights)
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"].copy()
    weights["model.embed_tokens.weight"][:, 7] = 400
    tokens = truth.tokens[:40]
    half, single = (all_logits(Model(truth.spec, weights, np, dtype=d), tokens) for d in ("float16", "float32"))
    assert half.dtype == np.float32
    assert np.abs(half - single).max() < 0.02 * single.std()
    assert np.abs(half - single).max() > 0


@pytest.mark.parametrize("name", ["llama", "qwen3.5-moe", "mixtral"])
@pytest.mark.parametrize("keep_packed", [True, False])
def test_quantised_weights_are_the_numbers_they_stand_for(name: str, *, keep_packed: bool) -> None:
    truth = golden(name)
    packed = {n: quantise(w, bits=8) if quantisable(n, w.shape) else w for n, w in truth.weights.items()}
    plain = {n: w.dequantised(np) if hasattr(w, "dequantised") else w for n, w in packed.items()}
    assert any(plain[n] is not packed[n] for n in plain)
    tokens = truth.tokens[:50]
    ours = all_logits(Model(truth.spec, packed, np, keep_packed=keep_packed), tokens)
    assert truth.distance(ours, all_logits(Model(truth.spec, plain, np), tokens)) <= BOUND


# --- bad input --------------------------------------------------------------------------------------------------------


class Untouchable(dict[str, Any]):
    """Tensors that tell their shapes and may not be read."""

    shapes: Mapping[str, tuple[int, ...]]

    def __getitem__(self, name: str) -> Any:
        raise AssertionError(name)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"model.layers.1.mlp.up_proj.weight": None}, r"model\.layers\.1\.mlp\.up_proj\.weight"),
        ({"model.layers.0.self_attn.k_proj.weight": (65, 64)}, r"k_proj\.weight.*\(65, 64\).*\(64, 64\)"),
        ({"model.layers.0.self_attn.q_proj.bias": (128,)}, r"q_proj\.bias"),
        ({"lm_head.weight": None}, r"lm_head\.weight"),
    ],
)
def test_wrong_tensors_are_refused_before_any_is_read(wrong: dict[str, Any], said: str) -> None:
    spec = golden("llama").spec
    shapes = {**spec.tensors(), **wrong}
    weights = Untouchable()
    weights.shapes = {n: s for n, s in shapes.items() if s is not None}
    with pytest.raises(MisuseError, match=said):
        Model(spec, weights, np)


@pytest.mark.parametrize(
    ("tokens", "how", "said"),
    [
        ([[64]], {}, "token 64 is none of llama's, which are 0 to 63"),
        ([[-1]], {}, "token -1"),
        ([1, 2], {}, r"shape \(2,\)"),
        ([[1], [2]], {}, r"shape \(2, 1\)"),
        ([[]], {}, r"shape \(1, 0\)"),
        ([[0.5]], {}, "float64"),
        ([[1, 2]], {"counts": [3]}, r"counts are \[3\]"),
        ([[1, 2]], {"counts": [-1]}, r"counts are \[-1\]"),
        ([[1, 2]], {"counts": [1, 1]}, r"counts are \[1, 1\]"),
        ([[1, 2]], {"logits": "first"}, "logits are 'first'"),
        ([[1] * 9], {}, "row 0 holds 0 of 8 tokens; 9 more do not fit"),
    ],
)
def test_wrong_tokens_are_refused(tokens: Any, how: dict[str, Any], said: str) -> None:
    model = reference("llama")
    cache = model.cache(1, 8)
    with pytest.raises(MisuseError, match=said):
        model.forward(tokens, cache, **how)
    assert cache.lengths.tolist() == [0]


def test_other_misuse_is_refused() -> None:
    model = reference("llama")
    for batch, capacity in ((0, 8), (1, 0)):
        with pytest.raises(MisuseError, match="at least 1"):
            model.cache(batch, capacity)
    cache = model.cache(2, 8)
    for lengths in ([1, 0], -1):
        with pytest.raises(MisuseError, match="cannot be rewound"):
            cache.rewind(lengths)
    with pytest.raises(MisuseError, match="layer 3 of llama is not loaded"):
        model.layer(3, np.zeros((2, 1, 64)), cache)
    with pytest.raises(MisuseError, match=r"hidden has the shape \(2, 1, 63\)"):
        model.layer(0, np.zeros((2, 1, 63)), cache)
    with pytest.raises(MisuseError, match="0 tokens"):
        generate(model, [1], 0)
    with pytest.raises(MisuseError, match=r"\[0, 3\] were asked for"):
        Model(golden("llama").spec, golden("llama").weights, np, layers=[0, 3])


# --- on a device ------------------------------------------------------------------------------------------------------

# A layer of each kind, and the most that it asks a GPU to do for one token. A change that asks for less may lower its number.
LAYERS = [
    ("tiny-llama", 2, 41),
    ("tiny-qwen3", 2, 48),
    ("tiny-mixtral", 2, 54),
    ("tiny-qwen3-moe", 2, 61),
    ("tiny-gpt-oss", 2, 70),
    ("tiny-gpt-oss", 3, 70),
    ("tiny-qwen3.5", 2, 103),
    ("tiny-qwen3.5", 3, 81),
]
TINY = [spec for name, spec in SPECS.items() if name.startswith("tiny-")]
every_tiny = pytest.mark.parametrize("spec", TINY, ids=lambda s: s.name)


def tiny_weights(spec: ModelSpec) -> dict[str, Host]:
    return hashed.weights(spec.tensors(), 5, zero_centred=spec.zero_centred_norms, tied=spec.tied, loud=1.0)


def guarded(spec: ModelSpec) -> tuple[Model, GuardedModule]:
    module = GuardedModule()
    return Model(spec, tiny_weights(spec), module), module


def decode_operations(spec: ModelSpec, batch: int = 1, context: int = 40) -> int:
    model, module = guarded(spec)
    cache = model.cache(batch, 64)
    prompt = np.arange(batch * context).reshape(batch, context) % spec.vocab
    logits = model.forward(prompt, cache)
    for _ in range(2):
        module.counts.clear()
        logits = model.forward(logits.argmax(axis=-1)[:, None], cache)
    assert module.counts["asnumpy"] == module.counts["asarray"] == 0, "decoding moved data between host and device"
    return module.operations


@every_tiny
def test_decoding_moves_nothing_and_asks_for_as_much_whatever_batch_and_context(spec: ModelSpec) -> None:
    assert decode_operations(spec) == decode_operations(spec, batch=3) == decode_operations(spec, context=30)


@pytest.mark.parametrize(("name", "layer", "most"), LAYERS, ids=[f"{n}-{i}" for n, i, _ in LAYERS])
def test_a_layer_asks_the_device_for_a_bounded_number_of_things(name: str, layer: int, most: int) -> None:
    with_it, without = (decode_operations(sliced(SPECS[name], layer + more)) for more in (1, 0))
    assert with_it - without <= most


@every_tiny
@pytest.mark.parametrize("ordered", [True, False])
def test_a_guarded_module_computes_the_same(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch, *, ordered: bool) -> None:
    """Also where rows are sorted by expert, for which one count a layer goes to the host, and nothing else."""
    if ordered:
        monkeypatch.setattr(feedforward, "_GATHERED", 0)
    model, module = guarded(spec)
    plain = Model(spec, tiny_weights(spec), np)
    tokens = np.arange(2 * 70).reshape(2, 70) * 7 % spec.vocab
    module.counts.clear()
    ours = model.forward(tokens, model.cache(2, 80), counts=[70, 33], logits="all")
    assert module.counts["asnumpy"] == (spec.expert_layers if ordered else 0)
    theirs = logits_of(plain, tokens, plain.cache(2, 80), [70, 33])
    for row, count in enumerate((70, 33)):
        assert np.abs(module.asnumpy(ours)[row, :count] - theirs[row, :count]).max() <= BOUND * theirs.std()


def test_the_guard_guards() -> None:
    module = GuardedModule()
    x: Any = module.asarray(np.arange(3.0))
    for hidden in (
        float,
        bool,
        int,
        np.asarray,
        lambda a: a.tolist(),
        lambda a: a + np.ones(3),
        lambda a: np.ones(3) * a,
    ):
        with pytest.raises((HiddenTransferError, TypeError)):
            hidden(x)
    module.counts.clear()
    assert module.asnumpy(module.exp((x + 1) * 0)[:2].reshape(2, 1)).tolist() == [[1], [1]]
    assert (module.operations, module.counts["asnumpy"]) == (3, 1)  # a sum, a product, an exponential; views are free


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["llama-biased", "gpt-oss", "qwen3.5-moe"])
def test_a_gpu_answers_as_a_cpu(name: str, cuda: CudaDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = golden(name)
    model = Model(truth.spec, truth.weights, cuda.xp)
    cache = model.cache(2, 64)
    rows = np.stack([truth.tokens[:40], truth.tokens[:40]])
    monkeypatch.setattr(feedforward, "_GATHERED", 0)
    logits = cuda.to_host(model.forward(rows, cache, counts=[40, 17], logits="all"))
    assert truth.distance(logits[0], truth.logits[:40]) <= BOUND
    assert truth.distance(logits[1, :17], truth.logits[:17]) <= BOUND
    monkeypatch.undo()
    step = model.forward(cuda.xp.asarray(truth.tokens[[40, 17]])[:, None], cache)
    assert truth.distance(cuda.to_host(step), truth.logits[[40, 17]]) <= BOUND


@pytest.mark.gpu
def test_a_gpu_in_half_precision_answers_nearly_as_in_single(cuda: CudaDevice) -> None:
    truth = golden("llama-biased")
    model = Model(truth.spec, truth.weights, cuda.xp, dtype="float16")
    logits = model.forward(truth.tokens[None, :24], model.cache(1, 24), logits="all")[0]
    assert logits.dtype == np.float32
    assert truth.distance(cuda.to_host(logits), truth.logits[:24]) < 0.02
