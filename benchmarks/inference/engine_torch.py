"""Hugging Face transformers on PyTorch as an engine: eager, float32, one thread."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np  # noqa: TC002 - one rule for all files is simpler
import torch
import transformers
from serving import serve


class Torch:
    """A model and its cache."""

    def __init__(self, folder: str) -> None:
        torch.set_num_threads(1)
        load = transformers.AutoModelForCausalLM.from_pretrained
        self.model = load(folder, dtype=torch.float32, attn_implementation="eager").eval()

    def reset(self, rows: int) -> None:  # noqa: ARG002 - a cache takes as many as come
        """Begin anew with empty rows."""
        self._cache = transformers.DynamicCache(config=self.model.config)

    def rewind(self, depth: int) -> None:
        """Forget what came after so many tokens."""
        if depth == 0:
            self.reset(0)
        elif self._cache.get_seq_length() > depth:
            self._cache.crop(depth - self._cache.get_seq_length())  # a negative number: so many are taken away

    @torch.inference_mode()
    def take(self, tokens: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Take tokens in, and return the last logits of each row."""
        given = torch.from_numpy(tokens)
        out = self.model(given, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        logits: np.ndarray[Any, Any] = out.logits[:, -1].numpy()
        return logits


if __name__ == "__main__":
    engine = Torch(sys.argv[1])
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    serve(engine, engine.model.config.vocab_size, versions)
