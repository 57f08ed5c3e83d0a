"""Compiled decoding on a CPU answers as the model does: for any batch, any number of threads, any way to take turns. And what it is compared with."""

from __future__ import annotations

import functools
import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from golden import hashed

from harness.errors import MisuseError
from harness.inference.cache import Cache
from harness.inference.fast_cpu import FastModel, refusal
from harness.inference.gguf import open_gguf
from harness.inference.model import Model
from harness.inference.quant import quantisable, quantise
from harness.inference.safetensors import open_safetensors
from harness.inference.specs import SPECS, ModelSpec, Rope, from_hf_config

Host = np.ndarray[Any, Any]
BOUND = 2e-5  # of the logits' standard deviation
PROMPT = (np.arange(14 * 5) * 7 % 96).reshape(14, 5)
COUNTS = [5, 3, 4, 5, 1, 2, 3] * 2
# Everything that the compiled layer knows: a window, norms of heads, biases; the other has none of it.
SPEC: dict[str, ModelSpec] = {
    "rich": replace(
        SPECS["tiny-qwen3"],
        window=11,
        layer_kinds=("sliding", "full", "sliding"),
        attention_bias=True,
        output_bias=True,
        rope=Rope(theta=1e4, fraction=0.5),
    ),
    "plain": SPECS["tiny-llama"],
}


@functools.cache
def weights(kind: str) -> dict[str, Any]:
    spec = SPEC[kind]
    return hashed.weights(spec.tensors(), 3, zero_centred=False, tied=spec.tied, loud=1.0)


@functools.cache
def model(kind: str) -> Model:
    return Model(SPEC[kind], weights(kind))


def distance(ours: Host | None, theirs: Host | None) -> float:
    """The largest difference, in standard deviations; infinite if one is no number."""
    assert ours is not None
    assert theirs is not None
    assert ours.shape == theirs.shape
    difference = np.abs(ours - theirs).max()
    return float(difference / theirs.std()) if np.isfinite(difference) else float("inf")


def filled(of: Model, batch: int) -> Cache:
    """A cache whose rows hold different numbers of tokens."""
    cache = of.cache(batch, 40)
    of.forward(PROMPT[:batch], cache, counts=COUNTS[:batch], logits="none")
    return cache


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 3, 6, 14])
@pytest.mark.parametrize("kind", SPEC)
def test_token_by_token_it_answers_as_the_model_does(kind: str, batch: int, threads: int) -> None:
    reference, fast = model(kind), FastModel(model(kind), threads=threads)
    theirs, ours = filled(reference, batch), filled(reference, batch)
    for step in range(20):
        tokens = PROMPT[:batch, step % 5 : step % 5 + 1]
        assert distance(fast.forward(tokens, ours), reference.forward(tokens, theirs)) <= BOUND
    assert ours.lengths.tolist() == theirs.lengths.tolist()


@pytest.mark.parametrize("batch", [1, 7, 14])
def test_an_answer_does_not_depend_on_the_number_of_threads(batch: int) -> None:
    answers: list[Any] = []
    for threads in (1, 2, 3, 5):
        fast = FastModel(model("rich"), threads=threads)
        cache = filled(fast.model, batch)
        for token in range(8):
            logits = fast.forward(np.full((batch, 1), token), cache)
        answers.append(logits)
    assert all(np.array_equal(answers[0], other) for other in answers[1:])


def test_it_takes_turns_with_the_model_on_one_cache() -> None:
    fast, tokens = FastModel(model("rich")), PROMPT[:2].repeat(3, axis=1)
    whole, ours = fast.cache(2, 20), fast.cache(2, 20)
    truth = fast.model.forward(tokens, whole, logits="all")
    assert truth is not None
    fast.forward(tokens[:, :4], ours)
    assert fast.forward(tokens[:, 4:5], ours, logits="none") is None
    fast.forward(tokens[:, 5:13], ours)
    assert distance(fast.forward(tokens[:, 13:14], ours, logits="all"), truth[:, 13:14]) <= BOUND
    seen: list[str] = []
    last = fast.forward(tokens[:, 14:], ours, watch=lambda _, name, __: seen.append(name))
    assert distance(last, truth[:, 14]) <= BOUND
    assert seen == ["in", "out"] * 3


@pytest.mark.parametrize("failing", [0, 1])
def test_a_thread_that_fails_leaves_nobody_waiting(failing: int) -> None:
    fast = FastModel(model("plain"), threads=2)
    cache, kernels = filled(fast.model, 1), fast._kernels

    def layer(thread: int, *args: Any) -> None:
        if thread == failing:
            raise InterruptedError
        kernels.layer(thread, *args)

    fast._kernels = SimpleNamespace(layer=layer, head=kernels.head, ABANDONED=kernels.ABANDONED)  # type: ignore[assignment]
    with pytest.raises(InterruptedError):
        fast.forward(PROMPT[:1, :1], cache)
    fast._kernels = kernels
    again = filled(fast.model, 1)
    assert distance(fast.forward(PROMPT[:1, :1], cache), fast.model.forward(PROMPT[:1, :1], again)) <= BOUND


