"""ONNX Runtime: a folder with a decoder's `model.onnx` as Optimum exports it (cache as inputs and outputs), token ids."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from harness.errors import MisuseError
from harness.inference.engine import OneByOne
from harness.inference.exchange import Request

__all__ = ["load"]

_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def load(path: Path, threads: int, context_tokens: int) -> OneByOne:  # noqa: ARG001 - the graph grows its cache
    """Open a model.

    Raises:
        MisuseError: the folder has no `model.onnx`, or it is no decoder with its cache among inputs and outputs.
    """
    onnxruntime: Any = import_module("onnxruntime")

    file = path / "model.onnx"
    if not file.exists():
        msg = f"{str(path)!r} has no model.onnx"
        raise MisuseError(msg)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(str(file), options, providers=onnxruntime.get_available_providers())
    inputs = {i.name: i for i in session.get_inputs()}
    outputs = [o.name for o in session.get_outputs()]
    cached = [name for name in inputs if name.startswith("past_key_values.")]
    presents = [name.replace("past_key_values", "present", 1) for name in cached]
    if not cached or "input_ids" not in inputs or not {"logits", *presents} <= set(outputs):
        msg = f"{str(file)!r} is no decoder with its cache: it has the inputs {sorted(inputs)} and the outputs {sorted(outputs)}"
        raise MisuseError(msg)

    def feed(given: np.ndarray[Any, Any], past: dict[str, Any], done: int) -> dict[str, Any]:
        ends = done + given.shape[1]
        extra = {
            "attention_mask": np.ones((1, ends), dtype=np.int64),
            "position_ids": np.arange(done, ends, dtype=np.int64)[None],
        }
        return {"input_ids": given, **past, **{name: value for name, value in extra.items() if name in inputs}}

    def generate(request: Request) -> Iterator[str]:
        if isinstance(request.prompt, str):
            msg = "prompts of this adapter are token ids"
            raise MisuseError(msg)
        given, done = np.array([request.prompt], dtype=np.int64), 0
        past = {name: _empty(inputs[name]) for name in cached}
        while True:
            logits, *present = session.run(["logits", *presents], feed(given, past, done))
            done += given.shape[1]
            past = dict(zip(cached, present, strict=True))
            given = logits[:, -1:].argmax(-1)
            yield f" {int(given[0, 0])}"

    return OneByOne(generate, count=lambda request: len(request.prompt))


def _empty(entry: Any) -> np.ndarray[Any, Any]:
    """A cache of no tokens: batch 1, and 0 where the graph leaves a dimension open."""
    shape = [1 if i == 0 else size if isinstance(size, int) else 0 for i, size in enumerate(entry.shape)]
    return np.zeros(shape, dtype=_TYPES.get(entry.type, np.float32))
