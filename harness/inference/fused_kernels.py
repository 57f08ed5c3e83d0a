"""CUDA kernels that stream weights through one token's vector: what decoding spends its time on.

One text serves five kinds of weights, chosen by the option `KIND`; each kernel of each kind is a constant in `SOURCES[kind][name]`. All
share one loop, `multiply`: a block keeps the input in shared memory, a warp takes the rows it is dealt, and each lane reads 16 bytes
of weights at a time. RMSNorm happens while the input is put there; what follows a product (bias, SiLU, residual, argmax, top-k) happens
where the product is, so a layer needs two launches for its projections and two for its network.

Sums are float32 throughout. The grid is the caller's: every kernel works for any number of blocks of up to 8 warps, and writes the
same bits for all of them. Widths are multiples of 32, weights start at multiples of 16 bytes, and a normalised input has at most
8192 numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from harness.device.backend import CudaSource
from harness.inference import fused_twins
from harness.inference.quant import GROUP

__all__ = ["CHUNK", "KINDS", "SOURCES", "rows_at_once", "shared_bytes", "weights_in_16_bytes"]

CHUNK = 8192  # numbers of the input that a block holds at a time
KINDS: Mapping[str, int] = MappingProxyType({"float32": 0, "float16": 1, "bfloat16": 2, "int8": 3, "int4": 4})

_COMMON = r"""
typedef unsigned short u16;
typedef unsigned long long u64;

constexpr unsigned CHUNK = 8192;                                                // numbers of the input in shared memory
constexpr unsigned PER = KIND == 0 ? 4 : KIND < 3 ? 8 : KIND == 3 ? 16 : 32;    // weights in 16 bytes
constexpr unsigned GROUP = 32;                                                  // weights that share a scale
constexpr bool GROUPED = KIND >= 3;
constexpr int ROWS = GROUPED ? 2 : 1;                                           // of a warp, where one matrix is multiplied
constexpr unsigned ALL = 0xffffffff;
#define INF __int_as_float(0x7f800000)

__device__ float from_half(u16 bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

// ---------------------------------------------------------------------------------------------- 16 bytes of weights

// The weights of one 32-bit word of a vector. Integers are put into the mantissa of a number that is known, and taken out again by one
// subtraction: conversions run at a quarter of the rate.
struct Word {
#if KIND == 0
    float at[1];
    __device__ Word(unsigned w) : at{__uint_as_float(w)} {}
#elif KIND == 1
    float at[2];
    __device__ Word(unsigned w) : at{from_half((u16)w), from_half((u16)(w >> 16))} {}
#elif KIND == 2
    float at[2];
    __device__ Word(unsigned w) : at{__uint_as_float(w << 16), __uint_as_float(w & 0xffff0000)} {}
#elif KIND == 3
    float at[4];
    __device__ Word(unsigned w) {
        w ^= 0x80808080;  // two's complement, now counted from -128
        #pragma unroll
        for (int i = 0; i < 4; ++i) at[i] = __uint_as_float(__byte_perm(w, 0x4b000000, 0x7440 + i)) - 8388736.0f;
    }
#else
    float at[8];
    __device__ Word(unsigned w) {  // each 24 too large: 16 for the leading bit, 8 because a nibble counts from -8
        at[0] = __uint_as_float((w << 19 & 0x00780000) | 0x41800000);
        at[1] = __uint_as_float((w << 3 & 0x00780000) | 0x41800000);
        at[2] = __uint_as_float((w << 15 & 0x00780000) | 0x41800000);
        at[3] = __uint_as_float((w >> 1 & 0x00780000) | 0x41800000);
        at[4] = __uint_as_float((w << 11 & 0x00780000) | 0x41800000);
        at[5] = __uint_as_float((w >> 5 & 0x00780000) | 0x41800000);
        at[6] = __uint_as_float((w << 7 & 0x00780000) | 0x41800000);
        at[7] = __uint_as_float((w >> 9 & 0x00780000) | 0x41800000);
    }
#endif
};

// ---------------------------------------------------------------------------------------------- the input of a block

struct Input {
    const float* values;
    const float* norm;      // weights of an RMSNorm, or null
    float eps;
    unsigned width;         // of one part
    unsigned parts;         // vectors behind one another, each with rows of its own: the chosen experts
    unsigned last_width;    // of the last part
};

struct Shared {
    float4* x;          // in the order of `slot`
    float* sums;        // of each group of 32
    float* squares;     // of each warp
};

extern __shared__ float4 memory[];

__device__ Shared shared_memory(const Input& input) {
    const unsigned size = (min(max(input.width, input.last_width), CHUNK) + 31) / 32 * 32;
    float* rest = (float*)(memory + size / 4);
    return {memory, rest, rest + size / GROUP};
}

// Where four numbers are kept: lanes that are PER numbers apart must not meet in one bank.
__device__ unsigned slot(unsigned four) { return four ^ (four >> 3 & 7); }

__device__ float sum_of_warp(float value) {
    #pragma unroll
    for (int d = 16; d; d /= 2) value += __shfl_xor_sync(ALL, value, d);
    return value;
}

// Put `size` numbers into shared memory; returns what the products must be multiplied with. Two barriers, so all threads must come.
__device__ float fill(const Shared& shared, const Input& input, const float* from, const float* norm, unsigned size) {
    const float4 *values = (const float4*)from, *weights = (const float4*)norm;
    float squares = 0.0f;
    __syncthreads();
    for (unsigned first = 0; first < size / 4; first += blockDim.x) {
        const unsigned four = first + threadIdx.x;
        const bool mine = four < size / 4;
        float4 x = mine ? values[four] : float4{0.0f, 0.0f, 0.0f, 0.0f};
        squares += x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
        if (norm && mine) {
            const float4 w = weights[four];
            x = {x.x * w.x, x.y * w.y, x.z * w.z, x.w * w.w};
        }
        if (mine) shared.x[slot(four)] = x;
        if (GROUPED) {
            float sum = (x.x + x.y) + (x.z + x.w);
            #pragma unroll
            for (int d = 1; d < 8; d *= 2) sum += __shfl_xor_sync(ALL, sum, d);
            if (mine && four % 8 == 0) shared.sums[four / 8] = sum;
        }
    }
    squares = sum_of_warp(squares);
    if (threadIdx.x % 32 == 0) shared.squares[threadIdx.x / 32] = squares;
    __syncthreads();
    if (!norm) return 1.0f;
    float total = 0.0f;
    for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) total += shared.squares[warp];
    return 1.0f / sqrtf(total / input.width + input.eps);
}

