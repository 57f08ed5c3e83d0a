"""The launches of one decoding step: which kernels, with which arguments, in which order. Made once for a model and a cache.

Weights are taken where the model holds them; only what is stored across (gpt-oss's experts) is copied. Everything that a step needs is
allocated here, so that a step allocates nothing and every address stays what it is: what a captured graph asks for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.device.backend import Array, Backend, CudaSource, Launcher
from harness.errors import MisuseError
from harness.inference import fused_attention, fused_delta, fused_kernels
from harness.inference.cache import Cache, DeltaState, KeyValues
from harness.inference.delta import DeltaMixer
from harness.inference.feedforward import DenseBlock, ExpertBlock
from harness.inference.matrix import Dense, Matrix, Packed
from harness.inference.quant import GROUP

if TYPE_CHECKING:
    from harness.inference.attention import Attention
    from harness.inference.model import Model
    from harness.inference.shapes import ModelSpec

__all__ = ["Buffers", "Launch", "launches_per_token", "plan", "refusal"]

_EXPERTS_MOST = 512
_SPLITS_MOST = 64
_BLOCKS_PER_SM = 4  # the most that are of use: more would put the input in place more often


def launches_per_token(spec: ModelSpec) -> int:
    """Return how many kernels a step launches: five a layer, six with experts, and two around them."""
    return 2 + sum(6 if spec.has_experts(i) else 5 for i in range(spec.layers))


def refusal(spec: ModelSpec, dtype: str) -> str | None:
    """Return what keeps a model from being fused, None if nothing does; what depends on its weights is found when it is planned."""
    net = spec.delta if spec.delta_layers else None
    kinds = tuple(fused_attention.SOURCES)
    dims, group = spec.head_dim, spec.heads // spec.kv_heads
    experts = spec.experts
    checks = {
        f"dtype {dtype}: it must be one of {', '.join(kinds)}": dtype in kinds,
        f"hidden {spec.hidden}: it must be at most {fused_kernels.CHUNK}": spec.hidden <= fused_kernels.CHUNK,
        f"head_dim {dims}: it must be a multiple of 4, at most {fused_attention.DIM_MOST}": dims % 4 == 0
        and dims <= fused_attention.DIM_MOST,
        f"{group} query heads to one of keys: at most {fused_attention.GROUP_MOST} are handled": group
        <= fused_attention.GROUP_MOST,
        "experts: at most 512 are handled": experts is None or experts.count <= _EXPERTS_MOST,
        "gated delta layers: key_dim must be a multiple of 8, at most 256, value_dim one of 32": net is None
        or (net.key_dim % 8 == 0 and net.key_dim <= fused_delta.KEYS_MOST and net.value_dim % 32 == 0),
    }
    return next((reason for reason, fine in checks.items() if not fine), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One kernel with all that it is given."""

    kernel: str
    launcher: Launcher
    blocks: int
    threads: int
    args: tuple[Any, ...]
    shared_bytes: int = 0
    kept: tuple[Array, ...] = ()  # what addresses among the arguments point to

    def __call__(self) -> None:
        """Enqueue it on the current stream."""
        self.launcher(self.blocks, self.threads, *self.args, shared_bytes=self.shared_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Buffers:
    """What a step works in, all on the device.

    `state` is token, position and step, int32: the kernels read them there and the last one moves them on. `forced` holds the token to
    feed after each step, below 0 for the likeliest; `likeliest` receives that. `counters` are 0 between launches.
    """

    state: Array
    forced: Array
    likeliest: Array
    logits: Array
    hidden: Array
    projected: Array
    mixed: Array
    active: Array
    scores: Array
    chosen: Array
    shares: Array
    raw: Array
    parts: Array
    tops: Array
    totals: Array
    best: Array
    best_rows: Array
    counters: Array
    zeros: Array
    no_sinks: Array


def _buffers(spec: ModelSpec, xp: Any, capacity: int, splits: int, blocks_most: int) -> Buffers:
    def numbers(*shape: int, dtype: str = "float32") -> Array:
        return xp.zeros(shape, dtype=dtype)

    net, experts = spec.delta, spec.experts
    heads, queries = spec.heads, spec.heads * spec.head_dim
    projected = (2 if spec.output_gate else 1) * queries + 2 * spec.kv_heads * spec.head_dim
    slots = 1 if experts is None else experts.top_k + 1
    active = spec.ffn_width or 0
    if experts is not None:
        active = max(active, experts.top_k * experts.width + experts.shared_width)
    values = heads_of_values = 0
    if net is not None:
        values, heads_of_values = net.values, net.value_heads
        projected = max(projected, net.channels + net.values + 2 * net.value_heads)
    count = 1 if experts is None else experts.count + 1
    return Buffers(
        state=numbers(3, dtype="int32"),
        forced=numbers(capacity, dtype="int32"),
        likeliest=numbers(capacity, dtype="int32"),
        logits=numbers(spec.vocab),
        hidden=numbers(spec.hidden),
        projected=numbers(projected),
        mixed=numbers(max(queries, values)),
        active=numbers(active),
        scores=numbers(count),
        chosen=numbers(slots, dtype="int32"),
        shares=numbers(slots),
        raw=numbers(max(values, 1)),
        parts=numbers(heads, splits, spec.head_dim),
        tops=numbers(heads, splits),
        totals=numbers(heads, splits),
        best=numbers(blocks_most),
        best_rows=numbers(blocks_most, dtype="int32"),
        counters=numbers(max(spec.kv_heads, heads_of_values), dtype="uint32"),
        zeros=numbers(max(projected, 2 * active, spec.hidden, count)),
        no_sinks=xp.full(heads, -np.inf, dtype="float32"),
    )


@dataclass(frozen=True, slots=True)
class _Rows:
    """Some rows of a matrix as a kernel reads them. Where there are no scales, the values stand in their place."""

    kind: str
    values: Array
    scales: Array
    width: int

    @property
    def count(self) -> int:
        return int(self.values.shape[0])


def _rows(xp: Any, matrix: Matrix, sizes: Sequence[int] | None = None) -> list[_Rows]:
    """Return a matrix's rows in pieces of these sizes, by default as it lies: one piece, or one for each packed part.

    Raises:
        MisuseError: no kernel reads weights of this kind or width.
    """
    if isinstance(matrix, Packed):
        found = [_Rows(f"int{p.bits}", p.values, p.scales, p.shape[-1]) for p in matrix.parts]
        if any(p.group != GROUP for p in matrix.parts):
            msg = f"weights in groups of {[p.group for p in matrix.parts]} cannot be fused; groups of {GROUP} can"
            raise MisuseError(msg)
        if sizes is not None and [r.count for r in found] != list(sizes):
            msg = f"packed matrices of {[r.count for r in found]} rows cannot be cut into {list(sizes)}"
            raise MisuseError(msg)
    else:
        values = xp.ascontiguousarray(matrix.array())
        edges = np.cumsum([0, *(sizes or [len(values)])])
        pieces = (values[a:b] for a, b in pairwise(edges))
        found = [_Rows(values.dtype.name, piece, piece, int(values.shape[1])) for piece in pieces]
    for piece in found:
        _check(piece)
    return found


def _check(rows: _Rows) -> None:
    if rows.kind not in fused_kernels.KINDS:
        msg = f"weights of {rows.kind} cannot be fused; there are kernels for {', '.join(fused_kernels.KINDS)}"
        raise MisuseError(msg)
    least = fused_kernels.weights_in_16_bytes(rows.kind)
    if rows.width % least:
        msg = f"a matrix of {rows.kind} with {rows.width} inputs cannot be fused: it must be a multiple of {least}"
        raise MisuseError(msg)
    address = 0 if isinstance(rows.values, np.ndarray) else int(rows.values.data.ptr)  # NumPy's meet the twins alone
    if address % 16:
        msg = f"a matrix of {rows.kind} lies at address {address:#x}; it must be a multiple of 16"
        raise MisuseError(msg)


def plan(
    model: Model, cache: Cache, backend: Backend, launchers: dict[str, Launcher]
) -> tuple[Buffers, tuple[Launch, ...]]:
    """Return what a step works in and what it launches, first to last.

    Kernels are loaded once: `launchers`, empty at first, keeps them for the next cache.

    Raises:
        MisuseError: the model's weights are of a kind or shape that the kernels do not read, or the cache has several rows.
    """
    if cache.batch != 1:
        msg = f"a cache of {cache.batch} rows cannot be fused: the kernels decode one"
        raise MisuseError(msg)
    planner = _Planner(model, cache, backend, launchers)
    return planner.buffers, tuple(planner.launches())


class _Planner:
    def __init__(self, model: Model, cache: Cache, backend: Backend, launchers: dict[str, Launcher]) -> None:
        self.model, self.spec, self.cache, self.backend, self.xp = model, model.spec, cache, backend, backend.xp
        self.sms = backend.device.sm_count or 1
        wanted = -(-2 * self.sms // self.spec.kv_heads)
        self.splits = max(1, min(wanted, -(-cache.capacity // fused_attention.TILE), _SPLITS_MOST))
        self.buffers = _buffers(self.spec, self.xp, cache.capacity, self.splits, 2 * _BLOCKS_PER_SM * self.sms)
        half = self.spec.rotary // 2  # the tables hold each angle twice, for both numbers of a pair
        self.angles = tuple(self.xp.ascontiguousarray(t) for t in (cache.cos[:, :half], cache.sin[:, half:]))
        self._launchers = launchers

    # -- what all kernels need

    def _launch(self, source: CudaSource, blocks: int, threads: int, *args: Any, shared_bytes: int = 0) -> Launch:
        key = " ".join((source.name, *source.options))
        if key not in self._launchers:
            self._launchers[key] = self.backend.load(source)
        return Launch(
            kernel=source.name,
            launcher=self._launchers[key],
            blocks=blocks,
            threads=threads,
            args=tuple(_typed(a) for a in args),
            shared_bytes=shared_bytes,
            kept=tuple(array for a in args if isinstance(a, _Table) for array in a.kept),
        )

    def _streaming(self, kernel: str, kind: str, rows: int, width: int, *args: Any) -> Launch:
        """Plan a kernel of `fused_kernels` that makes so many rows from inputs of at most this width."""
        groups = -(-rows // fused_kernels.rows_at_once(kernel, kind))
        warps = (
            8 if groups >= 16 * self.sms else 4
        )  # smaller blocks where there are few rows, so that no multiprocessor is idle
        blocks = min(-(-groups // warps), 8 // warps * _BLOCKS_PER_SM * self.sms)
        source = fused_kernels.SOURCES[kind][kernel]
        return self._launch(source, blocks, 32 * warps, *args, shared_bytes=fused_kernels.shared_bytes(width))

    def _numbers(self, array: Array | None) -> Array:
        """Return float32 numbers, zeros for none."""
        return self.buffers.zeros if array is None else array.astype(self.xp.float32).reshape(-1)

    def _table(self, arrays: Sequence[Array]) -> Any:
        """Return what a kernel finds arrays in: their addresses, or on a CPU themselves. The model keeps what they point to."""
        if self.xp is np:
            return tuple(arrays)
        return _Table(self.xp.asarray(np.array([a.data.ptr for a in arrays], dtype=np.uint64)), tuple(arrays))

    # -- the step

    def launches(self) -> Iterator[Launch]:
        """Plan the whole step."""
        model, spec, b = self.model, self.spec, self.buffers
        embedding, head = (self._whole(w) for w in (model._embedding, model._head))  # noqa: SLF001 - two halves of one thing
        source = fused_kernels.SOURCES[embedding.kind]["embed"]
        yield self._launch(
            source, -(-spec.hidden // 1024), 256, embedding.values, embedding.scales, b.state, b.hidden, spec.hidden
        )
        for index, layer in model._layers.items():  # noqa: SLF001
            memory = self.cache.layers[index]
            if isinstance(layer.mixer, DeltaMixer) and isinstance(memory, DeltaState):
                yield from self._delta(layer.mixer, memory, layer.mixer_norm)
            elif isinstance(memory, KeyValues) and not isinstance(layer.mixer, DeltaMixer):
                yield from self._attention(layer.mixer, memory, layer.mixer_norm)
            if isinstance(layer.block, ExpertBlock):
                yield from self._experts(layer.block, layer.block_norm)
            else:
                yield from self._dense(layer.block, layer.block_norm)
        yield self._streaming(
            "head", head.kind, spec.vocab, spec.hidden, head.values, head.scales, b.hidden, model._norm,  # noqa: SLF001
            b.logits, b.best, b.best_rows, b.counters, b.state, b.forced, b.likeliest, spec.hidden, spec.vocab, spec.norm_eps,
        )  # fmt: skip

    def _whole(self, weight: Any) -> _Rows:
        matrix: Matrix = Packed((weight,), self.model.ops) if hasattr(weight, "dequantised") else Dense(weight)
        (rows,) = _rows(self.xp, matrix)
        return rows

    def _inward(self, matrix: Matrix, norm: Array, bias: Array | None, conv: tuple[Any, ...]) -> Launch:
        """Plan what a mixer projects the hidden state to; `conv` is tail, kernel, taps, channels."""
        spec, b = self.spec, self.buffers
        pieces = _rows(self.xp, matrix)
        if any(p.count % fused_kernels.rows_at_once("inward", p.kind) for p in pieces):
            msg = f"packed matrices of {[p.count for p in pieces]} rows cannot be fused: the numbers must be even"
            raise MisuseError(msg)
        kind = _common([p.kind for p in pieces])
        ends = [int(n) for n in np.cumsum([p.count for p in pieces])]
        ends += [ends[-1]] * (4 - len(pieces))
        pieces += [pieces[0]] * (4 - len(pieces))
        where = [a for p in pieces for a in (p.values, p.scales)]
        tail, kernel, taps, channels = conv
        return self._streaming(
            "inward", kind, ends[-1], spec.hidden, *where, self._numbers(bias), b.hidden, norm, tail, kernel, b.projected,
            spec.hidden, *ends, taps, channels, spec.norm_eps,
        )  # fmt: skip

    def _outward(self, matrix: Matrix, bias: Array | None, inputs: Array) -> Launch:
        (rows,) = _rows(self.xp, matrix)
        where = rows.values, rows.scales, self._numbers(bias), inputs, self.buffers.hidden
        return self._streaming("outward", rows.kind, rows.count, rows.width, *where, rows.width, rows.count)

    def _attention(self, mixer: Attention, memory: KeyValues, norm: Array) -> Iterator[Launch]:
        spec, b = self.spec, self.buffers
        yield self._inward(mixer.inward, norm, mixer.inward_bias, (b.zeros, b.zeros, 0, 0))
        head_norm = b.zeros if mixer.head_norm is None else mixer.head_norm.reshape(-1, spec.head_dim)
        sinks = b.no_sinks if mixer.sinks is None else self.xp.ascontiguousarray(mixer.sinks.reshape(-1))
        yield self._launch(
            fused_attention.SOURCES[self.model.ops.dtype.name], spec.kv_heads * self.splits, fused_attention.THREADS,
            b.projected, head_norm, *self.angles, sinks, b.state, memory.keys[0], memory.values[0],
            b.parts, b.tops, b.totals, b.counters, b.mixed[: spec.heads * spec.head_dim],
            spec.kv_heads, spec.heads // spec.kv_heads, spec.head_dim, spec.rotary, self.splits, self.cache.capacity,
            mixer.window or 0, int(mixer.head_norm is not None), int(spec.output_gate), spec.norm_eps, spec.head_dim**-0.5,
        )  # fmt: skip
        yield self._outward(mixer.outward, mixer.outward_bias, b.mixed)

    def _delta(self, mixer: DeltaMixer, memory: DeltaState, norm: Array) -> Iterator[Launch]:
        spec, b, net = self.spec, self.buffers, self.spec.delta
        assert net is not None  # noqa: S101 - ModelSpec has checked it
        yield self._inward(mixer.inward, norm, None, (memory.tail[0], mixer.kernel, net.conv, net.channels))
        projected = b.projected[: net.channels + net.values + 2 * net.value_heads]
        blocks = net.value_heads * net.value_dim // fused_delta.COLUMNS
        yield self._launch(
            fused_delta.SOURCE, blocks, fused_delta.THREADS, projected, mixer.speed, mixer.dt_bias, mixer.norm,
            memory.recurrent[0], b.raw, b.counters, b.mixed[: net.values],
            net.key_heads, net.value_heads, net.key_dim, net.value_dim, spec.norm_eps,
        )  # fmt: skip
        yield self._outward(mixer.outward, None, b.mixed)

    def _dense(self, block: DenseBlock, norm: Array) -> Iterator[Launch]:
        spec, b, width = self.spec, self.buffers, self.spec.ffn_width
        assert width is not None  # noqa: S101 - ModelSpec has checked it
        gate, up = _rows(self.xp, block.inward, [width, width])
        yield self._streaming(
            "gate_up", _common([gate.kind, up.kind]), width, spec.hidden, gate.values, gate.scales, up.values, up.scales,
            self._numbers(block.inward_bias), b.hidden, norm, b.active, spec.hidden, width, spec.norm_eps,
        )  # fmt: skip
        yield self._outward(block.outward, block.outward_bias, b.active)

    def _experts(self, block: ExpertBlock, norm: Array) -> Iterator[Launch]:
        spec, b, experts = self.spec, self.buffers, self.spec.experts
        assert experts is not None  # noqa: S101 - ExpertBlock is of a model that has them
        count, k, width, shared = experts.count, experts.top_k, experts.width, experts.shared_width
        over_all = experts.router == "softmax_first" and not experts.renormalise
        router = self.xp.ascontiguousarray(block.router)
        shared_gate = router if block.shared_gate is None else block.shared_gate
        yield self._streaming(
            "route", "float32", count + 1, spec.hidden, router, self._numbers(block.router_bias), shared_gate, b.hidden, norm,
            b.scores, b.counters, b.chosen, b.shares, spec.hidden, count, k, int(over_all), int(shared > 0), spec.norm_eps,
        )  # fmt: skip
        inward = [_rows(self.xp, m, [width, width]) for m in block.inward]
        outward = [_rows(self.xp, m) for m in block.outward]
        if block.shared is not None:
            inward.append(_rows(self.xp, block.shared.inward, [shared, shared]))
            outward.append(_rows(self.xp, block.shared.outward))
        kind = _common([rows.kind for pair in inward for rows in pair])
        tables = [self._table([getattr(pair[i], a) for pair in inward]) for i in (0, 1) for a in ("values", "scales")]
        biased, limit = block.inward_bias is not None, spec.swiglu_limit or 0.0
        yield self._streaming(
            "expert_gate_up", kind, k * width + shared, spec.hidden, *tables, self._pairs(block.inward_bias, 2 * width),
            b.chosen, b.shares, b.hidden, norm, b.active,
            spec.hidden, width, k, shared, int(biased), float(limit), float(spec.swiglu_alpha), spec.norm_eps,
        )  # fmt: skip
        kind = _common([rows.kind for (rows,) in outward])
        tables = [self._table([getattr(rows, a) for (rows,) in outward]) for a in ("values", "scales")]
        yield self._streaming(
            "expert_outward", kind, spec.hidden, max(width, shared), *tables, self._pairs(block.outward_bias, spec.hidden),
            b.chosen, b.shares, b.active, b.hidden, width, spec.hidden, k, shared, int(block.outward_bias is not None),
        )  # fmt: skip

    def _pairs(self, bias: Array | None, outputs: int) -> Array:
        """Return the experts' biases as float32, (experts, outputs)."""
        return self._numbers(bias) if bias is None else self._numbers(bias).reshape(-1, outputs)


class _Table:
    """Addresses of arrays, as a kernel takes them, and the arrays, so that they stay where they are."""

    def __init__(self, addresses: Array, kept: tuple[Array, ...]) -> None:
        self.addresses, self.kept = addresses, kept


def _typed(value: Any) -> Any:
    """Give a scalar the type that kernels take; arrays are left as they are."""
    if isinstance(value, _Table):
        return value.addresses
    if isinstance(value, int):
        return np.uint32(value)
    return np.float32(value) if isinstance(value, float) else value


def _common(kinds: Sequence[str]) -> str:
    """Return the kind that all are of."""
    if len(set(kinds)) != 1:
        msg = f"matrices of {', '.join(sorted(set(kinds)))} that one kernel reads cannot be fused: all must be of one kind"
        raise MisuseError(msg)
    return kinds[0]
