"""The fused decode path against the reference: its twins on a CPU, for every architecture, and its kernels in the emulator, one by one and all
together. What is not covered is refused.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import recording
from golden import hashed

from harness.device import narrow
from harness.device.backend import CudaSource, Launcher
from harness.device.cpu import CpuDevice
from harness.device.cuda import CudaDevice
from harness.errors import FailureError, MisuseError
from harness.inference import fused_attention, fused_delta, fused_kernels
from harness.inference.cache import Cache, DeltaState, KeyValues
from harness.inference.fused import FusedModel, launches_per_token, refusal
from harness.inference.matrix import Dense, Packed
from harness.inference.model import Model, generate
from harness.inference.quant import Quantised, quantisable, quantise
from harness.inference.specs import SPECS, ModelSpec

Host = np.ndarray[Any, Any]
TINY = sorted(name for name in SPECS if name.startswith("tiny-"))
BOUND = 2e-5  # of the logits' standard deviation
PROMPT = np.arange(37, dtype=np.int64)[None] * 7 % 96


def tiny(name: str) -> ModelSpec:
    """A tiny model; its shared expert, if it has one, as wide as a matrix of few bits can be."""
    spec = SPECS[name]
    experts = spec.experts
    return replace(spec, experts=replace(experts, shared_width=64)) if experts and experts.shared_width else spec


@functools.cache
def weights(name: str, bits: int | None) -> dict[str, Any]:
    spec = tiny(name)
    how = {"zero_centred": spec.zero_centred_norms, "tied": spec.tied, "loud": 3.0}
    plain = hashed.weights(spec.tensors(), 5, **how)
    return {n: quantise(w, bits=bits) if bits and quantisable(n, w.shape) else w for n, w in plain.items()}


def model(name: str, bits: int | None = None, **options: Any) -> Model:
    return Model(tiny(name), weights(name, bits), keep_packed=bits is not None, **options)


def distance(ours: Any, theirs: Host) -> float:
    """The largest difference, in standard deviations; infinite if one is no number."""
    difference = np.abs(np.asarray(ours) - theirs).max()
    return float(difference / theirs.std()) if np.isfinite(difference) else float("inf")


# -- the twins, on a CPU


@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("name", TINY)
def test_token_by_token_it_answers_as_the_model_does(name: str, bits: int | None, cpu: CpuDevice) -> None:
    reference, fused = model(name, bits), FusedModel(model(name, bits), cpu)
    caches = reference.cache(1, 80), fused.cache(1, 80)
    reference.forward(PROMPT[:, :5], caches[0])
    fused.forward(PROMPT[:, :5], caches[1])
    for token in PROMPT[0, 5:27]:
        theirs = reference.forward(token.reshape(1, 1), caches[0])
        ours = fused.forward(token.reshape(1, 1), caches[1])
        assert theirs is not None
        assert ours is not None
        assert ours.shape == (1, 96)
        assert distance(ours, theirs) <= BOUND
    assert caches[0].lengths.tolist() == caches[1].lengths.tolist()


def test_it_takes_turns_with_the_model_on_one_cache(cpu: CpuDevice) -> None:
    m = model("tiny-qwen3.5")
    fused, whole, ours = FusedModel(m, cpu), m.cache(1, 40), m.cache(1, 40)
    truth = m.forward(PROMPT[:, :20], whole)
    fused.forward(PROMPT[:, :6], ours)
    fused.decode(ours, PROMPT[0, 6], 4, forced=PROMPT[0, 7:11])
    m.forward(PROMPT[:, 10:18], ours)
    assert fused.forward(PROMPT[:, 18:19], ours, logits="none") is None
    last = fused.forward(PROMPT[:, 19:20], ours, logits="all")
    assert truth is not None
    assert last is not None
    assert last.shape == (1, 1, 96)
    assert distance(last[0], truth) <= BOUND


def test_decoding_follows_its_own_tokens_or_the_forced_ones(cpu: CpuDevice) -> None:
    m = model("tiny-qwen3-moe")
    fused, cache = FusedModel(m, cpu), m.cache(1, 30)
    greedy = generate(m, PROMPT[0, :6], 12)
    m.forward(PROMPT[:, :5], cache)
    cache.mark()
    assert fused.decode(cache, PROMPT[0, 5], 12).tolist() == greedy.tolist()
    cache.rewind(5)
    forced = (greedy + 1) % 96
    answers = fused.decode(cache, PROMPT[0, 5], 12, forced=forced)
    assert answers[0] == greedy[0]
    assert answers.tolist() != greedy.tolist()
    cache.rewind(5)
    told = [m.forward(np.array([[t]]), cache).argmax() for t in [PROMPT[0, 5], *forced[:-1]]]
    assert answers.tolist() == told


class Counting(CpuDevice):
    """A CPU that counts the launches of what it has loaded."""

    launches = 0

    def load(self, source: CudaSource) -> Launcher:
        inner = super().load(source)

        def launch(*args: Any, **options: Any) -> None:
            self.launches += 1
            inner(*args, **options)

        return launch


@pytest.mark.parametrize("name", TINY)
def test_the_launches_of_a_token_are_as_many_as_it_says(name: str, cpu: CpuDevice) -> None:
    device, m = Counting(cpu.device), model(name)
    fused = FusedModel(m, device)
    fused.decode(m.cache(1, 8), 1, 3)
    assert device.launches == 3 * fused.launches_per_token


@pytest.mark.parametrize("name", SPECS)
def test_a_layer_takes_a_handful_of_launches(name: str) -> None:
    spec = SPECS[name]
    assert refusal(spec, "float16") is None
    assert 5 * spec.layers < launches_per_token(spec) <= (6 if spec.experts else 5) * spec.layers + 2


# -- what it refuses


def odd_packed(m: Model) -> None:
    """Give the first layer three packed rows too few to be read two at a time."""
    mixer = m._layers[0].mixer
    object.__setattr__(mixer, "inward", Packed((quantise(np.ones((3, 64), np.float32), bits=8),), m.ops))


def grouped(m: Model) -> None:
    mixer = m._layers[0].mixer
    object.__setattr__(mixer, "inward", Packed((quantise(np.ones((4, 64), np.float32), bits=8, group=64),), m.ops))


def mixed(m: Model) -> None:
    mixer = m._layers[0].mixer
    parts = tuple(quantise(np.ones((4, 64), np.float32), bits=bits) for bits in (8, 4))
    object.__setattr__(mixer, "inward", Packed(parts, m.ops))


def wide(m: Model) -> None:
    object.__setattr__(m._layers[0].block, "outward", Dense(np.ones((64, 6), np.float32)))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (odd_packed, "even"),
        (grouped, "groups of"),
        (mixed, "int4, int8"),
        (wide, "6 inputs"),
    ],
)
def test_weights_that_no_kernel_reads_are_refused(spoil: Callable[[Model], None], words: str, cpu: CpuDevice) -> None:
    m = model("tiny-llama")
    spoil(m)
    with pytest.raises(MisuseError, match=words):
        FusedModel(m, cpu).decode(m.cache(1, 4), 1, 1)


def test_experts_of_which_only_some_are_packed_are_refused(cpu: CpuDevice) -> None:
    spec = SPECS["tiny-qwen3.5"]  # its shared expert has 48 inputs, which are no whole groups
    plain = hashed.weights(spec.tensors(), 5, zero_centred=True, tied=False, loud=1.0)
    packed = {n: quantise(w, bits=4) if quantisable(n, w.shape) else w for n, w in plain.items()}
    m = Model(spec, packed, keep_packed=True)
    with pytest.raises(MisuseError, match="float32, int4 that one kernel reads"):
        FusedModel(m, cpu).decode(m.cache(1, 4), 1, 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden": 16384}, "hidden 16384"),
        ({"head_dim": 512}, "head_dim 512"),
        ({"heads": 34, "kv_heads": 2}, "17 query heads"),
    ],
)
def test_shapes_that_no_kernel_takes_are_refused(changes: dict[str, Any], words: str) -> None:
    assert words in (refusal(replace(SPECS["tiny-llama"], **changes), "float32") or "")


def test_a_dtype_without_kernels_is_refused(cpu: CpuDevice) -> None:
    with pytest.raises(MisuseError, match="tiny-llama cannot be fused: dtype float64"):
        FusedModel(model("tiny-llama", dtype="float64"), cpu)


def test_a_model_elsewhere_is_refused(cpu: CpuDevice) -> None:
    class Elsewhere(CpuDevice):
        xp = object()

        def __init__(self) -> None:
            """Take nothing."""

    with pytest.raises(MisuseError, match="not the backend's"):
        FusedModel(model("tiny-llama"), Elsewhere())


def test_requests_out_of_range_are_refused(cpu: CpuDevice) -> None:
    m = model("tiny-llama")
    fused, cache = FusedModel(m, cpu), m.cache(1, 4)
    with pytest.raises(MisuseError, match="0 steps"):
        fused.decode(cache, 1, 0)
    with pytest.raises(MisuseError, match="holds 0 of 4 tokens; 5 more"):
        fused.decode(cache, 1, 5)
    with pytest.raises(MisuseError, match=r"\[96\] are not all"):
        fused.decode(cache, np.array([96]), 1)
    with pytest.raises(MisuseError, match=r"\[2, -1\] are not all"):
        fused.decode(cache, 1, 2, forced=[2, -1])
    with pytest.raises(MisuseError, match=r"shape \(1,\); it must be \(2,\)"):
        fused.decode(cache, 1, 2, forced=[2])
    with pytest.raises(MisuseError, match="2 rows"):
        fused.decode(m.cache(2, 4), 1, 1)
    assert cache.lengths.tolist() == [0]


def test_a_graph_that_must_be_and_cannot_is_an_error(cpu: CpuDevice) -> None:
    m = model("tiny-llama")
    fused, cache = FusedModel(m, cpu, path="graph"), m.cache(1, 4)
    with pytest.raises(FailureError, match="a CPU has no graphs"):
        fused.decode(cache, 1, 3)
    willing = FusedModel(m, cpu)
    willing.decode(m.cache(1, 4), 1, 3)
    assert (willing.path, willing.capture_failure) == ("eager", "a CPU has no graphs")


# -- the kernels, one by one, at sizes that fit nothing


@dataclass(frozen=True, kw_only=True)
class Call:
    """A kernel's arguments: arrays of NumPy, lists of arrays (tables), and scalars."""

    source: CudaSource
    blocks: int
    threads: int
    args: tuple[Any, ...]
    shared_bytes: int = 0
    bound: float = 3e-6  # of an array's largest magnitude
    scratch: frozenset[int] = field(default_factory=frozenset)  # places of what only the kernel uses

    def differences(self, device: CudaDevice) -> list[str]:
        """Run the kernel and its twin; name the arrays that they leave otherwise than each other."""
        xp, kept = device.xp, []

        def there(value: Any) -> Any:
            if isinstance(value, list):
                arrays = [xp.asarray(a) for a in value]
                kept.append(arrays)
                return xp.asarray(np.array([a.data.ptr for a in arrays], dtype=np.uint64))
            return xp.asarray(value) if isinstance(value, np.ndarray) else value

        ours, theirs = (
            [there(a) for a in self.args],
            [a.copy() if isinstance(a, np.ndarray) else a for a in self.args],
        )
        device.load(self.source)(self.blocks, self.threads, *ours, shared_bytes=self.shared_bytes)
        self.source.twin(*theirs)
        found = []
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            if not isinstance(b, np.ndarray) or i in self.scratch:
                continue
            host = device.to_host(a)
            where = host != b  # what is infinite on both sides has no difference
            off = np.abs(host[where].astype(np.float64) - b[where]).max(initial=0)
            if not off <= (self.bound * np.abs(b[np.isfinite(b)]).max(initial=0) if b.dtype.kind == "f" else 0):
                found.append(f"{self.source.name}, argument {i}: off by {off}")
        return found


