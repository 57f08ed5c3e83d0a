"""The container of GGUF files, llama.cpp's format: metadata and tensors, read without trust. What model they are is told by `gguf`.

The `gguf` package was weighed and left out: it believes the lengths that a file claims, and names and rows would still have to be put
in order for our model. Read are versions 2 and 3, little-endian, with the tensor types of `ggml`. Sources: ggml-org/ggml, `docs/gguf.md`;
ggml-org/llama.cpp, `ggml/src/gguf.cpp`.

Held to
    - Every length and count is checked against what is left of the file before it is used; strings are decoded when they are asked for.
      A header has at most 64 MiB.
    - Tensors follow each other in the file as the format says, and end within it; a name stands once.
    - A type of tensor that is not read here is refused by name when the file is opened.
Not held to
    - As for safetensors: what the numbers are, and files that shrink while they are read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from harness.errors import MisuseError
from harness.inference import ggml
from harness.inference.mapped import MAX_TENSORS, Mapped, spelled

if TYPE_CHECKING:
    from harness.device.backend import Array

__all__ = ["MAX_HEADER_BYTES", "Gguf", "Metadata", "Tensor", "open_container"]

MAX_HEADER_BYTES = 64 << 20  # the largest vocabularies, with their merges, take some 10 MiB
MAX_KEYS = 1 << 14
MAX_STRINGS = 1 << 21  # of one array
MAX_AXES = 4
MAX_NAME = 1 << 8  # bytes of a tensor's name; the format says 64
_MAGIC, _VERSIONS, _ALIGNMENT = b"GGUF", (2, 3), 32

# Types of values by their numbers: as NumPy calls them.
_NUMBERS: Mapping[int, str] = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "<u1", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
_FLOAT32, _BOOL, _STRING, _ARRAY = 6, 7, 8, 9
_LEAST_KEY_BYTES = 8 + 4 + 1
_LEAST_TENSOR_BYTES = 8 + 4 + 4 + 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """Where a tensor lies in its file, and how; `shape` as NumPy has it, the fastest axis last."""

    kind: ggml.Format
    shape: tuple[int, ...]
    first_byte: int
    nbytes: int


class _Cursor:
    """A place in a file's header that moves on as it is read, and never past what is there."""

    def __init__(self, file: Mapped, at: int = 0) -> None:
        self.file = file
        self.at = at
        self.end = min(file.size_bytes, MAX_HEADER_BYTES)

    @property
    def left(self) -> int:
        return self.end - self.at

    def refuse(self, where: str, what: str) -> NoReturn:
        self.file.refuse(where, what)

    def take(self, size: int, where: str) -> int:
        """Step over some bytes; returns where they begin."""
        if size > self.left:
            room = (
                "the file"
                if self.end == self.file.size_bytes
                else f"the {MAX_HEADER_BYTES} bytes that a header may have"
            )
            self.refuse(where, f"{size} bytes are claimed at byte {self.at}; {self.left} are left of {room}")
        self.at += size
        return self.at - size

    def number(self, code: str, where: str) -> int:
        """Read an unsigned integer: "<u4" or "<u8"."""
        at = self.take(int(code[2]), where)
        return int.from_bytes(self.file.data[at : self.at], "little")

    def string(self, where: str, most: int | None = None) -> bytes:
        """Read a string, of at most so many bytes."""
        size = self.number("<u8", where)
        if most is not None and size > most:
            self.refuse(where, f"a string of {size} bytes; here it has at most {most}")
        at = self.take(size, where)
        return self.file.data[at : self.at]

    def skip_string(self, where: str) -> None:
        """Step over a string."""
        self.take(self.number("<u8", where), where)

    def count(self, least_bytes: int, most: int, where: str) -> int:
        """Read a count of things that take so many bytes each at least."""
        count = self.number("<u8", where)
        if count > most or count * least_bytes > self.left:
            self.refuse(where, f"{count} are claimed; there is room for {min(most, self.left // least_bytes)} at most")
        return count

    def skip(self, kind: int, where: str) -> None:
        """Step over a value."""
        if kind in _NUMBERS:
            self.take(int(_NUMBERS[kind][2]), where)
        elif kind == _STRING:
            self.skip_string(where)
        elif kind == _ARRAY:
            inner = self.number("<u4", where)
            if inner in _NUMBERS:
                size = int(_NUMBERS[inner][2])
                self.take(self.count(size, MAX_HEADER_BYTES, where) * size, where)
            elif inner == _STRING:
                for _ in range(self.count(8, MAX_STRINGS, where)):
                    self.skip_string(where)
            else:
                self.refuse(
                    where,
                    f"an array of type {inner}; there are numbers ({', '.join(map(str, _NUMBERS))}) and strings (8)",
                )
        else:
            self.refuse(where, f"type {kind} is none of the format's, which are 0 to 12")


