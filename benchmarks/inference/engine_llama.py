"""llama.cpp as an engine, through the C interface that `llama-cpp-python` wraps; no sampling, no text."""

from __future__ import annotations

import ctypes
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import llama_cpp as c
import numpy as np
from serving import CAPACITY, serve

_ROWS_MOST = 64


class Llama:
    """A model and a context of some rows, on one thread; all else is llama.cpp's default."""

    def __init__(self, folder: Path) -> None:
        c.llama_log_set(_silent, ctypes.c_void_p())
        c.llama_backend_init()
        self._model = c.llama_model_load_from_file(str(folder / "model.gguf").encode(), c.llama_model_default_params())
        if not self._model:
            sys.exit("llama.cpp cannot load the model")
        self.vocab = int(c.llama_vocab_n_tokens(c.llama_model_get_vocab(self._model)))
        self._context = None
        self._batch = c.llama_batch_init(CAPACITY * 2, 0, 1)

    def reset(self, rows: int) -> None:
        """Begin anew with empty rows."""
        if self._context is not None:
            c.llama_free(self._context)
        params = c.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_seq_max = CAPACITY * rows, CAPACITY * 2, rows
        params.n_threads = params.n_threads_batch = 1
        self._context = c.llama_init_from_model(self._model, params)
        self._rows, self._length = rows, 0

    def rewind(self, depth: int) -> None:
        """Forget what came after so many tokens."""
        memory = c.llama_get_memory(self._context)
        for row in range(self._rows):
            c.llama_memory_seq_rm(memory, row, depth, -1)
        self._length = depth

    def take(self, tokens: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Take tokens in, and return the last logits of each row."""
        batch, size = self._batch, tokens.shape[1]
        batch.n_tokens = tokens.size
        at = 0
        for row, mine in enumerate(tokens.tolist()):
            for i, token in enumerate(mine):
                batch.token[at], batch.pos[at], batch.logits[at] = token, self._length + i, i == size - 1
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, row
                at += 1
        if c.llama_decode(self._context, batch):
            sys.exit("llama_decode failed")
        self._length += size
        found = [c.llama_get_logits_ith(self._context, (row + 1) * size - 1) for row in range(self._rows)]
        return np.stack([np.ctypeslib.as_array(f, (self.vocab,)) for f in found])


@c.llama_log_callback
def _silent(*_: object) -> None:
    """Say nothing."""


if __name__ == "__main__":
    engine = Llama(Path(sys.argv[1]))
    serve(engine, engine.vocab, f"llama-cpp-python {metadata.version('llama-cpp-python')}")
