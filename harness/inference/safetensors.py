"""Safetensors files: one, or a folder with its index. Read by ourselves, and without trust.

The `safetensors` package was weighed and left out: its NumPy door fails on BF16, which most published weights are, and PyTorch's door
needs PyTorch. The format is a length, a JSON header and bytes; the part worth care is the checking, and that is ours in any case.
Source of the format: huggingface/safetensors, README.md and `safetensors/src/tensor.rs`.

Held to
    - Nothing is allocated in proportion to what a file says of itself before that is checked against the file's true size; the
      records of a header take at most some ten times the header's bytes, and a header has at most 32 MiB.
    - Offsets lie in the file, in order, without overlap or hole; shapes agree with them; a name stands once.
    - An index leads to no file outside its folder, by a path or by a link (but for the store of the Hugging Face hub's own cache).
    - A file is read where it lies (mmap); BF16 becomes float32 exactly.
Not held to
    - That the numbers are the model's: `sha256` names the files, whoever knows the right digests compares.
    - A file that another process shortens while it is mapped: the kernel ends us with SIGBUS. Copy what you do not own.
"""

from __future__ import annotations

import math
import mmap
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import msgspec

from harness import strangers
from harness.errors import MisuseError
from harness.inference.mapped import MAX_TENSORS, Mapped, from_bfloat16, refuse, spelled

if TYPE_CHECKING:
    from harness.device.backend import Array

__all__ = ["MAX_HEADER_BYTES", "Safetensors", "Stored", "inside", "open_safetensors"]

MAX_HEADER_BYTES = 32 << 20  # of a header or an index; names of 94,000 tensors take some 12 MiB
MAX_RANK = 8
MAX_SHARDS = 1 << 12
MAX_NAME = 1 << 10  # characters
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_NOTE = "__metadata__"

# Bits a value, and how NumPy reads them; None where it cannot.
_KINDS: Mapping[str, tuple[int, str | None]] = {
    **{f"F{8 * size}": (8 * size, f"<f{size}") for size in (2, 4, 8)},
    **{f"I{8 * size}": (8 * size, f"<i{size}") for size in (1, 2, 4, 8)},
    **{f"U{8 * size}": (8 * size, f"<u{size}") for size in (1, 2, 4, 8)},
    "BF16": (16, "<u2"),
    "BOOL": (8, "<u1"),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0"), (8, None)),
    "C64": (64, None),
    "F4": (4, None),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), (6, None)),
}