class Metadata(Mapping[str, Any]):
    """What a file says of itself, each value read when it is asked for: numbers, strings, arrays of numbers, tuples of strings."""

    def __init__(self, file: Mapped, places: Mapping[str, tuple[int, int]]) -> None:
        self._file = file
        self._places = places

    def __getitem__(self, key: str) -> Any:
        """Read one value.

        Raises:
            KeyError: there is none of this name.
            ForgeryError: it is no number, truth value or text of its type.
        """
        kind, at = self._places[key]
        where = f"$.metadata{spelled(key)[1:]}"
        cursor = _Cursor(self._file, at)
        if kind == _STRING:
            return self._text(cursor.string(where), where)
        if kind != _ARRAY:
            value = self._file.values(_NUMBERS[kind], at, 1)[0].item()
            return self._truth(value, where) if kind == _BOOL else _shortest(value) if kind == _FLOAT32 else value
        inner = cursor.number("<u4", where)
        count = cursor.number("<u8", where)
        if inner == _STRING:
            return tuple(self._text(cursor.string(where), where) for _ in range(count))
        return self._file.values(_NUMBERS[inner], cursor.at, count)

    def _text(self, raw: bytes, where: str) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError as err:
            self._file.refuse(where, f"{raw[:40]!r} is no UTF-8: {err.reason}", err)

    def _truth(self, value: int, where: str) -> bool:
        if value > 1:
            self._file.refuse(where, f"a truth value is {value}; it must be 0 or 1")
        return bool(value)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _shortest(value: float) -> float:
    """Return the number that was meant by a float32, the one of fewest digits: 1e-05 was written, 9.999999747378752e-06 is stored."""
    return float(str(np.float32(value)))


class Gguf(Mapping[str, Any]):
    """The tensors of a file by the file's own names, each expanded to float32 when it is asked for."""

    def __init__(self, file: Mapped, metadata: Metadata, tensors: Mapping[str, Tensor]) -> None:
        self._file = file
        self.metadata = metadata
        self.tensors = tensors

    def __getitem__(self, name: str) -> Array:
        """Expand one tensor to a new float32 array."""
        return self.part(name, None)

    def part(self, name: str, index: int | None) -> Array:
        """Expand one tensor, or what stands at one place of its first axis."""
        tensor = self.tensors[name]
        shape = tensor.shape if index is None else tensor.shape[1:]
        nbytes = tensor.nbytes if index is None else tensor.nbytes // tensor.shape[0]
        raw = self._file.values("<u1", tensor.first_byte + (index or 0) * nbytes, nbytes)
        blocks = raw.reshape(-1, tensor.kind.nbytes)
        out = np.empty((len(blocks), tensor.kind.weights), dtype=np.float32)
        ggml.unpack(tensor.kind, blocks, out)
        return out.reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    @property
    def nbytes(self) -> int:
        """Return how many bytes the tensors take in the file."""
        return sum(t.nbytes for t in self.tensors.values())

    def sha256(self) -> Mapping[str, str]:
        """Return the digest of the file by its name; reads all of it."""
        return {self._file.name: self._file.sha256()}


def open_container(path: Path | str) -> Gguf:
    """Open a GGUF file: metadata and tensors as they are named there, whatever model they are.

    Raises:
        MisuseError: there is no such file, or it is of a version or holds a type of tensor that is not read here.
        ForgeryError: the header is damaged or says what cannot be; the error tells where and what would be right.
    """
    cursor = _Cursor(Mapped(Path(path)))
    file = cursor.file
    if file.data[:4] != _MAGIC:
        file.refuse("$", f"begins with {file.data[:4]!r}; a GGUF file begins with {_MAGIC!r}")
    cursor.take(4, "$")
    version = cursor.number("<u4", "$.version")
    if version not in _VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS
        msg = f"{file.name!r} is GGUF of version {version}{' (big-endian)' if swapped else ''}; versions 2 and 3, little-endian, are read"
        raise MisuseError(msg)
    tensors = cursor.count(_LEAST_TENSOR_BYTES, MAX_TENSORS, "$.tensor_count")
    keys = cursor.count(_LEAST_KEY_BYTES, MAX_KEYS, "$.metadata_kv_count")
    metadata = Metadata(file, _places(cursor, keys))
    claims = _claims(cursor, tensors)
    return Gguf(file, metadata, _laid_out(cursor, metadata, claims))


