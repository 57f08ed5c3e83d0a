"""llama.cpp through llama-cpp-python: a GGUF file, text or token ids."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from harness.inference.engine import OneByOne
from harness.inference.exchange import Request

__all__ = ["load"]


def load(path: Path, threads: int, context_tokens: int) -> OneByOne:
    """Open a model."""
    llama_cpp: Any = import_module("llama_cpp")

    llama = llama_cpp.Llama(
        str(path), n_ctx=context_tokens, n_threads=threads, n_threads_batch=threads, n_gpu_layers=-1, verbose=False
    )

    def tokens(request: Request) -> list[int]:
        return llama.tokenize(request.prompt.encode()) if isinstance(request.prompt, str) else [*request.prompt]

    def generate(request: Request) -> Iterator[str]:
        llama.reset()  # or a prompt's beginning that is still in the cache would cost nothing
        for token in llama.generate(tokens(request), top_k=1, temp=0.0):
            # Never empty: a token that is part of a character, or none, is a token too.
            yield llama.detokenize([token]).decode(errors="replace") or "\N{ZERO WIDTH SPACE}"

    return OneByOne(generate, count=lambda request: len(tokens(request)), close=llama.close)
