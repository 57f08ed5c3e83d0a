"""From a model's tensors to what its layers compute with: matrices that take the same input put together, once, at load.

Tensors are read one after another and each only once, so that a mapping that makes or maps them on demand never has to hold them all.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.inference.attention import Attention
from harness.inference.delta import DeltaMixer
from harness.inference.feedforward import DenseBlock, ExpertBlock
from harness.inference.matrix import Dense, Matrix, Packed, expanded, is_quantised, stacked
from harness.inference.weights import check_shapes

if TYPE_CHECKING:
    from harness.device.backend import Array
    from harness.inference.ops import Ops
    from harness.inference.shapes import Experts, ModelSpec

__all__ = ["Layer", "check", "layer", "norm"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One decoder layer."""

    mixer_norm: Array
    mixer: Attention | DeltaMixer
    block_norm: Array
    block: DenseBlock | ExpertBlock


def check(spec: ModelSpec, weights: Mapping[str, Any], layers: Collection[int]) -> None:
    """Make sure that the tensors are the model's, by names and shapes; layers that are not asked for may be missing.

    A mapping that makes tensors on demand tells their shapes by an attribute `shapes`. Layers beyond the model's are passed over: a slice
    of a model takes the whole model's file.

    Raises:
        MisuseError: a tensor is missing, has another shape, or is none of the model's.
    """
    shapes: Mapping[str, Any] = getattr(weights, "shapes", None) or {n: tuple(w.shape) for n, w in weights.items()}
    idle = {n for n in spec.tensors() if (_index(n) not in layers if _index(n) is not None else _whole(spec, layers))}
    given = {n: s for n, s in shapes.items() if n not in idle and (_index(n) or 0) < spec.layers}
    check_shapes(spec, {**given, **{n: spec.tensors()[n] for n in idle}})


def _index(name: str) -> int | None:
    """Return the number of the layer that a tensor belongs to."""
    _, found, rest = name.partition("model.layers.")
    number = rest.partition(".")[0]
    return int(number) if found and number.isdigit() else None


def _whole(spec: ModelSpec, layers: Collection[int]) -> bool:
    """Tell that some layers are left out, so that embedding and head are not needed."""
    return len(layers) < spec.layers


def norm(spec: ModelSpec, ops: Ops, weight: Any) -> Array:
    """Return a norm's factors in float32; those of a zero-centred one are stored less one."""
    factors = expanded(ops, weight, ops.wide)
    return factors + 1 if spec.zero_centred_norms else factors


class _Reader:
    """Reads one layer's tensors by the names that follow the layer's prefix."""

    def __init__(self, ops: Ops, weights: Mapping[str, Any], index: int, *, keep_packed: bool) -> None:
        self.ops, self._weights, self._at, self.keep_packed = ops, weights, f"model.layers.{index}.", keep_packed

    def raw(self, name: str) -> Any:
        return self._weights[self._at + name]

    def wide(self, name: str) -> Array:
        return expanded(self.ops, self.raw(name), self.ops.wide)

    def rows(self, *names: str) -> Matrix:
        return stacked(self.ops, [self.raw(f"{n}.weight") for n in names], keep_packed=self.keep_packed)

    def bias(self, *names: str) -> Array:
        return self.ops.xp.concatenate([expanded(self.ops, self.raw(f"{n}.bias")) for n in names])


def layer(spec: ModelSpec, ops: Ops, weights: Mapping[str, Any], index: int, *, keep_packed: bool) -> Layer:
    """Prepare one layer. With `keep_packed` matrices of few bits stay so and are expanded at each use."""
    read = _Reader(ops, weights, index, keep_packed=keep_packed)
    kind = spec.layer_kinds[index]
    window = spec.window if kind == "sliding" else None
    return Layer(
        mixer_norm=norm(spec, ops, read.raw("input_layernorm.weight")),
        mixer=_delta(read) if kind == "delta" else _attention(spec, read, window),
        block_norm=norm(spec, ops, read.raw("post_attention_layernorm.weight")),
        block=_experts(spec, spec.experts, read)
        if spec.experts is not None and spec.has_experts(index)
        else _dense(read, "mlp", bias=spec.mlp_bias),
    )


def _attention(spec: ModelSpec, read: _Reader, window: int | None) -> Attention:
    xp, parts = read.ops.xp, [f"self_attn.{n}_proj" for n in "qkv"]
    matrices = [read.raw(f"{n}.weight") for n in parts]
    bias = read.bias(*parts) if spec.attention_bias else None
    if spec.output_gate:
        matrices, bias = _gates_last(spec, read.ops, matrices, bias)
    norms = None
    if spec.qk_norm:
        q, k = (norm(spec, read.ops, read.raw(f"self_attn.{n}_norm.weight")) for n in "qk")
        norms = xp.concatenate([xp.tile(q, (spec.heads, 1)), xp.tile(k, (spec.kv_heads, 1))])[:, None]
    sinks = read.wide("self_attn.sinks").reshape(spec.kv_heads, -1, 1, 1) if spec.sinks else None
    return Attention(
        inward=stacked(read.ops, matrices, keep_packed=read.keep_packed),
        inward_bias=bias,
        outward=read.rows("self_attn.o_proj"),
        outward_bias=read.bias("self_attn.o_proj") if spec.output_bias else None,
        head_norm=norms,
        sinks=sinks,
        window=window,
    )


