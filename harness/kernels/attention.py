"""Causal attention with grouped queries: the step of a transformer whose cost grows with the square of the length."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from harness.device.backend import CudaSource
from harness.registry import Case, Sized, Work, benchmark, require_memory

if TYPE_CHECKING:
    from harness.device.backend import Array, Backend

_GROUP = 4  # query heads that share a head of keys and values
_DIM = 64
_TILE = 64  # queries that are handled together, and keys
_THREADS = 256


def _twin(q: Array, k: Array, v: Array, out: Array, length: int, heads: int, group: int) -> None:
    later = np.triu(np.full_like(q[0, :_TILE, :_TILE], -np.inf), 1)
    for h in range(heads // group):
        mine = slice(h * group, (h + 1) * group)
        for i in range(0, length, _TILE):
            seen = i + _TILE
            queries = q[mine, i:seen].reshape(-1, _DIM) * q.dtype.type(1 / math.sqrt(_DIM))
            scores = (queries @ k[h, :seen].T).reshape(-1, _TILE, seen)
            scores[..., i:] += later
            scores -= scores.max(axis=-1, keepdims=True)
            np.exp(scores, out=scores)
            total = scores.sum(axis=-1, keepdims=True)
            mixed = scores.reshape(-1, seen) @ v[h, :seen]
            out[mine, i:seen] = mixed.reshape(-1, _TILE, _DIM) / total


# A block takes 64 queries of one head and walks over the keys in tiles of 64; each thread holds 4 x 4 of every product.
# Maximum, sum and result are kept up to date from tile to tile (online softmax), so that no score ever goes to memory.
SOURCE = CudaSource(
    name="attention",
    twin=_twin,
    text=r"""
constexpr int D = 64, T = 64;

__device__ void load_transposed(const float* from, float* to, float factor) {
    for (int n = threadIdx.x; n < T * D / 4; n += 256) {
        const int row = n % T, column = n / T * 4;
        const float4 x = *(const float4*)(from + row * D + column);
        to[column * T + row] = x.x * factor;
        to[(column + 1) * T + row] = x.y * factor;
        to[(column + 2) * T + row] = x.z * factor;
        to[(column + 3) * T + row] = x.w * factor;
    }
}

__device__ void add_product(float (&sum)[4][4], const float* a, const float* b) {
    const float4 x = *(const float4*)a, y = *(const float4*)b;
    const float rows[4] = {x.x, x.y, x.z, x.w}, columns[4] = {y.x, y.y, y.z, y.w};
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) sum[i][j] += rows[i] * columns[j];
}

extern "C" __global__ void __launch_bounds__(256) attention(
    const float* q, const float* k, const float* v, float* out, unsigned length, unsigned heads, unsigned group) {
    __shared__ __align__(16) float queries[D * T], keys[D * T], values[T * D];
    float* weights = keys;  // the weights of a tile take the place of its keys
    const unsigned x = threadIdx.x % 16, y = threadIdx.x / 16;
    const unsigned tile = length / T - 1 - blockIdx.x / heads, head = blockIdx.x % heads;  // the longest walks first
    const size_t mine = ((size_t)head * length + tile * T) * D;
    k += (size_t)(head / group) * length * D;
    v += (size_t)(head / group) * length * D;
    load_transposed(q + mine, queries, 1.44269504f / 8);  // log2(e) / sqrt(D)
    float sum[4][4] = {}, top[4] = {-3e38f, -3e38f, -3e38f, -3e38f}, total[4] = {};
    for (unsigned step = 0; step <= tile; step++, k += T * D, v += T * D) {
        __syncthreads();
        load_transposed(k, keys, 1);
        for (int n = threadIdx.x; n < T * D / 4; n += 256) ((float4*)values)[n] = ((const float4*)v)[n];
        __syncthreads();
        float s[4][4] = {};
        for (int d = 0; d < D; d++) add_product(s, queries + d * T + 4 * y, keys + d * T + 4 * x);
        for (int i = 0; i < 4; i++) {
            float highest = top[i];
            for (int j = 0; j < 4; j++) {
                if (step == tile && 4 * x + j > 4 * y + i) s[i][j] = -3e38f;
                highest = fmaxf(highest, s[i][j]);
            }
            for (int d = 8; d; d /= 2) highest = fmaxf(highest, __shfl_xor_sync(0xffffffff, highest, d));
            const float shrink = exp2f(top[i] - highest);
            top[i] = highest;
            total[i] *= shrink;
            for (int j = 0; j < 4; j++) {
                sum[i][j] *= shrink;
                total[i] += s[i][j] = exp2f(s[i][j] - highest);
            }
        }
        __syncthreads();
        for (int j = 0; j < 4; j++)  // columns are exchanged by y ^ x, so that no two threads want one bank
            *(float4*)(weights + (4 * x + j) * T + 4 * (y ^ x)) = {s[0][j], s[1][j], s[2][j], s[3][j]};
        __syncthreads();
        for (int n = 0; n < T; n++) add_product(sum, weights + n * T + 4 * (y ^ n / 4), values + n * D + 4 * x);
    }
    for (int i = 0; i < 4; i++) {
        for (int d = 8; d; d /= 2) total[i] += __shfl_xor_sync(0xffffffff, total[i], d);
        const float share = 1 / total[i];
        *(float4*)(out + mine + (4 * y + i) * D + 4 * x) =
            {sum[i][0] * share, sum[i][1] * share, sum[i][2] * share, sum[i][3] * share};
    }
}
""",
)


@benchmark(
    version=1,
    metric="compute",
    quick=False,
    heads=Sized(check=4, cpu=32, cuda=32),
    length=Sized(check=128, cpu=512, cuda=8192),
)
def attention(backend: Backend, seed: int, *, heads: int, length: int) -> Case:
    """Causal attention in float32, dimension 64, four query heads to one of keys; length is a multiple of 64."""
    kv_heads = heads // _GROUP
    size = 4 * 2 * (heads + kv_heads) * length * _DIM
    require_memory(backend, 4 * size)
    xp, rng = backend.xp, backend.rng(seed)
    q = rng.bell((heads, length, _DIM))
    k, v = (rng.bell((kv_heads, length, _DIM)) for _ in range(2))
    out = xp.zeros_like(q)
    launch = backend.load(SOURCE)
    blocks = heads * (length // _TILE)

    def run() -> Array:
        launch(blocks, _THREADS, q, k, v, out, np.uint32(length), np.uint32(heads), np.uint32(_GROUP))
        return out

    def check(answer: Array) -> bool:
        truth = xp.empty(q.shape, dtype=xp.float64)
        SOURCE.twin(*(a.astype(xp.float64) for a in (q, k, v)), truth, length, heads, _GROUP)
        # A score is a sum of _DIM products, a result one of up to `length`; roundings go up as often as down.
        allowed = (_DIM / 2 + math.sqrt(length)) * float(np.finfo(np.float32).eps)
        return bool((xp.abs(answer - truth) <= allowed).all())

    return Case(
        run=run,
        work=Work(
            flops=2 * heads * 2 * _DIM * (length * (length + 1) // 2),
            bytes_moved=size,
            counting="2 per multiply-add of a query and a key it sees; each operand once",
            nominal=True,
        ),
        check=check,
        inputs=(q, k, v),
        distribution="bell, mean 0, variance 1",
    )