// ---------------------------------------------------------------------------------------------- rows of weights

template <int N>
struct Rows {
    const uint4* values[N];
    const u16* scales[N];  // of each group, as float16; unused without groups
};

template <int N>
struct Piece {
    uint4 values[N];
    u16 scales[N];
};

template <int N>
__device__ void fetch(Piece<N>& piece, const Rows<N>& rows, unsigned vector) {
    #pragma unroll
    for (int r = 0; r < N; ++r) {
        piece.values[r] = __ldcs(rows.values[r] + vector);  // read once: it need not stay in a cache
        if (GROUPED) piece.scales[r] = rows.scales[r][vector * PER / GROUP];
    }
}

// Add the products of 16 bytes of each row with the input. `vector` counts from the start of what is in shared memory.
template <int N>
__device__ void add_products(float (&sum)[N], const Piece<N>& piece, const Shared& shared, unsigned vector) {
    constexpr unsigned EACH = PER / 4, FOURS = (EACH + 3) / 4;  // numbers in a word, and how many times four that is at least
    float part[N] = {};
    float4 x[FOURS];
    #pragma unroll
    for (unsigned j = 0; j < 4; ++j) {
        if (j * EACH % 4 == 0) {
            #pragma unroll
            for (unsigned i = 0; i < FOURS; ++i) x[i] = shared.x[slot(vector * EACH + j * EACH / 4 + i)];
        }
        const float* each = (const float*)x + j * EACH % 4;
        #pragma unroll
        for (int r = 0; r < N; ++r) {
            const Word word((&piece.values[r].x)[j]);
            #pragma unroll
            for (unsigned i = 0; i < EACH; ++i) part[r] += word.at[i] * each[i];
        }
    }
    #pragma unroll
    for (int r = 0; r < N; ++r) {
        if (KIND == 4) part[r] -= 24.0f * shared.sums[vector];
        sum[r] += GROUPED ? from_half(piece.scales[r]) * part[r] : part[r];
    }
}

