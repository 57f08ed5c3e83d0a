"""What the benchmarks of inference promise beyond the suite that judges all: other models and formats, wrong models, roofs, experts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from harness import registry
from harness.device.backend import Backend
from harness.device.cpu import CpuDevice
from harness.device.sampler import SilentSensors
from harness.errors import FailureError, MisuseError
from harness.inference import ledger, presets, synth
from harness.inference.cases import decoding_case
from harness.inference.fused import FusedModel
from harness.inference.subject import Decoding, Imposed, Subject, places_of, subject
from harness.inference.truth import Truth
from harness.measure.rounds import Effort
from harness.measure.runner import measure
from harness.model import Device, Job, Measurement, Work

SEED = 0x0123456789ABCDEF
TINY = ("tiny-llama", "tiny-qwen3", "tiny-mixtral", "tiny-qwen3-moe", "tiny-qwen3.5", "tiny-gpt-oss")
CARD = Device(
    uuid="GPU",
    name="card",
    kind="cuda",
    selector="cuda:0",
    memory_bytes=24564 << 20,
    compute_capability="8.9",
    sensors={},
)


def build(name: str, backend: Backend, **params: Any) -> registry.Case:
    return registry.find([name])[0].build(backend, SEED, params)


def decoded(of: Subject, depth: int, steps: int, path: Any = "array") -> tuple[Any, Any]:
    return Decoding(of, depth=depth, steps=steps, path=path).run()


# --- the other way to the answer ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "form"),
    [
        (name, form)
        for form in ("fp32", "fp16", "int8", "int4")
        for name in TINY
        if name != "tiny-gpt-oss" or form in ("fp32", "fp16")  # its experts are not quantised
    ],
)
def test_every_architecture_in_every_format_is_confirmed(name: str, form: str, cpu: Backend) -> None:
    of = subject(cpu, SEED, f"{name}:{form}", batch=3, capacity=40)
    truth = Truth(of, length=40, kept=5)
    assert truth.dtype == "float64"
    assert truth.confirms(*decoded(of, 35, 5))


@pytest.mark.parametrize(("made", "judged"), [("fp16", "fp32"), ("int8", "fp16"), ("int4", "int8"), ("int8", "int4")])
def test_weights_of_another_format_are_refused(made: str, judged: str, cpu: Backend) -> None:
    of = subject(cpu, SEED, f"tiny-llama:{judged}", batch=1, capacity=20)
    other = subject(cpu, SEED, f"tiny-llama:{made}", batch=1, capacity=20)
    truth = Truth(of, length=20, kept=4)
    accepted = truth.confirms(*decoded(other, 16, 4))
    assert not accepted
    assert truth.confirms(*decoded(of, 16, 4))


def test_arithmetic_in_float16_is_confirmed_as_that_and_not_as_float32(cpu: Backend) -> None:
    of = subject(cpu, SEED, "tiny-qwen3:fp16", batch=2, capacity=24)
    narrow = replace(of, dtype="float16")
    answer = decoded(narrow, 20, 4)
    assert Truth(narrow, length=24, kept=4).confirms(*answer)
    assert not Truth(of, length=24, kept=4).confirms(*answer)


class Skipping(synth.Synthetic):
    """Weights of which one layer's add nothing."""

    def __getitem__(self, name: str) -> Any:
        made: Any = super().__getitem__(name)
        return (
            made * 0
            if name.startswith("model.layers.1.") and name.endswith(("o_proj.weight", "down_proj.weight"))
            else made
        )


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_model_that_skips_a_layer_is_refused(dtype: str, cpu: Backend) -> None:
    of = replace(subject(cpu, SEED, "tiny-llama:fp16", batch=1, capacity=20), dtype=dtype)
    lazy = replace(of, weights=Skipping(of.chosen.spec, SEED, cpu, dtype="float16"))
    assert not Truth(of, length=20, kept=4).confirms(*decoded(lazy, 16, 4))


