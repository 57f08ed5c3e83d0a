"""Weights from a seed: the same numbers everywhere, any slice of them alone, spread as a model's must be."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import hostile
import numpy as np
import pytest

from harness.device.backend import Backend
from harness.device.cpu import CpuDevice
from harness.errors import FailureError, MisuseError
from harness.inference.model import Model
from harness.inference.quant import quantise
from harness.inference.specs import SPECS, Experts, ModelSpec
from harness.inference.synth import (
    DEVIATION,
    Key,
    Law,
    fill_sums,
    key_of,
    law,
    numbers,
    routing_scores,
    synthetic,
    tokens,
    words,
)

TINY = SPECS["tiny-qwen3-moe"]
GATE = "model.layers.1.mlp.experts.3.gate_proj.weight"
TESTED = [name for name in SPECS if name.startswith("tiny-")]

# Golden: a change of any of these needs a new SCHEME, or old seeds would name other weights.
KEY = Key(0x9F3E1C74, 0x1D2B5A68)
WORDS = {0: 0x2B53EE32, 1: 0xD2FB67D0, 2: 0x02174F49, 1000: 0x5F594C1B, 2**31: 0xC2A87F67, 2**32 - 1: 0x0B5E7BF6}
SUMS = [-96, 262, -333, 245, 41, -114, 179, -125]
KEY_OF_7 = Key(3960526813, 3458177704)
TOKENS_OF_7 = [259, 851, 750, 615, 539, 231, 136, 869]
ZIPF_OF_7 = [[6, 5, 0, 1, 4, 3, 7, 2], [5, 6, 4, 2, 0, 7, 3, 1]]  # of 8 experts, in the order of two tokens


def by_hand(key: Key, place: int) -> int:
    """The hash in Python's unbounded integers, cut to 32 bits by hand."""
    h = (place * 0x9E3779B1 + key.outer) % 2**32 ^ key.inner
    h = (h ^ h >> 16) * 0x21F0AAAD % 2**32
    h = (h ^ h >> 15) * 0x735A2D97 % 2**32
    return h ^ h >> 15


def filled(backend: Backend, key: Key, rule: Law, start: int, count: int) -> np.ndarray[Any, Any]:
    """Run the range kernel on a device."""
    out = backend.xp.empty(count, dtype=np.float32)
    words_of_key = np.uint32(key.outer), np.uint32(key.inner)
    backend.compile(fill_sums)(
        count, np.uint32(start), *words_of_key, np.float32(rule.base), np.float32(rule.scale), out
    )
    return backend.to_host(out)


# --- one definition, three ways to compute it -----------------------------------------------------------------------------


def test_the_golden_vectors_come_out() -> None:
    assert {place: by_hand(KEY, place) for place in WORDS} == WORDS
    assert {place: int(words(KEY, place, 1)[0]) for place in WORDS} == WORDS
    assert (
        numbers(KEY, Law(0, 1), 0, 8).tolist()
        == SUMS
        == [sum(by_hand(KEY, i).to_bytes(4, "big")) - 510 for i in range(8)]
    )
    assert key_of(7, GATE) == KEY_OF_7
    assert tokens(7, (8,), 1000).tolist() == TOKENS_OF_7
    scores = routing_scores("zipf", 7, 1, 2, 8)
    assert scores is not None
    assert (scores * -8).tolist() == ZIPF_OF_7


@pytest.mark.parametrize("rule", [Law(0, 1), Law(0, 1 / 3), Law(1.0, 2.0**-11), Law(-2.0, 2.0**-7)])
@pytest.mark.parametrize("start", [0, 5, 2**31 - 100, 2**32 - 1000])
def test_every_device_computes_the_definition_to_the_bit(backend: Backend, rule: Law, start: int) -> None:
    expected = numbers(KEY, rule, start, 1000)
    assert filled(backend, KEY, rule, start, 1000).tobytes() == expected.tobytes()
    assert expected[3] == np.float32(rule.base) + np.float32(
        sum(by_hand(KEY, start + 3).to_bytes(4, "big")) - 510
    ) * np.float32(rule.scale)


def test_a_slice_is_that_of_the_whole_however_it_is_cut(cpu: CpuDevice) -> None:
    source = synthetic(TINY, 3, cpu)
    whole = array_of(source, "model.embed_tokens.weight").ravel()
    for start, count in ((0, 1), (1, 96), (777, 1000), (whole.size - 5, 5)):
        out = np.empty(count, dtype=np.float32)
        source.fill("model.embed_tokens.weight", out, start=start)
        assert np.array_equal(out, whole[start : start + count])
    one_thread = CpuDevice(cpu.device)
    one_thread._threads = 1
    assert np.array_equal(array_of(synthetic(TINY, 3, one_thread), "model.embed_tokens.weight").ravel(), whole)