def numbers(*shape: int, seed: int = 0) -> Host:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32)


def stored(kind: str, rows: int, width: int, seed: int = 0) -> tuple[Host, Host]:
    """Weights of a kind: values and scales."""
    plain = numbers(rows, width, seed=seed) / np.float32(np.sqrt(width))
    if kind.startswith("int"):
        packed = quantise(plain, bits=int(kind[3:]))
        return packed.values, packed.scales
    values = narrow.to_bfloat16(plain) if kind == "bfloat16" else plain.astype(kind)
    return values, values


def typed(*values: Any) -> tuple[Any, ...]:
    return tuple(np.uint32(v) if isinstance(v, int) else np.float32(v) if isinstance(v, float) else v for v in values)


def none(*shape: int, dtype: str = "float32") -> Host:
    return np.zeros(shape, dtype=dtype)


LONG = fused_kernels.CHUNK + 544  # more numbers than a block holds at a time
SHARES, CHOSEN = np.array([0.5, 0.2, 0.3, 0.7], np.float32), np.array([3, 0, 2, 5], np.int32)


def embed(kind: str) -> Iterator[tuple[Any, ...]]:
    yield *stored(kind, 5, 1056), np.array([3, 0, 0], np.int32), none(1056), 1056


def inward(kind: str) -> Iterator[tuple[Any, ...]]:
    """Four matrices with a convolution behind some rows; one without."""
    pieces = [a for n in (18, 6, 6, 4) for a in stored(kind, n, 1056, n)]
    rest = numbers(34, seed=1), numbers(1056), numbers(1056, seed=2)
    yield *pieces, *rest, numbers(3, 20), numbers(4, 20), none(34), 1056, 18, 24, 30, 34, 4, 20, 1e-5
    yield *stored(kind, 34, 1056) * 4, *rest, none(1), none(1), none(34), 1056, 34, 34, 34, 34, 0, 0, 1e-5


