"""Weights, tokens and routing from a seed: the same bits on every device, any slice on its own, and a model that behaves like one.

A number is made of its place in its tensor alone. The place, multiplied and mixed with a key of 64 bits, is hashed to 32; the four bytes are added up and 510 taken away, which is near a normal distribution (standard deviation 147.8, kurtosis 2.70, never beyond 3.45
deviations); times a float32 scale, one rounding. Integers up to there: NumPy, Numba on a CPU and Numba on a GPU agree to the last bit.
The key is the SHA-256 of the seed and the tensor's name: half of it is added to the place and half xor'ed, as with one half alone every
tensor's numbers would be some other's, moved. The hash is hash-prospector's of two rounds (skeeto/hash-prospector, README.md).

What a trained model has and random numbers must be given (`law`):
    - Variance is kept: a matrix has deviation 1 / sqrt(inputs), those that write to the residual another 1 / sqrt(2 * layers), embeddings
      have 1. With one small deviation for all, what tokens have in common drowns what they have not, and the deep layers of a mixture
      send a whole prompt to a handful of experts: the model would be measured faster than it is.
    - Norms are near 1 rather than at it, biases and sinks are not 0: leaving one out shows in the answer.
    - In a tied model the last norm has signs at random and the last feed-forward block writes 2 / sqrt(inputs). Otherwise a token's own
      embedding, still in the residual, would make that token its own answer, for ever; and with the signs alone, which leave the product of
      embeddings symmetric, two tokens would answer each other.

Good for timing and for proofs; not for accuracy, speculative decoding or the loss of quantisation. `numbers` is the definition.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from harness.errors import MisuseError
from harness.inference.quant import Quantised, quantisable, quantise_rows, refuse_packed, stored_bytes
from harness.inference.weights import require_room

if TYPE_CHECKING:
    from harness.device.backend import Array, Backend
    from harness.inference.specs import ModelSpec

__all__ = [
    "SCHEME",
    "Key",
    "Law",
    "Routing",
    "Synthetic",
    "fill_sums",
    "key_of",
    "law",
    "numbers",
    "routing_scores",
    "synthetic",
    "tokens",
    "words",
]

SCHEME = "bytesum/1"  # raised whenever a number changes
DEVIATION = math.sqrt((256**2 - 1) / 3)  # of a sum of four bytes: 147.8
_MOST = 1 << 32  # numbers of a tensor: places are 32 bits

_SPREAD = np.uint32(0x9E3779B1)
_FIRST = np.uint32(0x21F0AAAD)
_SECOND = np.uint32(0x735A2D97)
_BYTES = np.uint32(0x00FF00FF)
_HALFWORD = np.uint32(0xFFFF)
_EIGHT, _FIFTEEN, _SIXTEEN = np.uint32(8), np.uint32(15), np.uint32(16)
_MIDDLE = np.int32(510)

_SCRATCH = {"cpu": 1 << 18, "cuda": 1 << 26}  # numbers: a core's cache, or enough to keep a GPU busy


class Key(NamedTuple):
    """What a tensor's numbers depend on besides their places: two words of 32 bits."""

    outer: int
    inner: int


class Law(NamedTuple):
    """How a tensor's numbers lie: a byte sum times `scale`, plus `base`. Where `base` is not 0, `scale` is a power of two: exact."""

    base: float
    scale: float