// Multiply rows with the input and hand each warp its sums. A warp takes N rows at a time, `groups` times in all:
// `pick(group, part)` says which, `put(group, sums)` does with the sums what follows; all lanes call it with the same.
template <int N, class Pick, class Put>
__device__ void multiply(const Input& input, unsigned groups, Pick pick, Put put) {
    constexpr int DEPTH = 4 / N;  // vectors that a lane has under way
    const Shared shared = shared_memory(input);
    const unsigned lane = threadIdx.x % 32, warps = blockDim.x / 32;
    const bool stays = input.parts == 1 && input.last_width <= CHUNK;
    float factor = 1.0f;
    for (unsigned first = blockIdx.x * warps; first < groups; first += gridDim.x * warps) {
        const unsigned group = min(first + threadIdx.x / 32, groups - 1);  // a warp too many repeats the last: it must meet the barriers
        float sum[N] = {};
        for (unsigned part = 0; part < input.parts; ++part) {
            const Rows<N> rows = pick(group, part);
            const unsigned width = part + 1 < input.parts ? input.width : input.last_width;
            for (unsigned from = 0; from < width; from += CHUNK) {
                const unsigned size = min(CHUNK, width - from), base = from / PER, vectors = size / PER;
                Piece<N> pieces[DEPTH];
                #pragma unroll
                for (int d = 0; d < DEPTH; ++d)  // on their way while the input is put in place
                    if (lane + 32 * d < vectors) fetch(pieces[d], rows, base + lane + 32 * d);
                if (!stays || first == blockIdx.x * warps)
                    factor = fill(shared, input, input.values + part * input.width + from, input.norm, size);
                for (unsigned v = lane; v < vectors + lane; v += 32 * DEPTH) {
                    #pragma unroll
                    for (int d = 0; d < DEPTH; ++d)
                        if (v + 32 * d < vectors) add_products(sum, pieces[d], shared, v + 32 * d);
                    #pragma unroll
                    for (int d = 0; d < DEPTH; ++d) {
                        const unsigned next = v + 32 * (DEPTH + d);
                        if (next < vectors) fetch(pieces[d], rows, base + next);
                    }
                }
            }
        }
        #pragma unroll
        for (int r = 0; r < N; ++r) sum[r] = factor * sum_of_warp(sum[r]);
        if (first + threadIdx.x / 32 < groups) put(group, sum);
    }
}

// `ROWS` rows of one matrix, from `row` on; where it has no more, the last again.
__device__ Rows<ROWS> rows_of(const uint4* values, const u16* scales, unsigned row, unsigned rows, unsigned width) {
    Rows<ROWS> picked;
    #pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        const size_t at = min(row + r, rows - 1);
        picked.values[r] = values + at * (width / PER);
        picked.scales[r] = scales + at * (width / GROUP);
    }
    return picked;
}

// Tell whether this block is the last to come here; all it reads from then on was written by the others. The counter starts at 0 and is
// left there.
__device__ bool is_last_block(unsigned* counter) {
    __shared__ bool last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicInc(counter, gridDim.x - 1) == gridDim.x - 1;
    __syncthreads();
    __threadfence();
    return last;
}

__device__ float silu(float x) { return x / (1.0f + expf(-x)); }

// SwiGLU; with a limit as gpt-oss has it: both clamped, the sigmoid steeper, up moved by one.
__device__ float activated(float gate, float up, float limit, float alpha) {
    if (limit == 0.0f) return silu(gate) * up;
    gate = fminf(gate, limit);
    up = fminf(fmaxf(up, -limit), limit);
    return gate / (1.0f + expf(-alpha * gate)) * (up + 1.0f);
}
"""

_KERNELS: Mapping[str, str] = {
    "embed": r"""
extern "C" __global__ void __launch_bounds__(256) embed(
    const uint4* weights, const u16* scales, const int* state, float* hidden, unsigned width) {
    const size_t token = state[0];
    for (unsigned v = blockIdx.x * blockDim.x + threadIdx.x; v < width / PER; v += gridDim.x * blockDim.x) {
        const uint4 w = weights[token * (width / PER) + v];
        const float scale = GROUPED ? from_half(scales[token * (width / GROUP) + v * PER / GROUP]) : 1.0f;
        const unsigned words[4] = {w.x, w.y, w.z, w.w};
        #pragma unroll
        for (unsigned j = 0; j < 4; ++j) {
            const Word word(words[j]);
            #pragma unroll
            for (unsigned i = 0; i < PER / 4; ++i)
                hidden[v * PER + j * (PER / 4) + i] = scale * (word.at[i] - (KIND == 4 ? 24.0f : 0.0f));
        }
    }
}
""",
    "inward": r"""