def outward(kind: str) -> Iterator[tuple[Any, ...]]:
    yield *stored(kind, 11, LONG), numbers(11), numbers(LONG, seed=3), numbers(11, seed=4), LONG, 11


def gate_up(kind: str) -> Iterator[tuple[Any, ...]]:
    pair = *stored(kind, 23, 352), *stored(kind, 23, 352, 1)
    yield *pair, numbers(46), numbers(352), numbers(352, seed=1), none(23), 352, 23, 1e-6


def expert_gate_up(kind: str) -> Iterator[tuple[Any, ...]]:
    """With a shared expert; with biases and a limit."""
    made = [[stored(kind, 24 if e == 5 else 12, 352, 2 * e + i) for e in range(6)] for i in range(2)]
    tables = [[pair[i] for pair in half] for half in made for i in range(2)]
    for biased, limit in ((0, 0.0), (1, 0.4)):
        inputs = numbers(6, 24), CHOSEN, SHARES, numbers(352), numbers(352, seed=1), none(3 * 12 + 24)
        yield *tables, *inputs, 352, 12, 3, 24 * (1 - biased), biased, limit, 1.7, 1e-6


def expert_outward(kind: str) -> Iterator[tuple[Any, ...]]:
    """Without and with a shared expert."""
    for shared in (0, LONG):
        made = [stored(kind, 9, LONG if e == 5 else 288, e) for e in range(6)]
        tables = [[pair[i] for pair in made] for i in range(2)]
        yield (
            *tables,
            numbers(6, 9),
            CHOSEN,
            SHARES,
            numbers(3 * 288 + LONG),
            numbers(9, seed=1),
            288,
            9,
            3,
            shared,
            int(not shared),
        )


