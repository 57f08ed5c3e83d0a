"""A model under measurement: made from a choice and a seed, and given tokens that the seed decides, one after another.

Tokens are forced: random weights end in no sentence, and what one device picks by a hair another does not. What would have been picked is
worked out all the same, and is part of the answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from harness.errors import FailureError, MisuseError
from harness.inference import presets, synth
from harness.inference.fused import FusedModel, refusal
from harness.inference.model import Model
from harness.inference.ops import matmul
from harness.inference.roof import roof_bytes
from harness.registry import Skip, require_memory

if TYPE_CHECKING:
    from harness.device.backend import Array, Backend
    from harness.inference.fast_cpu import FastModel
    from harness.inference.model import Watch
    from harness.inference.presets import Choice

__all__ = ["Decoding", "Imposed", "Path", "Subject", "places_of", "subject"]

Path = Literal["array", "fused"]

_PIECE_TOKENS = 4096  # of all rows, that fill the cache at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model, its weights' recipe, and the tokens that it is given, (batch, capacity) on the host."""

    backend: Backend
    chosen: Choice
    weights: synth.Synthetic
    dtype: str  # that products are in
    tokens: np.ndarray[Any, Any]
    route: Imposed | None

    @property
    def packed(self) -> bool:
        """Whether matrices stay in few bits on the device."""
        return self.chosen.weights.bits is not None and self.backend.device.kind == "cuda"

    def model(self) -> Model:
        """Return the model, all of it on the device."""
        spec, xp = self.chosen.spec, self.backend.xp
        return Model(spec, self.weights, xp, dtype=self.dtype, keep_packed=self.packed, linear=self.route)

    def on_device(self) -> Array:
        """Return the tokens on the device, so that no run has to copy them."""
        return self.backend.xp.asarray(self.tokens)

    def told(self, *more: str) -> str:
        """Say what is counted, of which model and weights."""
        counting = "products of matrices, 2 a multiply-add; each weight, key and value read once"
        return "; ".join(filter(None, [f"{self.chosen.text}, weights {self.weights.label}", *more, counting]))

    def sample(self) -> Array:
        """Return some of the weights, as the runner wants to see what random inputs were like."""
        name = next(n for n, s in self.weights.shapes.items() if ".layers." in n and len(s) > 1)
        some = self.backend.xp.empty(min(math.prod(self.weights.shapes[name]), 1 << 16), dtype=np.float32)
        self.weights.fill(name, some)
        return some


def subject(  # noqa: PLR0913 - which model, how much of it, and how its experts are chosen
    backend: Backend, seed: int, text: str, *, batch: int, capacity: int, routing: synth.Routing = "natural"
) -> Subject:
    """Set a model up by its spelling, with the tokens of a seed.

    Raises:
        Skip: the device has not the memory.
        MisuseError: there is no such model.
    """
    chosen = presets.choice(text)
    require_memory(backend, presets.needed_bytes(chosen, batch=batch, context=capacity) + roof_bytes(backend))
    stored = chosen.weights.dtype
    weights = synth.synthetic(chosen.spec, seed, backend, dtype=stored, bits=chosen.weights.bits)
    route = None
    if routing != "natural":
        route = Imposed(backend, weights, chosen, seed, routing, batch * capacity)
    return Subject(
        backend=backend,
        chosen=chosen,
        weights=weights,
        dtype="float32" if backend.device.kind == "cpu" else stored,  # a CPU multiplies float16 a hundred times slower
        tokens=synth.tokens(seed, (batch, capacity), chosen.spec.vocab),
        route=route,
    )


class Imposed:
    """A product that a model takes in place of its own, which answers its routers with scores that were drawn beforehand.

    The router's own product is computed too, and thrown away: the work stays what it was. Scores belong to a layer and a token, so that
    whoever says which tokens come (`expect`) gets the same routes however they are cut into passes.
    """

    def __init__(  # noqa: PLR0913 - what `subject` was given
        self,
        backend: Backend,
        weights: synth.Synthetic,
        chosen: Choice,
        seed: int,
        mode: synth.Routing,
        tokens: int,
    ) -> None:
        spec, xp = chosen.spec, backend.xp
        assert spec.experts is not None  # noqa: S101 - the benchmark asks for a mixture
        self._layers = [i for i in range(spec.layers) if spec.has_experts(i)]
        count = spec.experts.count
        scores = [synth.routing_scores(mode, seed, i, tokens, count) for i in self._layers]
        self._scores = [xp.asarray(s) - _router_bias(weights, i) for i, s in zip(self._layers, scores, strict=True)]
        self._shape = count, spec.hidden
        self._places: Array = xp.arange(0)
        self._coming: list[int] = []

    def expect(self, places: Array, layers: Sequence[int] | None = None) -> None:
        """Say which tokens come next, by their places among all, and through which layers they go."""
        if self._coming:
            msg = f"{len(self._coming)} routers were expected to be asked and were not"
            raise FailureError(msg)
        self._places = places
        self._coming = [n for n, i in enumerate(self._layers) if layers is None or i in layers]

    def __call__(self, x: Array, weight: Array) -> Array:
        """Multiply as a model does; a router's matrix is known by its shape, as no other matrix of a mixture is as narrow."""
        made = matmul(x, weight)
        if weight.shape == self._shape:
            if not self._coming or len(self._places) != len(x):
                msg = f"a router was asked about {len(x)} tokens that nobody had announced"
                raise FailureError(msg)
            made[...] = self._scores[self._coming.pop(0)][self._places]
        return made