def test_half_precision_and_few_bits_are_made_of_the_same_numbers(
    cpu: CpuDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.inference.synth._SCRATCH", {"cpu": 100})
    monkeypatch.setattr("harness.inference.quant._PASSING", 640)
    exact = array_of(synthetic(TINY, 3, cpu), GATE)
    assert np.array_equal(array_of(synthetic(TINY, 3, cpu, dtype="float16"), GATE), exact.astype(np.float16))
    for bits in (8, 4):
        packed: Any = synthetic(TINY, 3, cpu, bits=bits)[GATE]
        expected = quantise(exact, bits=bits)
        assert np.array_equal(packed.values, expected.values)
        assert np.array_equal(packed.scales, expected.scales)
    router = "model.layers.0.mlp.gate.weight"
    assert array_of(synthetic(TINY, 3, cpu, bits=4), router).dtype == np.float32


def test_seed_and_name_decide_and_nothing_else_does(cpu: CpuDevice) -> None:
    one, again, other = (array_of(synthetic(TINY, seed, cpu), GATE) for seed in (3, 3, 4))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert not np.array_equal(one, array_of(synthetic(TINY, 3, cpu), GATE.replace("experts.3", "experts.4")))
    assert synthetic(TINY, 3, cpu).label == "synthetic:bytesum/1:3"


# --- how the numbers lie --------------------------------------------------------------------------------------------------


def test_numbers_are_near_normal_and_unrelated() -> None:
    x = numbers(KEY, Law(0, 1 / DEVIATION), 0, 1 << 20).astype(np.float64)
    assert abs(x.mean()) < 4 / 1024
    assert abs(x.std() - 1) < 0.004
    assert abs((x**4).mean() - 2.70) < 0.03
    assert np.abs(x).max() <= 510 / DEVIATION
    for lag in (1, 2, 3, 64, 576, 4096):
        assert abs((x[lag:] * x[:-lag]).mean()) < 5 / 1024, lag
    for other in (key_of(0, "a"), Key(KEY.outer + 1, KEY.inner), Key(KEY.outer, KEY.inner ^ 1)):
        assert abs((x * numbers(other, Law(0, 1 / DEVIATION), 0, 1 << 20)).mean()) < 5 / 1024, other


def test_every_bit_of_a_word_is_a_coin() -> None:
    """Of places in a row, and of places a row of a matrix apart."""
    for stride in (1, 64, 576):
        h = words(KEY, 0, stride << 14)[::stride]
        heads = np.unpackbits(np.ascontiguousarray(h).view(np.uint8).reshape(-1, 4), axis=1).mean(axis=0)
        assert np.abs(heads - 0.5).max() < 5 * 0.5 / math.sqrt(len(h)), stride


def test_no_tensor_is_another_one_moved() -> None:
    """Without the second half of the key, a key that differs by a multiple of the spread would give the same numbers, moved."""
    moved = Key((KEY.outer + 10 * 0x9E3779B1) % 2**32, KEY.inner)
    assert np.array_equal(words(KEY, 10, 100), words(moved, 0, 100))
    for inner in (KEY.inner + 1, KEY.inner ^ 1 << 31, 0):
        others = set(words(Key(moved.outer, inner), 0, 1000).tolist())
        assert len(others & set(words(KEY, 10, 1000).tolist())) < 3


def array_of(source: Any, name: str) -> np.ndarray[Any, Any]:
    made: np.ndarray[Any, Any] = source[name]
    return made


def of(spec: ModelSpec, name: str, cpu: CpuDevice) -> np.ndarray[Any, Any]:
    made: np.ndarray[Any, Any] = array_of(synthetic(spec, 1, cpu), name).astype(np.float64)
    return made


@pytest.mark.parametrize(
    ("model", "name", "deviation"),
    [
        ("tiny-llama", "model.embed_tokens.weight", 1),
        ("tiny-llama", "lm_head.weight", 64**-0.5),
        ("tiny-llama", "model.layers.0.self_attn.q_proj.weight", 64**-0.5),
        ("tiny-llama", "model.layers.2.self_attn.o_proj.weight", (64 * 2 * 3) ** -0.5),
        ("tiny-llama", "model.layers.0.mlp.down_proj.weight", (160 * 2 * 3) ** -0.5),
        ("tiny-qwen3", "model.layers.1.mlp.down_proj.weight", (160 * 2 * 3) ** -0.5),
        ("tiny-qwen3", "model.layers.2.mlp.down_proj.weight", 2 * 160**-0.5),
        ("tiny-mixtral", "model.layers.0.block_sparse_moe.experts.1.w2.weight", (96 * 2 * 3) ** -0.5),
        ("tiny-mixtral", "model.layers.0.block_sparse_moe.experts.1.w1.weight", 64**-0.5),
        ("tiny-mixtral", "model.layers.0.block_sparse_moe.gate.weight", 64**-0.5),
        ("tiny-gpt-oss", "model.layers.0.mlp.experts.gate_up_proj", 64**-0.5),
        ("tiny-gpt-oss", "model.layers.0.mlp.experts.down_proj", (48 * 2 * 4) ** -0.5),
        ("tiny-qwen3.5", "model.layers.0.linear_attn.out_proj.weight", (128 * 2 * 4) ** -0.5),
        ("tiny-qwen3.5", "model.layers.0.linear_attn.conv1d.weight", 0.5),
    ],
)
def test_matrices_keep_the_variance(model: str, name: str, deviation: float, cpu: CpuDevice) -> None:
    x = of(SPECS[model], name, cpu)
    assert x.std() == pytest.approx(deviation, rel=4 / math.sqrt(x.size))
    assert abs(x.mean()) < 4 * deviation / math.sqrt(x.size)


def test_vectors_are_near_what_they_are_in_a_model_but_not_at_it(cpu: CpuDevice) -> None:
    plain, qwen = SPECS["tiny-llama"], SPECS["tiny-qwen3.5"]
    for spec, name, low, high in (
        (plain, "model.norm.weight", 0.75, 1.25),
        (qwen, "model.layers.3.self_attn.q_norm.weight", -0.25, 0.25),  # stored less one
        (qwen, "model.layers.0.linear_attn.norm.weight", 0.75, 1.25),
        (qwen, "model.layers.0.linear_attn.A_log", -6, 2),
        (qwen, "model.layers.0.linear_attn.dt_bias", -2, 2),
        (SPECS["tiny-gpt-oss"], "model.layers.0.self_attn.sinks", -4, 4),
        (SPECS["tiny-gpt-oss"], "model.layers.0.mlp.experts.down_proj_bias", -0.25, 0.25),
        (SPECS["tiny-gpt-oss"], "model.layers.0.mlp.router.bias", -0.25, 0.25),
    ):
        x = of(spec, name, cpu)
        assert (low <= x).all()
        assert (x <= high).all()
        assert x.std() > 0.01, name


def test_a_base_that_is_added_is_added_exactly() -> None:
    """Or a device that multiplies and adds in one step would round otherwise."""
    for model in TESTED:
        for name in SPECS[model].tensors():
            rule = law(SPECS[model], name)
            assert rule.base == 0 or math.frexp(rule.scale)[0] == 0.5, name


# --- models of them -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", TESTED)
def test_a_model_of_every_kind_computes_with_them(model: str, cpu: CpuDevice) -> None:
    """Logits are finite and spread, and the residual does not grow with depth."""
    spec = SPECS[model]
    sizes: list[float] = []

    def watch(layer: int, name: str, array: np.ndarray[Any, Any]) -> None:
        if name != "experts":
            sizes.append(float(array.std()))

    made = Model(spec, synthetic(spec, 5, cpu))
    logits = made.forward(tokens(5, (2, 40), spec.vocab), made.cache(2, 40), logits="all", watch=watch)
    assert logits is not None
    assert np.isfinite(logits).all()
    assert (0.5 if not spec.tied else 3) < logits.std() < (2 if not spec.tied else 20)
    assert 0.9 < sizes[0] < 1.1
    assert max(sizes) < 2
    assert min(sizes) > 0.9


def distinct_answers(spec: ModelSpec, weights: Any) -> int:
    """Return how many different tokens 4 answers of 30 tokens hold, on average."""
    model = Model(spec, weights)
    cache = model.cache(4, 40)
    given = tokens(9, (4, 8), spec.vocab)
    seen: list[np.ndarray[Any, Any]] = []
    for _ in range(30):
        logits = model.forward(given, cache)
        assert logits is not None
        given = logits.argmax(axis=1)[:, None]
        seen.append(given[:, 0])
    return sum(len(set(row)) for row in np.array(seen).T) // 4


def test_a_tied_model_answers_neither_with_its_last_token_nor_with_two_in_turn(cpu: CpuDevice) -> None:
    spec = replace(SPECS["tiny-qwen3"], vocab=2000)
    made = synthetic(spec, 2, cpu).whole()
    assert distinct_answers(spec, made) > 15
    plain = {"model.norm.weight": np.ones(spec.hidden, dtype=np.float32)}
    last = "model.layers.2.mlp.down_proj.weight"
    modest = {last: made[last] * np.float32(0.5 * (2 * spec.layers) ** -0.5)}
    assert distinct_answers(spec, made | plain | modest) < 3
    assert distinct_answers(spec, made | modest) < 10


# 128 experts, 8 of them a token, as in the models that matter, but narrow.
SPARSE = replace(
    SPECS["tiny-qwen3-moe"], name="sparse", vocab=512, layers=10, layer_kinds=("full",) * 10, hidden=128, head_dim=32,
    heads=4, kv_heads=2, experts=Experts(count=128, top_k=8, width=16),
)  # fmt: skip


Spread = tuple[float, float]  # experts touched over those expected by chance; the most loaded one's load over the mean


def spread(weights: Any, batch: int, length: int) -> list[Spread]:
    """Take in `length` tokens a row after each row's own four; returns how each layer spreads them over its experts."""
    assert SPARSE.experts is not None
    count, k = SPARSE.experts.count, SPARSE.experts.top_k
    found: list[Spread] = []

    def watch(layer: int, name: str, array: np.ndarray[Any, Any]) -> None:
        if name == "experts":
            loads = np.bincount(array.ravel(), minlength=count)
            expected = count * (1 - (1 - k / count) ** (batch * length))
            found.append((np.count_nonzero(loads) / expected, loads.max() / loads.mean()))

    model = Model(SPARSE, weights)
    cache = model.cache(batch, length + 4)
    model.forward(tokens(1, (batch, 4), SPARSE.vocab), cache, logits="none")
    model.forward(tokens(2, (batch, length), SPARSE.vocab), cache, logits="none", watch=watch)
    assert len(found) == SPARSE.layers
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "length"), [(1, 256), (256, 1), (64, 1)])
def test_experts_are_spread_at_every_layer_as_by_chance(batch: int, length: int, cpu: CpuDevice) -> None:
    found = spread(synthetic(SPARSE, 11, cpu), batch, length)
    assert min(share for share, _ in found) >= 0.9
    if batch * length >= 256:  # an expert is then expected 16 times; of four, chance alone makes ten
        assert max(load for _, load in found) <= 2.5