_SPACE = rb"[ \t\n\r]*+"
_STRING = rb'"[^"\\\x00-\x1f]*+(?:\\[^\x00-\x1f][^"\\\x00-\x1f]*+)*+"'
_PAIR = _STRING + _SPACE + b":" + _SPACE + _STRING + _SPACE
_KEY = re.compile(_SPACE + b"(" + _STRING + b")" + _SPACE + b":" + _SPACE)
_TEXT = re.compile(_STRING)
_ENTRY = re.compile(rb"\{[^{}]{0,4096}+\}")
_NOTES = re.compile(rb"\{" + _SPACE + b"(?:" + _PAIR + b"(?:," + _SPACE + _PAIR + rb")*+)?+\}")
_OPEN, _CLOSE = re.compile(_SPACE + rb"\{"), re.compile(_SPACE + rb"\}")
_NEXT = re.compile(_SPACE + rb"([,}])")
_REST = re.compile(_SPACE)
_MALFORMED = (msgspec.DecodeError, UnicodeDecodeError)  # what a decoder raises
_QUOTES_OF_AN_ENTRY = 8  # three keys and one value: with more, a key stands twice


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Where a tensor lies in its file."""

    dtype: str
    shape: tuple[int, ...]
    first_byte: int
    nbytes: int


# --- the header -------------------------------------------------------------------------------------------------------


class _Json:
    """A walk over JSON text that builds nothing but what is asked for: no nesting and no length of it can cost memory."""

    def __init__(self, file: Mapped, data: mmap.mmap | bytes, first: int, last: int) -> None:
        self._file = file
        self._data = data
        self._at = first
        self._last = last

    def _matched(self, pattern: re.Pattern[bytes]) -> re.Match[bytes] | None:
        found = pattern.match(self._data, self._at, self._last)
        if found:
            self._at = found.end()
        return found

    def _expected(self, wanted: str, where: str = "$") -> NoReturn:
        seen = self._data[self._at : min(self._at + 24, self._last)]
        self._file.refuse(where, f"expected {wanted} at byte {self._at}, found {seen!r}")

    def members(
        self, pattern: Callable[[str], re.Pattern[bytes]], wanted: str
    ) -> Iterator[tuple[str, re.Match[bytes]]]:
        """Walk over the members of an object; each value must match its name's pattern."""
        if not self._matched(_OPEN):
            self._expected("'{'")
        if self._matched(_CLOSE):
            return
        while True:
            name = self._name()
            value = self._matched(pattern(name))
            if value is None:
                self._expected(wanted, spelled(name))
            yield name, value
            following = self._matched(_NEXT)
            if following is None:
                self._expected("',' or '}'", spelled(name))
            if following[1] == b"}":
                return

    def _name(self) -> str:
        key = self._matched(_KEY)
        if key is None:
            self._expected('a name in quotes and ":"')
        if key.end(1) - key.start(1) > MAX_NAME:
            what = f"a name of {key.end(1) - key.start(1) - 2} bytes; a tensor's has at most {MAX_NAME - 2}"
            self._file.refuse("$", what)
        return self.text(key[1])

    def text(self, quoted: bytes) -> str:
        """Return what a string in quotes says."""
        try:
            return strangers.decode(quoted, str)
        except _MALFORMED as err:
            self._file.refuse("$", f"{quoted[:100]!r} is no string: {err}", err)

    def end(self) -> None:
        """Make sure that nothing but white space is left."""
        self._matched(_REST)
        if self._at != self._last:
            self._expected("nothing more")


_Size = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    dtype: str
    shape: Annotated[tuple[_Size, ...], msgspec.Meta(max_length=MAX_RANK)]
    data_offsets: tuple[_Size, _Size]


def _header(file: Mapped) -> dict[str, Stored]:
    """Read and check a header; returns the tensors in the order of their bytes."""
    if file.size_bytes < 8:  # noqa: PLR2004 - the length itself
        file.refuse("$", f"the file has {file.size_bytes} bytes; the length of the header alone has 8")
    length = int.from_bytes(file.data[:8], "little")
    first = 8 + length
    if length > MAX_HEADER_BYTES or first > file.size_bytes:
        most = min(MAX_HEADER_BYTES, file.size_bytes - 8)
        file.refuse("$", f"the header claims {length} bytes; there is room for {most} at most")
    text = _Json(file, file.data, 8, first)
    found: dict[str, Stored] = {}
    noted = False
    for name, value in text.members(lambda n: _NOTES if n == _NOTE else _ENTRY, "an object of the format"):
        if name in found or (noted and name == _NOTE):
            file.refuse(spelled(name), "this name stands twice")
        if name == _NOTE:
            noted = True
        else:
            found[name] = _stored(file, name, value[0], first)
        if len(found) > MAX_TENSORS:
            file.refuse("$", f"more than {MAX_TENSORS} tensors; no known model has so many")
    text.end()
    ordered = dict(sorted(found.items(), key=lambda item: (item[1].first_byte, item[1].nbytes)))
    _check_layout(file, ordered, first)
    return ordered


