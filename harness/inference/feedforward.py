"""Feed-forward blocks: dense SwiGLU, and mixtures of experts with their routers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness.device.backend import Array
    from harness.inference.matrix import Matrix
    from harness.inference.ops import Ops
    from harness.inference.shapes import Experts, ModelSpec

__all__ = ["DenseBlock", "ExpertBlock", "Routing", "route"]

_ROWS = 512  # of a product at least: fewer would not pay for a BLAS to lay out the matrix
_GATHERED = 1 << 26  # numbers: how much of the experts may be copied to spare a transfer to the host


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseBlock:
    """A SwiGLU block; `inward` holds the gates' rows, then the ups'."""

    inward: Matrix
    inward_bias: Array | None
    outward: Matrix
    outward_bias: Array | None

    def __call__(self, spec: ModelSpec, ops: Ops, x: Array) -> Array:
        """Return the block's output for rows (N, hidden)."""
        inward, outward = self.inward.array(), self.outward.array()
        size = max(_ROWS, ops.block_values // len(inward))
        if len(x) <= size:
            return self._rows(ops, x, inward, outward)
        out = ops.xp.empty((len(x), spec.hidden), dtype=ops.wide)
        size = -(-len(x) // -(-len(x) // size))
        for first in range(0, len(x), size):
            out[first : first + size] = self._rows(ops, x[first : first + size], inward, outward)
        return out

    def _rows(self, ops: Ops, x: Array, inward: Array, outward: Array) -> Array:
        middle = ops.swiglu(ops.linear(x, inward, self.inward_bias))
        return ops.linear(middle, outward, self.outward_bias)


@dataclass(frozen=True, slots=True)
class Routing:
    """Which experts each row goes to, (N, top_k) integers, and with what weight, (N, top_k) float32."""

    experts: Array
    weights: Array


def route(ops: Ops, experts: Experts, scores: Array) -> Routing:
    """Choose the `top_k` best experts by scores (N, experts), float32, in no certain order.

    The softmax over the chosen ones is also that over all, divided by the chosen ones' sum: both routers of a renormalising model are one.
    """
    xp, count, k = ops.xp, experts.count, experts.top_k
    chosen = xp.argpartition(scores, count - k, axis=-1)[:, count - k :]
    best = xp.take_along_axis(scores, chosen, axis=-1)
    top = best.max(axis=-1, keepdims=True)
    weights = xp.exp(best - top)
    all_of = weights if experts.renormalise or experts.router == "topk_first" else xp.exp(scores - top)
    weights /= all_of.sum(axis=-1, keepdims=True)
    return Routing(chosen, weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertBlock:
    """A mixture of experts, as prepared at load.

    Of each expert `inward` holds the gates' rows, then the ups'. Where weights are expanded these are views of one array each, `inward_all`
    (experts, 2 * width, hidden) and `outward_all` (experts, hidden, width). Biases are (experts, outputs). The router is float32.
    """

    router: Array
    router_bias: Array | None
    inward: Sequence[Matrix]
    outward: Sequence[Matrix]
    inward_all: Array | None
    outward_all: Array | None
    inward_bias: Array | None
    outward_bias: Array | None
    shared: DenseBlock | None
    shared_gate: Array | None

    def __call__(
        self,
        spec: ModelSpec,
        ops: Ops,
        x: Array,
        told: Callable[[Array], None] | None = None,
        *,
        gather: bool | None = None,
    ) -> Array:
        """Return the block's output for rows (N, hidden) float32; `told` is given the experts chosen, (N, top_k).

        On a GPU a few rows copy their experts' matrices (`gather`), so that decoding never waits for the host. More rows are sorted by
        expert, for which the host must know how many each has: one transfer, of one number an expert.
        """
        assert spec.experts is not None  # noqa: S101 - `has_experts` said so
        routing = route(ops, spec.experts, ops.linear(x, self.router, self.router_bias))
        if told is not None:
            told(routing.experts)
        if gather is None:
            copied = len(x) * spec.experts.top_k * 3 * spec.experts.width * spec.hidden
            gather = not ops.on_host and copied <= _GATHERED
        if gather and self.inward_all is not None and self.outward_all is not None:
            each = self._gathered(spec, ops, x, routing, self.inward_all, self.outward_all)
        else:
            each = self._sorted(spec, ops, x, routing)
        each *= routing.weights[..., None]
        out = each.sum(axis=1)
        if self.shared is not None:
            shared = self.shared(spec, ops, x)
            out += ops.sigmoid(ops.linear(x, self.shared_gate)) * shared
        return out

    def _gathered(  # noqa: PLR0913 - what __call__ has at hand
        self, spec: ModelSpec, ops: Ops, x: Array, routing: Routing, inward: Array, outward: Array
    ) -> Array:
        """Return each row's experts' outputs, (N, top_k, hidden), from copies of their matrices."""
        chosen = routing.experts.reshape(-1)
        rows = ops.xp.repeat(x.astype(ops.dtype, copy=False), routing.experts.shape[1], axis=0)
        middle = (inward[chosen] @ rows[..., None])[..., 0]
        if self.inward_bias is not None:
            middle += self.inward_bias[chosen]
        middle = ops.swiglu(middle, spec.swiglu_limit, spec.swiglu_alpha).astype(ops.dtype, copy=False)
        out = ops.widened((outward[chosen] @ middle[..., None])[..., 0])
        if self.outward_bias is not None:
            out += self.outward_bias[chosen]
        return out.reshape(*routing.experts.shape, -1)

    def _sorted(self, spec: ModelSpec, ops: Ops, x: Array, routing: Routing) -> Array:
        """Return each row's experts' outputs, (N, top_k, hidden), expert by expert."""
        xp = ops.xp
        flat = routing.experts.reshape(-1)
        order = xp.argsort(flat, kind="stable")
        ends = xp.cumsum(xp.bincount(flat, minlength=len(self.inward)))
        rows = x.astype(ops.dtype, copy=False)[order // routing.experts.shape[1]]
        out = xp.empty((len(flat), spec.hidden), dtype=ops.wide)
        first = 0
        for expert, last in enumerate(ops.to_host(ends).tolist()):
            if last > first:
                part = slice(first, last)
                middle = ops.linear(rows[part], self.inward[expert].array(), _row(self.inward_bias, expert))
                middle = ops.swiglu(middle, spec.swiglu_limit, spec.swiglu_alpha)
                out[part] = ops.linear(middle, self.outward[expert].array(), _row(self.outward_bias, expert))
                first = last
        back = xp.empty_like(order)
        back[order] = xp.arange(len(order), dtype=order.dtype)
        return out[back].reshape(*routing.experts.shape, spec.hidden)


def _row(biases: Array | None, index: int) -> Array | None:
    return None if biases is None else biases[index]
