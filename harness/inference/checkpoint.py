"""A trained model as it is published: a GGUF file, or a folder of Hugging Face's with `config.json` and safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from harness import strangers
from harness.errors import MisuseError
from harness.inference.gguf import GgufWeights, open_gguf
from harness.inference.safetensors import Safetensors, inside, open_safetensors
from harness.inference.specs import from_hf_config
from harness.inference.weights import check_shapes

if TYPE_CHECKING:
    from harness.inference.specs import ModelSpec

__all__ = ["MAX_CONFIG_BYTES", "open_checkpoint", "text_name"]

MAX_CONFIG_BYTES = 1 << 20
_CONFIG = "config.json"


def open_checkpoint(path: Path | str) -> tuple[ModelSpec, Safetensors | GgufWeights]:
    """Open a model: its shape, and its tensors by the names that the shape gives them. Nothing but headers is read.

    `weights.load` puts the tensors onto a device.

    Raises:
        MisuseError: there is no such file or folder, or it holds a model that is not understood here.
        ForgeryError: a file is damaged; the error tells where and what would be right.
    """
    path = Path(path)
    if not path.is_dir():
        spec, weights, _ = open_gguf(path)
        return spec, weights
    tensors = open_safetensors(path).renamed(text_name)
    spec = from_hf_config(_config(path, len(tensors)), name=path.resolve().name)
    check_shapes(spec, tensors.shapes)
    return spec, tensors


def text_name(name: str) -> str | None:
    """Return what a tensor is called in the text model alone, if it is part of it; of a model that also sees, this is one of two."""
    if name.startswith(("model.visual.", "mtp.")):
        return None
    return name.replace("model.language_model.", "model.", 1)


def _config(folder: Path, tensors: int) -> dict[str, object]:
    """Read a folder's configuration."""
    file = inside(folder, _CONFIG)
    if file.size_bytes > MAX_CONFIG_BYTES:
        file.refuse("$", f"a configuration of {file.size_bytes} bytes; at most {MAX_CONFIG_BYTES} are read")
    try:
        config = strangers.decode(bytes(file.data), dict[str, object])
    except (msgspec.DecodeError, UnicodeDecodeError) as err:
        file.refuse("$", f"no configuration: {err}", err)
    text = config.get("text_config")
    inner = text if isinstance(text, dict) else config
    if inner is text and "text_config" in inner:
        file.refuse("$.text_config.text_config", "a text model within a text model")
    layers = inner.get("num_hidden_layers")
    if isinstance(layers, int) and layers > tensors:  # before anything is made for each of so many
        msg = f"{_CONFIG} claims num_hidden_layers of {layers}; the folder holds {tensors} tensors"
        raise MisuseError(msg)
    return config