// Up to four matrices one below the other, which end with the rows a, b, c, d: what attention or a delta rule works on.
// With `taps`, each of the first `channels` rows passes a causal convolution and SiLU: `tail` (taps - 1, channels) holds its last inputs.
extern "C" __global__ void __launch_bounds__(256, 3) inward(
    const uint4* a, const u16* a_scales, const uint4* b, const u16* b_scales,
    const uint4* c, const u16* c_scales, const uint4* d, const u16* d_scales,
    const float* bias, const float* hidden, const float* norm, float* tail, const float* kernel, float* out,
    unsigned width, unsigned a_end, unsigned b_end, unsigned c_end, unsigned d_end, unsigned taps, unsigned channels, float eps) {
    multiply<ROWS>(
        {hidden, norm, eps, width, 1, width}, (d_end + ROWS - 1) / ROWS,
        [=](unsigned group, unsigned) {
            const unsigned row = group * ROWS;
            if (row < a_end) return rows_of(a, a_scales, row, a_end, width);
            if (row < b_end) return rows_of(b, b_scales, row - a_end, b_end - a_end, width);
            if (row < c_end) return rows_of(c, c_scales, row - b_end, c_end - b_end, width);
            return rows_of(d, d_scales, row - c_end, d_end - c_end, width);
        },
        [=](unsigned group, const float (&sum)[ROWS]) {
            #pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                const unsigned row = group * ROWS + r;
                if (threadIdx.x % 32 != r || row >= d_end) continue;
                float x = sum[r] + bias[row];
                if (taps && row < channels) {
                    float mixed = x * kernel[(taps - 1) * channels + row];
                    for (unsigned t = 0; t + 1 < taps; ++t) {
                        mixed += tail[t * channels + row] * kernel[t * channels + row];
                        tail[t * channels + row] = t + 2 < taps ? tail[(t + 1) * channels + row] : x;
                    }
                    x = silu(mixed);
                }
                out[row] = x;
            }
        });
}
""",
    "outward": r"""
// The projection behind attention and the one out of the network: both add to the hidden state.
extern "C" __global__ void __launch_bounds__(256, 3) outward(
    const uint4* weights, const u16* scales, const float* bias, const float* in, float* hidden, unsigned width, unsigned rows) {
    multiply<ROWS>(
        {in, nullptr, 0.0f, width, 1, width}, (rows + ROWS - 1) / ROWS,
        [=](unsigned group, unsigned) { return rows_of(weights, scales, group * ROWS, rows, width); },
        [=](unsigned group, const float (&sum)[ROWS]) {
            #pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                const unsigned row = group * ROWS + r;
                if (threadIdx.x % 32 == r && row < rows) hidden[row] += sum[r] + bias[row];
            }
        });
}
""",
    "gate_up": r"""
// `bias` is the gates', then the ups'.
extern "C" __global__ void __launch_bounds__(256, 3) gate_up(
    const uint4* gate, const u16* gate_scales, const uint4* up, const u16* up_scales, const float* bias,
    const float* hidden, const float* norm, float* out, unsigned width, unsigned rows, float eps) {
    multiply<2>(
        {hidden, norm, eps, width, 1, width}, rows,
        [=](unsigned row, unsigned) {
            const size_t at = (size_t)row * (width / PER), scale = (size_t)row * (width / GROUP);
            return Rows<2>{{gate + at, up + at}, {gate_scales + scale, up_scales + scale}};
        },
        [=](unsigned row, const float (&sum)[2]) {
            if (threadIdx.x % 32 == 0) out[row] = silu(sum[0] + bias[row]) * (sum[1] + bias[rows + row]);
        });
}
""",
    "route": r"""
