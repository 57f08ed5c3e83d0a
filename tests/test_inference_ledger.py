"""The ledger's integers: those that were counted in other people's code, those of the published tables, and those a model here does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.device.backend import Backend
from harness.errors import MisuseError
from harness.inference import ledger
from harness.inference.model import Cache, Model
from harness.inference.roof import roof
from harness.inference.specs import SPECS
from harness.measure.ceiling import LIMIT_FRACTION, Reach, measured_ceiling, reach
from harness.measure.validity import objections
from harness.model import Device, Work
from harness.registry import Roof

FP32, FP16, INT8, INT4 = (ledger.FORMATS[name] for name in ("fp32", "fp16", "int8", "int4"))
TINY = [name for name in SPECS if name.startswith("tiny-")]


# --- counted elsewhere --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "batch", "length", "flops"),
    [
        ("llama-3.1-8b", 1, 512, 7_285_315_207_168),
        ("llama-3.1-8b", 3, 128, 5_389_041_008_640),
        ("qwen3-4b", 1, 512, 3_875_912_155_136),
        ("qwen3-4b", 3, 128, 2_821_711_331_328),
    ],
)
def test_a_prefill_is_what_torch_counts(name: str, batch: int, length: int, flops: int) -> None:
    """By torch.utils.flop_counter over transformers 5.23 on the meta device: eager attention, logits of the last token."""
    cost = ledger.prefill(SPECS[name], batch=batch, length=length, weights=FP16, attention="square")
    assert cost.flops == flops


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("smollm2-135m", 0.1345),
        ("llama-3.1-8b", 7.505),
        ("qwen3-8b", 7.568),
        ("qwen3-14b", 13.99),
        ("qwen3-32b", 31.98),
        ("qwen3-30b-a3b", 3.042),
        ("qwen3.5-35b-a3b", 2.946),
        ("gpt-oss-20b", 3.608),
        ("gpt-oss-120b", 5.133),
        ("mixtral-8x7b", 12.75),
        ("llama-3.3-70b", 69.50),
    ],
)
def test_a_token_streams_the_weights_of_the_published_table(name: str, billions: float) -> None:
    spec = SPECS[name]
    cost = ledger.decode(spec, batch=1, context=1, weights=FP16)
    keys = sum(p.bytes_moved for p in cost.parts if p.name.endswith(("attention", "state", "convolution")))
    assert (cost.bytes_moved - keys) / 2e9 == pytest.approx(
        billions, rel=2e-3
    )  # norms and the like are not in the ledger
    assert spec.streamed_parameters_per_token / 1e9 == pytest.approx(billions, rel=5e-4)


def test_a_token_of_qwen35_moves_126_megabytes_of_state() -> None:
    parts = {p.name: p for p in ledger.decode(SPECS["qwen3.5-35b-a3b"], batch=1, context=2048, weights=INT4).parts}
    assert parts["delta state"].bytes_moved == 2 * 30 * 2 * 2**20


@pytest.mark.parametrize(
    ("name", "bandwidth_gb", "ceilings"),
    [
        ("llama-3.1-8b", 936, (61, 114, 208)),
        ("llama-3.1-8b", 3350, (219, 406, 746)),
        ("qwen3-32b", 1008, (None, None, 54)),
        ("qwen3-32b", 4800, (74, 139, 259)),
    ],
)
def test_the_floor_of_decoding_is_the_published_ceiling(
    name: str, bandwidth_gb: float, ceilings: tuple[int | None, ...]
) -> None:
    """Research table of tokens a second at context 2048 by the makers' bandwidths; whole numbers."""
    for form, expected in zip((FP16, INT8, INT4), ceilings, strict=True):
        if expected is not None:
            cost = ledger.decode(SPECS[name], batch=1, context=2048, weights=form)
            assert 1 / cost.least_s(bandwidth_gb * 1e9, 1e18) == pytest.approx(expected, rel=0.02)


# --- counted here -------------------------------------------------------------------------------------------------


def seen_by_hand(start: int, length: int, window: int | None) -> int:
    return sum(min(t, window or t) for t in range(start + 1, start + length + 1))


@given(st.integers(0, 80), st.integers(1, 80), st.none() | st.integers(1, 90))
def test_pairs_of_query_and_key_are_counted_one_by_one(start: int, length: int, window: int | None) -> None:
    assert ledger.pairs_seen(start, length, window) == seen_by_hand(start, length, window)


