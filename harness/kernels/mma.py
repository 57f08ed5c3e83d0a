"""Tensor cores by themselves: the matrix instruction of a warp, fed from registers, with next to no memory traffic.

Limit: `mma.sync` is the instruction that all generations have. Hopper and data-centre Blackwell reach their full rate with
instructions of their own alone; what a product gets there is what `gemm` measures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from harness.device import narrow
from harness.device.backend import CudaSource
from harness.model import Device
from harness.registry import Case, Sized, Skip, Work, benchmark, require_capability

if TYPE_CHECKING:
    from harness.device.backend import Array, Backend
    from harness.device.rng import Rng

_WARPS = 4  # a block: one for each of the four tensor cores of a multiprocessor
_TILES = 8  # products of a warp that do not wait for each other, 8 columns each
_COLUMNS = 8 * _TILES

# Each warp multiplies its own M x K matrix by the transpose of its own 64 x K one. A row of 32 bytes is eight words, whatever the type,
# and PTX deals the words of all types to the lanes in the same way; float64 alone has another shape. All steps multiply the same and add up, so
# that one left out is missed; the units' own sums are carried over after every `span` steps, before they are too large for what is added.
_WORDS = r"""
extern "C" __global__ void __launch_bounds__(128)
NAME(unsigned steps, unsigned span, const unsigned* a, const unsigned* b, TYPE* d) {
  const unsigned warp = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
  const unsigned row = lane / 4, word = lane % 4;
  a += 16 * 8 * warp + 8 * row + word;
  b += 64 * 8 * warp + 8 * row + word;
  d += 16 * 64 * warp + 64 * row + 2 * word;
  const unsigned x[4] = {a[0], a[8 * 8], a[4], a[8 * 8 + 4]};
  unsigned y[8][2];
  TYPE sum[8][4] = {};
  #pragma unroll
  for (int j = 0; j < 8; ++j) { y[j][0] = b[64 * j]; y[j][1] = b[64 * j + 4]; }
  for (unsigned done = 0; done < steps; done += span) {
    TYPE z[8][4] = {};
    for (unsigned s = done; s < min(steps, done + span); ++s) {
      #pragma unroll
      for (int j = 0; j < 8; ++j) { MULTIPLY }
    }
    #pragma unroll
    for (int j = 0; j < 8; ++j) {
      #pragma unroll
      for (int i = 0; i < 4; ++i) sum[j][i] += z[j][i];
    }
  }
  #pragma unroll
  for (int j = 0; j < 8; ++j) {
    #pragma unroll
    for (int i = 0; i < 4; ++i) d[64 * 8 * (i / 2) + 8 * j + i % 2] = sum[j][i];
  }
}
"""
_DOUBLES = r"""
extern "C" __global__ void __launch_bounds__(128)
mma_float64(unsigned steps, unsigned span, const double* a, const double* b, double* d) {
  const unsigned warp = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
  const unsigned row = lane / 4, k = lane % 4;
  const double x = a[8 * 4 * warp + lane];
  double y[8], sum[8][2] = {};
  #pragma unroll
  for (int j = 0; j < 8; ++j) y[j] = b[64 * 4 * warp + 32 * j + lane];
  for (unsigned done = 0; done < steps; done += span) {
    double z[8][2] = {};
    for (unsigned s = done; s < min(steps, done + span); ++s) {
      #pragma unroll
      for (int j = 0; j < 8; ++j)
        asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0,%1}, {%2}, {%3}, {%0,%1};"
                     : "+d"(z[j][0]), "+d"(z[j][1]) : "d"(x), "d"(y[j]));
    }
    #pragma unroll
    for (int j = 0; j < 8; ++j) { sum[j][0] += z[j][0]; sum[j][1] += z[j][1]; }
  }
  #pragma unroll
  for (int j = 0; j < 8; ++j) {
    d[8 * 64 * warp + 64 * row + 8 * j + 2 * k] = sum[j][0];
    d[8 * 64 * warp + 64 * row + 8 * j + 2 * k + 1] = sum[j][1];
  }
}
"""


def _multiply(shape: str, types: str, register: str, words: tuple[int, ...], columns: tuple[int, ...]) -> str:
    """Return one matrix instruction in the text of a kernel, for the given words of its operands."""
    z = ", ".join(f'"+{register}"(z[j][{i}])' for i in range(4))
    operands = [f"x[{i}]" for i in words] + [f"y[j][{i}]" for i in columns]
    names = [f"%{4 + i}" for i in range(len(operands))]
    left, right = ",".join(names[: len(words)]), ",".join(names[len(words) :])
    text = f"mma.sync.aligned.{shape}.row.col.{types} {{%0,%1,%2,%3}}, {{{left}}}, {{{right}}}, {{%0,%1,%2,%3}};"
    inputs = ", ".join(f'"r"({o})' for o in operands)
    return f'asm volatile("{text}" : {z} : {inputs});'


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """One type of operand: the shape of a warp's left matrix, how it is drawn and read, and what a sum is off by."""

    rows: int = 16
    depth: int
    draw: Callable[[Rng, tuple[int, ...]], Array]
    read: Callable[[Array], Array]
    span: int = 64  # steps whose products the units add up themselves
    answer: str = "float32"
    # What a step is off by, of the products' magnitudes. Tensor cores cut where others round: up to depth + 2 addends, each by a unit
    # in the last place of a sum that has grown to 32 products on average, which is 18 * 32 * 2^-23.
    step_eps: float = 18 * 32 * 2.0**-23
    distribution: str = "bell, mean 0, variance 1"