// Scores of the experts, then, in the last block, the best of them and what each counts. A shared expert (`shared` is 1) is chosen as one
// more, with the number `experts`; its share is the sigmoid of its gate.
extern "C" __global__ void __launch_bounds__(256, 3) route(
    const uint4* weights, const float* bias, const uint4* shared_gate, const float* hidden, const float* norm,
    float* scores, unsigned* counter, int* chosen, float* shares,
    unsigned width, unsigned experts, unsigned top_k, unsigned over_all, unsigned shared, float eps) {
    multiply<1>(
        {hidden, norm, eps, width, 1, width}, experts + shared,
        [=](unsigned row, unsigned) {
            return Rows<1>{{row < experts ? weights + (size_t)row * (width / PER) : shared_gate}, {nullptr}};
        },
        [=](unsigned row, const float (&sum)[1]) {
            if (threadIdx.x % 32 == 0) scores[row] = sum[0] + (row < experts ? bias[row] : 0.0f);
        });
    if (!is_last_block(counter) || threadIdx.x >= 32) return;
    constexpr int EACH = 16;  // scores of a lane: at most 512 experts
    const unsigned lane = threadIdx.x;
    float mine[EACH], top = 0.0f, total = 0.0f;
    #pragma unroll
    for (int i = 0; i < EACH; ++i) mine[i] = lane + 32 * i < experts ? __ldcg(scores + lane + 32 * i) : -INF;
    for (unsigned k = 0; k < top_k; ++k) {
        float best = -INF;
        unsigned index = experts - 1;  // if no score is a number
        #pragma unroll
        for (int i = 0; i < EACH; ++i)
            if (mine[i] > best) { best = mine[i]; index = lane + 32 * i; }
        #pragma unroll
        for (int d = 16; d; d /= 2) {
            const float other = __shfl_xor_sync(ALL, best, d);
            const unsigned its = __shfl_xor_sync(ALL, index, d);
            if (other > best || (other == best && its < index)) { best = other; index = its; }
        }
        if (k == 0) {
            top = best;
            #pragma unroll
            for (int i = 0; i < EACH; ++i) total += over_all ? expf(mine[i] - top) : 0.0f;
            total = sum_of_warp(total);
        }
        const float share = expf(best - top);
        if (!over_all) total += share;
        #pragma unroll
        for (int i = 0; i < EACH; ++i)
            if (index == lane + 32 * i) mine[i] = -INF;
        if (lane == 0) { chosen[k] = (int)index; shares[k] = share; }
    }
    __syncwarp();
    for (unsigned k = lane; k < top_k; k += 32) shares[k] /= total;
    if (shared && lane == 0) { chosen[top_k] = (int)experts; shares[top_k] = 1.0f / (1.0f + expf(-__ldcg(scores + experts))); }
}
""",
    "expert_gate_up": r"""
// Each of the chosen experts: rows of `out` behind one another, already weighted by its share. Tables hold one pointer an expert, and
// one more for a shared expert, which has `shared_rows`. `bias` is (experts, 2 * rows), each expert's gates' first.
extern "C" __global__ void __launch_bounds__(256, 3) expert_gate_up(
    const u64* gate, const u64* gate_scales, const u64* up, const u64* up_scales, const float* bias,
    const int* chosen, const float* shares, const float* hidden, const float* norm, float* out,
    unsigned width, unsigned rows, unsigned top_k, unsigned shared_rows, unsigned biased, float limit, float alpha, float eps) {
    multiply<2>(
        {hidden, norm, eps, width, 1, width}, top_k * rows + shared_rows,
        [=](unsigned group, unsigned) {
            const unsigned slot = min(group / rows, top_k), row = group - slot * rows, expert = chosen[slot];
            const size_t at = (size_t)row * (width / PER), scale = (size_t)row * (width / GROUP);
            return Rows<2>{{(const uint4*)gate[expert] + at, (const uint4*)up[expert] + at},
                           {(const u16*)gate_scales[expert] + scale, (const u16*)up_scales[expert] + scale}};
        },
        [=](unsigned group, const float (&sum)[2]) {
            if (threadIdx.x % 32) return;
            const unsigned slot = min(group / rows, top_k), row = group - slot * rows;
            const float* mine = bias + (size_t)chosen[slot] * 2 * rows;
            const float g = biased ? mine[row] : 0.0f, u = biased ? mine[rows + row] : 0.0f;
            out[group] = shares[slot] * activated(sum[0] + g, sum[1] + u, limit, alpha);
        });
}
""",
    "expert_outward": r"""
// `bias` is (experts, rows).
extern "C" __global__ void __launch_bounds__(256, 3) expert_outward(
    const u64* down, const u64* down_scales, const float* bias, const int* chosen, const float* shares, const float* in, float* hidden,
    unsigned width, unsigned rows, unsigned top_k, unsigned shared_width, unsigned biased) {
    const unsigned parts = top_k + (shared_width > 0);
    multiply<ROWS>(
        {in, nullptr, 0.0f, width, parts, shared_width ? shared_width : width}, (rows + ROWS - 1) / ROWS,
        [=](unsigned group, unsigned part) {
            const unsigned expert = chosen[part];
            return rows_of((const uint4*)down[expert], (const u16*)down_scales[expert], group * ROWS, rows,
                           part < top_k ? width : shared_width);
        },
        [=](unsigned group, const float (&sum)[ROWS]) {
            #pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                const unsigned row = group * ROWS + r;
                if (threadIdx.x % 32 != r || row >= rows) continue;
                float x = sum[r];
                for (unsigned k = 0; k < top_k && biased; ++k) x += shares[k] * bias[(size_t)chosen[k] * rows + row];
                hidden[row] += x;
            }
        });
}
""",
    "head": r"""