@pytest.mark.parametrize("name", SPECS)
def test_products_without_attention_are_the_models_matrices(name: str) -> None:
    spec = SPECS[name]
    cost = ledger.prefill(spec, batch=2, length=3, weights=FP16)
    mixing = sum(p.flops for p in cost.parts if p.name.endswith(("attention", "state", "convolution")))
    assert cost.flops - mixing == 2 * (6 * spec.matmul_parameters_per_token + 2 * spec.head_parameters)


@pytest.mark.parametrize("name", SPECS)
def test_prefill_in_pieces_and_token_by_token_do_the_same_attention(name: str) -> None:
    def mixing(cost: ledger.Cost) -> int:
        return sum(p.flops for p in cost.parts if p.name.endswith(("attention", "state", "convolution")))

    spec = SPECS[name]
    whole = ledger.prefill(spec, batch=2, length=200, weights=FP16)
    pieces = [ledger.prefill(spec, batch=2, start=at, length=50, weights=FP16) for at in range(0, 200, 50)]
    tokens = ledger.decode_steps(spec, batch=2, depth=0, steps=200, weights=FP16)
    assert mixing(whole) == mixing(ledger.total(pieces)) == mixing(tokens)


def test_a_sliding_layer_reads_no_more_than_its_window() -> None:
    spec = SPECS["gpt-oss-20b"]
    parts = {p.name: p for p in ledger.decode(spec, batch=1, context=4096, weights=FP16).parts}
    assert parts["full attention"].bytes_moved == 12 * 2 * 8 * 64 * 2 * (4096 + 1)
    assert parts["sliding attention"].bytes_moved == 12 * 2 * 8 * 64 * 2 * (128 + 1)
    assert parts["sliding attention"].flops == 12 * 4 * 64 * 64 * 128


class Counted(np.ndarray[Any, Any]):
    """An array whose products of matrices are counted."""

    flops = 0

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = (), **options: Any) -> Any:
        plain = [x.view(np.ndarray) if isinstance(x, Counted) else x for x in inputs]
        into = tuple(x.view(np.ndarray) if isinstance(x, Counted) else x for x in out)
        made = getattr(ufunc, method)(*plain, **({"out": into} if into else {}), **options)
        if ufunc is np.matmul:
            Counted.flops += 2 * made.size * plain[0].shape[-1]
        return out[0] if out else made.view(Counted) if isinstance(made, np.ndarray) else made


class CountingModule:
    """NumPy as if it were a device's module, with arrays that count."""

    def __getattr__(self, name: str) -> Any:
        found = getattr(np, name)
        if not callable(found) or isinstance(found, type):
            return found

        def call(*args: Any, **options: Any) -> Any:
            made = found(*args, **options)
            return made.view(Counted) if isinstance(made, np.ndarray) else made

        return call

    def asnumpy(self, x: Any) -> Any:
        return np.asarray(x).view(np.ndarray)


def counted(model: Model, tokens: Any, cache: Cache) -> int:
    before = Counted.flops
    model.forward(tokens, cache)
    return Counted.flops - before


@pytest.mark.parametrize("name", TINY)
def test_the_model_here_does_what_the_ledger_says(name: str) -> None:
    """Every product that the array module is asked for: a prompt at once, then a token. Masks hide half of a prompt's attention.

    The state of a DeltaNet is corrected by an outer product, and convolved by multiply-adds, which are no products of matrices: a
    third of the one and all of the other are left out here. A prompt goes through it in chunks, which take other products.
    """
    spec = SPECS[name]
    rng = np.random.default_rng(0)
    weights = {n: rng.normal(0, 0.1, shape).astype(np.float32) for n, shape in spec.tensors().items()}
    model = Model(spec, weights, CountingModule())
    cache = model.cache(3, 40)
    tokens = rng.integers(0, spec.vocab, (3, 30))
    prompt = counted(model, tokens, cache)
    if "delta" not in spec.layer_kinds:
        assert prompt == ledger.prefill(spec, batch=3, length=30, weights=FP32, attention="square").flops
    for context in (31, 32):
        parts = {p.name: p.flops for p in ledger.decode(spec, batch=3, context=context, weights=FP32).parts}
        elsewhere = parts.get("delta convolution", 0) + parts.get("delta state", 0) // 3
        assert counted(model, tokens[:, :1], cache) == sum(parts.values()) - elsewhere


# --- experts ------------------------------------------------------------------------------------------------------


