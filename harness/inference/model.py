"""A decoder-only transformer, written once against the array module: the reference that every faster path is held to.

    model = Model(spec, weights, np, dtype="float32")
    cache = model.cache(batch=1, capacity=512)
    logits = model.forward(prompt[None], cache)          # (1, vocab), of the last token
    logits = model.forward(logits.argmax(-1)[:, None], cache)

Rows of a batch may have different lengths and take in different numbers of tokens. What a row computes depends on no other row.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from harness.errors import MisuseError
from harness.inference import prepare
from harness.inference.cache import Cache, DeltaState, KeyValues
from harness.inference.delta import DeltaMixer
from harness.inference.feedforward import ExpertBlock
from harness.inference.matrix import expanded, is_quantised
from harness.inference.ops import Linear, Ops
from harness.inference.step import Step

if TYPE_CHECKING:
    from harness.device.backend import Array
    from harness.inference.shapes import ModelSpec

__all__ = ["Cache", "Model", "Watch", "generate"]

Watch = Callable[[int, str, "Array"], None]
Counts = Sequence[int] | np.ndarray[Any, Any]
_MATRIX = 2


class Model:
    """A model on one device.

    Args:
        spec: the shape.
        weights: tensors by canonical name, arrays of NumPy or of `xp`, or `Quantised` ones of `xp`. Each is read once, and most are copied
            together with others: who keeps them all holds those twice, a mapping that makes them on demand does not.
        xp: the array module.
        dtype: of the matrices, keys and values. Norms, softmax, routers, states and the residual are float32 (float64 where this is).
        layers: which layers to load, for one who checks a single layer; all of them by default. Others' tensors may be missing.
        keep_packed: leave matrices of few bits as they are and expand each when it is used, where memory is short. By default they are
            expanded once.
        linear: a product of rows and a matrix to take instead of the module's.

    Raises:
        MisuseError: a tensor is missing, has another shape, or is none of the model's. Nothing has been allocated by then.
    """

    def __init__(  # noqa: PLR0913 - each has its reason
        self,
        spec: ModelSpec,
        weights: Mapping[str, Any],
        xp: Any = np,
        *,
        dtype: Any = "float32",
        layers: Collection[int] | None = None,
        keep_packed: bool = False,
        linear: Linear | None = None,
    ) -> None:
        self.spec, self.xp = spec, xp
        self.ops = Ops(xp, dtype, linear)
        wanted = range(spec.layers) if layers is None else sorted(set(layers))
        if not set(wanted) <= set(range(spec.layers)):
            msg = f"{spec.name} has the layers 0 to {spec.layers - 1}; {list(wanted)} were asked for"
            raise MisuseError(msg)
        prepare.check(spec, weights, wanted)
        self._whole = len(wanted) == spec.layers
        if self._whole:
            self._embedding = self._table(weights["model.embed_tokens.weight"], keep_packed=keep_packed)
        self._layers = {i: prepare.layer(spec, self.ops, weights, i, keep_packed=keep_packed) for i in wanted}
        if self._whole:
            self._norm = prepare.norm(spec, self.ops, weights["model.norm.weight"])
            head = self._embedding if spec.tied else self._table(weights["lm_head.weight"], keep_packed=keep_packed)
            self._head = head

    def _table(self, weight: Any, *, keep_packed: bool) -> Any:
        return weight if keep_packed and is_quantised(weight) else expanded(self.ops, weight)

    def cache(self, batch: int, capacity: int) -> Cache:
        """Take memory for `batch` rows of up to `capacity` tokens each.

        Raises:
            MisuseError: either is below 1.
        """
        return Cache(self.spec, self.ops, batch, capacity, self._layers)

    @overload
    def forward(
        self,
        tokens: Any,
        cache: Cache,
        *,
        counts: Counts | None = ...,
        logits: Literal["last", "all"] = ...,
        watch: Watch | None = ...,
    ) -> Array: ...

    @overload
    def forward(
        self,
        tokens: Any,
        cache: Cache,
        *,
        counts: Counts | None = ...,
        logits: Literal["none"],
        watch: Watch | None = ...,
    ) -> None: ...

    @np.errstate(over="ignore")  # exp(-x) of a far negative x is infinite, and its reciprocal 0, which is right
    def forward(
        self,
        tokens: Any,
        cache: Cache,
        *,
        counts: Counts | None = None,
        logits: Literal["last", "all", "none"] = "last",
        watch: Watch | None = None,
    ) -> Array | None:
        """Take tokens in.

        Args:
            tokens: (batch, T) integers, on the host or the device.
            cache: what came before; it takes these in too.
            counts: how many of each row's tokens are valid, (batch,) on the host; the rest is padding. All of them by default.
            logits: of each row's last valid token, (batch, vocab); of all, (batch, T, vocab); or none. A row without a valid token, and
                padding, has logits that mean nothing.
            watch: called with (layer, "in" | "out" | "experts", array) as layers are entered and left, and experts chosen. The first two
                are (batch, T, hidden) float32 and are not changed afterwards; the last is (batch, T, top_k).

        Raises:
            MisuseError: tokens or counts are out of range, or do not fit the cache.
        """
        if not self._whole:
            msg = f"only the layers {sorted(self._layers)} of {self.spec.name} are loaded: use `layer`"
            raise MisuseError(msg)
        if logits not in ("last", "all", "none"):
            msg = f"logits are {logits!r}; there are last, all, none"
            raise MisuseError(msg)
        tokens = self._checked(tokens, cache)
        step = Step(self.ops, cache, tokens.shape[1], counts)
        hidden = self._embedded(tokens)
        for index in self._layers:
            hidden = self._layer(index, hidden, step, watch)
        cache.advance(step.counts)
        if logits == "none":
            return None
        return self._logits(step.last(hidden) if logits == "last" else hidden)

    @np.errstate(over="ignore")
    def layer(
        self, index: int, hidden: Array, cache: Cache, *, counts: Counts | None = None, watch: Watch | None = None
    ) -> Array:
        """Run one layer alone on (batch, T, hidden) float32, whose rows go on where the cache's end.

        The layer's keys and values, or its state, go into the cache, but `cache.lengths` stay: `cache.advance` moves them on, once all
        layers that are to see these tokens have.

        Raises:
            MisuseError: the layer is not loaded, or hidden or counts do not fit.
        """
        if index not in self._layers:
            msg = f"layer {index!r} of {self.spec.name} is not loaded; there are {sorted(self._layers)}"
            raise MisuseError(msg)
        if hidden.ndim != _MATRIX + 1 or hidden.shape[::2] != (cache.batch, self.spec.hidden) or not hidden.shape[1]:
            msg = f"hidden has the shape {hidden.shape}; it must be ({cache.batch}, tokens, {self.spec.hidden})"
            raise MisuseError(msg)
        step = Step(self.ops, cache, hidden.shape[1], counts)
        return self._layer(index, self.ops.widened(hidden), step, watch)

    def _layer(self, index: int, hidden: Array, step: Step, watch: Watch | None) -> Array:
        spec, ops, part = self.spec, self.ops, self._layers[index]
        shape = hidden.shape
        if watch is not None:
            watch(index, "in", hidden)
        rows = hidden.reshape(-1, spec.hidden)
        x = ops.norm(rows, part.mixer_norm, spec.norm_eps)
        memory = step.cache.layers[index]
        if isinstance(part.mixer, DeltaMixer):
            assert isinstance(memory, DeltaState)  # noqa: S101 - Cache made it so
            mixed = part.mixer(spec, ops, x, memory, step)
        else:
            assert isinstance(memory, KeyValues)  # noqa: S101 - Cache made it so
            mixed = part.mixer(spec, ops, x, memory, step)
        rows = rows + mixed
        x = ops.norm(rows, part.block_norm, spec.norm_eps)
        if isinstance(part.block, ExpertBlock):
            told = None if watch is None else lambda chosen: watch(index, "experts", chosen.reshape(*shape[:2], -1))
            rows += part.block(spec, ops, x, told)
        else:
            rows += part.block(spec, ops, x)
        hidden = rows.reshape(shape)
        if watch is not None:
            watch(index, "out", hidden)
        return hidden

    def _checked(self, tokens: Any, cache: Cache) -> Array:
        if not hasattr(tokens, "shape"):
            tokens = np.asarray(tokens)
        if (
            tokens.ndim != _MATRIX
            or tokens.shape[0] != cache.batch
            or not tokens.shape[1]
            or tokens.dtype.kind not in "iu"
        ):
            msg = f"tokens are {tokens.dtype} of shape {tokens.shape}; they must be integers of shape ({cache.batch}, T), T above 0"
            raise MisuseError(msg)
        if isinstance(tokens, np.ndarray):
            low, high = int(tokens.min()), int(tokens.max())
            if low < 0 or high >= self.spec.vocab:
                msg = f"token {low if low < 0 else high} is none of {self.spec.name}'s, which are 0 to {self.spec.vocab - 1}"
                raise MisuseError(msg)
            return self.ops.to_device(tokens)
        return tokens

    def _embedded(self, tokens: Array) -> Array:
        table = self._embedding
        if is_quantised(table):
            rows = table.take(tokens.reshape(-1)).dequantised(self.xp, self.ops.wide.name)
            return rows.reshape(*tokens.shape, self.spec.hidden)
        return self.ops.widened(table[tokens])

    def _logits(self, hidden: Array) -> Array:
        rows = self.ops.norm(hidden.reshape(-1, self.spec.hidden), self._norm, self.spec.norm_eps)
        head = expanded(self.ops, self._head)
        return self.ops.widened(self.ops.linear(rows, head)).reshape(*hidden.shape[:-1], self.spec.vocab)


def generate(model: Model, prompt: Any, count: int) -> Array:
    """Continue a prompt greedily; nothing ends it early.

    Args:
        model: the model.
        prompt: (T,) tokens, or (batch, T).
        count: how many tokens to add, at least 1.

    Returns:
        (count,) tokens on the model's device, or (batch, count).

    Raises:
        MisuseError: the prompt is no tokens of the model's, or count is below 1.
    """
    if count < 1:
        msg = f"{count!r} tokens cannot be generated; at least 1 can"
        raise MisuseError(msg)
    given = prompt if hasattr(prompt, "shape") else np.asarray(prompt)
    tokens = given if given.ndim == _MATRIX else given[None]
    cache = model.cache(tokens.shape[0], tokens.shape[1] + count)
    out = []
    for _ in range(count):
        tokens = model.forward(tokens, cache).argmax(axis=-1)[:, None]
        out.append(tokens)
    joined = model.xp.concatenate(out, axis=1)
    return joined if given.ndim == _MATRIX else joined[0]