def route(_: str) -> Iterator[tuple[Any, ...]]:
    for over_all, shared in ((0, 1), (1, 0)):
        inputs = numbers(45, 352), numbers(45, seed=1), numbers(1, 352), numbers(352), numbers(352, seed=2)
        yield (
            *inputs,
            none(46),
            none(1, dtype="uint32"),
            none(6, dtype="int32"),
            none(6),
            352,
            45,
            5,
            over_all,
            shared,
            1e-6,
        )


def head(kind: str) -> Iterator[tuple[Any, ...]]:
    """Followed by the likeliest token; by a forced one."""
    for following in (-1, 17):
        state, forced = np.array([4, 9, 1], np.int32), np.array([3, following, 3], np.int32)
        mine = (
            none(131),
            none(3),
            none(3, dtype="int32"),
            none(1, dtype="uint32"),
            state,
            forced,
            none(3, dtype="int32"),
        )
        yield *stored(kind, 131, 352), numbers(352), numbers(352, seed=1), *mine, 352, 131, 1e-6


STREAMING: dict[str, Callable[[str], Iterator[tuple[Any, ...]]]] = {
    f.__name__: f for f in (embed, inward, outward, gate_up, expert_gate_up, expert_outward, route, head)
}


def streaming(kind: str, kernel: str) -> list[Call]:
    """Calls of one kernel with few blocks, so that each has several turns, of odd numbers of rows."""
    return [
        Call(
            source=fused_kernels.SOURCES[kind][kernel],
            blocks=3,
            threads=128,
            args=typed(*args),
            shared_bytes=fused_kernels.shared_bytes(LONG),
            scratch=frozenset({5, 6} if kernel == "head" else ()),
        )
        for args in STREAMING[kernel](kind)
    ]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", fused_kernels.KINDS)