def test_experts_are_expected_as_uniform_picks_would_have_it() -> None:
    experts = SPECS["qwen3-30b-a3b"].experts
    assert experts is not None
    assert ledger.experts_expected(experts, 1) == pytest.approx(8)
    assert ledger.experts_expected(experts, 256) == pytest.approx(128 * (1 - (120 / 128) ** 256))
    for tokens in (1, 4, 32):  # drawn
        rng = np.random.default_rng(tokens)
        drawn = [len({*rng.random((tokens, 128)).argpartition(8)[:, :8].flat}) for _ in range(300)]
        assert ledger.experts_expected(experts, tokens) == pytest.approx(np.mean(drawn), rel=0.03)


def test_measured_counts_replace_the_expected_ones() -> None:
    spec = SPECS["qwen3-30b-a3b"]
    usual = {p.name: p for p in ledger.decode(spec, batch=64, context=9, weights=INT8).parts}
    seen = {p.name: p for p in ledger.decode(spec, batch=64, context=9, weights=INT8, experts_touched=[20] * 48).parts}
    assert seen["experts"].bytes_moved == 48 * 20 * 3 * 2048 * 768 * 34 // 32
    assert seen["experts"].flops == usual["experts"].flops
    assert usual["experts"].bytes_moved == pytest.approx(48 * 125.9 * 3 * 2048 * 768 * 34 / 32, rel=1e-3)


@pytest.mark.parametrize("counts", [[8] * 47, [7] * 48, [65] * 48, [8] * 47 + [0]])
def test_impossible_counts_of_experts_are_refused(counts: list[int]) -> None:
    with pytest.raises(MisuseError, match=r"experts were counted in|was seen to use"):
        ledger.decode(SPECS["qwen3-30b-a3b"], batch=8, context=9, weights=INT8, experts_touched=counts)


# --- bytes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "bits"), [(FP32, 32), (FP16, 16), (INT8, 8.5), (INT4, 4.5)])
def test_a_weight_takes_its_bits_and_its_share_of_a_scale(form: ledger.Format, bits: float) -> None:
    assert form.bytes_of(4096, 14336) == 4096 * 14336 * bits / 8
    assert (
        form.bytes_of(3, 33) == 99 * form.value_bytes or form.bits is None
    )  # rows that are no whole groups stay as they are
    assert form.bytes_of(8, 64, plain=True) == 512 * form.value_bytes


def test_a_models_bytes_are_the_published_gigabytes() -> None:
    for name, form, gigabytes in (
        ("llama-3.1-8b", FP16, 16.1),
        ("llama-3.1-8b", INT8, 8.5),
        ("qwen3-14b", INT4, 8.3),
        ("qwen3-32b", INT4, 18.4),
        ("qwen3.5-35b-a3b", INT4, 19.5),
        ("qwen3.5-35b-a3b", INT8, 36.8),
        ("mixtral-8x7b", INT4, 26.3),
        ("llama-3.3-70b", INT4, 39.7),
    ):
        assert ledger.weight_bytes(SPECS[name], form) / 1e9 == pytest.approx(gigabytes, abs=0.06), name


@pytest.mark.parametrize("name", ["llama-3.1-8b", "qwen3.5-35b-a3b", "gpt-oss-20b"])
@pytest.mark.parametrize("form", [FP16, INT4], ids=lambda f: f.name)
def test_a_large_enough_batch_streams_the_whole_model(name: str, form: ledger.Format) -> None:
    """With every expert in use what is streamed is the file, but for norms, biases, and the embedding where the head is another."""
    spec = SPECS[name]
    counts = [spec.experts.count] * spec.expert_layers if spec.experts else None
    cost = ledger.prefill(spec, batch=4096, length=1, weights=form, experts_touched=counts)
    keys = sum(p.bytes_moved for p in cost.parts if p.name.endswith(("attention", "state", "convolution")))
    embedding = 0 if spec.tied else form.bytes_of(spec.vocab, spec.hidden)
    assert cost.bytes_moved - keys + embedding == pytest.approx(ledger.weight_bytes(spec, form), rel=2e-3)


def test_sums_and_bad_numbers() -> None:
    spec = SPECS["qwen3-4b"]
    steps = ledger.decode_steps(spec, batch=2, depth=7, steps=3, weights=INT8)
    each = [ledger.decode(spec, batch=2, context=c, weights=INT8) for c in (8, 9, 10)]
    assert steps.flops == sum(c.flops for c in each)
    assert steps.bytes_moved == sum(c.bytes_moved for c in each)
    assert len(steps.parts) == len(each[0].parts)
    wrong: Any
    for wrong in ({"batch": 0}, {"length": 0}, {"start": -1}):
        usual: dict[str, Any] = {"batch": 1, "length": 1, "weights": FP16}
        with pytest.raises(MisuseError, match=str(next(iter(wrong.values())))):
            ledger.prefill(spec, **(usual | wrong))
    with pytest.raises(MisuseError, match="no weight format 'int3'; there are fp32"):
        ledger.format_named("int3")
    with pytest.raises(MisuseError, match="experts were counted in 1 steps"):
        ledger.decode_steps(spec, batch=1, depth=0, steps=2, weights=FP16, experts_touched=[[]])


