"""The work: X -> f(X B) + K, step by step, n x n, on any device, and what each kind of number makes of a byte.

A state is n x n bytes in every mode, so that hashing and holding it costs the same. In mode int8 a byte is a signed number and f mixes all 32
bits of a sum, so that one wrong bit changes the state. In the float modes a byte names one of 256 numbers of full precision, drawn bell-shaped,
their signs in balance; f keeps the high bits of the sum alone, since its low bits may differ between honest devices.
B is made of bytes in the same way. f is not linear, so steps do not collapse into one; it takes each element alone, so any row of any step can be
checked alone.

K, the pad, is n x n bytes of the seed's generator, others for each step, added without carry (exclusive or). Without it equal rows stay equal: who makes
all rows of one state alike, which few openings see, has one row to compute from then on. With it a row that was made up saves its own product and, where
it was chosen to be a row of zeros, the next one; what follows from that is as random as an honest state.

Exact in mode int8: a sum of n <= 131,056 products of 8-bit numbers fits 32 bits, whatever its order.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.device import narrow, philox
from harness.device.backend import CudaSource
from harness.proof.challenge import stream
from harness.proof.generator import drawn_bytes
from harness.proof.task import scale

if TYPE_CHECKING:
    from harness.device.backend import Array, Backend, Launcher
    from harness.proof.task import Task

__all__ = ["Chain", "advance", "kept", "numbers", "pad", "table"]

Host = np.ndarray[Any, Any]
Multiply = Callable[[Any, Any], None]  # rows of a state, and where their products with B go

_THREADS = 256
_SUMS: dict[str, Any] = {"int8": np.int32, "float64": np.float64}  # float32 in the other modes
_COUNTERS = 1 << 14  # of a piece of the pad
_EXACT = 1024  # products of two 8-bit numbers whose sums float32 holds exactly


def _mix(y: Host) -> Host:
    h = y.reshape(-1).view(np.uint32).copy()
    for shift, factor in (
        (16, 0x85EBCA6B),
        (13, 0xC2B2AE35),
    ):  # the finaliser of MurmurHash3: every bit moves half of the others
        h ^= h >> np.uint32(shift)
        h *= np.uint32(factor)
    mixed: Host = (h >> np.uint32(24)).astype(np.uint8)
    return mixed


def _code(scaled: Any, y: Host) -> Host:
    codes: Host = np.floor(y.reshape(-1) * scaled).clip(-128, 127).astype(np.int16).astype(np.uint8)
    return codes


def _mixed(words: Any, key: Any, lane: Any, y: Host, out: Host) -> None:
    _padded(int(words), (int(key), int(lane)), _mix, y, out)


def _cut(words: Any, key: Any, lane: Any, scaled: Any, y: Host, out: Host) -> None:  # noqa: PLR0913 - as the kernel
    _padded(int(words), (int(key), int(lane)), functools.partial(_code, scaled), y, out)


def _padded(words: int, source: tuple[int, int], made: Callable[[Host], Host], y: Host, out: Host) -> None:
    """Write f(y) with its pad, a piece at a time: the generator takes a hundred times what it gives."""
    sums, codes = y.reshape(-1), out.view(np.uint8).reshape(-1)
    for first in range(0, words // 4, _COUNTERS):
        count = min(_COUNTERS, words // 4 - first)
        piece = slice(16 * first, 16 * (first + count))
        codes[piece] = made(sums[piece]) ^ drawn_bytes(source, first, count)


# A thread makes four bytes, a word: a row is a multiple of 16, so words are whole. Philox as in `device.philox`, which is held against published vectors.
_PAD = r"""
__device__ unsigned pad(unsigned long long word, unsigned long long key, unsigned long long lane) {
  const unsigned long long counter = word >> 2;
  unsigned c0 = (unsigned)counter, c1 = (unsigned)(counter >> 32), c2 = (unsigned)lane, c3 = (unsigned)(lane >> 32);
  unsigned k0 = (unsigned)key, k1 = (unsigned)(key >> 32);
  #pragma unroll
  for (int round = 0; round < 10; ++round) {
    const unsigned h0 = __umulhi(0xD2511F53u, c0), l0 = 0xD2511F53u * c0;
    const unsigned h1 = __umulhi(0xCD9E8D57u, c2), l1 = 0xCD9E8D57u * c2;
    c0 = h1 ^ c1 ^ k0;
    c1 = l1;
    c2 = h0 ^ c3 ^ k1;
    c3 = l0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return word & 2 ? (word & 1 ? c3 : c2) : (word & 1 ? c1 : c0);
}
"""
MIX = CudaSource(
    name="mix",
    twin=_mixed,
    text=_PAD
    + r"""
extern "C" __global__ void mix(unsigned long long words, unsigned long long key, unsigned long long lane, const unsigned* y, unsigned* out) {
  const unsigned long long at = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= words) return;
  unsigned four = 0;
  #pragma unroll
  for (int byte = 0; byte < 4; ++byte) {
    unsigned h = y[4 * at + byte];
    h = (h ^ (h >> 16)) * 0x85EBCA6Bu;
    h = (h ^ (h >> 13)) * 0xC2B2AE35u;
    four |= (h >> 24) << (8 * byte);
  }
  out[at] = four ^ pad(at, key, lane);
}
""",
)
_CUT = (
    _PAD
    + r"""