@pytest.mark.slow
def test_weights_of_one_small_deviation_send_a_prompt_to_a_handful_of_experts(cpu: CpuDevice) -> None:
    """What the test above guards against, and that it would see it."""
    naive = {
        name: np.ones(shape, dtype=np.float32) if len(shape) == 1 else numbers(key_of(1, name), Law(0, 0.02 / DEVIATION), 0, math.prod(shape)).reshape(shape)
        for name, shape in SPARSE.tensors().items()
    }  # fmt: skip
    share, load = spread(naive, 1, 256)[-1]
    assert share < 0.5
    assert load > 10


# --- memory and misuse ----------------------------------------------------------------------------------------------------


def test_a_buffer_is_filled_without_any_other_memory(cpu: CpuDevice) -> None:
    spec = SPECS["qwen3-4b"]
    source = synthetic(spec, 1, cpu)
    out = np.empty(1 << 20, dtype=np.float32)
    source.fill("model.embed_tokens.weight", out)  # compiled
    assert hostile.peak_bytes(lambda: source.fill("model.embed_tokens.weight", out, start=123)) < 1 << 16
    half = np.empty(1 << 20, dtype=np.float16)
    source.fill("model.embed_tokens.weight", half)  # its scratch is kept
    assert hostile.peak_bytes(lambda: source.fill("model.embed_tokens.weight", half, start=123)) < 1 << 16


