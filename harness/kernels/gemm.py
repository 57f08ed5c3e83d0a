"""Dense matrix multiplication by the vendor's library: what most paid work is made of."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from harness.device import narrow
from harness.registry import Case, Sized, Skip, Work, benchmark, require_capability, require_memory

if TYPE_CHECKING:
    from harness.device.backend import Array, Backend
    from harness.device.rng import Rng

_R_32F, _R_32I, _R_8F_E4M3 = 0, 10, 28  # cudaDataType_t; CuPy names the first alone
_WORKSPACE_BYTES = 32 << 20  # what NVIDIA advises for Hopper and later


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """How a type of operand is drawn and read, and what its product is made of."""

    draw: Callable[[Rng, int], Array]
    read: Callable[[Array], Array] = lambda x: x
    answer: str
    sum_eps: float  # relative error of one addition
    needs: tuple[str, str] | None = None  # a compute capability, and what needs it
    operand_type: str | None = None  # CuPy's names of what cuBLAS is told; None where CuPy itself multiplies the type
    compute_type: str = "CUBLAS_COMPUTE_32F"


def _bell(dtype: str) -> Callable[[Rng, int], Array]:
    return lambda rng, n: rng.bell((n, n), dtype)


_EPS = float(np.finfo(np.float32).eps)
_CUT_EPS = 2.0**-20  # tensor cores cut where others round, so errors of one sign add up
_KINDS = {
    "float32": _Kind(draw=_bell("float32"), answer="float32", sum_eps=_EPS),
    "float64": _Kind(draw=_bell("float64"), answer="float64", sum_eps=float(np.finfo(np.float64).eps)),
    "float16": _Kind(draw=_bell("float16"), answer="float16", sum_eps=_EPS),
    "tfloat32": _Kind(
        draw=lambda rng, n: narrow.to_tfloat32(rng.bell((n, n))),
        answer="float32",
        sum_eps=_CUT_EPS,
        needs=("8.0", "TF32 tensor cores"),
        operand_type="CUDA_R_32F",
        compute_type="CUBLAS_COMPUTE_32F_FAST_TF32",
    ),
    "bfloat16": _Kind(
        draw=lambda rng, n: narrow.to_bfloat16(rng.bell((n, n))),
        read=narrow.from_bfloat16,
        answer="float32",
        sum_eps=_CUT_EPS,
        needs=("8.0", "bfloat16 tensor cores"),  # before, cuBLAS emulates the type at a fraction of the rate
        operand_type="CUDA_R_16BF",
    ),
    "int8": _Kind(
        draw=lambda rng, n: rng.words(n * n // 4).view(np.int8).reshape(n, n),
        answer="int32",
        sum_eps=0.0,
        needs=("7.5", "int8 tensor cores"),
        operand_type="CUDA_R_8I",
        compute_type="CUBLAS_COMPUTE_32I",
    ),
    "float8_e4m3": _Kind(
        draw=lambda rng, n: narrow.to_e4m3(rng.bell((n, n))),
        read=narrow.from_e4m3,
        answer="float32",
        sum_eps=2.0**-16,  # the units keep 14 bits of a sum for a while
        needs=("8.9", "fp8 tensor cores"),
    ),
}


@benchmark(
    version=1,
    metric="compute",
    quick={"dtype": ("float32", "float64", "float16")},
    sustained=True,
    dtype=tuple(_KINDS),
    n=Sized(check=128, cpu=2048, cuda=8192),
)
def gemm(backend: Backend, seed: int, *, dtype: str, n: int) -> Case:
    """Square matrix product through cuBLAS or NumPy's BLAS; 2n^3 operations, inputs of mean 0 and variance 1."""
    xp, kind = backend.xp, _KINDS[dtype]
    if dtype == "float16" and backend.device.kind == "cpu":
        reason = "NumPy multiplies float16 matrices without BLAS: its rate would say nothing about this CPU"
        raise Skip(reason)
    if kind.needs:
        require_capability(backend, *kind.needs)
    require_memory(backend, 3 * n * n * np.dtype(kind.answer).itemsize + 4 * n * n * 8)
    rng = backend.rng(seed)
    a, b = kind.draw(rng, n), kind.draw(rng, n)
    c = xp.empty((n, n), dtype=kind.answer)
    # Freivalds' probe: random signs with magnitudes in [0.5, 1.5), so that no column's error is weighed with almost nothing.
    # They are multiples of 2^-10, so that the sums over integers are exact in float64.
    words = rng.words(n)
    probe = (1 - 2 * (words & np.uint32(1)).astype(xp.float64)) * (0.5 + (words >> np.uint32(22)) / 1024)
    launch, b = _launcher(xp, dtype, a, b, c)

    def run() -> Array:
        launch()
        return c

    def check(answer: Array) -> bool:
        wide = xp.float64
        residual = answer.astype(wide) @ probe - kind.read(a).astype(wide) @ (kind.read(b).astype(wide) @ probe)
        # Rounding of the sums grows as sqrt(n) of an element's size, itself sqrt(n); a row adds n of them at random signs.
        # float16 sums in float32 and rounds once at the end. 16 standard deviations are beyond chance.
        rounded = float(np.finfo(np.float16).eps) if dtype == "float16" else 0.0
        return bool((xp.abs(residual) <= 16 * n * (n**0.5 * kind.sum_eps + rounded)).all())

    return Case(
        run=run,
        check=check,
        work=Work(
            flops=2 * n**3,
            bytes_moved=a.nbytes + b.nbytes + c.nbytes,
            counting="2 per multiply-add; each matrix once, read + written",
        ),
        inputs=(a, b),
        distribution="uniform 8-bit integers" if dtype == "int8" else "bell, mean 0, variance 1",
    )


