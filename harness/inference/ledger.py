"""What a pass through a model costs by arithmetic: operations and bytes, part by part, and the least time they need.

Counted: every product of matrices, 2 operations a multiply-add, among them those of a gated DeltaNet's state; each weight that a pass
needs read once; keys and values written once and read once; the DeltaNet's state read and written. Not counted: norms, softmax, rotary
embedding, activations, and the rows gathered from the embedding: an honest run does more than this, never less. That makes the sum a
floor, and a time below it a lie.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from harness.errors import MisuseError
from harness.inference.quant import stored_bytes

if TYPE_CHECKING:
    from harness.inference.specs import Experts, ModelSpec

__all__ = [
    "FORMATS",
    "Cost",
    "Format",
    "Part",
    "decode",
    "decode_steps",
    "expert_bytes",
    "experts_expected",
    "format_named",
    "pairs_seen",
    "prefill",
    "product",
    "state_bytes",
    "total",
    "weight_bytes",
]

_STATE_BYTES = 4  # a DeltaNet's state is float32 whatever the weights are

Pairs = Literal["causal", "square"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """How weights lie in memory: as numbers of a type, or the matrices among them as integers of so many bits with scales."""

    name: str
    dtype: str  # of what is not quantised, and of keys and values
    bits: int | None = None

    @property
    def value_bytes(self) -> int:
        """Bytes of a number that is not quantised."""
        return np.dtype(_KNOWN.get(self.dtype, self.dtype)).itemsize

    def bytes_of(self, rows: int, columns: int, *, plain: bool = False) -> int:
        """Return the bytes of a matrix; `plain` is one that is never quantised, such as a router."""
        name = "some.router.weight" if plain else "some.weight"
        return stored_bytes(name, (rows, columns), dtype=_KNOWN.get(self.dtype, self.dtype), bits=self.bits)


_KNOWN = {"bfloat16": "float16"}  # to NumPy it is a type of 2 bytes
FORMATS: Mapping[str, Format] = {
    f.name: f
    for f in (
        Format(name="fp32", dtype="float32"),
        Format(name="fp16", dtype="float16"),
        Format(name="bf16", dtype="bfloat16"),
        Format(name="int8", dtype="float16", bits=8),
        Format(name="int4", dtype="float16", bits=4),
    )
}


def format_named(name: str) -> Format:
    """Return a weight format. Raises `MisuseError` if there is none of that name."""
    if name not in FORMATS:
        msg = f"no weight format {name!r}; there are {', '.join(FORMATS)}"
        raise MisuseError(msg)
    return FORMATS[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One kind of operation of a pass, in all layers that have it together."""

    name: str
    flops: int
    bytes_moved: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a pass does, part by part."""

    parts: tuple[Part, ...]

    @property
    def flops(self) -> int:
        """Operations, 2 a multiply-add."""
        return sum(p.flops for p in self.parts)

    @property
    def bytes_moved(self) -> int:
        """Bytes read and written."""
        return sum(p.bytes_moved for p in self.parts)

    def least_s(self, bytes_per_s: float, flops_per_s: float) -> float:
        """Return the least time by these two rates: each part waits for the slower of memory and arithmetic."""
        return sum(max(p.bytes_moved / bytes_per_s, p.flops / flops_per_s) for p in self.parts)


def total(costs: Iterable[Cost]) -> Cost:
    """Add costs up, part by part."""
    sums: dict[str, tuple[int, int]] = {}
    for part in (p for cost in costs for p in cost.parts):
        flops, moved = sums.get(part.name, (0, 0))
        sums[part.name] = flops + part.flops, moved + part.bytes_moved
    return Cost(parts=tuple(Part(name=n, flops=f, bytes_moved=b) for n, (f, b) in sums.items()))


def prefill(  # noqa: PLR0913 - a model, a pass, and two conventions
    spec: ModelSpec,
    *,
    batch: int,
    length: int,
    weights: Format,
    start: int = 0,
    attention: Pairs = "causal",
    experts_touched: Sequence[int] | None = None,
) -> Cost:
    """Return the cost of `length` tokens a row after `start` that are already there, up to the logits of the last one.

    Args:
        spec: the model.
        batch: rows.
        length: tokens a row.
        weights: how the weights lie in memory.
        start: tokens a row that the cache holds.
        attention: `square` also counts the products with later keys, which a mask then hides; some implementations compute them.
        experts_touched: how many experts each layer that has any was seen to use; by default what uniform routing would use.
    """
    _positive(batch=batch, length=length)
    if start < 0:
        msg = f"start {start!r} is negative; a cache holds 0 tokens or more"
        raise MisuseError(msg)
    rows = _Rows(batch, length, start)
    parts = [
        *_attention_parts(spec, weights, rows, attention),
        *_delta_parts(spec, weights, rows),
        *_feed_forward_parts(spec, weights, batch * length, experts_touched),
        product("head", batch, weights, spec.vocab, spec.hidden),
    ]
    return Cost(parts=tuple(parts))


def decode(
    spec: ModelSpec,
    *,
    batch: int,
    context: int,
    weights: Format,
    experts_touched: Sequence[int] | None = None,
) -> Cost:
    """Return the cost of one token a row, each of which sees `context` tokens, itself among them."""
    _positive(context=context)
    return prefill(
        spec,
        batch=batch,
        length=1,
        start=context - 1,
        weights=weights,
        experts_touched=experts_touched,
    )


def decode_steps(  # noqa: PLR0913 - a model, and how it is run
    spec: ModelSpec,
    *,
    batch: int,
    depth: int,
    steps: int,
    weights: Format,
    experts_touched: Sequence[Sequence[int]] | None = None,
) -> Cost:
    """Return the cost of `steps` tokens a row, one after another, after `depth` that are already there.

    `experts_touched` holds, for each step, how many experts each layer that has any was seen to use.
    """
    _positive(steps=steps)
    if experts_touched is not None and len(experts_touched) != steps:
        msg = f"experts were counted in {len(experts_touched)} steps, but there are {steps}"
        raise MisuseError(msg)
    seen: Sequence[Sequence[int] | None] = experts_touched or [None] * steps
    return total(
        decode(
            spec,
            batch=batch,
            context=depth + 1 + i,
            weights=weights,
            experts_touched=touched,
        )
        for i, touched in enumerate(seen)
    )


def experts_expected(experts: Experts, tokens: int) -> float:
    """Return how many experts of a layer so many tokens are expected to use if each picks its own uniformly."""
    if experts.top_k == experts.count:
        return float(experts.count)
    return -experts.count * math.expm1(tokens * math.log1p(-experts.top_k / experts.count))


@functools.lru_cache(maxsize=256)
def weight_bytes(spec: ModelSpec, weights: Format) -> int:
    """Return the bytes that all of a model's tensors take in this format."""
    return _stored(spec.tensors(), weights)