def test_many_rows_and_rows_that_sit_out_are_left_to_the_model() -> None:
    fast = FastModel(model("plain"))
    tokens = np.arange(17)[:, None]
    assert distance(fast.forward(tokens, fast.cache(17, 4)), fast.model.forward(tokens, fast.cache(17, 4))) == 0
    cache = filled(fast.model, 2)
    fast.forward(tokens[:2], cache, counts=[0, 1])
    assert cache.lengths.tolist() == [COUNTS[0], COUNTS[1] + 1]


@pytest.mark.parametrize("keep_packed", [True, False])
def test_weights_of_few_bits_are_expanded(keep_packed: bool) -> None:
    few = {n: quantise(w, bits=8) if quantisable(n, w.shape) else w for n, w in weights("plain").items()}
    m = Model(SPEC["plain"], few, keep_packed=keep_packed)
    token = np.array([[3]])
    assert distance(FastModel(m).forward(token, m.cache(1, 4)), m.forward(token, m.cache(1, 4))) <= BOUND


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tiny-mixtral", "mixture of experts"),
        ("tiny-qwen3.5", "mixture of experts"),
        ("tiny-gpt-oss", "mixture of experts"),
    ],
)
def test_models_that_it_does_not_cover_are_refused(name: str, words: str) -> None:
    assert words in (refusal(SPECS[name], "float32") or "")


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"sinks": True}, "sinks"), ({"output_gate": True}, "output gate"), ({"mlp_bias": True}, "biases")],
)
def test_parts_that_it_does_not_know_are_refused(changes: dict[str, Any], words: str) -> None:
    assert refusal(SPEC["plain"], "float32") is None
    assert words in (refusal(replace(SPEC["plain"], **changes), "float32") or "")


def test_requests_that_cannot_be_met_are_refused() -> None:
    with pytest.raises(MisuseError, match="tiny-llama cannot be decoded by the compiled path: its dtype is float64"):
        FastModel(Model(SPEC["plain"], weights("plain"), dtype="float64"))
    with pytest.raises(MisuseError, match="0 threads"):
        FastModel(model("plain"), threads=0)
    fast = FastModel(model("plain"))
    cache = fast.cache(1, 1)
    for token in (-1, 96):
        with pytest.raises(MisuseError, match="which are 0 to 95"):
            fast.forward(np.array([[token]]), cache)
    with pytest.raises(MisuseError, match=r"2 rows|shape"):
        fast.forward(np.array([[1], [2]]), cache)
    fast.forward(np.array([[1]]), cache)
    with pytest.raises(MisuseError, match="holds 1 of 1 tokens"):
        fast.forward(np.array([[1]]), cache)
    with pytest.raises(MisuseError, match="logits are 'some'"):
        fast.forward(np.array([[1]]), fast.cache(1, 1), logits="some")  # type: ignore[arg-type]


# -- what benchmarks/inference does


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model in all forms; what lies in benchmarks/inference can be imported by its own name."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks" / "inference"))
    spec = replace(SPEC["plain"], rope=Rope(theta=1e4))
    made = hashed.weights(spec.tensors(), 3, zero_centred=False, tied=False, loud=1.0)
    importlib.import_module("files").write(tmp_path, spec, made, 64)
    return tmp_path


def test_all_engines_are_given_the_same_model(folder: Path) -> None:
    from_gguf, as_gguf, _ = open_gguf(folder / "model.gguf")
    spec = from_hf_config(json.loads((folder / "config.json").read_text()), name=from_gguf.name)
    assert from_gguf == spec
    plain = open_safetensors(folder / "model.safetensors")
    assert set(plain) == set(as_gguf) == set(spec.tensors())
    assert all(np.array_equal(plain[name], as_gguf[name]) for name in plain)


def test_an_engine_times_what_it_is_asked_and_answers_what_the_model_does(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = importlib.import_module("engine_harness").Harness
    asked = {"rows": 2, "depth": 5, "tokens": 1, "steps": 3}
    monkeypatch.setattr(sys, "stdin", [json.dumps(asked)] * 2)
    importlib.import_module("serving").serve(ours(folder, "fast"), 96, "this")
    first, *answers = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == {"version": "this"}
    array = ours(folder, "array")
    array.reset(2)
    truth = array.take(np.random.default_rng(5).integers(0, 96, size=(2, 8)))[:, ::997].ravel()
    assert len(answers) == 2
    for answer in answers:
        assert answer["time_s"] > 0
        assert np.allclose(answer["logits"], truth, rtol=1e-4)