_KINDS = {
    "float16": _Kind(
        depth=16,
        draw=lambda rng, shape: rng.bell(shape, "float16"),
        read=lambda x: x,
    ),
    "bfloat16": _Kind(
        depth=16,
        draw=lambda rng, shape: narrow.to_bfloat16(rng.bell(shape)),
        read=narrow.from_bfloat16,
    ),
    "tfloat32": _Kind(
        depth=8,
        draw=lambda rng, shape: narrow.to_tfloat32(rng.bell(shape)),
        read=lambda x: x,
    ),
    "int8": _Kind(
        depth=32,
        draw=lambda rng, shape: rng.words(shape[0] * shape[1] * 8).view(np.int8).reshape(shape),
        read=lambda x: x,
        answer="int32",  # exact, and the sums of 4095 steps fit 32 bits
        step_eps=0.0,
        distribution="uniform 8-bit integers",
    ),
    "float64": _Kind(
        rows=8,
        depth=4,
        draw=lambda rng, shape: rng.bell(shape, "float64"),
        read=lambda x: x,
        answer="float64",
        step_eps=6 * 32 * 2.0**-52,
    ),
    "float8_e4m3": _Kind(
        depth=32,
        # Three of eight bits vary: then the sums of 16 steps are exact in the 14 bits that the units keep of them.
        span=16,
        draw=lambda rng, shape: (
            ((rng.words(shape[0] * shape[1] * 8) & np.uint32(0x8C8C8C8C)) + np.uint32(0x38383838))
            .view(np.uint8)
            .reshape(shape)
        ),
        read=narrow.from_e4m3,
        distribution="uniform over the 8 numbers of magnitudes 1, 1.5, 2 and 3",
    ),
}


def _twin(dtype: str) -> Callable[..., None]:
    def twin(steps: int, span: int, a: Array, b: Array, d: Array) -> None:
        read, wide = _KINDS[dtype].read, np.float64
        d[:] = int(steps) * (read(a).astype(wide) @ read(b).astype(wide).swapaxes(1, 2))

    return twin


def _source(dtype: str, capability: str, multiply: str = "", suffix: str = "") -> CudaSource:
    name = f"mma_{dtype}{suffix}"
    text = _DOUBLES if dtype == "float64" else _WORDS.replace("NAME", name).replace("MULTIPLY", multiply)
    number = "int" if _KINDS[dtype].answer == "int32" else "float"
    return CudaSource(name=name, text=text.replace("TYPE", number), twin=_twin(dtype), capability_min=capability)