def test_every_kernel_that_streams_weights_does_what_its_twin_does(kind: str, cuda: CudaDevice) -> None:
    for kernel in fused_kernels.SOURCES[kind]:
        assert [d for call in streaming(kind, kernel) for d in call.differences(cuda)] == []


@pytest.mark.gpu
def test_equal_logits_give_the_first_token_and_equal_scores_the_first_experts(cuda: CudaDevice) -> None:
    logits, scores = streaming("float32", "head")[0], streaming("float32", "route")[0]
    flat = np.zeros_like(logits.args[0])
    flat[[40, 90, 130]] = 1
    assert replace(logits, args=(flat, flat, np.ones_like(logits.args[2]), *logits.args[3:])).differences(cuda) == []
    level = np.zeros_like(scores.args[0]), np.zeros_like(scores.args[1])
    assert replace(scores, args=(*level, *scores.args[2:])).differences(cuda) == []


def attending(kind: str, position: int, window: int, *, plain: bool = False) -> Call:
    """A call with five query heads to one of keys, 80 dimensions of which 32 are rotated, in three splits."""
    kv_heads, group, dim, capacity, splits = 2, 5, 80, 128, 3
    heads = kv_heads * group
    angles = np.arange(capacity)[:, None] * 0.9 ** np.arange(16, dtype=np.float32)
    memory = [
        numbers(kv_heads, capacity, dim, seed=s).astype("float32" if kind == "bfloat16" else kind) for s in (1, 2)
    ]
    sinks = np.full(heads, -np.inf, np.float32) if plain else numbers(heads)
    return Call(
        source=fused_attention.SOURCES[kind],
        blocks=kv_heads * splits,
        threads=fused_attention.THREADS,
        args=typed(
            numbers(2 * (heads + kv_heads) * dim), numbers(heads + kv_heads, dim, seed=5) * 0.3 + 1,
            np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32), sinks,
            np.array([7, position, 0], np.int32), *memory, none(heads, splits, dim), none(heads, splits), none(heads, splits),
            none(kv_heads, dtype="uint32"), none(heads * dim), kv_heads, group, dim, 32, splits, capacity, window,
            int(not plain), int(not plain), 1e-6, dim**-0.5,
        ),
        scratch=frozenset({8, 9, 10}),
        bound=3e-6 if kind == "float32" else 1e-3,
    )  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_attention_does_what_its_twin_does(kind: str, cuda: CudaDevice) -> None:
    for position, window in ((0, 0), (31, 0), (100, 0), (100, 40), (127, 1)):
        assert attending(kind, position, window).differences(cuda) == []
    assert attending(kind, 97, 0, plain=True).differences(cuda) == []


