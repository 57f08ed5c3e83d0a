"""Compiles kernels for GPUs that are not here, and reads their machine code. Needs NVIDIA's compilers, but no driver and no GPU.

Kernels in CUDA C++ go through NVRTC, range kernels through Numba and ptxas. All the code of one architecture is disassembled in
one go: nvdisasm takes half a second to start. What NVRTC makes is kept in the user's cache, under all that it depends on.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import re
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from harness.device.backend import CudaSource

CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0")

_BYTES = 16  # of an instruction, from sm_70 on
_LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);", re.MULTILINE)
_DOUBLE = re.compile(r"^D(FMA|ADD|MUL|SETP|MNMX|MMA)\b|\.F64\b|64H\b")
_LOCAL = re.compile(r"^(LDL|STL)\b")
_TENSOR = re.compile(r"^[BDHIOQ]MMA\b|GMMA\b|^UTC\w*MMA\b")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One machine instruction: where it stands, its name with its modifiers, and where it jumps to if it does."""

    at: int
    opcode: str
    target: int | None


Code = tuple[Instruction, ...]


def missing() -> str | None:
    """Return None where all the compilers are installed, else what to install."""
    if not (importlib.util.find_spec("cupy_backends") and importlib.util.find_spec("numba_cuda")):
        return "CuPy and numba-cuda are not installed: pip install 'gpu-assay[cuda13]'"
    absent = [name for name in ("nvdisasm", "ptxas") if not _wheel_path(f"bin/{name}")]
    return f"{' and '.join(absent)} not found: pip install nvidia-cuda-nvdisasm nvidia-cuda-nvcc" if absent else None


def _wheel_path(name: str) -> Path | None:
    """Find a file of NVIDIA's wheels, which lie in one folder from CUDA 13 on and in one each before."""
    spec = importlib.util.find_spec("nvidia")
    roots = (spec and spec.submodule_search_locations) or []
    return next((path for root in roots for path in sorted(Path(root).glob(f"*/{name}"))), None)


