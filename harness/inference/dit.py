"""One denoising step of a diffusion transformer in the shape of Flux.1: what image generation spends its time on.

Text and image tokens go through blocks with weights of their own (double), then together through shared ones (single). Each block is modulated by
a vector made of time, guidance and the prompt (adaLN), attends over all tokens, and has a GELU network. Written once against the array
module. Norms, softmax, modulation and the residual are float32 whatever the weights are.

The equations and the names of the tensors are those of `FluxTransformer2DModel` in Hugging Face diffusers 0.42, to which this is held by
`tests/golden/dit.npz`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.device import philox
from harness.errors import MisuseError
from harness.inference.ledger import Cost, Format, Part, product

if TYPE_CHECKING:
    from harness.device.backend import Array, Backend

__all__ = ["FLUX", "Dit", "DitSpec", "Inputs", "cost", "inputs", "near", "truth", "weights"]

_EPS = 1e-6
_ROPE_THETA = 10000.0
_TIME_SCALE = 1000.0
_TIME_PERIOD = 10000.0
_MLP = 4  # the network's width, of the hidden width
# How much a number may be off after one block, of its size or of the standard deviation. Measured on CPUs: 3e-6 and 2e-2.
_OFF = {"float64": 1e-9, "float32": 1e-4, "float16": 1e-1}
_QUERIES = 512  # whose scores are in memory at a time

Watch = Callable[[str, str, Any], None]  # a block's name, "in" or "out", and its two states


@dataclass(frozen=True, slots=True, kw_only=True)
class DitSpec:
    """The shape of a model and of what it works on. Tokens are of one picture."""

    heads: int
    double: int
    single: int
    image_tokens: int
    text_tokens: int
    axes: tuple[int, int, int] = (16, 56, 56)  # dimensions of a head that turn with text place, row and column
    channels: int = 64
    text_width: int = 4096
    pooled_width: int = 768
    time_width: int = 256

    @property
    def head_dim(self) -> int:
        """Dimensions of a head."""
        return sum(self.axes)

    @property
    def hidden(self) -> int:
        """Width of a token."""
        return self.heads * self.head_dim

    @property
    def tokens(self) -> int:
        """Tokens that attend to each other."""
        return self.image_tokens + self.text_tokens

    @property
    def parameters(self) -> int:
        """Numbers in all tensors."""
        return sum(math.prod(shape) for shape in self.tensors().values())

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Return each tensor's name and shape, matrices as (out, in)."""
        return dict(self._tensors())

    def _tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        h = self.hidden
        yield from _linear("x_embedder", h, self.channels)
        yield from _linear("context_embedder", h, self.text_width)
        for name, width in (
            ("timestep_embedder", self.time_width),
            ("guidance_embedder", self.time_width),
            ("text_embedder", self.pooled_width),
        ):
            yield from _linear(f"time_text_embed.{name}.linear_1", h, width)
            yield from _linear(f"time_text_embed.{name}.linear_2", h, h)
        for i in range(self.double):
            yield from self._double(f"transformer_blocks.{i}")
        for i in range(self.single):
            yield from self._single(f"single_transformer_blocks.{i}")
        yield from _linear("norm_out.linear", 2 * h, h)
        yield from _linear("proj_out", self.channels, h)

    def _double(self, block: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        h = self.hidden
        for norm, ff in (("norm1", "ff"), ("norm1_context", "ff_context")):
            yield from _linear(f"{block}.{norm}.linear", 6 * h, h)
            yield from _linear(f"{block}.{ff}.net.0.proj", _MLP * h, h)
            yield from _linear(f"{block}.{ff}.net.2", h, _MLP * h)
        for name in (*_IMAGE, *_TEXT):
            yield from _linear(f"{block}.attn.{name}", h, h)
        for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
            yield f"{block}.attn.{name}.weight", (self.head_dim,)

    def _single(self, block: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        h = self.hidden
        yield from _linear(f"{block}.norm.linear", 3 * h, h)
        yield from _linear(f"{block}.proj_mlp", _MLP * h, h)
        yield from _linear(f"{block}.proj_out", h, (1 + _MLP) * h)
        for name in _IMAGE[:3]:
            yield from _linear(f"{block}.attn.{name}", h, h)
        for name in ("norm_q", "norm_k"):
            yield f"{block}.attn.{name}.weight", (self.head_dim,)


_IMAGE = ("to_q", "to_k", "to_v", "to_out.0")
_TEXT = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")

FLUX = DitSpec(heads=24, double=19, single=38, image_tokens=4096, text_tokens=512)


def _linear(name: str, outs: int, ins: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (outs, ins)
    yield f"{name}.bias", (outs,)


def cost(spec: DitSpec, weights_format: Format) -> Cost:
    """Return the operations and bytes of one step: products of matrices, 2 operations a multiply-add; each weight once."""
    h, image, text, whole = spec.hidden, spec.image_tokens, spec.text_tokens, spec.tokens

    def part(name: str, rows: int, outs: int, ins: int, times: int = 1) -> Part:
        return product(name, rows, weights_format, outs, ins, times=times)

    def attention(name: str, blocks: int) -> Part:
        return Part(
            name=name,
            flops=blocks * 4 * h * whole**2,
            bytes_moved=blocks * 4 * h * whole * weights_format.bytes_of(1, 1),
        )

    parts = [
        part("image embedding", image, h, spec.channels),
        part("text embedding", text, h, spec.text_width),
        part("time and guidance", 1, h, spec.time_width, 2),
        part("prompt", 1, h, spec.pooled_width),
        part("time, guidance and prompt", 1, h, h, 3),
        part("double modulation", 1, 6 * h, h, 2 * spec.double),
        part("image projections", image, 4 * h, h, spec.double),
        part("text projections", text, 4 * h, h, spec.double),
        attention("double attention", spec.double),
        part("image network", image, 2 * _MLP * h, h, spec.double),
        part("text network", text, 2 * _MLP * h, h, spec.double),
        part("single modulation", 1, 3 * h, h, spec.single),
        part("single projections", whole, 3 * h, h, spec.single),
        attention("single attention", spec.single),
        part("single network", whole, (1 + 2 * _MLP) * h, h, spec.single),
        part("final modulation", 1, 2 * h, h),
        part("final projection", image, spec.channels, h),
    ]
    return Cost(parts=tuple(parts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a step works on, in float32; time and guidance as diffusers takes them, time in [0, 1]."""

    image: Array  # (image_tokens, channels)
    text: Array  # (text_tokens, text_width)
    pooled: Array  # (1, pooled_width)
    time: float
    guidance: float


def inputs(spec: DitSpec, backend: Backend, seed: int) -> Inputs:
    """Return random inputs of a seed."""
    rng = backend.rng(seed)
    return Inputs(
        image=rng.bell((spec.image_tokens, spec.channels)),
        text=rng.bell((spec.text_tokens, spec.text_width)),
        pooled=rng.bell((1, spec.pooled_width)),
        time=0.5,
        guidance=3.5,
    )


def weights(spec: DitSpec, backend: Backend, seed: int, dtype: str) -> dict[str, Array]:
    """Return random weights of a seed, which keep the variance of what they multiply; those that leave a block are smaller."""
    rng, draw = (
        backend.rng(seed),
        backend.compile(philox.bells),
    )  # as `rng.bell`, but compiled once for hundreds of tensors
    leaving = 1 / math.sqrt(2 * (2 * spec.double + spec.single))
    made = {}
    for name, shape in spec.tensors().items():
        count = math.prod(shape)
        numbers = backend.xp.empty(count, dtype=np.float32)
        draw(count, rng.words(4 * count), numbers)
        if name.endswith("bias"):
            numbers *= np.float32(0.02)
        elif len(shape) == 1:
            numbers *= np.float32(0.1)
            numbers += np.float32(1)
        else:
            out = ".to_out." in name or ".to_add_out." in name or ".net.2." in name
            out = out or (name.startswith("single") and ".proj_out." in name)
            numbers *= np.float32((leaving if out else 1.0) / math.sqrt(shape[1]))
        made[name] = numbers.astype(dtype, copy=False).reshape(shape)
    return made


class Dit:
    """A model with its weights, for pictures of one size."""

    def __init__(self, spec: DitSpec, tensors: Mapping[str, Array], xp: Any, *, dtype: str = "float32") -> None:
        """Take the weights as they are; they are multiplied in `dtype`.

        Raises:
            MisuseError: a tensor is missing or has another shape than it must have, or the head's axes are odd.
        """
        wanted = spec.tensors()
        wrong = [n for n, shape in wanted.items() if n not in tensors or tuple(tensors[n].shape) != shape]
        if wrong:
            name = wrong[0]
            has = tuple(tensors[name].shape) if name in tensors else None
            msg = f"{len(wrong)} tensors do not fit, first {name!r}: {has or 'missing'}, must be {wanted[name]}"
            raise MisuseError(msg)
        if any(axis % 2 for axis in spec.axes):
            msg = f"axes {spec.axes!r} of a head turn in pairs: each must be even"
            raise MisuseError(msg)
        self.spec, self.xp, self.dtype = spec, xp, dtype
        self._weights = tensors
        self._wide = "float64" if dtype == "float64" else "float32"  # of norms, softmax and residual
        self._cos, self._sin = self._turns()

    def step(self, given: Inputs, *, watch: Watch | None = None) -> Array:
        """Return what the model makes of its inputs, shape (image_tokens, channels), in float32 or wider.

        `watch` is called with each block's name, "in" or "out", and a pair of states: of the image and of the text, or of all and None.
        """
        image, text, modulation = self.embedded(given)
        for block in self._names("transformer_blocks", self.spec.double):
            _tell(watch, block, "in", image, text)
            image, text = self.double(block, image, text, modulation)
            _tell(watch, block, "out", image, text)
        both = self.xp.concatenate([text, image])
        for block in self._names("single_transformer_blocks", self.spec.single):
            _tell(watch, block, "in", both, None)
            both = self.single(block, both, modulation)
            _tell(watch, block, "out", both, None)
        return self.projected(both[self.spec.text_tokens :], modulation)

    def embedded(self, given: Inputs) -> tuple[Array, Array, Array]:
        """Return the states of image and text, and the vector that modulates, shape (1, hidden), past its SiLU."""
        vector = self._two("timestep_embedder", self._waves(given.time))
        vector = vector + self._two("guidance_embedder", self._waves(given.guidance))
        vector = vector + self._two("text_embedder", given.pooled.astype(self._wide))
        image, text = self._linear("x_embedder", given.image), self._linear("context_embedder", given.text)
        return image, text, _silu(self.xp, vector)

    def double(self, block: str, image: Array, text: Array, modulation: Array) -> tuple[Array, Array]:
        """Apply a block with weights of their own for image and text."""
        ours = self._parts(f"{block}.norm1.linear", modulation, 6)
        theirs = self._parts(f"{block}.norm1_context.linear", modulation, 6)
        q, k, v = self._heads(f"{block}.attn", self._modulated(image, *ours[:2]), _IMAGE, ("norm_q", "norm_k"))
        tq, tk, tv = self._heads(
            f"{block}.attn", self._modulated(text, *theirs[:2]), _TEXT, ("norm_added_q", "norm_added_k")
        )
        seen = self._attended(*(self.xp.concatenate(pair, axis=1) for pair in ((tq, q), (tk, k), (tv, v))))
        split = self.spec.text_tokens
        image = image + ours[2] * self._linear(f"{block}.attn.to_out.0", seen[split:])
        text = text + theirs[2] * self._linear(f"{block}.attn.to_add_out", seen[:split])
        image = image + ours[5] * self._network(f"{block}.ff.net", self._modulated(image, *ours[3:5]))
        text = text + theirs[5] * self._network(f"{block}.ff_context.net", self._modulated(text, *theirs[3:5]))
        return image, text

    def single(self, block: str, both: Array, modulation: Array) -> Array:
        """Apply a block with the same weights for text and image, whose attention and network work side by side."""
        shift, scale, gate = self._parts(f"{block}.norm.linear", modulation, 3)
        x = self._modulated(both, shift, scale)
        seen = self._attended(*self._heads(f"{block}.attn", x, _IMAGE, ("norm_q", "norm_k")))
        wide = _gelu(self.xp, self._linear(f"{block}.proj_mlp", x))
        return both + gate * self._linear(f"{block}.proj_out", self.xp.concatenate([seen, wide], axis=1))

    def projected(self, image: Array, modulation: Array) -> Array:
        """Return the output for the image's final state."""
        scale, shift = self._parts("norm_out.linear", modulation, 2)
        return self._linear("proj_out", self._modulated(image, shift, scale))

    def _names(self, kind: str, count: int) -> list[str]:
        return [f"{kind}.{i}" for i in range(count)]

    def _linear(self, name: str, x: Array) -> Array:
        """Multiply in the model's type; the sum of its rows and the bias are wide."""
        weight = self._weights[f"{name}.weight"].astype(self.dtype, copy=False)
        made = self.xp.matmul(x.astype(self.dtype, copy=False), weight.T)
        return made.astype(self._wide, copy=False) + self._weights[f"{name}.bias"].astype(self._wide, copy=False)

    def _two(self, name: str, x: Array) -> Array:
        inner = _silu(self.xp, self._linear(f"time_text_embed.{name}.linear_1", x))
        return self._linear(f"time_text_embed.{name}.linear_2", inner)

    def _waves(self, value: float) -> Array:
        half = self.spec.time_width // 2
        angles = _TIME_SCALE * value * np.exp(-math.log(_TIME_PERIOD) * np.arange(half) / half)
        return self.xp.asarray(np.concatenate([np.cos(angles), np.sin(angles)])[None].astype(self._wide))

    def _parts(self, name: str, modulation: Array, count: int) -> list[Array]:
        return list(self.xp.split(self._linear(name, modulation), count, axis=1))

    def _modulated(self, x: Array, shift: Array, scale: Array) -> Array:
        centred = x - x.mean(axis=1, keepdims=True)
        variance = (centred * centred).mean(axis=1, keepdims=True)
        return centred / self.xp.sqrt(variance + x.dtype.type(_EPS)) * (1 + scale) + shift

    def _network(self, name: str, x: Array) -> Array:
        return self._linear(f"{name}.2", _gelu(self.xp, self._linear(f"{name}.0.proj", x)))

    def _heads(
        self, attention: str, x: Array, names: tuple[str, ...], norms: tuple[str, str]
    ) -> tuple[Array, Array, Array]:
        """Return queries, keys and values, shape (heads, tokens, head_dim); the first two normalised."""
        parts = [self._linear(f"{attention}.{name}", x) for name in names[:3]]
        q, k, v = (p.reshape(len(x), self.spec.heads, self.spec.head_dim).transpose(1, 0, 2) for p in parts)
        return self._normed(q, f"{attention}.{norms[0]}"), self._normed(k, f"{attention}.{norms[1]}"), v

    def _normed(self, x: Array, name: str) -> Array:
        squares = (x * x).mean(axis=-1, keepdims=True)
        weight = self._weights[f"{name}.weight"].astype(self._wide, copy=False)
        return x / self.xp.sqrt(squares + x.dtype.type(_EPS)) * weight

    def _attended(self, q: Array, k: Array, v: Array) -> Array:
        """Return what each token sees of all, shape (tokens, hidden); text tokens stand first."""
        factor = 1 / math.sqrt(self.spec.head_dim)
        q = (self._turned(q) * q.dtype.type(factor)).astype(self.dtype, copy=False)
        k, v = self._turned(k).astype(self.dtype, copy=False), v.astype(self.dtype, copy=False)
        found = self.xp.empty((q.shape[1], self.spec.heads, self.spec.head_dim), dtype=self._wide)
        for at in range(0, q.shape[1], _QUERIES):
            scores = self.xp.matmul(q[:, at : at + _QUERIES], k.transpose(0, 2, 1)).astype(self._wide, copy=False)
            scores -= scores.max(axis=-1, keepdims=True)
            self.xp.exp(scores, out=scores)
            scores /= scores.sum(axis=-1, keepdims=True)
            found[at : at + _QUERIES] = self.xp.matmul(scores.astype(self.dtype, copy=False), v).transpose(1, 0, 2)
        return found.reshape(len(found), self.spec.hidden)

    def _turns(self) -> tuple[Array, Array]:
        """Return cosine and sine of each token's angles, shape (tokens, head_dim / 2): text stands at the origin, the picture is square."""
        side = math.isqrt(self.spec.image_tokens)
        place = np.zeros((self.spec.tokens, len(self.spec.axes)))
        picture = np.arange(self.spec.image_tokens)
        place[self.spec.text_tokens :, 1], place[self.spec.text_tokens :, 2] = picture // side, picture % side
        angles = [
            place[:, i : i + 1] * _ROPE_THETA ** (-np.arange(0, dim, 2) / dim) for i, dim in enumerate(self.spec.axes)
        ]
        whole = np.concatenate(angles, axis=1)
        return self.xp.asarray(np.cos(whole).astype(self._wide)), self.xp.asarray(np.sin(whole).astype(self._wide))

    def _turned(self, x: Array) -> Array:
        """Turn each pair of neighbours by its token's angle."""
        even, odd = x[..., ::2], x[..., 1::2]
        turned = self.xp.empty(x.shape, dtype=x.dtype)
        turned[..., ::2] = even * self._cos - odd * self._sin
        turned[..., 1::2] = odd * self._cos + even * self._sin
        return turned


def truth(model: Dit, wide: Dit, given: Inputs, *, chosen: int) -> Array | None:
    """Run a step once more and hold its parts against the same model in float64.

    Recomputed are the embeddings, one double and one single block from the states that enter them, and the output from the last states.

    Args:
        model: what is judged.
        wide: the same in float64.
        given: what both work on.
        chosen: names the blocks, modulo their number.

    Returns:
        What the answer must be near to, or None where a part is wrong.
    """
    spec = model.spec
    told: dict[tuple[str, str], tuple[Array, ...]] = {}
    last = f"single_transformer_blocks.{spec.single - 1}"
    blocks = [f"transformer_blocks.{chosen % spec.double}", f"single_transformer_blocks.{chosen % spec.single}"]

    def watch(block: str, name: str, states: tuple[Array, ...]) -> None:
        if not told or block in (*blocks, last):
            told[block, name] = tuple(s.astype(wide.dtype) for s in states if s is not None)

    model.step(given, watch=watch)
    image, text, modulation = wide.embedded(given)
    image_in, text_in = told[blocks[0], "in"]
    (both_in,) = told[blocks[1], "in"]
    pairs: list[tuple[tuple[Array, ...], tuple[Array, ...]]] = [
        (told["transformer_blocks.0", "in"], (image, text)),
        (told[blocks[0], "out"], wide.double(blocks[0], image_in, text_in, modulation)),
        (told[blocks[1], "out"], (wide.single(blocks[1], both_in, modulation),)),
    ]
    fine = all(near(made, true, model) for parts in pairs for made, true in zip(*parts, strict=True))
    (state,) = told[last, "out"]
    return wide.projected(state[spec.text_tokens :], modulation) if fine else None


def near(made: Array, true: Array, model: Dit) -> bool:
    """Tell whether an array is what it should be, but for the rounding of the model's type in one block."""
    if made.shape != true.shape:
        return False
    xp = model.xp
    return bool((xp.abs(made - true) <= _OFF[model.dtype] * xp.maximum(xp.abs(true), true.std())).all())


def _tell(watch: Watch | None, block: str, name: str, *states: Array) -> None:
    if watch is not None:
        watch(block, name, states)


def _silu(xp: Any, x: Array) -> Array:
    return x / (1 + xp.exp(-x))


def _gelu(xp: Any, x: Array) -> Array:
    """Return GELU by its tanh form, as Flux has it."""
    inner = x.dtype.type(math.sqrt(2 / math.pi)) * (x + x.dtype.type(0.044715) * x * x * x)
    return x.dtype.type(0.5) * x * (1 + xp.tanh(inner))