def _name(cursor: _Cursor, where: str, most: int, known: Mapping[str, object]) -> str:
    raw = cursor.string(where, most)
    try:
        name = raw.decode()
    except UnicodeDecodeError as err:
        cursor.file.refuse(where, f"the name {raw[:40]!r} is no UTF-8: {err.reason}", err)
    if name in known:
        cursor.refuse(where, f"the name {name[:100]!r} stands twice")
    return name


def _places(cursor: _Cursor, count: int) -> dict[str, tuple[int, int]]:
    """Walk over the metadata; returns the type of each value and where it is."""
    places: dict[str, tuple[int, int]] = {}
    for i in range(count):
        key = _name(cursor, f"$.metadata[{i}]", (1 << 16) - 1, places)
        where = f"$.metadata{spelled(key)[1:]}"
        kind = cursor.number("<u4", where)
        places[key] = kind, cursor.at
        cursor.skip(kind, where)
    return places


_Claim = tuple[tuple[int, ...], ggml.Format, int]  # dimensions as NumPy has them, type, offset


def _claims(cursor: _Cursor, count: int) -> dict[str, _Claim]:
    """Read what the header says of each tensor."""
    claims: dict[str, _Claim] = {}
    for i in range(count):
        name = _name(cursor, f"$.tensors[{i}].name", MAX_NAME, claims)
        where = f"$.tensors{spelled(name)[1:]}"
        axes = cursor.number("<u4", f"{where}.n_dimensions")
        if not 1 <= axes <= MAX_AXES:
            cursor.refuse(f"{where}.n_dimensions", f"{axes} dimensions; there are 1 to {MAX_AXES}")
        shape = tuple(cursor.number("<u8", f"{where}.dimensions") for _ in range(axes))[::-1]
        kind = cursor.number("<u4", f"{where}.type")
        offset = cursor.number("<u8", f"{where}.offset")
        if kind not in ggml.FORMATS:
            readable = ", ".join(f.name for f in ggml.FORMATS.values())
            msg = f"tensor {name!r} of {cursor.file.name!r} is of type {ggml.named(kind)}; types {readable} are read"
            raise MisuseError(msg)
        if not all(0 < n < 1 << 48 for n in shape) or shape[-1] % ggml.FORMATS[kind].weights:
            what = f"{list(shape[::-1])} of {ggml.FORMATS[kind].name}: each must be from 1 to 2**48, the first a multiple of {ggml.FORMATS[kind].weights}"
            cursor.refuse(f"{where}.dimensions", what)
        claims[name] = shape, ggml.FORMATS[kind], offset
    return claims


def _alignment(cursor: _Cursor, metadata: Metadata) -> int:
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    fine = isinstance(alignment, int) and alignment >= 1 and not alignment & (alignment - 1)
    if not fine or alignment > MAX_HEADER_BYTES:
        cursor.refuse("$.metadata['general.alignment']", f"{alignment!r} is no power of two up to {MAX_HEADER_BYTES}")
    return int(alignment)


def _laid_out(cursor: _Cursor, metadata: Metadata, claims: Mapping[str, _Claim]) -> dict[str, Tensor]:
    """Find each tensor's place, which the format prescribes: one after another, each at the next multiple of the alignment."""
    alignment = _alignment(cursor, metadata)
    first = -(-cursor.at // alignment) * alignment
    size = cursor.file.size_bytes
    found: dict[str, Tensor] = {}
    at = 0
    for name, (shape, kind, offset) in claims.items():
        where = f"$.tensors{spelled(name)[1:]}"
        if offset != at:
            cursor.refuse(
                f"{where}.offset", f"is {offset}; the format puts this tensor at {at}, after the one before it"
            )
        nbytes = math.prod(shape) // kind.weights * kind.nbytes
        if first + at + nbytes > size:
            what = f"{list(shape[::-1])} of {kind.name} takes {nbytes} bytes from byte {first + at} on; the file has {size} in all"
            cursor.refuse(f"{where}.dimensions", what)
        found[name] = Tensor(kind=kind, shape=shape, first_byte=first + at, nbytes=nbytes)
        at = -(-(at + nbytes) // alignment) * alignment
    return found