def _router_bias(weights: synth.Synthetic, layer: int) -> Array | float:
    """Return what the model adds to its router's product, and so to what stands for it."""
    name = f"model.layers.{layer}.mlp.router.bias"
    if name not in weights.shapes:
        return 0.0
    bias: Array = weights[name]
    return bias.astype(np.float32)


def places_of(tokens: np.ndarray[Any, Any], rows: Sequence[int], first: int, last: int) -> np.ndarray[Any, Any]:
    """Return the places, among all tokens of a batch, of the tokens `first` to `last` of some rows, row by row."""
    places: np.ndarray[Any, Any] = np.asarray(rows)[:, None] * tokens.shape[1] + np.arange(first, last)
    return places.reshape(-1)


class Decoding:
    """One token a row after another, from a depth on: each run goes back there and takes the same tokens.

    Attributes:
        depth: tokens that the cache holds before a run.
        steps: tokens of each row in a run.
        said: how its steps are launched, in words; empty on the array path.
    """

    def __init__(self, of: Subject, *, depth: int, steps: int, path: Path = "array") -> None:
        """Make the model and fill its cache to the depth.

        Raises:
            Skip: the fast path of this device does not cover the model or the batch.
        """
        self.depth, self.steps, self.said = depth, steps, ""
        self._of, self._model, self._fast = of, of.model(), None
        self._tokens, self._rows = of.on_device(), range(len(of.tokens))
        if path == "fused":
            self._fast = fast_model(of, self._model)
        self._cache = self._model.cache(*of.tokens.shape)
        piece = max(1, _PIECE_TOKENS // len(of.tokens))
        for first in range(0, depth, piece):
            self._forward(self._model, first, min(first + piece, depth), logits="none")
        self._cache.mark()
        if isinstance(self._fast, FusedModel):
            _planned(self)
            how = self._fast.capture_failure or "replayed as a graph"
            self.said = f"{self._fast.launches_per_token} launches a token, {how}"

    def _forward(self, model: Model | FastModel | FusedModel, first: int, last: int, **options: Any) -> Array:
        of = self._of
        if of.route is not None:
            of.route.expect(of.backend.xp.asarray(places_of(of.tokens, self._rows, first, last)))
        return model.forward(self._tokens[:, first:last], self._cache, **options)

    def run(self, watch: Watch | None = None) -> tuple[Array, Array]:
        """Take the tokens; returns the last one's logits, (batch, vocab), and what was likeliest after each, (batch, steps)."""
        self._cache.rewind(self.depth)
        picks = self._of.backend.xp.empty((len(self._rows), self.steps), dtype=np.int64)
        end, first = self.depth + self.steps, self.depth
        if isinstance(self._fast, FusedModel) and self.steps > 1 and watch is None:
            given = self._of.tokens[0, first:end]
            picks[0, :-1] = self._fast.decode(self._cache, given[:1], self.steps - 1, forced=given[1:])
            first = end - 1
        for at in range(first, end):
            logits = self._forward(self._fast or self._model, at, at + 1, watch=watch)
            picks[:, at - self.depth] = logits.argmax(axis=-1)
        return logits.copy(), picks

    def experts_seen(self) -> list[list[int]]:
        """Run once; return how many experts each step used in each layer that has any."""
        seen: dict[int, list[int]] = {}

        def watch(layer: int, name: str, array: Array) -> None:
            if name == "experts":
                seen.setdefault(layer, []).append(len(np.unique(self._of.backend.to_host(array))))

        self.run(watch)
        return [list(step) for step in zip(*(seen[layer] for layer in sorted(seen)), strict=True)]


def _planned(decoding: Decoding) -> None:
    """Run once: kernels are chosen by the weights that are there, and the step is captured as a graph."""
    try:
        decoding.run()
    except MisuseError as err:
        msg = f"the fast path does not cover it: {err}"
        raise Skip(msg) from err


def fast_model(of: Subject, model: Model) -> FusedModel | FastModel:
    """Return the fast path of the device: our CUDA kernels, or code compiled for the CPU.

    Raises:
        Skip: it does not cover the model, the batch or the routing.
    """
    from harness.inference import fast_cpu

    batch, backend = len(of.tokens), of.backend
    on_gpu = backend.device.kind == "cuda"
    reason = (refusal if on_gpu else fast_cpu.refusal)(of.chosen.spec, of.dtype)
    if reason is None and on_gpu and batch > 1:
        reason = f"its kernels decode one row, not {batch}"
    if reason is None and of.route is not None:
        reason = "its router is the weights' own"
    if reason is not None:
        msg = f"the fast path does not cover {of.chosen.text}: {reason}"
        raise Skip(msg)
    if on_gpu:
        return FusedModel(model, backend)
    return fast_cpu.FastModel(model, threads=backend.lanes(1 << 20))
