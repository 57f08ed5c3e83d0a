"""Decoding on a CPU as fast as its memory allows: one compiled call a layer and thread, in float32.

    model = Model(spec, weights, dtype="float32")
    fast = FastModel(model, threads=2)
    cache = fast.cache(batch=1, capacity=512)
    logits = fast.forward(prompt[None], cache)          # many tokens: the array path, where BLAS is at its best
    logits = fast.forward(token[None, None], cache)     # one a row: compiled by Numba

`FastModel` has the interface of `Model` and shares its cache, so the two can take turns. It covers dense models; others are refused, and
the caller stays with the model. Matrices of fewer bits are expanded: on a CPU they would only be slower.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from harness.errors import MisuseError
from harness.inference.cache import Cache, KeyValues
from harness.inference.delta import DeltaMixer
from harness.inference.feedforward import ExpertBlock
from harness.inference.matrix import expanded, is_quantised

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.device.backend import Array
    from harness.inference.model import Counts, Model, Watch
    from harness.inference.prepare import Layer
    from harness.inference.shapes import ModelSpec

__all__ = ["FastModel", "refusal"]

_ROWS_MOST = 16  # from here on BLAS, which reads the weights once for all rows, is faster
_LINE = 64  # bytes: what matrices are aligned to


def refusal(spec: ModelSpec, dtype: str) -> str | None:
    """Return what keeps a model from being decoded here, None if nothing does."""
    checks = {
        f"its dtype is {dtype}, not float32": dtype == "float32",
        "it has a mixture of experts": spec.experts is None,
        "it has gated delta layers": not spec.delta_layers,
        "its attention has sinks": not spec.sinks,
        "its attention has an output gate": not spec.output_gate,
        "its feed-forward blocks have biases": not spec.mlp_bias,
    }
    return next((reason for reason, fine in checks.items() if not fine), None)


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer's weights in the order the compiled function takes them."""

    weights: tuple[Array, ...]
    attention: tuple[Array, ...]
    window: int


class FastModel:
    """A model whose single tokens are decoded by compiled code.

    All matrices are copied into one block of memory, on large pages where the system grants them: walking through them is what decoding
    does, and with small pages it is an eighth slower.

    Args:
        model: holds the weights and takes in prompts.
        threads: how many threads share a layer's rows, at least 1. More than there are idle cores is slow: they wait for each other.

    Raises:
        MisuseError: the model is none of those covered, or threads are below 1.
    """

    def __init__(self, model: Model, *, threads: int = 1) -> None:
        reason = refusal(model.spec, model.ops.dtype.name)
        if reason is None and not model.ops.on_host:
            reason = "it is not on the CPU"
        if reason is not None:
            msg = f"{model.spec.name} cannot be decoded by the compiled path: {reason}"
            raise MisuseError(msg)
        if threads < 1:
            msg = f"{threads!r} threads cannot decode; at least 1 can"
            raise MisuseError(msg)
        from harness.inference import cpu_kernels

        self.model, self.spec, self.threads = model, model.spec, threads
        self._kernels = cpu_kernels
        self._head, self._layers = _packed(model)
        self._pool = ThreadPoolExecutor(threads - 1, thread_name_prefix="decode") if threads > 1 else None
        self._counter = np.zeros(1, dtype=np.int64)
        self._angles: tuple[Cache, tuple[Array, Array]] | None = None
        self._norm = _own(model._norm)  # noqa: SLF001 - two halves of one thing

    def cache(self, batch: int, capacity: int) -> Cache:
        """Take memory as `Model.cache` does."""
        return self.model.cache(batch, capacity)

    def forward(
        self,
        tokens: Any,
        cache: Cache,
        *,
        counts: Counts | None = None,
        logits: Literal["last", "all", "none"] = "last",
        watch: Watch | None = None,
    ) -> Array | None:
        """Take tokens in, as `Model.forward` does; one for each of at most 16 rows, which nobody watches, by the compiled code."""
        tokens = np.asarray(tokens)
        single = tokens.shape == (cache.batch, 1) and cache.batch <= _ROWS_MOST and tokens.dtype.kind in "iu"
        fits = bool((cache.lengths < cache.capacity).all())
        if not single or not fits or counts is not None or watch is not None or logits not in ("last", "all", "none"):
            return self.model.forward(tokens, cache, counts=counts, logits=logits, watch=watch)
        if tokens.min() < 0 or tokens.max() >= self.spec.vocab:
            msg = f"tokens {tokens.ravel().tolist()} are not all among {self.spec.name}'s, which are 0 to {self.spec.vocab - 1}"
            raise MisuseError(msg)
        found = self._decoded(tokens[:, 0], cache, with_logits=logits != "none")
        cache.advance(np.ones(cache.batch, dtype=np.int64))
        if found is None:
            return None
        return found if logits == "last" else found[:, None]

    def _decoded(self, tokens: Array, cache: Cache, *, with_logits: bool) -> Array | None:
        hidden = np.ascontiguousarray(self.model._embedded(tokens))  # noqa: SLF001 - two halves of one thing
        logits = np.empty((cache.batch, self.spec.vocab), dtype=np.float32) if with_logits else None
        angles, shared = self._angles_of(cache), self._shared(cache.batch)
        work = [(thread, cache, angles, hidden, logits, shared) for thread in range(self.threads)]
        self._counter[0] = 0
        others = [self._pool.submit(self._thread, *w) for w in work[1:]] if self._pool is not None else []
        try:
            self._thread(*work[0])
        finally:
            wait(others)
        for other in others:
            other.result()
        return logits

    def _angles_of(self, cache: Cache) -> tuple[Array, Array]:
        """Return cosine and sine of half the places: a cache's tables hold each angle twice, for both numbers of a pair."""
        if self._angles is None or self._angles[0] is not cache:
            half = self.spec.rotary // 2
            self._angles = cache, (_own(cache.cos[:, :half]), _own(cache.sin[:, half:]))
        return self._angles[1]

    def _shared(self, batch: int) -> tuple[Array, ...]:
        """Return what all threads work in: projected, mixed, added, middle, active."""
        spec = self.spec
        queries, width = spec.heads * spec.head_dim, spec.ffn_width or 0
        projected = queries + 2 * spec.kv_heads * spec.head_dim
        return tuple(
            np.empty((batch, n), dtype=np.float32) for n in (projected, queries, spec.hidden, 2 * width, width)
        )

    def _thread(self, thread: int, *work: Any) -> None:
        try:
            self._part(thread, *work)
        except BaseException:
            self._counter[0] = self._kernels.ABANDONED  # nobody waits for this thread any longer
            raise

    def _part(  # noqa: PLR0913 - what a step consists of
        self,
        thread: int,
        cache: Cache,
        angles: tuple[Array, Array],
        hidden: Array,
        logits: Array | None,
        shared: tuple[Array, ...],
    ) -> None:
        """Do one thread's part of a step."""
        spec, kernels, threads = self.spec, self._kernels, self.threads
        eps = np.float32(spec.norm_eps)
        normed = np.empty((cache.batch, spec.hidden), dtype=np.float32)
        scores = np.empty(cache.capacity, dtype=np.float32)
        for index, layer in self._layers.items():
            memory = cache.layers[index]
            assert isinstance(memory, KeyValues)  # noqa: S101 - the model has no other layers
            kernels.layer(
                thread, threads, self._counter, cache.lengths, layer.weights, layer.attention,
                (spec.heads, spec.kv_heads, layer.window, eps), memory.keys, memory.values, *angles, hidden,
                (normed, scores, *shared),
            )  # fmt: skip
        if logits is not None:
            kernels.head(thread, threads, self._norm, eps, self._head, hidden, normed, logits)