_ALL, _BOTH = (0, 1, 2, 3), (0, 1)
_HALVES = "f32.f16.f16.f32"
SOURCES = {
    "float16": _source("float16", "8.0", _multiply("m16n8k16", _HALVES, "f", _ALL, _BOTH)),
    "bfloat16": _source("bfloat16", "8.0", _multiply("m16n8k16", "f32.bf16.bf16.f32", "f", _ALL, _BOTH)),
    "tfloat32": _source("tfloat32", "8.0", _multiply("m16n8k8", "f32.tf32.tf32.f32", "f", _ALL, _BOTH)),
    "int8": _source("int8", "8.0", _multiply("m16n8k32", "s32.s8.s8.s32", "r", _ALL, _BOTH)),
    "float64": _source("float64", "8.0"),
    "float8_e4m3": _source("float8_e4m3", "8.9", _multiply("m16n8k32", "f32.e4m3.e4m3.f32", "f", _ALL, _BOTH)),
}
TURING = _source(  # half as deep, so two of them
    "float16",
    "7.5",
    _multiply("m16n8k8", _HALVES, "f", (0, 1), (0,)) + " " + _multiply("m16n8k8", _HALVES, "f", (2, 3), (1,)),
    "_turing",
)


def _blocks(device: Device) -> int:
    """4 a multiprocessor."""
    return 4 * (device.sm_count or 128)


@benchmark(
    version=2,
    metric="compute",
    quick=False,
    dtype=tuple(_KINDS),
    n=Sized(check=1, cpu=2, cuda=_blocks),
    steps=Sized(check=63, cpu=127, cuda=2047),
)
def mma(backend: Backend, seed: int, *, dtype: str, n: int, steps: int) -> Case:
    """Rate of warp-wide matrix instructions in registers: n blocks of four warps, each of so many steps."""
    source = _pick(backend, dtype)
    xp, kind = backend.xp, _KINDS[dtype]
    rng, warps = backend.rng(seed), _WARPS * n
    a, b = (kind.draw(rng, (warps, rows, kind.depth)) for rows in (kind.rows, _COLUMNS))
    d = xp.zeros((warps, kind.rows, _COLUMNS), dtype=kind.answer)
    launch = backend.load(source)

    def run() -> Array:
        launch(n, 32 * _WARPS, np.uint32(steps), np.uint32(kind.span), a, b, d)
        return d

    def check(answer: Array) -> bool:
        truth = xp.zeros(d.shape, dtype=np.float64)
        source.twin(steps, kind.span, a, b, truth)
        x, y = (xp.abs(kind.read(m).astype(np.float64)) for m in (a, b))
        allowed = steps * kind.step_eps * (x @ y.swapaxes(1, 2))
        return bool((xp.abs(answer - truth) <= allowed).all())

    carried = 0 if kind.answer == "int32" else -(-steps // kind.span)
    return Case(
        run=run,
        check=check,
        work=Work(
            flops=2 * d.size * kind.depth * steps + d.size * carried,
            bytes_moved=a.nbytes + b.nbytes + d.nbytes,
            counting="2 per multiply-add, 1 per sum carried over; read + written",
        ),
        inputs=(a.view(np.uint32), b.view(np.uint32)),
        distribution=kind.distribution,
    )


def _pick(backend: Backend, dtype: str) -> CudaSource:
    """Return the source for a type on a GPU, or raise `Skip` where there are no units for it."""
    capability = backend.device.compute_capability or ""
    source = TURING if dtype == "float16" and capability == "7.5" else SOURCES[dtype]
    require_capability(backend, source.capability_min, f"{dtype} matrix instructions of this shape")
    if dtype == "float8_e4m3" and capability != "8.9" and not capability.startswith("12."):
        reason = (
            f"compute capability {capability} runs `mma.sync` of fp8 on its float16 units: see gemm for its fp8 rate"
        )
        raise Skip(reason)
    return source