def _gates_last(spec: ModelSpec, ops: Ops, matrices: list[Any], bias: Array | None) -> tuple[list[Any], Array | None]:
    """Move the gates' rows, which follow each head's queries, below queries, keys and values."""
    count = 2 * spec.heads * spec.head_dim
    places = ops.xp.arange(count).reshape(spec.heads, 2, spec.head_dim)
    queries, gates = places[:, 0].reshape(-1), places[:, 1].reshape(-1)
    q, k, v = matrices
    take = q.take if is_quantised(q) else lambda rows: ops.xp.asarray(q)[rows]
    if bias is not None:
        bias = ops.xp.concatenate([bias[queries], bias[count:], bias[gates]])
    return [take(queries), k, v, take(gates)], bias


def _delta(read: _Reader) -> DeltaMixer:
    at = "linear_attn."
    return DeltaMixer(
        inward=read.rows(f"{at}in_proj_qkv", f"{at}in_proj_z", f"{at}in_proj_b", f"{at}in_proj_a"),
        outward=read.rows(f"{at}out_proj"),
        kernel=read.ops.xp.ascontiguousarray(read.wide(f"{at}conv1d.weight")[:, 0].T),
        speed=-read.ops.xp.exp(read.wide(f"{at}A_log")),
        dt_bias=read.wide(f"{at}dt_bias"),
        norm=read.wide(f"{at}norm.weight"),
    )


def _dense(read: _Reader, at: str, *, bias: bool = False) -> DenseBlock:
    inward = f"{at}.gate_proj", f"{at}.up_proj"
    return DenseBlock(
        inward=read.rows(*inward),
        inward_bias=read.bias(*inward) if bias else None,
        outward=read.rows(f"{at}.down_proj"),
        outward_bias=read.bias(f"{at}.down_proj") if bias else None,
    )


def _experts(spec: ModelSpec, experts: Experts, read: _Reader) -> ExpertBlock:
    if experts.naming == "packed":
        return _packed_experts(read)
    mixtral = experts.naming == "mixtral"
    at = "block_sparse_moe" if mixtral else "mlp"
    gate, up, down = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
    shared = experts.shared_width > 0
    names = [(f"{at}.experts.{e}.{gate}", f"{at}.experts.{e}.{up}") for e in range(experts.count)]
    inward, inward_all = _piled(read, (2 * experts.width, spec.hidden), names)
    outward, outward_all = _piled(
        read, (spec.hidden, experts.width), [(f"{at}.experts.{e}.{down}",) for e in range(experts.count)]
    )
    return ExpertBlock(
        router=read.wide(f"{at}.gate.weight"),
        router_bias=None,
        inward=inward,
        outward=outward,
        inward_all=inward_all,
        outward_all=outward_all,
        inward_bias=None,
        outward_bias=None,
        shared=_dense(read, f"{at}.shared_expert") if shared else None,
        shared_gate=read.wide(f"{at}.shared_expert_gate.weight") if shared else None,
    )


def _piled(
    read: _Reader, shape: tuple[int, int], names: Sequence[tuple[str, ...]]
) -> tuple[list[Matrix], Array | None]:
    """Return each expert's matrix; all in one array unless they stay packed."""
    out = None
    matrices: list[Matrix] = []
    for expert, parts in enumerate(names):
        matrix = read.rows(*parts)
        if isinstance(matrix, Packed):
            matrices.append(matrix)
            continue
        out = read.ops.xp.empty((len(names), *shape), dtype=read.ops.dtype) if out is None else out
        out[expert] = matrix.array()
        matrices.append(Dense(out[expert]))
    return matrices, out


def _packed_experts(read: _Reader) -> ExpertBlock:
    """Prepare experts stored as (experts, inputs, outputs), gate and up in turn."""
    xp, ops, at = read.ops.xp, read.ops, "mlp.experts."
    inward = expanded(ops, read.raw(f"{at}gate_up_proj")).swapaxes(1, 2)
    inward = xp.concatenate([inward[:, ::2], inward[:, 1::2]], axis=1)
    bias = expanded(ops, read.raw(f"{at}gate_up_proj_bias"))
    outward = expanded(ops, read.raw(f"{at}down_proj")).swapaxes(1, 2)
    return ExpertBlock(
        router=read.wide("mlp.router.weight"),
        router_bias=read.wide("mlp.router.bias"),
        inward=[Dense(m) for m in inward],
        outward=[Dense(m) for m in outward],
        inward_all=inward,
        outward_all=outward,
        inward_bias=xp.concatenate([bias[:, ::2], bias[:, 1::2]], axis=1),
        outward_bias=expanded(ops, read.raw(f"{at}down_proj_bias")),
        shared=None,
        shared_gate=None,
    )