def _packed(model: Model) -> tuple[Array, dict[int, _Layer]]:
    """Copy all matrices behind one another; returns the head's, and the layers."""
    parts = {index: list(_matrices(layer)) for index, layer in model._layers.items()}  # noqa: SLF001 - two halves of one thing
    head = model._head  # noqa: SLF001
    last = expanded(model.ops, head) if is_quantised(head) else head
    size = sum(_aligned(m) for matrices in parts.values() for m in matrices) + _aligned(last)
    block = np.empty(size + _LINE, dtype=np.uint8)  # NumPy asks for large pages for a block of this size
    first = -block.ctypes.data % _LINE

    def placed(matrix: Array) -> Array:
        nonlocal first
        view = block[first : first + matrix.nbytes].view(np.float32).reshape(matrix.shape)
        view[:] = matrix
        first += _aligned(matrix)
        return view

    layers = {i: _layer(model._layers[i], [placed(m) for m in matrices]) for i, matrices in parts.items()}  # noqa: SLF001
    return placed(last), layers


def _aligned(matrix: Array) -> int:
    return -(-int(matrix.nbytes) // _LINE) * _LINE


def _matrices(layer: Layer) -> Iterator[Array]:
    assert not isinstance(layer.mixer, DeltaMixer)  # noqa: S101 - `refusal` has seen to it
    assert not isinstance(layer.block, ExpertBlock)  # noqa: S101
    for matrix in (layer.mixer.inward, layer.mixer.outward, layer.block.inward, layer.block.outward):
        yield matrix.array()


def _layer(layer: Layer, matrices: list[Array]) -> _Layer:
    assert not isinstance(layer.mixer, DeltaMixer)  # noqa: S101 - `refusal` has seen to it
    mixer = layer.mixer
    inward, outward, gate_up, down = matrices
    norms = (
        np.zeros((0, 0), np.float32) if mixer.head_norm is None else mixer.head_norm.reshape(len(mixer.head_norm), -1)
    )
    weights = _own(layer.mixer_norm), inward, outward, _own(layer.block_norm), gate_up, down
    return _Layer(weights, (_own(mixer.inward_bias), _own(norms), _own(mixer.outward_bias)), mixer.window or 0)


def _own(array: Array | None) -> Array:
    """Return a copy whose numbers lie in a row and may be written: for any other kind of array all would be compiled again."""
    return np.zeros(0, dtype=np.float32) if array is None else np.array(array, dtype=np.float32, order="C")