def _launcher(xp: Array, dtype: str, a: Array, b: Array, c: Array) -> tuple[Callable[[], object], Array]:
    """Return what fills `c`, and the right-hand matrix as that sees it."""
    kind = _KINDS[dtype]
    if dtype == "float8_e4m3":
        return _product_e4m3(xp, a, b, c), b.T
    if kind.operand_type:
        return _product_ex(xp, kind, a, b, c), b.T
    return lambda: xp.matmul(a, b, out=c), b


def _product_ex(xp: Array, kind: _Kind, a: Array, b: Array, c: Array) -> Callable[[], None]:
    """Return the product c = a b^T by cuBLAS: what lies in rows here are columns to it, so it is asked for c^T = (b^T)^T a^T.

    That form, the first operand transposed, is the one all its integer kernels know.
    """
    cublas, n = xp.cuda.cublas, len(c)
    handle = xp.cuda.device.get_cublas_handle()
    operand = getattr(xp.cuda.runtime, kind.operand_type or "")
    result = _R_32I if kind.answer == "int32" else _R_32F
    compute = getattr(cublas, kind.compute_type)
    scales = np.array([1, 0], dtype=kind.answer)
    one, zero = scales.ctypes.data, scales[1:].ctypes.data
    first, second, product = b.data.ptr, a.data.ptr, c.data.ptr
    options = cublas.CUBLAS_OP_T, cublas.CUBLAS_OP_N, n, n, n
    left, right = (first, operand, n), (second, operand, n)
    algorithm = cublas.CUBLAS_GEMM_DEFAULT

    def launch() -> None:
        _ = scales, a, b, c  # cuBLAS is given their addresses: they must live as long as this
        cublas.gemmEx(handle, *options, one, *left, *right, zero, product, result, n, compute, algorithm)

    return launch


def _product_e4m3(xp: Array, a: Array, b: Array, c: Array) -> Callable[[], None]:
    """Return the product c = a b^T by cuBLASLt, the one library with fp8; its descriptors live as long as the process."""
    try:
        lt = importlib.import_module("nvmath.bindings.cublasLt")
    except ImportError as err:
        reason = "fp8 products need cuBLASLt through nvmath-python, which is not installed"
        raise Skip(reason) from err
    cublas, n = xp.cuda.cublas, len(c)
    handle, found, count = lt.create(), lt.MatmulHeuristicResult(1), np.zeros(1, dtype=np.int32)
    product = lt.matmul_desc_create(cublas.CUBLAS_COMPUTE_32F, _R_32F)
    transposed = np.array([cublas.CUBLAS_OP_T], dtype=np.int32)
    lt.matmul_desc_set_attribute(product, lt.MatmulDescAttribute.TRANSA, transposed.ctypes.data, transposed.nbytes)
    operand, result = (lt.matrix_layout_create(t, n, n, n) for t in (_R_8F_E4M3, _R_32F))
    preference, limit = lt.matmul_preference_create(), np.array([_WORKSPACE_BYTES], dtype=np.uint64)
    most = lt.MatmulPreferenceAttribute.MAX_WORKSPACE_BYTES
    lt.matmul_preference_set_attribute(preference, most, limit.ctypes.data, limit.nbytes)
    layouts = operand, operand, result, result
    lt.matmul_algo_get_heuristic(handle, product, *layouts, preference, 1, found.ptr, count.ctypes.data)
    if not count[0]:
        reason = "cuBLASLt knows no fp8 product of this size for this GPU"
        raise Skip(reason)
    space, scales = xp.empty(_WORKSPACE_BYTES, dtype=np.uint8), np.array([1, 0], dtype=np.float32)
    one, zero = scales.ctypes.data, scales[1:].ctypes.data
    into = (c.data.ptr, result)

    def launch() -> None:
        _ = scales, found  # their addresses are used; an algorithm is the first field of what was found
        left, right, stream = (b.data.ptr, operand), (a.data.ptr, operand), xp.cuda.get_current_stream().ptr
        ends = found.ptr, space.data.ptr, space.nbytes, stream
        lt.matmul(handle, product, one, *left, *right, zero, *into, *into, *ends)

    return launch