class Small(CpuDevice):
    """A device of little memory."""

    def free_bytes(self) -> int:
        return 24_000_000_000


def test_a_model_too_big_is_refused_before_anything_is_made(cpu: CpuDevice) -> None:
    device = Small(cpu.device)
    source = synthetic(SPECS["llama-3.3-70b"], 1, device)

    def refused() -> None:
        with pytest.raises(FailureError, match=r"llama-3.3-70b needs 282.2\d GB and a tenth more, 24.00 GB are free"):
            source.whole()

    assert hostile.peak_bytes(refused) < 1 << 20


def test_bytes_are_known_before_they_are_made(cpu: CpuDevice) -> None:
    for bits, dtype in ((None, "float32"), (None, "float16"), (8, "float16"), (4, "float32")):
        source = synthetic(TINY, 1, cpu, bits=bits, dtype=dtype)
        assert source.nbytes == sum(w.nbytes for w in source.whole().values())
        assert dict(source.shapes) == {name: w.shape for name, w in source.items()}
    assert len(source) == len(TINY.tensors())
    big = synthetic(SPECS["qwen3.5-35b-a3b"], 1, cpu, bits=4, dtype="float16")
    assert big.nbytes == pytest.approx(34_660_610_688 * 4.5 / 8, rel=0.01)  # fits 24 GB