@pytest.mark.gpu
def test_attention_over_bfloat16_does_what_its_twin_does_over_rounded_numbers(cuda: CudaDevice) -> None:
    call = attending("bfloat16", 100, 0)
    rounded = [narrow.from_bfloat16(narrow.to_bfloat16(m)) for m in call.args[6:8]]
    ours = [cuda.xp.asarray(a) if isinstance(a, np.ndarray) else a for a in call.args]
    ours[6:8] = [cuda.xp.asarray(narrow.to_bfloat16(m)) for m in rounded]
    theirs = [a.copy() if isinstance(a, np.ndarray) else a for a in call.args]
    theirs[6:8] = [m.copy() for m in rounded]
    cuda.load(call.source)(call.blocks, call.threads, *ours)
    call.source.twin(*theirs)
    for i in (6, 7):
        assert np.allclose(narrow.from_bfloat16(cuda.to_host(ours[i])), theirs[i], rtol=2**-8, atol=0)
    assert distance(cuda.to_host(ours[12]), theirs[12]) < 2e-2


@pytest.mark.gpu
def test_the_delta_rule_does_what_its_twin_does(cuda: CudaDevice) -> None:
    key_heads, heads, key_dim, value_dim = 2, 6, 40, 96
    args = typed(
        numbers(2 * key_heads * key_dim + 2 * heads * value_dim + 2 * heads), -np.exp(numbers(heads)), numbers(heads, seed=1),
        numbers(value_dim), numbers(key_heads, key_dim, heads // key_heads, value_dim), none(heads * value_dim), none(heads, dtype="uint32"),
        none(heads * value_dim), key_heads, heads, key_dim, value_dim, 1e-6,
    )  # fmt: skip
    blocks = heads * value_dim // fused_delta.COLUMNS
    call = Call(
        source=fused_delta.SOURCE, blocks=blocks, threads=fused_delta.THREADS, args=args, scratch=frozenset({5})
    )
    assert call.differences(cuda) == []


# -- whole models on a GPU


def moved(weight: Any, xp: Any) -> Any:
    if isinstance(weight, Quantised):
        return replace(weight, values=xp.asarray(weight.values), scales=xp.asarray(weight.scales))
    return xp.asarray(weight)


def transplanted(cache: Cache, other: Cache, xp: Any) -> None:
    """Make a cache on a GPU hold what another one holds."""
    for index, state in cache.layers.items():
        there = other.layers[index]
        if isinstance(state, KeyValues) and isinstance(there, KeyValues):
            there.keys[...], there.values[...] = xp.asarray(state.keys), xp.asarray(state.values)
        elif isinstance(state, DeltaState) and isinstance(there, DeltaState):
            there.recurrent[...], there.tail[...] = xp.asarray(state.recurrent), xp.asarray(state.tail)
    other.advance(cache.lengths)


@dataclass(frozen=True)
class Both:
    """A model on the CPU and the same on a GPU, whose caches hold one prompt."""

    reference: Model
    cache: Cache
    fused: FusedModel
    its_cache: Cache

    def next(self, token: int) -> int:
        """The likeliest token after one more, by the reference."""
        logits = self.reference.forward(np.array([[token]]), self.cache)
        assert logits is not None
        return int(logits.argmax())


def both(name: str, device: CudaDevice, bits: int | None = None, dtype: str = "float32") -> Both:
    there = {n: moved(w, device.xp) for n, w in weights(name, bits).items()}
    on_gpu = Model(tiny(name), there, device.xp, dtype=dtype, keep_packed=bits is not None)
    reference = model(name, bits)
    cache, fused = reference.cache(1, 80), FusedModel(on_gpu, device)
    reference.forward(PROMPT, cache)
    its_cache = fused.cache(1, 80)
    transplanted(cache, its_cache, device.xp)
    return Both(reference, cache, fused, its_cache)


CASES = [
    *((name, None, "float32", BOUND) for name in TINY),
    *(("tiny-qwen3-moe", bits, "float32", BOUND) for bits in (8, 4)),
    *((name, None, "float16", 1e-2) for name in ("tiny-llama", "tiny-qwen3-moe")),
]


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "bits", "dtype", "bound"), CASES)
def test_a_gpu_answers_as_the_model_does(
    name: str, bits: int | None, dtype: str, bound: float, cuda: CudaDevice
) -> None:
    on = both(name, cuda, bits, dtype)
    for i, token in enumerate((5, 17, 60)):
        theirs = on.reference.forward(np.array([[token]]), on.cache)
        ours = on.fused.forward(np.array([[token]]), on.its_cache)
        assert theirs is not None
        assert distance(cuda.to_host(ours), theirs) <= bound
        assert on.fused.path == ("eager" if i == 0 else "graph"), on.fused.capture_failure


