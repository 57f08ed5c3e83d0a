"""Other people's engines, in this process: optional, imported when asked for, and one that is not installed is a skip with its reason.

What they reach describes a serving stack, not the hardware: it stands in a column of its own and enters no price. Each serves one request
after the other, greedily; an endpoint is what batches (`harness serve-bench`).
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

from harness.errors import MisuseError
from harness.inference.engine import OneByOne
from harness.registry import Skip

__all__ = ["ADAPTERS", "missing", "open_adapter"]

ADAPTERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "llama_cpp": ("llama_cpp",),
        "onnxruntime": ("onnxruntime",),
        "torch": ("torch", "transformers"),
    }
)
"""By adapter, the modules it needs."""

_PACKAGES = {"llama_cpp": "llama-cpp-python"}  # of modules named otherwise


def missing(name: str) -> str | None:
    """Return why an adapter cannot be used here; None where it can.

    Raises:
        MisuseError: there is no such adapter.
    """
    if name not in ADAPTERS:
        msg = f"no adapter {name!r}; there are {', '.join(ADAPTERS)}"
        raise MisuseError(msg)
    for module in ADAPTERS[name]:
        if find_spec(module) is None:
            return f"{_PACKAGES.get(module, module)} is not installed"
    return None


def open_adapter(name: str, path: str | Path, *, threads: int = 1, context_tokens: int = 4096) -> OneByOne:
    """Load a model through somebody's engine.

    Args:
        name: of the adapter.
        path: a GGUF file for llama_cpp, a folder with `model.onnx` for onnxruntime, a folder of Hugging Face's for torch.
        threads: of the CPU.
        context_tokens: of prompt and reply, where the engine wants to know.

    Raises:
        MisuseError: there is no such adapter, or no such model.
        Skip: its library is not installed, or does not load.
    """
    if reason := missing(name):
        raise Skip(reason)
    if not Path(path).exists():
        msg = f"there is no model at {str(path)!r}"
        raise MisuseError(msg)
    try:
        module = import_module(f"{__name__}.{name}")
        opened: OneByOne = module.load(Path(path), threads, context_tokens)
    except ImportError as err:
        msg = f"{name} does not load: {err}"
        raise Skip(msg) from err
    return opened
