"""Compiles the verifier's loops ahead of their use, in a process of its own: `python -m harness.proof.ahead NAME` writes one as bytes to stdout.

What is written needs no compiler, no linker and no library: machine code and the constants it reads, placed as they will lie in memory, and where in it the
function begins. Numba and LLVM, 120 MiB of them, end with this process; `loops` maps the bytes and calls them.

Promised: whatever is not code or a constant in the same piece, found by its distance alone, is refused here; nothing is left to be resolved later.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass
from typing import Any

from harness.errors import FailureError, MisuseError

__all__ = ["linked", "object_of"]

_PROGBITS, _SYMTAB, _RELA = 1, 2, 4  # kinds of sections, ELF-64
_WRITE, _ALLOC = 1, 2
_DISTANCES = {2: "R_X86_64_PC32", 4: "R_X86_64_PLT32"}  # both 32 bits of S + A - P, once nothing lies between
_WORD = struct.Struct("<i")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Section:
    """What an object file says of one of its sections, and its bytes."""

    name: str
    kind: int
    flags: int
    link: int
    info: int
    align: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Symbol:
    name: str
    section: int
    value: int


def main() -> None:
    """Write a loop to stdout: where it begins, 8 bytes, and its code."""
    name = sys.argv[1]
    code, begin = linked(*object_of(name))
    sys.stdout.buffer.write(struct.pack("<Q", begin) + code)


def object_of(name: str) -> tuple[bytes, str]:
    """Compile a loop of `cpu_kernels` for pointers and this CPU; return an object file and the function's name in it.

    Raises:
        MisuseError: there is no such loop.
    """
    from llvmlite import binding  # type: ignore[import-untyped]
    from numba import njit, types

    from harness.proof import cpu_kernels

    doubles, integers, words = (types.CPointer(t) for t in (types.float64, types.int64, types.uint32))
    arrays: dict[str, tuple[Any, ...]] = {
        "project_integers": (doubles, integers, words, types.CPointer(types.int8)),
        "project_floats": (doubles, doubles, words, types.CPointer(types.uint8), doubles),
    }
    if name not in arrays:
        msg = f"no loop {name!r}; there are {', '.join(arrays)}"
        raise MisuseError(msg)
    scalars = (types.uint64, types.uint64, types.int64, types.int64, types.int64)
    bare = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    loop = njit(types.void(*scalars, *arrays[name]), **bare, **cpu_kernels.OPTIONS)(getattr(cpu_kernels, name))
    signature = loop.signatures[0]
    target = binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(),
        features=binding.get_host_cpu_features().flatten(),
        opt=3,
        reloc="pic",
        codemodel="small",
    )
    code: bytes = target.emit_object(binding.parse_assembly(loop.inspect_llvm(signature)))
    return code, loop.overloads[signature].fndesc.llvm_func_name


def linked(code: bytes, function: str) -> tuple[bytes, int]:
    """Place the sections of an object file one after another; return the piece and where the function begins in it.

    Raises:
        FailureError: it is not x86-64, or needs anything but distances between its own code and constants.
    """
    if code[:6] != b"\x7fELF\x02\x01" or code[18:20] != b"\x3e\x00":
        msg = "the compiler made something else than 64-bit ELF for x86-64"
        raise FailureError(msg)
    sections = _sections(code)
    piece, places = bytearray(), dict[int, int]()
    for at, section in enumerate(sections):
        if section.kind == _PROGBITS and section.flags & _ALLOC and section.name != ".eh_frame":
            if section.flags & _WRITE:
                msg = f"section {section.name} is to be written to"
                raise FailureError(msg)
            piece += bytes(-len(piece) % section.align)
            places[at] = len(piece)
            piece += section.data
    symbols = _symbols(sections)
    for section in sections:
        if section.kind == _RELA and section.info in places:
            _resolve(section, piece, places, symbols)
    return bytes(piece), next(places[s.section] + s.value for s in symbols if s.name == function)


def _resolve(relocations: _Section, piece: bytearray, places: dict[int, int], symbols: list[_Symbol]) -> None:
    for offset, info, addend in struct.iter_unpack("<QQq", relocations.data):
        kind, symbol = info & 0xFFFFFFFF, symbols[info >> 32]
        if kind not in _DISTANCES or symbol.section not in places:
            msg = f"the code needs {symbol.name or 'something'} by a relocation of kind {kind}, and is to need nothing"
            raise FailureError(msg)
        place = places[relocations.info] + offset
        target = places[symbol.section] + symbol.value
        _WORD.pack_into(piece, place, target + addend - place)


def _sections(code: bytes) -> list[_Section]:
    table, size, count, names_at = (
        *struct.unpack_from("<Q", code, 40),
        *struct.unpack_from("<3H", code, 58),
    )
    heads = [struct.unpack_from("<2I4Q2I2Q", code, table + size * at) for at in range(count)]
    names = code[heads[names_at][4] :]
    return [
        _Section(
            name=_text(names, name),
            kind=kind,
            flags=flags,
            link=link,
            info=info,
            align=max(align, 1),
            data=code[offset : offset + length],
        )
        for name, kind, flags, _, offset, length, link, info, align, _ in heads
    ]


def _symbols(sections: list[_Section]) -> list[_Symbol]:
    held = next(s for s in sections if s.kind == _SYMTAB)
    names = sections[held.link].data
    return [
        _Symbol(name=_text(names, name), section=section, value=value)
        for name, _, _, section, value, _ in struct.iter_unpack("<IBBHQQ", held.data)
    ]


def _text(names: bytes, at: int) -> str:
    return names[at : names.index(b"\0", at)].decode()


if __name__ == "__main__":
    main()