def _stored(file: Mapped, name: str, value: bytes, first: int) -> Stored:
    where = spelled(name)
    try:
        entry = strangers.decode(value, _Entry)
    except _MALFORMED as err:
        file.refuse(where, str(err), err)
    if value.count(b'"') != _QUOTES_OF_AN_ENTRY:
        file.refuse(where, "a key stands twice")
    if entry.dtype not in _KINDS:
        file.refuse(f"{where}.dtype", f"{entry.dtype!r} is no type of the format: {', '.join(sorted(_KINDS))}")
    begin, end = entry.data_offsets
    room = file.size_bytes - first
    if not begin <= end <= room:
        what = f"[{begin}, {end}] lies outside the file's {room} bytes of data, or ends before it begins"
        file.refuse(f"{where}.data_offsets", what)
    bits = math.prod(entry.shape) * _KINDS[entry.dtype][0]  # of any size: a product cannot wrap round
    if bits != 8 * (end - begin):
        what = f"{list(entry.shape)} of {entry.dtype} takes {bits / 8:.16g} bytes, its data_offsets hold {end - begin}"
        file.refuse(f"{where}.shape", what)
    return Stored(dtype=entry.dtype, shape=entry.shape, first_byte=first + begin, nbytes=end - begin)


def _check_layout(file: Mapped, ordered: Mapping[str, Stored], first: int) -> None:
    """Refuse overlaps, holes and trailing bytes, which hide data or read some twice."""
    at = first
    for name, tensor in ordered.items():
        if tensor.first_byte != at:
            wrong = "overlaps what comes before" if tensor.first_byte < at else "leaves a hole"
            what = f"begins at {tensor.first_byte - first}, which {wrong}; {at - first} is where the last one ends"
            file.refuse(f"{spelled(name)}.data_offsets", what)
        at += tensor.nbytes
    if at != file.size_bytes:
        file.refuse("$", f"{file.size_bytes - at} bytes after the last tensor belong to none")


# --- files and folders ------------------------------------------------------------------------------------------------