// Logits, and the token that follows: the forced one if there is one, else the likeliest (of equals the first).
// state: token, position, step.
extern "C" __global__ void __launch_bounds__(256, 3) head(
    const uint4* weights, const u16* scales, const float* hidden, const float* norm, float* logits,
    float* best_of_blocks, int* row_of_blocks, unsigned* counter, int* state, const int* forced, int* likeliest,
    unsigned width, unsigned rows, float eps) {
    __shared__ float best_of_warps[8];
    __shared__ int row_of_warps[8];
    float best = -INF;
    int row = 0x7fffffff;
    auto take = [&](float value, int at) { if (value > best || (value == best && at < row)) { best = value; row = at; } };
    multiply<ROWS>(
        {hidden, norm, eps, width, 1, width}, (rows + ROWS - 1) / ROWS,
        [=](unsigned group, unsigned) { return rows_of(weights, scales, group * ROWS, rows, width); },
        [&](unsigned group, const float (&sum)[ROWS]) {
            #pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                const unsigned at = group * ROWS + r;
                if (at >= rows) continue;
                if (threadIdx.x % 32 == r) logits[at] = sum[r];
                take(sum[r], (int)at);
            }
        });
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    auto of_block = [&]() {  // leaves the best of the block with its first thread
        if (lane == 0) { best_of_warps[warp] = best; row_of_warps[warp] = row; }
        __syncthreads();
        if (threadIdx.x == 0)
            for (unsigned w = 1; w < blockDim.x / 32; ++w) take(best_of_warps[w], row_of_warps[w]);
    };
    of_block();
    if (threadIdx.x == 0) { best_of_blocks[blockIdx.x] = best; row_of_blocks[blockIdx.x] = row; }
    if (!is_last_block(counter)) return;
    best = -INF;
    row = 0x7fffffff;
    for (unsigned b = threadIdx.x; b < gridDim.x; b += blockDim.x) take(__ldcg(best_of_blocks + b), __ldcg(row_of_blocks + b));
    #pragma unroll
    for (int d = 16; d; d /= 2) {
        const float other = __shfl_xor_sync(ALL, best, d);
        take(other, __shfl_xor_sync(ALL, row, d));
    }
    __syncthreads();
    of_block();
    if (threadIdx.x) return;
    const int step = state[2], next = forced[step], found = min(row, (int)rows - 1);  // none if no logit is a number
    likeliest[step] = found;
    state[0] = next < 0 ? found : next;
    state[1] += 1;
    state[2] = step + 1;
}
""",
}

_THREADS_MOST = 256
_ROWS = {"float32": 1, "float16": 1, "bfloat16": 1, "int8": 2, "int4": 2}


def rows_at_once(kernel: str, kind: str) -> int:
    """Return how many rows of its output a warp of a kernel makes at a time."""
    return 1 if kernel.endswith("gate_up") or kernel == "route" else _ROWS[kind]


def weights_in_16_bytes(kind: str) -> int:
    """Return what the width of a matrix must be a multiple of: 16 bytes of weights, and whole groups."""
    return {"float32": 4, "float16": 8, "bfloat16": 8}.get(kind, GROUP)


def shared_bytes(width: int) -> int:
    """Return the shared memory of a block whose input has this width: numbers, a sum for each 32 of them, one for each warp."""
    size = -(-min(width, CHUNK) // GROUP) * GROUP
    return 4 * (size + size // GROUP + _THREADS_MOST // 32)


SOURCES: Mapping[str, Mapping[str, CudaSource]] = {
    kind: {
        name: CudaSource(
            name=name, text=_COMMON + _KERNELS[name], twin=twin, options=("--std=c++17", f"-DKIND={number}")
        )
        for name, twin in fused_twins.STREAMING.items()
        if name != "route" or kind == "float32"  # routers are not stored in fewer bits
    }
    for kind, number in KINDS.items()
}
