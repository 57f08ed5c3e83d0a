"""Attention of one new token as one CUDA kernel: QK-norm, rotation, the write to the cache, attention over it, and the sum of its parts.

The positions seen are dealt out to `splits` blocks for each head of keys and values, by a length that lies in device memory: the grid
stays the same while the cache grows, so a captured launch can be replayed. Each block rotates the queries that share its head; the
one that has the newest position also writes that position's key and value, from which it then reads. Blocks keep maximum, sum and
result up to date from tile to tile (online softmax); the last one to finish adds up what all have found.

Up to 16 query heads share one of keys; a head has at most 256 dimensions, a multiple of 4. A block is 256 threads.
"""

from __future__ import annotations

from collections.abc import Mapping

from harness.device.backend import CudaSource
from harness.inference.fused_twins import attend

__all__ = ["DIM_MOST", "GROUP_MOST", "SOURCES", "THREADS", "TILE"]

THREADS = 256
TILE = 32  # positions that a block handles at a time
GROUP_MOST = 16
DIM_MOST = 256

TEXT = r"""
typedef unsigned short u16;

constexpr unsigned T = 32;           // positions of a tile, one for each 8 threads
constexpr unsigned D_MOST = 256, G_MOST = 16;
constexpr unsigned ALL = 0xffffffff;
#define INF __int_as_float(0x7f800000)

__device__ float sum_of_warp(float value) {
    #pragma unroll
    for (int d = 16; d; d /= 2) value += __shfl_xor_sync(ALL, value, d);
    return value;
}

// ---------------------------------------------------------------------------------------------- numbers of the cache
#if KIND
typedef u16 Stored;
__device__ float number(u16 bits) {
    if (KIND == 2) return __uint_as_float((unsigned)bits << 16);
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
__device__ Stored stored(float value) {
    if (KIND == 2) {  // to the nearest, of two equally near ones the even; what is no number stays none
        const unsigned bits = __float_as_uint(value);
        return value == value ? (u16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16) : (u16)0x7fff;
    }
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
__device__ float4 load(const Stored* from) {
    const uint2 w = *(const uint2*)from;
    return {number((u16)w.x), number((u16)(w.x >> 16)), number((u16)w.y), number((u16)(w.y >> 16))};
}
#else
typedef float Stored;
__device__ Stored stored(float value) { return value; }
__device__ float4 load(const Stored* from) { return *(const float4*)from; }
#endif

// ---------------------------------------------------------------------------------------------- one head's vector

struct Head {
    const float* raw;      // as it comes from the projection
    const float* norm;     // weights of its RMSNorm, or null
    const float* cosines;  // of this position, for half of what is rotated
    const float* sines;
    unsigned dim, rotated;
    float factor;

    // A warp calls this once for all of its lanes.
    __device__ void normalise(float eps) {
        factor = 1.0f;
        if (!norm) return;
        float squares = 0.0f;
        for (unsigned d = threadIdx.x % 32; d < dim; d += 32) squares += raw[d] * raw[d];
        factor = 1.0f / sqrtf(sum_of_warp(squares) / dim + eps);
    }
    __device__ float plain(unsigned d) const { return norm ? raw[d] * factor * norm[d] : raw[d]; }
    __device__ float at(unsigned d) const {
        const unsigned half = rotated / 2;
        if (d >= rotated) return plain(d);
        return d < half ? plain(d) * cosines[d] - plain(d + half) * sines[d]
                        : plain(d) * cosines[d - half] + plain(d - half) * sines[d - half];
    }
};

// ---------------------------------------------------------------------------------------------- the kernel

// projected: queries, keys, values and, if `gated`, gates of the new token; state: token, position, step. head_norm: (heads + kv heads,
// dim). keys, values: of this layer, (kv heads, capacity, dim).
// parts: results of the splits, (heads, splits, dim); tops, totals: their maxima (in base 2) and sums, (heads, splits).
// counters: one for each head of keys, 0 before and after.
extern "C" __global__ void __launch_bounds__(256, 2) attend(
    const float* projected, const float* head_norm, const float* cosines, const float* sines,
    const float* sinks, const int* state, Stored* keys, Stored* values,
    float* parts, float* tops, float* totals, unsigned* counters, float* out,
    unsigned kv_heads, unsigned group, unsigned dim, unsigned rotated, unsigned splits,
    unsigned capacity, unsigned window, unsigned normed, unsigned gated, float eps, float scale) {
    __shared__ __align__(16) float q[G_MOST * D_MOST];
    __shared__ float score[G_MOST][T], top[G_MOST], total[G_MOST], shrink[G_MOST];
    __shared__ bool last;
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const unsigned kv = blockIdx.x / splits, split = blockIdx.x % splits;
    const unsigned position = state[1], count = position + 1, start = window && window < count ? count - window : 0;
    const unsigned each = ((count - start + splits - 1) / splits + T - 1) / T * T;
    const unsigned active = (count - start + each - 1) / each;
    if (split >= active) return;
    const unsigned begin = start + split * each, end = min(begin + each, count);
    cosines += position * (rotated / 2);
    sines += position * (rotated / 2);
    keys += (size_t)kv * capacity * dim;
    values += (size_t)kv * capacity * dim;

    for (unsigned g = warp; g < group; g += 8) {
        const unsigned h = kv * group + g;
        Head head{projected + h * dim, normed ? head_norm + h * dim : nullptr, cosines, sines, dim, rotated};
        head.normalise(eps);
        for (unsigned d = lane; d < dim; d += 32) q[g * dim + d] = head.at(d) * scale * 1.44269504f;  // log2(e): powers of 2 are cheaper
        if (lane == 0) { top[g] = -INF; total[g] = 0.0f; }
    }
    if (end == count) {
        const unsigned h = kv_heads * group + kv;
        const float* fresh = projected + h * dim;
        const size_t at = (size_t)position * dim;
        if (warp == 7) {
            Head head{fresh, normed ? head_norm + h * dim : nullptr, cosines, sines, dim, rotated};
            head.normalise(eps);
            for (unsigned d = lane; d < dim; d += 32) keys[at + d] = stored(head.at(d));
        } else if (warp == 6) {
            for (unsigned d = lane; d < dim; d += 32) values[at + d] = stored(fresh[kv_heads * dim + d]);
        }
    }
    __syncthreads();

    // Of the result a thread has four neighbouring dimensions, for up to four heads: `rows` heads are handled side by side.
    const unsigned fours = dim / 4, rows = 256 / fours, column = threadIdx.x % fours * 4, row = threadIdx.x / fours;
    const bool mixes = row < rows;
    float4 sum[4] = {};
    for (unsigned tile = begin; tile < end; tile += T) {
        {   // scores: 8 threads for each position
            const unsigned mine = threadIdx.x / 8, part = threadIdx.x % 8 * 4;
            const bool seen = tile + mine < end;
            const Stored* key = keys + (size_t)(tile + mine) * dim;
            float4 k[D_MOST / 32];
            #pragma unroll
            for (unsigned c = 0; c < D_MOST / 32; ++c)
                k[c] = seen && c * 32 + part < dim ? load(key + c * 32 + part) : float4{0.0f, 0.0f, 0.0f, 0.0f};
            for (unsigned g = 0; g < group; ++g) {
                float dot = 0.0f;
                #pragma unroll
                for (unsigned c = 0; c < D_MOST / 32; ++c) {
                    if (c * 32 + part >= dim) continue;
                    const float4 x = *(const float4*)(q + g * dim + c * 32 + part);
                    dot += (k[c].x * x.x + k[c].y * x.y) + (k[c].z * x.z + k[c].w * x.w);
                }
                #pragma unroll
                for (int d = 4; d; d /= 2) dot += __shfl_xor_sync(ALL, dot, d);
                if (part == 0) score[g][mine] = seen ? dot : -INF;
            }
        }
        __syncthreads();
        for (unsigned g = warp; g < group; g += 8) {
            const float mine = score[g][lane];
            float highest = fmaxf(mine, top[g]);
            #pragma unroll
            for (int d = 16; d; d /= 2) highest = fmaxf(highest, __shfl_xor_sync(ALL, highest, d));
            const float weight = exp2f(mine - highest), all = sum_of_warp(weight);
            score[g][lane] = weight;
            __syncwarp();
            if (lane == 0) {
                shrink[g] = exp2f(top[g] - highest);
                total[g] = total[g] * shrink[g] + all;
                top[g] = highest;
            }
        }
        __syncthreads();
        if (mixes) {
            #pragma unroll
            for (unsigned n = 0; n < 4; ++n) {
                if (row + n * rows >= group) continue;
                const float by = shrink[row + n * rows];
                sum[n] = {sum[n].x * by, sum[n].y * by, sum[n].z * by, sum[n].w * by};
            }
            const unsigned many = min(T, end - tile);
            const Stored* value = values + (size_t)tile * dim + column;
            for (unsigned i = 0; i < many && row < group; ++i, value += dim) {
                const float4 v = load(value);
                #pragma unroll
                for (unsigned n = 0; n < 4; ++n) {
                    if (row + n * rows >= group) continue;
                    const float weight = score[row + n * rows][i];
                    sum[n].x += weight * v.x;
                    sum[n].y += weight * v.y;
                    sum[n].z += weight * v.z;
                    sum[n].w += weight * v.w;
                }
            }
        }
        __syncthreads();
    }

    #pragma unroll
    for (unsigned n = 0; n < 4; ++n) {
        const unsigned g = row + n * rows;
        if (mixes && g < group) *(float4*)(parts + ((size_t)(kv * group + g) * splits + split) * dim + column) = sum[n];
    }
    if (threadIdx.x < group) {
        tops[(kv * group + threadIdx.x) * splits + split] = top[threadIdx.x];
        totals[(kv * group + threadIdx.x) * splits + split] = total[threadIdx.x];
    }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicInc(counters + kv, active - 1) == active - 1;
    __syncthreads();
    if (!last) return;
    __threadfence();
    for (unsigned i = threadIdx.x; i < group * fours; i += 256) {
        const unsigned h = kv * group + i / fours, d = i % fours * 4;
        const float sink = sinks[h] * 1.44269504f;
        float highest = sink;
        for (unsigned s = 0; s < active; ++s) highest = fmaxf(highest, __ldcg(tops + h * splits + s));
        float whole = exp2f(sink - highest);
        float4 mixed = {};
        for (unsigned s = 0; s < active; ++s) {
            const float by = exp2f(__ldcg(tops + h * splits + s) - highest);
            const float4 x = __ldcg((const float4*)(parts + ((size_t)h * splits + s) * dim + d));
            whole += by * __ldcg(totals + h * splits + s);
            mixed = {mixed.x + by * x.x, mixed.y + by * x.y, mixed.z + by * x.z, mixed.w + by * x.w};
        }
        float share[4] = {1.0f / whole, 1.0f / whole, 1.0f / whole, 1.0f / whole};
        if (gated) {
            const float* gate = projected + (kv_heads * (group + 2) + h) * dim + d;
            #pragma unroll
            for (int n = 0; n < 4; ++n) share[n] /= 1.0f + expf(-gate[n]);
        }
        *(float4*)(out + h * dim + d) = {mixed.x * share[0], mixed.y * share[1], mixed.z * share[2], mixed.w * share[3]};
    }
}
"""


SOURCES: Mapping[str, CudaSource] = {
    dtype: CudaSource(name="attend", text=TEXT, twin=attend, options=("--std=c++17", f"-DKIND={kind}"))
    for dtype, kind in (("float32", 0), ("float16", 1), ("bfloat16", 2))
}