# --- roof ---------------------------------------------------------------------------------------------------------


def test_the_least_time_waits_in_each_part_for_the_slower_of_memory_and_arithmetic() -> None:
    cost = ledger.Cost(
        parts=(
            ledger.Part(name="streams", flops=10, bytes_moved=1000),
            ledger.Part(name="multiplies", flops=6000, bytes_moved=10),
        )
    )
    assert cost.least_s(bytes_per_s=100, flops_per_s=1000) == 10 + 6
    assert max(cost.bytes_moved / 100, cost.flops / 1000) < 16  # what the sums alone would say


def a_roof(least_s: float = 0.5) -> Roof:
    nothing = lambda: None  # noqa: E731
    return Roof(read=nothing, read_bytes=8, multiply=nothing, multiply_flops=2, least_s=lambda *_: least_s)


@pytest.mark.parametrize(("time_s", "is_refused"), [(1.0, False), (0.5, False), (0.491, False), (0.485, True)])
def test_a_time_below_the_roof_is_refused(time_s: float, *, is_refused: bool) -> None:
    found = measured_ceiling(a_roof(), [Reach(3e9, 2e12)], Work(items=10, item="token"), "throughput", time_s)
    assert found.rate_per_s == 20
    assert found.reached_fraction == pytest.approx(0.5 / time_s)
    assert found.basis == "3 GB/s read and 2 TFLOP/s multiplied beside it"
    device = Device(uuid="CPU", name="CPU", kind="cpu", selector="cpu", sensors={})
    against = list(
        objections(device, cache="cold", footprint_bytes=1 << 40, metric="throughput", ceiling=found, telemetry=())
    )
    assert bool(against) is is_refused is (found.reached_fraction > LIMIT_FRACTION)


def test_the_best_of_what_was_reached_is_the_roof() -> None:
    asked: list[tuple[float, float]] = []
    held = Roof(
        read=lambda: None,
        read_bytes=1,
        multiply=lambda: None,
        multiply_flops=1,
        least_s=lambda *rates: asked.append(rates) or 1.0,  # type: ignore[func-returns-value]
    )
    measured_ceiling(held, [Reach(1, 20), Reach(2, 10)], Work(items=1, item="token"), "throughput", 2.0)
    assert asked == [(2, 20)]


def test_a_roof_is_measured_with_what_it_brings(cpu: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.inference.roof._read_bytes", lambda _: 1 << 25)
    monkeypatch.setattr("harness.inference.roof._SIDE", {"cpu": 128})
    cost = ledger.decode(SPECS["qwen3-0.6b"], batch=1, context=8, weights=FP32)
    found = roof(cpu, cost, "float32")
    assert found is not None
    reached = reach(found, cpu)
    assert 1e8 < reached.bytes_per_s < 1e13
    assert 1e8 < reached.flops_per_s < 1e15
    assert found.least_s(*reached) == cost.least_s(*reached)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_every_word_of_the_roof_is_read(
    device: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend: Backend = request.getfixturevalue(device)
    monkeypatch.setattr("harness.inference.roof._read_bytes", lambda _: 8 * 4099)
    monkeypatch.setattr("harness.inference.roof._SIDE", {"cpu": 32, "cuda": 32})
    cost = ledger.decode(SPECS["llama-3.1-8b"], batch=1, context=8, weights=FP16)
    found = roof(backend, cost, "float32")
    assert found is not None
    words: Any = found.read()
    drawn = backend.to_host(backend.rng(0).words(2 * 4099)).view(np.uint64)
    assert np.bitwise_xor.reduce(backend.to_host(words)) == np.bitwise_xor.reduce(drawn)
    assert found.read_bytes == drawn.nbytes
    product: Any = found.multiply()
    a, b = (backend.to_host(backend.rng(seed).bell((32, 32))).astype(np.float64) for seed in (1, 2))
    assert np.abs(backend.to_host(product) - a @ b).max() < 1e-4
    assert found.multiply_flops == 2 * 32**3


def test_what_a_cache_holds_has_no_roof(cpu: Backend) -> None:
    assert roof(cpu, ledger.decode(SPECS["tiny-llama"], batch=1, context=8, weights=FP32), "float32") is None