@pytest.mark.gpu
def test_a_replayed_graph_feeds_itself_and_launches_no_more_than_it_says(cuda: CudaDevice) -> None:
    on = both("tiny-qwen3-moe", cuda)
    forced = np.array([3, 9, 27, 81, 50])
    tokens = [1, *forced[:-1]]
    told = [on.next(t) for t in tokens]
    assert cuda.to_host(on.fused.decode(on.its_cache, 1, 5, forced=forced)).tolist() == told
    assert on.fused.path == "graph"
    on.its_cache.rewind(PROMPT.shape[1])
    before = recording.launched() if recording.emulator() else 0
    greedy = on.fused.decode(on.its_cache, cuda.xp.asarray([[1]]), 5)
    cuda.synchronize()
    if recording.emulator():
        around = recording.launched() - before - 5 * on.fused.launches_per_token
        assert 0 <= around <= 6  # to set the state, and to copy the answer
    on.cache.rewind(PROMPT.shape[1])
    told, token = [], 1
    for _ in range(5):
        token = on.next(token)
        told.append(token)
    assert cuda.to_host(greedy).tolist() == told


@pytest.mark.gpu
def test_what_cannot_be_captured_is_launched_one_by_one(cuda: CudaDevice) -> None:
    on = both("tiny-llama", cuda)
    on.fused.decode(on.its_cache, 1, 1)
    session = on.fused._session
    assert session is not None
    last = session.launches[-1]

    def waiting(*args: Any, **options: Any) -> None:
        last.launcher(*args, **options)
        cuda.xp.cuda.get_current_stream().synchronize()

    session.launches = (*session.launches[:-1], replace(last, launcher=waiting))
    on.reference.forward(np.array([[1]]), on.cache)
    for token in (7, 8):
        theirs = on.reference.forward(np.array([[token]]), on.cache)
        assert theirs is not None
        assert distance(cuda.to_host(on.fused.forward(np.array([[token]]), on.its_cache)), theirs) <= BOUND
    assert on.fused.path == "eager"
    assert "CaptureUnsupported" in (on.fused.capture_failure or "")
    strict = FusedModel(on.fused.model, cuda, path="eager")
    strict.forward(np.array([[9]]), on.its_cache)
    strict.forward(np.array([[9]]), on.its_cache)
    assert (strict.path, strict.capture_failure) == ("eager", None)