def _tool(name: str, *args: str) -> str:
    """Run a tool and return what it prints; its own words where it refuses."""
    done = subprocess.run([str(_wheel_path(f"bin/{name}")), *args], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


def _target(capability: str) -> str:
    return "sm_" + capability.replace(".", "")


def compile_source(source: CudaSource, capability: str) -> bytes:
    """Compile CUDA C++ with NVRTC, or find what it made of the same before; raises with the compiler's log."""
    made_of = source.name, source.text, source.options, _target(capability), _compilers()
    kept = _cache() / hashlib.sha256(repr(made_of).encode()).hexdigest()
    if kept.exists():
        return kept.read_bytes()
    cubin = _compile(source, capability)
    with tempfile.NamedTemporaryFile(dir=kept.parent, delete=False) as file:
        file.write(cubin)
    Path(file.name).rename(kept)
    return cubin


@functools.cache
def _cache() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "harness" / "cubins"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@functools.cache
def _compilers() -> tuple[str, ...]:
    """Return the version of the compiler and of each package whose headers a source may include."""
    found = {(d.name, d.version) for d in importlib.metadata.distributions() if d.name.startswith(("nvidia-", "cupy"))}
    return tuple(sorted(" ".join(pair) for pair in found))


def _compile(source: CudaSource, capability: str) -> bytes:
    nvrtc = importlib.import_module("cupy_backends.cuda.libs.nvrtc")
    header = _wheel_path("include/cuda_fp16.h")
    options = [
        f"--gpu-architecture={_target(capability)}",
        *source.options,
        *([f"-I{header.parent}"] if header else []),
    ]
    program = nvrtc.createProgram(source.text, f"{source.name}.cu", (), ())
    try:
        nvrtc.compileProgram(program, tuple(options))
        return bytes(nvrtc.getCUBIN(program)) + b"\0"  # CuPy takes it for text and drops the last byte
    except nvrtc.NVRTCError as err:
        raise RuntimeError(nvrtc.getProgramLog(program)) from err
    finally:
        nvrtc.destroyProgram(program)


def compile_range_kernel(kernel: Callable[..., None], signature: Any, capability: str) -> bytes:
    """Compile a range kernel as the GPU's backend does, for arguments of these Numba types."""
    from numba import cuda

    from harness.device.cuda import _entry

    major, minor = map(int, capability.split("."))
    text, _ = cuda.compile_ptx(_entry(cuda, kernel).py_func, signature, cc=(major, minor))
    with tempfile.TemporaryDirectory() as folder:
        ptx, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        ptx.write_text(text)
        _tool("ptxas", f"-arch={_target(capability)}", str(ptx), "-o", str(cubin))
        return cubin.read_bytes()


def listings(builds: Sequence[Callable[[], bytes]], capability: str) -> list[Code | str]:
    """Compile, two at a time, and disassemble all of it; in place of what does not compile stands the compiler's log."""
    with ThreadPoolExecutor(2) as pool:
        cubins = list(pool.map(_attempt, builds))
    texts = [b"" if isinstance(cubin, str) else b"".join(_text_sections(cubin)) for cubin in cubins]
    edges = [0]
    for text in texts:
        edges.append(edges[-1] + len(text))
    code = _disassemble(b"".join(texts), capability)
    pieces = [code[low // _BYTES : high // _BYTES] for low, high in pairwise(edges)]
    return [cubin if isinstance(cubin, str) else piece for cubin, piece in zip(cubins, pieces, strict=True)]


def _attempt(build: Callable[[], bytes]) -> bytes | str:
    try:
        return build()
    except Exception as err:  # noqa: BLE001 - one kernel that does not compile must not hide the others
        return f"does not compile: {err}"


def _text_sections(elf: bytes) -> Iterator[bytes]:
    """Take the machine code out of a 64-bit ELF file."""
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names = struct.unpack_from("<3H", elf, 0x3A)
    sections = [struct.unpack_from("<2I4Q", elf, table + i * size) for i in range(count)]
    for name, _, _, _, start, length in sections:
        if elf.startswith(b".text.", sections[names][4] + name):
            yield elf[start : start + length]


def _disassemble(code: bytes, capability: str) -> Code:
    with tempfile.NamedTemporaryFile() as file:
        file.write(code)
        file.flush()
        text = _tool("nvdisasm", f"--binary={_target(capability).replace('sm_', 'SM')}", file.name) if code else ""
    found = tuple(Instruction(int(at, 16), opcode, _jump(opcode, rest)) for at, opcode, rest in _LINE.findall(text))
    if [i.at for i in found] != list(range(0, len(code), _BYTES)):
        msg = f"read {len(found)} instructions of {len(code) // _BYTES}: the disassembly looks otherwise than expected"
        raise RuntimeError(msg)
    return found


def _jump(opcode: str, operands: str) -> int | None:
    target = re.search(r"0x([0-9a-f]+)", operands) if opcode.startswith("BRA") else None
    return int(target[1], 16) if target else None


def doubles(code: Code) -> Counter[str]:
    """Count the instructions that compute in, or convert from or to, 64-bit floating point."""
    return Counter(i.opcode for i in code if _DOUBLE.search(i.opcode))


def local_accesses(code: Code) -> Counter[str]:
    """Count the accesses to local memory: spilled registers, and arrays that fit no register."""
    return Counter(i.opcode for i in code if _LOCAL.search(i.opcode))


def tensor_instructions(code: Code) -> Counter[str]:
    """Count the instructions for tensor cores."""
    return Counter(i.opcode for i in code if _TENSOR.search(i.opcode))


def innermost_loops(code: Code) -> list[Code]:
    """Return the bodies of the loops that hold no other loop."""
    # Behind a kernel's end stands a jump to itself, which is no loop.
    spans = [(i.target, i.at) for i in code if i.target is not None and i.target < i.at]
    inner = [(a, b) for a, b in spans if not any((c, d) != (a, b) and a <= c and d <= b for c, d in spans)]
    return [tuple(i for i in code if a <= i.at <= b) for a, b in inner]
