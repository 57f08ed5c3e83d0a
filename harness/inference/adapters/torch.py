"""PyTorch through Hugging Face transformers: a folder with weights and, for text, a tokeniser; eager, on a GPU where there is one."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from harness.errors import MisuseError
from harness.inference.engine import OneByOne
from harness.inference.exchange import Request

__all__ = ["load"]


def load(path: Path, threads: int, context_tokens: int) -> OneByOne:  # noqa: ARG001 - transformers grows its cache
    """Open a model, in the type its weights are stored in."""
    torch: Any = import_module("torch")
    transformers: Any = import_module("transformers")

    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(path, dtype="auto", local_files_only=True)
    model = model.to(device).eval()
    tokenizer = _tokenizer(path)
    # Renamed in transformers 5.24; the old name goes in 5.40.
    memory = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"

    def tokens(request: Request) -> list[int]:
        if not isinstance(request.prompt, str):
            return [*request.prompt]
        if tokenizer is None:
            msg = f"{str(path)!r} has no tokeniser: its prompts are token ids"
            raise MisuseError(msg)
        return [*tokenizer(request.prompt)["input_ids"]]

    def generate(request: Request) -> Iterator[str]:
        given, past = torch.tensor([tokens(request)], device=device), None
        while True:
            with torch.inference_mode():  # not around the yield: the mode is the thread's
                out = model(input_ids=given, use_cache=True, logits_to_keep=1, **{memory: past})
                given, past = out.logits[:, -1].argmax(-1, keepdim=True), out[memory]
            token = int(given)  # waits for the device: the token is there
            yield (tokenizer.decode([token]) or "\N{ZERO WIDTH SPACE}") if tokenizer else f" {token}"

    return OneByOne(generate, count=lambda request: len(tokens(request)))


def _tokenizer(path: Path) -> Any:
    transformers: Any = import_module("transformers")

    if not any((path / name).exists() for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")):
        return None
    return transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