extern "C" __global__ void cut(unsigned long long words, unsigned long long key, unsigned long long lane, REAL scale, const REAL* y, unsigned* out) {
  const unsigned long long at = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= words) return;
  unsigned four = 0;
  #pragma unroll
  for (int byte = 0; byte < 4; ++byte) {
    REAL code = floor(y[4 * at + byte] * scale);  // scale is a power of two: the product is exact
    code = code < -128 ? -128 : code > 127 ? 127 : code;
    four |= ((unsigned)(int)code & 255u) << (8 * byte);
  }
  out[at] = four ^ pad(at, key, lane);
}
"""
)
CUT = {
    dtype: CudaSource(name="cut", twin=_cut, text=_CUT.replace("REAL", real))
    for dtype, real in (("float32", "float"), ("float64", "double"))
}


def kept(mode: str, n: int, y: Host) -> Host:
    """Return f(y), bytes, for sums of any shape; floats must be finite."""
    codes = _mix(y) if mode == "int8" else _code(y.dtype.type(scale(n)), y)
    return codes.reshape(y.shape)


def pad(seed: bytes, number: int, n: int, row: int) -> Host:
    """Return what is added to f(y) in a row of state `number`, n bytes; the first state that is made has number 1."""
    return drawn_bytes(stream(seed, _pad_label(number)), row * n // 16, n // 16)


def advance(mode: str, y: Host, seed: bytes, number: int, row: int) -> Host:
    """Return a row of state `number`, n bytes, from its n sums."""
    n = y.size
    return kept(mode, n, y) ^ pad(seed, number, n, row)


def _pad_label(number: int) -> str:
    return f"K{number}"


@functools.cache
def table(mode: str) -> Host:
    """Return the 256 numbers that bytes stand for in a mode, in the type they are multiplied in; bfloat16 as uint16.

    Byte b < 128 is the sum of eight 16-bit numbers of a hash, less its mean; byte 255 - b is its negative.
    """
    if mode == "int8":
        return np.arange(256, dtype=np.uint8).view(np.int8)
    hashes = (hashlib.sha256(b"harness.proof/1 table" + bytes([b])).digest()[:16] for b in range(128))
    halves = np.frombuffer(b"".join(hashes), dtype="<u2").reshape(128, 8).astype(np.float64)
    half = halves.sum(axis=1) - 4 * 65535
    half /= math.sqrt((half**2).mean())
    whole = np.concatenate([half, -half[::-1]])
    made: Host = narrow.to_bfloat16(whole.astype(np.float32)) if mode == "bfloat16" else whole.astype(mode)
    return made


@functools.cache
def numbers(mode: str) -> Host:
    """Return the same numbers in float64, or int64 in mode int8."""
    if mode == "bfloat16":
        exact: Host = narrow.from_bfloat16(table(mode)).astype(np.float64)
    else:
        exact = table(mode).astype(np.int64 if mode == "int8" else np.float64)
    return exact


@functools.lru_cache(maxsize=4)
def _filler(backend: Backend) -> Launcher:
    """Return the generator, compiled for a device: many small challenges would wait for nothing else."""
    return backend.compile(philox.words)


class Chain:
    """The work of one challenge on one device: B, the first state, and a step."""

    def __init__(self, backend: Backend, seed: bytes, task: Task) -> None:
        self._backend, self._seed, self._task = backend, seed, task
        self._sum_type = _SUMS.get(task.mode, np.float32)
        self._scale = self._sum_type(scale(task.n))
        self._advance = backend.load(MIX if task.mode == "int8" else CUT[np.dtype(self._sum_type).name])
        drawn = self._drawn("B")
        self._multiply = _on_gpu(backend, task, drawn) if backend.device.kind == "cuda" else _on_host(task, drawn)

    def _drawn(self, label: str) -> Array:
        """Return an n x n matrix of random bytes, row by row in the generator's order."""
        n = self._task.n
        key, lane = stream(self._seed, label)
        words = self._backend.xp.empty(n * n // 4, dtype=np.uint32)
        _filler(self._backend)(  # type: ignore[arg-type]  # every device is hashable, as an object
            n * n // 16, np.uint64(key), np.uint64(lane), np.uint64(0), words
        )
        return words.view(np.uint8).reshape(n, n)

    def first(self) -> Array:
        """Return the state before the first step."""
        return self._drawn("X")

    def sums(self, rows: Array) -> Array:
        """Return X B for m rows of a state, shape (m, n)."""
        out = self._backend.xp.empty(rows.shape, dtype=self._sum_type)
        self._multiply(rows, out)
        return out

    def step(self, state: Array, number: int, sums: Array | None = None) -> Array:
        """Return state `number` from the one before it; `sums` is memory to be used again."""
        xp, n = self._backend.xp, self._task.n
        y = xp.empty((n, n), dtype=self._sum_type) if sums is None else sums
        self._multiply(state, y)
        after = xp.empty((n, n), dtype=np.uint8)
        key, lane = stream(self._seed, _pad_label(number))
        words, blocks = n * n // 4, -(-n * n // 4 // _THREADS)
        factor = () if self._task.mode == "int8" else (self._scale,)
        told = y.view(np.uint32) if not factor else y
        numbers = np.uint64(words), np.uint64(key), np.uint64(lane)
        self._advance(blocks, _THREADS, *numbers, *factor, told, after.view(np.uint32))
        return after


def _on_host(task: Task, drawn: Array) -> Multiply:
    """Return the product by NumPy's BLAS: in float32, over pieces short enough to be exact where the numbers are integers."""
    exact: Host = numbers(task.mode).astype("float64" if task.mode == "float64" else "float32")
    b, piece = exact[drawn], _EXACT if task.mode == "int8" else task.n

    def multiply(rows: Array, out: Array) -> None:
        x = exact[rows]
        out[:] = 0
        for at in range(0, task.n, piece):
            out += (x[:, at : at + piece] @ b[at : at + piece]).astype(out.dtype)

    return multiply


_TYPES = {  # of operands, sums and arithmetic, as CuPy or cudaDataType_t name them
    "int8": ("CUDA_R_8I", 10, "CUBLAS_COMPUTE_32I"),
    "float16": ("CUDA_R_16F", 0, "CUBLAS_COMPUTE_32F"),
    "bfloat16": ("CUDA_R_16BF", 0, "CUBLAS_COMPUTE_32F"),
    "float32": ("CUDA_R_32F", 0, "CUBLAS_COMPUTE_32F"),
    "float64": ("CUDA_R_64F", 1, "CUBLAS_COMPUTE_64F"),
}


def _on_gpu(backend: Backend, task: Task, drawn: Array) -> Multiply:
    """Return the product by cuBLAS. It wants B by columns: the form that all its integer kernels know."""
    xp, n = backend.xp, task.n
    codes = xp.asarray(table(task.mode))
    b = _operands(xp, codes, xp.ascontiguousarray(drawn.T))
    cublas, handle = xp.cuda.cublas, xp.cuda.device.get_cublas_handle()
    operand, result, compute = _TYPES[task.mode]
    kind, arithmetic = getattr(xp.cuda.runtime, operand), getattr(cublas, compute)
    sums = _SUMS.get(task.mode, np.float32)
    scales = np.array([1, 0], dtype=sums)
    one, zero = scales.ctypes.data, scales[1:].ctypes.data

    def multiply(rows: Array, out: Array) -> None:
        x = _operands(xp, codes, rows)
        shape = n, len(rows), n
        ways = cublas.CUBLAS_OP_T, cublas.CUBLAS_OP_N
        factors = b.data.ptr, kind, n, x.data.ptr, kind, n
        product = out.data.ptr, result, n, arithmetic, cublas.CUBLAS_GEMM_DEFAULT
        cublas.gemmEx(handle, *ways, *shape, one, *factors, zero, *product)
        _ = scales  # cuBLAS is given its address

    return multiply


def _operands(xp: Any, codes: Array, drawn: Array) -> Array:
    return drawn if codes.dtype == np.int8 else xp.take(codes, drawn)