@pytest.mark.parametrize("spoil", ["seed", "tokens", "depth", "pick", "last pick"])
def test_an_answer_to_another_question_is_refused(spoil: str, cpu: Backend) -> None:
    of = subject(cpu, SEED, "tiny-llama:fp32", batch=2, capacity=21)
    truth = Truth(of, length=20, kept=4)
    logits, picks = decoded(of, 16, 4)
    assert truth.confirms(logits, picks)
    if spoil == "seed":
        logits, picks = decoded(
            replace(subject(cpu, 1, "tiny-llama:fp32", batch=2, capacity=21), tokens=of.tokens), 16, 4
        )
    elif spoil == "tokens":
        logits, picks = decoded(replace(of, tokens=of.tokens[::-1].copy()), 16, 4)
    elif spoil == "depth":
        logits, picks = decoded(of, 17, 4)
    else:
        at = 1 if spoil == "pick" else 3
        picks[1, at] = (picks[1, at] + 1) % of.chosen.spec.vocab
    assert not truth.confirms(logits, picks)


def test_of_a_large_batch_some_rows_are_judged_and_all_must_be_answers(cpu: Backend) -> None:
    of = subject(cpu, SEED, "tiny-llama:fp32", batch=20, capacity=6)
    truth = Truth(of, length=6, kept=2)
    assert truth.rows == [0, 2, 4, 6, 8, 10, 12, 14]
    logits, picks = decoded(of, 4, 2)
    assert truth.confirms(logits, picks)
    for row in (1, 4):  # not judged, and judged
        spoiled = logits.copy()
        spoiled[row, 0] = np.nan
        assert not truth.confirms(spoiled, picks)
    spoiled = logits.copy()
    spoiled[4] = logits[5]
    assert not truth.confirms(spoiled, np.concatenate([picks[:, :-1], spoiled.argmax(axis=-1)[:, None]], axis=1))


# --- paths ----------------------------------------------------------------------------------------------------------


def test_the_compiled_path_of_a_cpu_gives_what_the_array_path_gives(cpu: Backend) -> None:
    of = subject(cpu, SEED, "tiny-qwen3:fp32", batch=1, capacity=40)
    (a, picks), (b, same) = (decoded(of, 30, 10, path) for path in ("array", "fused"))
    assert not np.array_equal(a, b)  # another order of sums: it did take another path
    assert np.abs(a - b).max() < 1e-5 * a.std()
    assert np.array_equal(picks, same)


