"""The harness's own model as an engine: `fast` is the compiled decoding of `fast_cpu`, `array` the transformer on NumPy alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from serving import CAPACITY, serve

from harness.inference.fast_cpu import FastModel
from harness.inference.model import Model
from harness.inference.safetensors import open_safetensors
from harness.inference.specs import from_hf_config


class Harness:
    """A model and its cache."""

    def __init__(self, folder: Path, path: str) -> None:
        config = json.loads((folder / "config.json").read_text())
        self.spec = from_hf_config(config, name="peer")
        model = Model(self.spec, open_safetensors(folder / "model.safetensors"))
        self._model = FastModel(model) if path == "fast" else model

    def reset(self, rows: int) -> None:
        """Begin anew with empty rows."""
        self._cache = self._model.cache(rows, CAPACITY)

    def rewind(self, depth: int) -> None:
        """Forget what came after so many tokens."""
        self._cache.rewind(depth)

    def take(self, tokens: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Take tokens in, and return the last logits of each row."""
        logits: np.ndarray[Any, Any] = self._model.forward(tokens, self._cache)
        return logits


if __name__ == "__main__":
    engine = Harness(Path(sys.argv[1]), sys.argv[2])
    serve(engine, engine.spec.vocab, f"NumPy {np.__version__}")