def key_of(seed: int, name: str) -> Key:
    """Return the key of a tensor, or of anything else that has a name."""
    digest = hashlib.sha256(f"{SCHEME}\0{seed}\0{name}".encode()).digest()
    return Key(int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little"))


def words(key: Key, start: int, count: int) -> np.ndarray[Any, Any]:
    """Return the hashes of the places `start`, `start + 1`, ... as uint32, shape (count,). In NumPy alone."""
    h = np.arange(start, start + count, dtype=np.uint64).astype(np.uint32)
    h *= _SPREAD
    h += np.uint32(key.outer)
    h ^= np.uint32(key.inner)
    h ^= h >> _SIXTEEN
    h *= _FIRST
    h ^= h >> _FIFTEEN
    h *= _SECOND
    h ^= h >> _FIFTEEN
    return h


def numbers(key: Key, rule: Law, start: int, count: int) -> np.ndarray[Any, Any]:
    """Return a slice of a tensor in NumPy alone, float32: the definition, slow, for whoever has no compiler at hand."""
    h = words(key, start, count)
    pairs = (h & _BYTES) + ((h >> _EIGHT) & _BYTES)
    sums = ((pairs & _HALFWORD) + (pairs >> _SIXTEEN)).astype(np.int32) - _MIDDLE
    out: np.ndarray[Any, Any] = sums.astype(np.float32) * np.float32(rule.scale)
    return out + np.float32(rule.base)


def fill_sums(lane, first, count, step, start, outer, inner, base, scale, out):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN201, ARG001, PLR0913 - a range kernel
    """Write the numbers of the places `start`, `start + 1`, ... to `out`; a range kernel, every word of it 32 bits wide."""
    for k in range(count):
        i = first + k * step
        h = np.uint32(np.uint32(np.uint32(i) + start) * _SPREAD)
        h = np.uint32(h + outer) ^ inner
        h ^= h >> _SIXTEEN
        h = np.uint32(h * _FIRST)
        h ^= h >> _FIFTEEN
        h = np.uint32(h * _SECOND)
        h ^= h >> _FIFTEEN
        pairs = np.uint32((h & _BYTES) + ((h >> _EIGHT) & _BYTES))
        total = np.int32(np.int32(pairs & _HALFWORD) + np.int32(pairs >> _SIXTEEN) - _MIDDLE)
        out[i] = np.float32(total) * scale + base


# --- what a model's tensors are like ----------------------------------------------------------------------------------

_RESIDUAL = ("o_proj.weight", "out_proj.weight", "down_proj.weight", "experts.down_proj", ".w2.weight")

# Of vectors, by the end of the name: base, and the power of two that a byte sum is multiplied by.
_VECTORS: Mapping[str, tuple[float, int]] = {
    ".sinks": (0.0, -7),
    ".dt_bias": (0.0, -8),
    ".A_log": (-2.0, -7),  # exp of it near 1/7: a state that forgets within tens of tokens, neither at once nor never
    "bias": (0.0, -11),
}


def law(spec: ModelSpec, name: str) -> Law:
    """Return how the numbers of a model's tensor lie.

    Raises:
        MisuseError: it is none of the model's.
    """
    shape = _shape(spec, name)
    for ending, (base, power) in _VECTORS.items():
        if name.endswith(ending):
            return Law(base, 2.0**power)
    if name.endswith("norm.weight"):
        centre = 1.0 if spec.zero_centred_norms and not name.endswith("linear_attn.norm.weight") else 0.0
        last = spec.tied and name == "model.norm.weight"
        return Law(-centre, 2.0**-7) if last else Law(1.0 - centre, 2.0**-11)
    if name == "model.embed_tokens.weight":
        return Law(0.0, 1 / DEVIATION)
    inputs = (
        shape[-1] if name.endswith(".weight") else shape[-2]
    )  # experts in one tensor are (experts, inputs, outputs)
    variance = 1 / inputs
    if spec.tied and name.startswith(f"model.layers.{spec.layers - 1}.mlp.") and name.endswith(_RESIDUAL):
        variance *= 4
    elif name.endswith(_RESIDUAL):
        variance /= 2 * spec.layers
    return Law(0.0, math.sqrt(variance) / DEVIATION)


def _shape(spec: ModelSpec, name: str) -> tuple[int, ...]:
    shape = spec.tensors().get(name)
    if shape is None:
        msg = (
            f"{spec.name} has no tensor {name!r}; it has {len(spec.tensors())}, such as {next(iter(spec.tensors()))!r}"
        )
        raise MisuseError(msg)
    return tuple(shape)


class Synthetic(Mapping[str, Any]):
    """A model's tensors, each made when it is asked for and kept by nobody.

    A checker that looks at one layer makes that layer alone. `whole` makes all of them, after a look at the memory.

    Args:
        spec: the model.
        seed: decides every number.
        backend: the device to make them on.
        dtype: float32 or float16.
        bits: 8 or 4 to quantise what `quantisable` names; the rest is `dtype`.
    """

    def __init__(
        self, spec: ModelSpec, seed: int, backend: Backend, *, dtype: str = "float32", bits: int | None = None
    ) -> None:
        refuse_packed(spec, bits)
        self._tensors = spec.tensors()
        for name, shape in self._tensors.items():
            if math.prod(shape) > _MOST:
                msg = f"tensor {name!r} of {spec.name} has {math.prod(shape)} numbers; at most {_MOST} can be made"
                raise MisuseError(msg)
        self._spec, self._seed, self._backend = spec, seed, backend
        self._dtype, self._bits = np.dtype(dtype), bits
        self._fill = backend.compile(fill_sums)
        self._scratch: Array | None = None

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of every tensor."""
        return self._tensors

    @property
    def label(self) -> str:
        """Return what a record says of these weights."""
        return f"synthetic:{SCHEME}:{self._seed}"

    @property
    def nbytes(self) -> int:
        """Return the bytes that all tensors take together."""
        return sum(stored_bytes(n, tuple(s), dtype=self._dtype.name, bits=self._bits) for n, s in self._tensors.items())

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __getitem__(self, name: str) -> Array | Quantised:
        """Make one tensor. Raises `KeyError` where the model has none of this name."""
        if name not in self._tensors:
            raise KeyError(name)
        shape, xp = _shape(self._spec, name), self._backend.xp
        if self._bits is not None and quantisable(name, shape):
            width = shape[-1]
            return quantise_rows(
                lambda first, last: self._piece(name, first * width, last * width).reshape(-1, width),
                shape,
                bits=self._bits,
                xp=xp,
            )
        out = xp.empty(math.prod(shape), dtype=self._dtype)
        self.fill(name, out)
        return out.reshape(shape)

    def fill(self, name: str, out: Array, *, start: int = 0) -> None:
        """Write the numbers of a tensor from place `start` on into an array of the device, shape (n,).

        Into memory that is there already this is several times faster than into new memory, whose pages must be made first.

        Raises:
            MisuseError: the model has no such tensor, or the array is longer than what it has from there on.
        """
        count = math.prod(_shape(self._spec, name))
        if out.ndim != 1 or not 0 <= start <= start + out.size <= count:
            msg = f"an array of shape {out.shape} from place {start} on is no slice of {name!r}, which has {count} numbers"
            raise MisuseError(msg)
        if out.dtype == np.float32:
            self._write(name, out, start)
            return
        size = self._scratch_values()
        for at in range(0, out.size, size):
            last = min(at + size, out.size)
            out[at:last] = self._piece(name, start + at, start + last)

    def whole(self) -> dict[str, Any]:
        """Make all tensors.

        Raises:
            FailureError: the device has not the memory; nothing has been made then.
        """
        passing = 4 * 8 * self._scratch_values()
        require_room(self.nbytes + passing, self._backend.free_bytes(), self._spec.name)
        return dict(self)

    def _scratch_values(self) -> int:
        return _SCRATCH[self._backend.device.kind]

    def _piece(self, name: str, first: int, last: int) -> Array:
        """Return the numbers of some places in a buffer that the next call writes over."""
        if self._scratch is None or self._scratch.size < last - first:
            self._scratch = self._backend.xp.empty(max(last - first, self._scratch_values()), dtype=np.float32)
        piece = self._scratch[: last - first]
        self._write(name, piece, first)
        return piece

    def _write(self, name: str, out: Array, start: int) -> None:
        if not out.size:
            return
        key, rule = key_of(self._seed, name), law(self._spec, name)
        keys = np.uint32(key.outer), np.uint32(key.inner)
        self._fill(out.size, np.uint32(start), *keys, np.float32(rule.base), np.float32(rule.scale), out)


def synthetic(
    spec: ModelSpec, seed: int, backend: Backend, *, dtype: str = "float32", bits: int | None = None
) -> Synthetic:
    """Return a model's tensors as a mapping that makes each when it is asked for; `.whole()` makes all.

    Raises:
        MisuseError: a tensor has more than 2**32 numbers.
    """
    return Synthetic(spec, seed, backend, dtype=dtype, bits=bits)


# --- tokens and routes ------------------------------------------------------------------------------------------------

Routing = Literal["uniform", "zipf", "natural"]


def tokens(seed: int, shape: tuple[int, ...], vocab: int, *, stream: str = "tokens") -> np.ndarray[Any, Any]:
    """Return tokens from 0 to `vocab` - 1, int32, on the host. `stream` names what they are for: another name, other tokens."""
    hashes = words(key_of(seed, stream), 0, math.prod(shape)).astype(np.uint64)
    return (hashes * np.uint64(vocab) >> np.uint64(32)).astype(np.int32).reshape(shape)


def routing_scores(mode: Routing, seed: int, layer: int, count: int, experts: int) -> np.ndarray[Any, Any] | None:
    """Return scores to put in the place of a router's, float32 (count, experts), on the host; None for "natural", which keeps the router's.

    The best k of a row are k different experts: equally likely ones for "uniform"; for "zipf" drawn one after another, without putting
    back, with weights 1, 1/2, 1/3 ..., the order of the experts being the layer's own. Scores of a row are all different and between -1
    and 0, so that no device can choose otherwise, and the softmax gives the chosen ones nearly equal weights.

    Raises:
        MisuseError: there is no such mode.
    """
    if mode == "natural":
        return None
    if mode not in ("uniform", "zipf"):
        msg = f"no routing {mode!r}; there are uniform, zipf, natural"
        raise MisuseError(msg)
    hashes = words(key_of(seed, f"routing of layer {layer}"), 0, count * experts).reshape(count, experts)
    # An exponential clock an expert, whose rate is its weight: the order in which they ring is the order in which they are drawn.
    waits = -np.log((hashes + 0.5) / 2.0**32)
    if mode == "zipf":
        order = np.argsort(words(key_of(seed, f"order of layer {layer}"), 0, experts), kind="stable")
        waits *= 1.0 + np.argsort(order)
    places = np.empty((count, experts), dtype=np.int64)
    np.put_along_axis(places, np.argsort(waits, axis=1, kind="stable"), np.arange(experts)[None], axis=1)
    return (-places).astype(np.float32) / np.float32(experts)