def test_the_fused_kernels_decode_the_same_forced_tokens(cpu: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """By their twins: all but the last token goes through `decode`, which never asks the host."""
    monkeypatch.setattr("harness.inference.subject.fast_model", lambda of, model: FusedModel(model, of.backend))
    of = subject(cpu, SEED, "tiny-qwen3-moe:fp32", batch=1, capacity=12)
    decoding = Decoding(of, depth=8, steps=4, path="fused")
    assert decoding.said == "20 launches a token, a CPU has no graphs"
    truth = Truth(of, length=12, kept=4)
    for _ in range(2):
        assert truth.confirms(*decoding.run())


def test_weights_that_no_kernel_covers_are_a_reason_to_skip(cpu: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: FusedModel, *args: Any, **options: Any) -> None:
        message = "matrices of float16, int8 cannot be fused"
        raise MisuseError(message)

    monkeypatch.setattr("harness.inference.subject.fast_model", lambda of, model: FusedModel(model, of.backend))
    monkeypatch.setattr(FusedModel, "decode", refused)
    of = subject(cpu, SEED, "tiny-llama:fp32", batch=1, capacity=4)
    with pytest.raises(registry.Skip, match="does not cover it: matrices of float16, int8 cannot be fused"):
        Decoding(of, depth=0, steps=4, path="fused")


@pytest.mark.parametrize(
    ("name", "params", "reason"),
    [
        ("decode", {"model": "tiny-llama:fp32", "path": "array", "depth": 8192, "tokens": 1}, "measured down to 2048"),
        ("prefill", {"model": "tiny-llama:fp32", "length": 8192}, "measured up to 2048"),
        ("decode", {"model": "tiny-gpt-oss:fp32", "path": "fused", "depth": 0, "tokens": 1}, "mixture of experts"),
        ("decode", {"model": "llama-3.3-70b:fp32", "path": "array", "depth": 0, "tokens": 1}, "GB of memory"),
        (
            "moe_routing",
            {"model": "tiny-qwen3-moe:fp32", "path": "fused", "routing": "zipf", "batch": 1, "tokens": 1},
            "does not cover tiny-qwen3-moe:fp32",
        ),
        ("dit_step", {"dtype": "float16", "heads": 1, "blocks": 1, "image_tokens": 16}, "without BLAS"),
        ("dit_step", {"dtype": "float32", "heads": 96, "blocks": 19, "image_tokens": 4096}, "GB of memory"),
    ],
)
def test_what_a_device_cannot_run_is_skipped_with_the_reason(
    name: str, params: dict[str, Any], reason: str, cpu: Backend
) -> None:
    with pytest.raises(registry.Skip, match=reason):
        build(name, cpu, **params)


# --- experts --------------------------------------------------------------------------------------------------------


def moe(cpu: Backend, routing: str, batch: int = 32, tokens: int = 6) -> registry.Case:
    return build(
        "moe_routing", cpu, model="tiny-qwen3-moe:fp32", path="array", routing=routing, batch=batch, tokens=tokens
    )


def experts_told(case: registry.Case) -> float:
    return float(case.work.counting.partition("experts a layer and step: ")[2].partition(" of")[0])


def test_favourites_wake_fewer_experts_than_uniform_routes() -> None:
    cpu = CpuDevice(Device(uuid="CPU", name="CPU", kind="cpu", selector="cpu", sensors={}))
    few, many = (moe(cpu, routing, batch=4) for routing in ("zipf", "uniform"))
    spec = presets.choice("tiny-qwen3-moe:fp32").spec
    assert spec.experts is not None
    expected = ledger.experts_expected(spec.experts, 4)
    assert experts_told(many) == pytest.approx(expected, rel=0.1)
    assert experts_told(few) < experts_told(many) - 1
    assert few.work.bytes_moved < many.work.bytes_moved
    assert few.work.flops == many.work.flops
    assert f"uniformly {expected:.2f} expected" in many.work.counting


def test_bytes_are_those_of_the_experts_that_were_used(cpu: Backend) -> None:
    of = subject(cpu, SEED, "tiny-qwen3-moe:fp32", batch=4, capacity=14, routing="zipf")
    case, spec = moe(cpu, "zipf", batch=4), of.chosen.spec
    scores = [synth.routing_scores("zipf", SEED, i, 4 * 14, 16) for i in range(spec.layers)]
    counts = []
    for step in range(6):
        chosen = [np.argsort(-s.reshape(4, 14, 16)[:, 8 + step], axis=1)[:, :4] for s in scores if s is not None]
        counts.append([len(np.unique(c)) for c in chosen])
    cost = ledger.decode_steps(spec, batch=4, depth=8, steps=6, weights=of.chosen.weights, experts_touched=counts)
    assert case.work.bytes_moved == cost.bytes_moved
    assert experts_told(case) == pytest.approx(np.mean(counts), abs=0.005)


@pytest.mark.parametrize("name", ["tiny-qwen3-moe", "tiny-gpt-oss"])  # whose router has a bias
def test_imposed_routes_are_those_drawn(name: str, cpu: Backend) -> None:
    of = subject(cpu, SEED, f"{name}:fp16", batch=4, capacity=10, routing="uniform")
    experts = of.chosen.spec.experts
    assert experts is not None
    seen: list[tuple[int, Any]] = []
    Decoding(of, depth=8, steps=2).run(
        lambda layer, what, array: seen.append((layer, array.reshape(4, -1).copy())) if what == "experts" else None
    )
    layers = of.chosen.spec.layers
    assert len(seen) == 2 * layers
    for i, (layer, chosen) in enumerate(seen):
        scores = synth.routing_scores("uniform", SEED, layer, 40, experts.count)
        assert scores is not None
        drawn = np.argsort(-scores.reshape(4, 10, -1)[:, 8 + i // layers], axis=1)[:, : experts.top_k]
        assert np.array_equal(np.sort(chosen, axis=1), np.sort(drawn, axis=1))


def test_natural_routes_are_the_routers_own(cpu: Backend) -> None:
    of = subject(cpu, SEED, "tiny-qwen3-moe:fp32", batch=2, capacity=14)
    case = moe(cpu, "natural", batch=2)
    logits, _ = case.run()
    assert np.array_equal(logits, decoded(of, 8, 6)[0])
    assert not np.array_equal(logits, moe(cpu, "uniform", batch=2).run()[0])


def test_imposed_routes_belong_to_tokens_however_they_are_cut(cpu: Backend) -> None:
    of = subject(cpu, SEED, "tiny-qwen3-moe:fp32", batch=2, capacity=12, routing="uniform")
    for depth, steps in ((0, 12), (5, 7), (11, 1)):
        assert Truth(of, length=12, kept=1).confirms(decoded(of, depth, steps)[0], decoded(of, depth, steps)[1][:, -1:])


def test_a_router_nobody_announced_is_an_error(cpu: Backend) -> None:
    of = subject(cpu, SEED, "tiny-qwen3-moe:fp32", batch=1, capacity=4, routing="uniform")
    model, route = of.model(), of.route
    assert isinstance(route, Imposed)
    cache = model.cache(1, 4)
    with pytest.raises(FailureError, match="that nobody had announced"):
        model.forward(of.tokens[:, :2], cache)
    route.expect(places_of(of.tokens, [0], 0, 2))
    with pytest.raises(FailureError, match="3 routers were expected to be asked"):
        route.expect(places_of(of.tokens, [0], 0, 2))


# --- what stands in a record ------------------------------------------------------------------------------------------


def test_a_slice_counts_no_tokens_of_the_whole_model(cpu: Backend) -> None:
    case = decoding_case(subject(cpu, SEED, "tiny-llama/2:fp32", batch=1, capacity=4), depth=0, steps=4)
    assert case.work.item == "token of 2 of 3 layers"
    assert case.check(case.run())


def test_work_names_model_format_and_weights(cpu: Backend) -> None:
    case = build("decode", cpu, model="tiny-llama:int8", path="array", depth=0, tokens=2)
    assert case.work.counting.startswith(f"tiny-llama:int8, weights synthetic:{synth.SCHEME}:{SEED}; ")
    assert case.work.items == 2
    assert case.work.nominal
    spec, form = presets.choice("tiny-llama:int8").spec, ledger.FORMATS["int8"]
    assert case.work.bytes_moved == ledger.decode_steps(spec, batch=1, depth=0, steps=2, weights=form).bytes_moved
    assert case.cache == "n/a"  # a model that a cache holds claims no rate of memory
    assert case.roof is None


@pytest.mark.parametrize(
    ("name", "axis", "value"),
    [
        ("decode", "model", "llama-3.1-8b:fp16"),
        ("moe_routing", "model", "qwen3.5-35b-a3b:int4"),
        ("dit_step", "blocks", 15),
        ("batched_decode", "model", "llama-3.1-8b:fp16"),
    ],
)
def test_a_card_of_24_gb_gets_the_models_of_its_class(name: str, axis: str, value: object) -> None:
    (bench,) = registry.find([name])
    assert {p[axis] for p in registry.points(bench, CARD)} == {value}
    unknown = registry.points(bench, replace(CARD, memory_bytes=None))
    assert unknown  # it is set up to say what is missing


def test_a_cpu_gets_a_model_that_its_cache_does_not_hold() -> None:
    for cache, model in ((32, "smollm2-135m/4:fp32"), (128, "smollm2-135m:fp32"), (1024, "qwen3-0.6b:fp32")):
        device = Device(uuid="CPU", name="CPU", kind="cpu", selector="cpu", l3_bytes=cache << 20, sensors={})
        assert presets.small_on(device) == model
        chosen = presets.choice(model)
        assert ledger.weight_bytes(chosen.spec, chosen.weights) > 2 * (cache << 20)


# --- without a rest ---------------------------------------------------------------------------------------------------


def test_a_run_that_differs_from_the_first_is_found_even_if_the_last_is_right(
    cpu: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner, runs = Decoding.run, iter(range(99))

    def hot(self: Decoding, watch: Any = None) -> Any:
        logits, picks = inner(self, watch)
        if next(runs) == 1:
            logits[0, 5] = np.nextafter(logits[0, 5], np.float32(9))
        return logits, picks

    monkeypatch.setattr(Decoding, "run", hot)
    case = build("sustained_decode", cpu, model="tiny-llama:fp32", batch=1, tokens=3)
    assert case.check(case.run())
    case.run()
    logits, picks, errors = case.run()
    assert not case.check((logits, picks, errors))
    assert errors.tolist() == [1]
    assert case.check((logits, picks, errors * 0))


# --- roof in the record -------------------------------------------------------------------------------------------------


@pytest.fixture
def roofed(monkeypatch: pytest.MonkeyPatch, cpu: Backend) -> Iterator[Callable[[float], Measurement]]:
    """Measure a case of about a hundred microseconds whose roof asks for so many seconds."""
    a = np.random.default_rng(0).normal(size=(120, 120))
    calls: list[str] = []

    def measured(least_s: float) -> Measurement:
        @registry.benchmark(version=1, metric="throughput")
        def special(backend: object, seed: int) -> registry.Case:
            """Nothing but what a test wants of it."""
            roof = registry.Roof(
                read=lambda: calls.append("read"),
                read_bytes=8,
                multiply=lambda: calls.append("multiply"),
                multiply_flops=2,
                least_s=lambda *_: least_s,
            )
            work = Work(items=7, item="token", nominal=True)
            return registry.Case(run=lambda: a @ a, work=work, check=lambda _: True, roof=roof)

        known = {**registry.benchmarks(), "special": special.__harness_benchmark__}  # type: ignore[attr-defined]
        monkeypatch.setattr(registry, "benchmarks", lambda: known)
        job = Job(benchmark="special", version=1, params={}, device_uuid="CPU-test", seed=f"{1:016x}")
        brief = Effort(
            warmup_s=0.0, budget_s=0.05, samples=2, rounds_min=2, rounds_max=2, half_width_fraction=9, drift_fraction=9
        )
        outcome = measure(job, cpu, SilentSensors(), brief)
        assert outcome.measurement is not None, outcome
        assert calls.count("read") == calls.count("multiply") == 12  # six before, six after
        return outcome.measurement

    yield measured
    calls.clear()


def test_a_record_carries_its_fraction_of_the_roof(roofed: Callable[[float], Measurement]) -> None:
    m = roofed(1e-9)
    assert m.ceiling is not None
    assert m.ceiling.rate_per_s == pytest.approx(7e9)
    assert m.ceiling.reached_fraction == pytest.approx(1e-9 / m.time_s)
    assert m.state != "invalid"


def test_a_time_below_the_roof_makes_the_record_invalid(roofed: Callable[[float], Measurement]) -> None:
    m = roofed(10.0)
    assert m.ceiling is not None
    assert m.ceiling.reached_fraction > 1.02
    assert m.state == "invalid"
    assert "of what is physically possible" in m.reason