def test_what_the_model_has_not_is_refused(cpu: CpuDevice) -> None:
    source = synthetic(TINY, 1, cpu)
    with pytest.raises(KeyError):
        source["x"]
    with pytest.raises(
        MisuseError, match=r"tiny-qwen3-moe has no tensor 'x'; it has .*, such as 'model.embed_tokens.weight'"
    ):
        source.fill("x", np.empty(1, dtype=np.float32))
    with pytest.raises(
        MisuseError, match=r"shape \(64,\) from place 1 on is no slice of 'model.norm.weight', which has 64"
    ):
        source.fill("model.norm.weight", np.empty(64, dtype=np.float32), start=1)
    with pytest.raises(MisuseError, match="from place -1 on"):
        source.fill("model.norm.weight", np.empty(4, dtype=np.float32), start=-1)
    with pytest.raises(MisuseError, match="has 4294967360 numbers; at most 4294967296"):
        synthetic(replace(TINY, vocab=(1 << 26) + 1), 1, cpu)
    source.fill("model.norm.weight", np.empty(0, dtype=np.float32))


# --- tokens and routes ----------------------------------------------------------------------------------------------------


def test_tokens_fill_the_vocabulary_evenly() -> None:
    drawn = tokens(1, (8, 2000), 100)
    assert drawn.shape == (8, 2000)
    assert drawn.dtype == np.int32
    assert (drawn.min(), drawn.max()) == (0, 99)
    assert np.abs(np.bincount(drawn.ravel()) - 160).max() < 5 * math.sqrt(160)
    assert not np.array_equal(drawn, tokens(2, (8, 2000), 100))
    assert not np.array_equal(drawn, tokens(1, (8, 2000), 100, stream="other"))
    assert tokens(1, (5,), 1).tolist() == [0] * 5
    assert tokens(1, (1 << 16,), 248320).max() > 248000


def chosen(scores: np.ndarray[Any, Any] | None, k: int) -> np.ndarray[Any, Any]:
    assert scores is not None
    return np.argsort(-scores, axis=1)[:, :k]


@pytest.mark.parametrize("mode", ["uniform", "zipf"])
@pytest.mark.parametrize("experts", [8, 100, 512])
def test_no_two_scores_of_a_row_are_equal(mode: Any, experts: int) -> None:
    scores = routing_scores(mode, 3, 0, 50, experts)
    assert scores is not None
    assert (scores.shape, scores.dtype) == ((50, experts), np.float32)
    assert all(len(set(row)) == experts for row in scores.tolist())
    assert (scores <= 0).all()
    assert (scores > -1).all()


def test_uniform_routing_takes_every_expert_as_often() -> None:
    loads = np.bincount(chosen(routing_scores("uniform", 3, 0, 4000, 32), 4).ravel(), minlength=32)
    assert np.abs(loads - 500).max() < 5 * math.sqrt(500)


def test_zipf_routing_draws_by_weights_without_putting_back() -> None:
    experts, count = 16, 20_000
    picks = chosen(routing_scores("zipf", 3, 0, count, experts), 2)
    weights = 1 / np.arange(1, experts + 1)
    first = np.bincount(picks[:, 0], minlength=experts)
    order = np.argsort(-first)  # the layer's own order of experts
    expected = count * weights / weights.sum()
    assert (np.abs(first[order] - expected) < 5 * np.sqrt(expected)).all()
    after = Counter(picks[picks[:, 0] == order[0], 1].tolist())  # given that the most frequent one came first
    rest = weights[1:] / weights[1:].sum() * after.total()
    assert order[0] not in after
    assert all(abs(after[e] - r) < 5 * math.sqrt(r) for e, r in zip(order[1:], rest, strict=True))


def test_layers_have_orders_of_their_own_and_natural_routing_is_the_routers() -> None:
    tops = {int(np.bincount(chosen(routing_scores("zipf", 3, i, 500, 64), 4).ravel()).argmax()) for i in range(8)}
    assert len(tops) > 4
    assert routing_scores("natural", 3, 0, 10, 10) is None
    with pytest.raises(MisuseError, match="no routing 'zip'; there are uniform, zipf, natural"):
        routing_scores("zip", 3, 0, 10, 10)  # type: ignore[arg-type]