class Safetensors(Mapping[str, Any]):
    """The tensors of one file or of a folder's files, each read when it is asked for.

    F16, F32, F64 and integers come as read-only views of the file, BF16 as new float32 arrays.
    """

    def __init__(self, files: Mapping[str, Mapped], tensors: Mapping[str, tuple[Mapped, Stored]]) -> None:
        self._files = files
        self._tensors = tensors

    def __getitem__(self, name: str) -> Array:
        """Read one tensor.

        Raises:
            KeyError: there is none of this name.
            MisuseError: its type is one that NumPy has no numbers for.
        """
        file, stored = self._tensors[name]
        kind = _KINDS[stored.dtype][1]
        if kind is None:
            readable = ", ".join(sorted(k for k, (_, reads) in _KINDS.items() if reads))
            msg = f"tensor {name!r} of {file.name!r} is {stored.dtype}, which cannot be read as numbers; what can: {readable}"
            raise MisuseError(msg)
        values = file.values(kind, stored.first_byte, math.prod(stored.shape)).reshape(stored.shape)
        if stored.dtype == "BF16":
            return from_bfloat16(values)
        return values != 0 if stored.dtype == "BOOL" else values

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    @property
    def stored(self) -> Mapping[str, Stored]:
        """Return what the headers say of each tensor."""
        return {name: stored for name, (_, stored) in self._tensors.items()}

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of every tensor."""
        return {name: stored.shape for name, (_, stored) in self._tensors.items()}

    @property
    def nbytes(self) -> int:
        """Return how many bytes the tensors take in their files."""
        return sum(stored.nbytes for _, stored in self._tensors.values())

    def renamed(self, name_of: Callable[[str], str | None]) -> Safetensors:
        """Return the same tensors under other names, without those whose name becomes None.

        Raises:
            MisuseError: two would have one name.
        """
        names = {name: other for name in self if (other := name_of(name)) is not None}
        twice = {other for other, times in Counter(names.values()).items() if times > 1}
        if twice:
            msg = f"two tensors would be called {min(twice)[:100]!r}"
            raise MisuseError(msg)
        return Safetensors(self._files, {other: self._tensors[name] for name, other in names.items()})

    def sha256(self) -> Mapping[str, str]:
        """Return the digest of each file by its name; reads all of them."""
        return {name: file.sha256() for name, file in self._files.items()}


def open_safetensors(path: Path | str) -> Safetensors:
    """Open a safetensors file, or a folder that holds `model.safetensors` or several files and their index.

    Raises:
        MisuseError: there is nothing of the kind at the path.
        ForgeryError: a header or the index is damaged or says what cannot be; the error tells where and what would be right.
    """
    path = Path(path)
    if not path.is_dir():
        return _single(Mapped(path))
    names = {name for name in (_INDEX, _SINGLE) if (path / name).is_symlink() or (path / name).exists()}
    if not names:
        msg = f"folder {str(path)!r} holds neither {_SINGLE!r} nor {_INDEX!r}"
        raise MisuseError(msg)
    return _sharded(path) if _INDEX in names else _single(inside(path, _SINGLE))


def _single(file: Mapped) -> Safetensors:
    return Safetensors({file.name: file}, {name: (file, stored) for name, stored in _header(file).items()})


def inside(folder: Path, name: str) -> Mapped:
    """Open a file of a folder. Its links may lead to the hub cache's store, `blobs` beside `snapshots`, and nowhere else.

    Raises:
        ForgeryError: the name is a path, or leads out of the folder.
        MisuseError: there is no such file.
    """
    where = f"$.weight_map[*]: {name[:100]!r}"
    if name in {"", ".", ".."} or set(name) & {"/", "\\", "\0"} or len(name) > 255:  # noqa: PLR2004 - of file systems
        refuse(where, "must be the plain name of a file in the folder")
    try:
        root, target = folder.resolve(), (folder / name).resolve()
    except (OSError, RuntimeError) as err:
        refuse(where, f"leads nowhere: {err}", err)
    roots = [root, root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [root]
    if not any(target.is_relative_to(r) for r in roots):
        refuse(where, f"leads out of the folder, to {str(target)!r}")
    return Mapped(target, name)  # what was judged, not what the name leads to by now


def _sharded(folder: Path) -> Safetensors:
    places = _index(inside(folder, _INDEX))
    names = sorted(set(places.values()))
    if len(names) > MAX_SHARDS:
        refuse("$.weight_map", f"{len(names)} files; at most {MAX_SHARDS} are opened")
    files = {name: inside(folder, name) for name in names}
    headers = {name: _header(file) for name, file in files.items()}
    for tensor, name in places.items():
        if tensor not in headers[name]:
            refuse(f"$.weight_map[{tensor[:100]!r}]", f"{name!r} holds no such tensor")
    return Safetensors(files, {tensor: (files[name], headers[name][tensor]) for tensor, name in places.items()})


class _Index(msgspec.Struct):
    weight_map: msgspec.Raw


def _index(file: Mapped) -> dict[str, str]:
    """Read an index: the file of each tensor, by name."""
    if file.size_bytes > MAX_HEADER_BYTES:
        file.refuse("$", f"an index of {file.size_bytes} bytes; at most {MAX_HEADER_BYTES} are read")
    try:
        inner = bytes(strangers.decode(bytes(file.data), _Index).weight_map)
    except _MALFORMED as err:
        file.refuse("$", f"no index of the form {{'weight_map': {{name: file}}}}: {err}", err)
    text = _Json(file, inner, 0, len(inner))
    places: dict[str, str] = {}
    files: dict[str, str] = {}  # one string for all that name it
    for name, value in text.members(lambda _: _TEXT, "a file's name in quotes"):
        if name in places:
            file.refuse(f"$.weight_map{spelled(name)[1:]}", "this name stands twice")
        if len(places) == MAX_TENSORS:
            file.refuse("$.weight_map", f"more than {MAX_TENSORS} tensors; no known model has so many")
        shard = text.text(value[0])
        places[name] = files.setdefault(shard, shard)
    text.end()
    return places
