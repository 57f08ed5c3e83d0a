"""One new token in the state of a gated delta layer, as one CUDA kernel: decay, correction, reading, and the gated norm behind it.

The state of a head, key dimensions by value dimensions, is read and written once: a block takes 32 of the value dimensions, each of its 8
warps an eighth of the key dimensions, which stay in registers between the prediction and the correction. The last block of a head
normalises what all of them have read. Convolution and SiLU of the layer's inputs are done where those are made, by `inward`.

Key dimensions are a multiple of 8 up to 256, value dimensions one of 32. A block is 256 threads.
"""

from __future__ import annotations

from harness.device.backend import CudaSource
from harness.inference.fused_twins import delta

__all__ = ["COLUMNS", "KEYS_MOST", "SOURCE", "THREADS"]

THREADS = 256
COLUMNS = 32  # value dimensions of a block
KEYS_MOST = 256

TEXT = r"""
constexpr unsigned ALL = 0xffffffff;
constexpr unsigned EACH = 32;  // key dimensions of a warp, at most

__device__ float sum_of_warp(float value) {
    #pragma unroll
    for (int d = 16; d; d /= 2) value += __shfl_xor_sync(ALL, value, d);
    return value;
}

// projected: queries and keys by key head, values by value head, the gates of the output, then a rate and a decay for each value head.
// memory: (key heads, key dim, value heads of each, value dim). raw: results before the norm, (value heads, value dim). counters: one for each value head.
extern "C" __global__ void __launch_bounds__(256, 2) delta(
    const float* projected, const float* speed, const float* dt_bias, const float* norm, float* memory,
    float* raw, unsigned* counters, float* out,
    unsigned key_heads, unsigned value_heads, unsigned key_dim, unsigned value_dim, float eps) {
    __shared__ float parts[8][32], own_q[8][EACH], own_k[8][EACH];  // of each warp: no barrier of the block is needed for these
    __shared__ bool last;
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const unsigned blocks = value_dim / 32, head = blockIdx.x / blocks, column = blockIdx.x % blocks * 32 + lane;
    const unsigned keys = key_heads * key_dim, values = value_heads * value_dim;
    const unsigned sharing = value_heads / key_heads, key_head = head / sharing, stride = sharing * value_dim;
    const float* q = projected + key_head * key_dim;
    const float* k = q + keys;
    const float* z = projected + 2 * keys + values;
    const float v = projected[2 * keys + head * value_dim + column];
    const float rate = 1.0f / (1.0f + expf(-z[values + head]));
    const float x = z[values + value_heads + head] + dt_bias[head];
    const float decay = expf(speed[head] * (fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x)))));

    float q_squares = 0.0f, k_squares = 0.0f;
    for (unsigned i = lane; i < key_dim; i += 32) {
        q_squares += q[i] * q[i];
        k_squares += k[i] * k[i];
    }
    const float q_factor = 1.0f / (sqrtf(sum_of_warp(q_squares) + 1e-6f) * sqrtf((float)key_dim));
    const float k_factor = 1.0f / sqrtf(sum_of_warp(k_squares) + 1e-6f);

    auto sum_of_block = [&](float part) {
        __syncthreads();
        parts[warp][lane] = part;
        __syncthreads();
        float sum = 0.0f;
        #pragma unroll
        for (int w = 0; w < 8; ++w) sum += parts[w][lane];
        return sum;
    };
    const unsigned each = key_dim / 8, first = warp * each;
    if (lane < each) {
        own_q[warp][lane] = q_factor * q[first + lane];
        own_k[warp][lane] = k_factor * k[first + lane];
    }
    __syncwarp();
    float* mine = memory + (size_t)(key_head * key_dim + first) * stride + head % sharing * value_dim + column;
    float s[EACH], told = 0.0f, read = 0.0f;
    #pragma unroll
    for (unsigned i = 0; i < EACH; ++i) {
        if (i >= each) continue;
        s[i] = decay * mine[(size_t)i * stride];
        told += own_k[warp][i] * s[i];
    }
    const float wrong = rate * (v - sum_of_block(told));
    #pragma unroll
    for (unsigned i = 0; i < EACH; ++i) {
        if (i >= each) continue;
        s[i] += own_k[warp][i] * wrong;
        mine[(size_t)i * stride] = s[i];
        read += own_q[warp][i] * s[i];
    }
    const float result = sum_of_block(read);
    if (warp == 0) raw[head * value_dim + column] = result;

    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicInc(counters + head, blocks - 1) == blocks - 1;
    __syncthreads();
    if (!last || warp) return;
    __threadfence();
    const float* all = raw + head * value_dim;
    float squares = 0.0f;
    for (unsigned d = lane; d < value_dim; d += 32) squares += __ldcg(all + d) * __ldcg(all + d);
    const float factor = 1.0f / sqrtf(sum_of_warp(squares) / value_dim + eps);
    for (unsigned d = lane; d < value_dim; d += 32) {
        const unsigned at = head * value_dim + d;
        out[at] = __ldcg(all + d) * factor * norm[d] * z[at] / (1.0f + expf(-z[at]));
    }
}
"""

SOURCE = CudaSource(name="delta", text=TEXT, twin=delta)