def _stored(tensors: Mapping[str, tuple[int, ...]], weights: Format) -> int:
    dtype = _KNOWN.get(weights.dtype, weights.dtype)
    return sum(stored_bytes(name, shape, dtype=dtype, bits=weights.bits) for name, shape in tensors.items())


def state_bytes(spec: ModelSpec) -> int:
    """Return the bytes of one row's DeltaNet state in all layers: 0 for a model without one."""
    return spec.delta_layers * (spec.delta.state_values if spec.delta else 0) * _STATE_BYTES


def _positive(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            msg = f"{name} {value!r} is less than 1"
            raise MisuseError(msg)


def product(  # noqa: PLR0913 - a matrix, and how it is used
    name: str, rows: int, weights: Format, outs: int, ins: int, *, times: int = 1, plain: bool = False
) -> Part:
    """Return the part of `times` products of `rows` rows with a matrix of shape (outs, ins) each."""
    moved = weights.bytes_of(outs, ins, plain=plain)
    return Part(name=name, flops=2 * rows * outs * ins * times, bytes_moved=moved * times)


class _Rows(NamedTuple):
    """New tokens, and what the cache holds before them."""

    batch: int
    length: int
    start: int

    @property
    def tokens(self) -> int:
        return self.batch * self.length


def _attention_parts(spec: ModelSpec, weights: Format, rows: _Rows, attention: Pairs) -> Iterator[Part]:
    layers = spec.attention_layers
    if not layers:
        return
    batch, length, start = rows
    wide, narrow, tokens = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim, rows.tokens
    gates = 2 if spec.output_gate else 1
    yield product("query", tokens, weights, gates * wide, spec.hidden, times=layers)
    yield product("key", tokens, weights, narrow, spec.hidden, times=layers)
    yield product("value", tokens, weights, narrow, spec.hidden, times=layers)
    for kind in ("full", "sliding"):
        count = spec.layer_kinds.count(kind)
        window = spec.window if kind == "sliding" else None
        if count:
            pairs = (start + length) * length if attention == "square" else pairs_seen(start, length, window)
            read = start + length if window is None else min(start + length, window + length - 1)
            yield Part(
                name=f"{kind} attention",
                flops=count * batch * 4 * wide * pairs,
                bytes_moved=count * batch * 2 * narrow * weights.value_bytes * (read + length),
            )
    yield product("output", tokens, weights, spec.hidden, wide, times=layers)


def pairs_seen(start: int, length: int, window: int | None) -> int:
    """Return how many pairs of a query and a key there are, for queries start + 1 to start + length that see at most `window` keys."""
    if window is None:
        return length * start + length * (length + 1) // 2
    growing = max(0, min(length, window - start))  # queries that see all there is
    return growing * start + growing * (growing + 1) // 2 + (length - growing) * window


def _delta_parts(spec: ModelSpec, weights: Format, rows: _Rows) -> Iterator[Part]:
    layers, net, tokens = spec.delta_layers, spec.delta, rows.tokens
    if not layers or net is None:
        return
    channels = net.channels
    yield product("delta query, key, value", tokens, weights, channels, spec.hidden, times=layers)
    yield product("delta gate", tokens, weights, net.values, spec.hidden, times=layers)
    yield product("delta decay and strength", tokens, weights, 2 * net.value_heads, spec.hidden, times=layers)
    yield Part(
        name="delta convolution",
        flops=layers * tokens * 2 * net.conv * channels,
        bytes_moved=layers * (2 * rows.batch * channels * (net.conv - 1) + channels * net.conv) * weights.value_bytes,
    )
    # A token multiplies the state by its key, adds the outer product of key and what was new, and multiplies it by its query.
    yield Part(
        name="delta state",
        flops=layers * tokens * 3 * 2 * net.state_values,
        bytes_moved=rows.batch * 2 * state_bytes(spec),
    )
    yield product("delta output", tokens, weights, spec.hidden, net.values, times=layers)


def _feed_forward_parts(
    spec: ModelSpec, weights: Format, tokens: int, experts_touched: Sequence[int] | None
) -> Iterator[Part]:
    experts, layers, hidden = spec.experts, spec.expert_layers, spec.hidden
    if spec.layers > layers:
        yield from _gated("feed-forward", tokens, weights, hidden, spec.ffn_width or 0, spec.layers - layers)
    if experts is None:
        return
    if experts_touched is None:
        used = layers * experts_expected(experts, tokens)
    else:
        _plausible(experts_touched, layers, experts, tokens)
        used = sum(experts_touched)
    yield product("router", tokens, weights, experts.count, hidden, times=layers, plain=True)
    yield Part(
        name="experts",
        flops=layers * tokens * experts.top_k * 2 * 3 * hidden * experts.width,
        bytes_moved=round(used * expert_bytes(spec, weights)),
    )
    if experts.shared_width:
        yield from _gated("shared expert", tokens, weights, hidden, experts.shared_width, layers)
        yield product("shared expert's gate", tokens, weights, 1, hidden, times=layers, plain=True)


@functools.lru_cache(maxsize=256)
def expert_bytes(spec: ModelSpec, weights: Format) -> int:
    """Return the bytes of one routed expert of one layer, as they are stored; 0 where there are none."""
    if spec.experts is None:
        return 0
    layer = next(i for i in range(spec.layers) if spec.has_experts(i))
    tensors = {n: s for n, s in spec.layer_tensors(layer).items() if ".experts." in n}
    return _stored(tensors, weights) // spec.experts.count


def _plausible(counts: Sequence[int], layers: int, experts: Experts, tokens: int) -> None:
    if len(counts) != layers:
        msg = f"experts were counted in {len(counts)} layers, but {layers} have any"
        raise MisuseError(msg)
    most = min(experts.count, tokens * experts.top_k)
    for layer, count in enumerate(counts):
        if not experts.top_k <= count <= most:
            msg = f"layer {layer} was seen to use {count} experts; {tokens} tokens use {experts.top_k} to {most}"
            raise MisuseError(msg)


def _gated(  # noqa: PLR0913 - as `product`
    name: str, tokens: int, weights: Format, hidden: int, width: int, layers: int
) -> Iterator[Part]:
    yield product(f"{name}: gate and up", tokens, weights, 2 * width, hidden, times=layers)
    yield product(f"{name}: down", tokens, weights, hidden, width, times=layers)
