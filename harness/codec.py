r"""Records <-> canonical bytes (RFC 8785, "JCS"), their digests, strict decoding, and their JSON Schema.

Decoding accepts one spelling only: what decodes and re-encodes to the very same bytes. That single rule refuses unknown
fields, duplicate keys, other key orders, white space, `1.0` for `1` and `\u0041` for `A`; the rest of this module finds the
words to say which of these it was, and where.

Schema history
    harness.report/1   2026-11: first version
    harness.report/2   2026-11: regimes, clocks, soak, energy, ceiling and inputs of a measurement; preflight; how work is counted
    harness.quote/1    2026-11: first version
    harness.quote/2    2026-11: the market's price with its interval, factors and native units; terms and digests to recompute it by
    harness.challenge/1, harness.transcript/1    2026-11: first versions
    harness.challenge/2, harness.transcript/2    2026-11: each step of the work is padded, as equal rows passed for a whole state
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import math
import re
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import ijson
import msgspec
import rfc8785

from harness import model, strangers
from harness.errors import FailureError, ForgeryError, MisuseError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "MAX_BYTES",
    "MAX_DEPTH",
    "MAX_ELEMENTS",
    "MAX_VALUES",
    "decode",
    "digest",
    "encode",
    "plain",
    "read",
    "schema",
]

T = TypeVar("T")

MAX_BYTES = 64 << 20
MAX_DEPTH = 32  # our deepest record has 7 levels
MAX_ELEMENTS = 1 << 16  # of one array or object; our longest holds 10,000 warm-up times
MAX_VALUES = (
    2_000_000  # of a document, with its escapes, told from commas and backslashes: what is still judged in seconds
)
_MAX_INTEGER = 2**53 - 1


def plain(record: object) -> Any:
    """Turn a record into dicts, lists, strings and numbers; `Decimal` becomes a string."""
    return msgspec.to_builtins(record)


def encode(record: object) -> bytes:
    """Return the canonical bytes of a record.

    Raises:
        FailureError: a number is NaN, infinite, or an integer beyond 2**53 - 1, which JSON cannot carry exactly; an array is
            longer than `decode` takes; or a string is not Unicode.
    """
    for path, what in _flaws(record):
        msg = f"cannot encode a {type(record).__name__}: {path}: {what}"
        raise FailureError(msg)
    try:
        return rfc8785.dumps(plain(record))
    except (rfc8785.CanonicalizationError, UnicodeError) as err:
        msg = f"cannot encode a {type(record).__name__}: {err}"
        raise FailureError(msg) from err


def digest(record: object) -> str:
    """Return the SHA-256, in hex, of a record's canonical bytes, or of bytes as they are."""
    data = record if isinstance(record, bytes) else encode(record)
    return hashlib.sha256(data).hexdigest()


def decode(data: bytes, kind: type[T]) -> T:
    """Read one record from its canonical bytes.

    Raises:
        ForgeryError: the bytes are not the canonical spelling of such a record; says what and where.
    """
    _check_size(data)
    try:
        record = strangers.decode(data, kind)
    except msgspec.ValidationError as err:
        raise _misfit(data, kind, str(err)) from err
    except msgspec.DecodeError as err:
        raise _malformed(data, str(err)) from err
    for path, what in _flaws(record):
        raise ForgeryError(what, path)
    canonical = encode(record)
    if canonical != data:
        raise _second_spelling(data, canonical)
    return record


def read(path: Path, kind: type[T]) -> T:
    """Read one record from a file.

    Raises:
        MisuseError: there is no such file, or it cannot be read.
        ForgeryError: as `decode`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as err:
        msg = f"cannot read {str(path)!r}: {err.strerror}"
        raise MisuseError(msg) from err
    return decode(data, kind)


def _check_size(data: bytes) -> None:
    """Refuse at once what would take long to refuse, and what is no text."""
    if len(data) > MAX_BYTES:
        what = f"{len(data)} bytes are more than the {MAX_BYTES} a document may have"
        raise ForgeryError(what)
    if not data:
        what = "the file is empty"
        raise ForgeryError(what)
    if data.count(b",") + data.count(b"\\") >= MAX_VALUES:
        what = f"more than the {MAX_VALUES} values and escapes a document may have"
        raise ForgeryError(what)
    try:
        data.decode()
    except UnicodeDecodeError as err:
        what = f"not UTF-8 (byte {err.start})"
        raise ForgeryError(what, _walk(data[: err.start])) from err


def _flaws(record: object) -> Iterator[tuple[str, str]]:
    """Yield what a record holds that its canonical form may not, and where."""
    return _flaws_in(msgspec.to_builtins(record, builtin_types=(Decimal,)), "$")


def _flaws_in(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if not isinstance(value, dict | list | tuple):
        if what := _flaw(value):
            yield path, what
        return
    if len(value) > MAX_ELEMENTS:
        yield path, _too_many(len(value))
        return
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(inner, dict | list | tuple) or _flaw(
            inner
        ):  # the path of a sound number is never spelled out: there are many
            yield from _flaws_in(inner, _step(path, key))


def _flaw(value: object) -> str | None:
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{value} is not a finite number"
    if isinstance(value, int):
        return None if abs(value) <= _MAX_INTEGER else "an integer beyond 2**53 - 1 is not exact in JSON"
    if isinstance(value, Decimal):
        return None if value.is_finite() else f"{value} is not an amount"
    return None


def _too_many(count: int) -> str:
    return f"{count} elements are more than the {MAX_ELEMENTS} that an array or object may have"


_BEFORE_FIRST = -1
_BUFFER = 4 << 20  # ijson begins a token anew with each buffer: at its own 64 KiB a long number takes minutes
_TRIED = 64  # keys of a mapping; ours have a dozen
_SAID = 200  # characters of a stranger's text that a message repeats


def _step(path: str, key: str | int | None) -> str:
    if key is None:
        return path
    if isinstance(key, int):
        return f"{path}[{max(key, 0)}]"
    key = _short(key)
    return f"{path}.{key}" if key.isidentifier() else f"{path}[{json.dumps(key)}]"


def _short(text: str) -> str:
    """Keep a stranger's text from filling the screen."""
    return text if len(text) <= _SAID else f"{text[:_SAID]}..."


class _Cursor:
    """Follows parse events and knows the path of the value it stands on. Iterative, so depth cannot hurt it."""

    def __init__(self) -> None:
        self._keys: list[str | int | None] = []
        self._seen: list[set[str]] = []

    @property
    def path(self) -> str:
        return functools.reduce(_step, (k for k in self._keys if k != _BEFORE_FIRST), "$")

    def follow(self, event: str, value: object) -> None:
        if event == "map_key":
            self._enter_key(str(value))
        elif event in {"end_map", "end_array"}:
            self._keys.pop()
            self._seen.pop()
        else:
            self._enter_value(event)

    def _enter_key(self, key: str) -> None:
        self._keys[-1] = key
        if key in self._seen[-1]:
            what = "the key appears twice"
            raise ForgeryError(what, self.path)
        self._seen[-1].add(key)
        self._check_count(len(self._seen[-1]))

    def _enter_value(self, event: str) -> None:
        if self._keys and isinstance(self._keys[-1], int):
            self._keys[-1] += 1
            self._check_count(self._keys[-1] + 1)
        if event in {"start_map", "start_array"}:
            self._keys.append(None if event == "start_map" else _BEFORE_FIRST)
            self._seen.append(set())
            if len(self._keys) > MAX_DEPTH:
                what = f"nested deeper than {MAX_DEPTH} levels"
                raise ForgeryError(what, self.path)

    def _check_count(self, count: int) -> None:
        if count > MAX_ELEMENTS:
            self._keys.pop()
            raise ForgeryError(_too_many(count), self.path)


def _walk(data: bytes) -> str:
    """Parse as far as the text is JSON, and return the path reached."""
    cursor = _Cursor()
    with contextlib.suppress(ijson.JSONError, ValueError):  # ValueError: text or digits that Python will not hold
        for event, value in ijson.basic_parse(data, use_float=True, buf_size=_BUFFER):
            cursor.follow(event, value)
    return cursor.path


def _misfit(data: bytes, kind: type, why: str) -> ForgeryError:
    """Say where a value is not what its field holds, from what msgspec says."""
    what, path = _complaint(why)
    missing = re.fullmatch(r"object missing required field `(\w+)`", what)
    if missing:
        return ForgeryError("missing field", _step(path, missing[1]))
    return ForgeryError(_short(what), _culprit(data, kind, path) if "[...]" in path else path)


def _complaint(why: str) -> tuple[str, str]:
    what, _, quoted = why.partition(" - at `")
    return what[0].lower() + what[1:], quoted.rstrip("`") or "$"


def _culprit(data: bytes, kind: type, path: str) -> str:
    """Name the key of a mapping that msgspec writes as `[...]`: the one that is refused even when it is alone."""
    before, _, _ = path.partition("[...]")
    with contextlib.suppress(
        ValueError, LookupError, TypeError, RecursionError
    ):  # then the mapping itself is near enough
        document = _loads(data)
        mapping: dict[str, Any] = functools.reduce(_inner, re.findall(r"\.(\w+)|\[(\d+)\]", before), document)
        for key, value in list(mapping.items())[:_TRIED]:
            mapping.clear()
            mapping[key] = value
            try:
                msgspec.convert(document, kind)
            except msgspec.ValidationError as err:
                if _complaint(str(err))[1].startswith(f"{before}[...]"):
                    return _step(before, key)
    return path


def _inner(value: Any, step: tuple[str, str]) -> Any:
    field, index = step
    return value[field] if field else value[int(index)]


def _malformed(data: bytes, why: str) -> ForgeryError:
    at = re.search(r" \(byte (\d+)\)$", why)
    end = int(at[1]) if at else len(data)
    try:
        path = _walk(data[: end + 1])
    except ForgeryError as fault:
        return fault
    if "truncated" in why or (end >= len(data) and "trailing" not in why):
        return ForgeryError("the file ends here: it is truncated", path)
    word = re.search(rb"NaN|-?Infinity", data[max(end - 1, 0) : end + 9])
    if word:  # with a null in its place the walk reaches the very value
        path = _walk(data[: max(end - 1, 0) + word.start()] + b"null ")
        return ForgeryError(f"NaN and Infinity are not JSON (byte {end})", path)
    return ForgeryError(f"not JSON after this point: {why.removeprefix('JSON is malformed: ')}", path)


def _second_spelling(data: bytes, canonical: bytes) -> ForgeryError:
    try:
        _walk(data)
    except ForgeryError as fault:  # a duplicate key
        return fault
    for path, what in _differences("$", _loads(data), _loads(canonical)):
        return ForgeryError(what, path)
    same = _first_difference(data, canonical)
    what = f"second spelling: not the canonical form of RFC 8785 (byte {same})"
    return ForgeryError(what, _walk(data[:same]))


def _first_difference(data: bytes, other: bytes) -> int:
    at = 0
    for width in (1 << 12, 1):
        at = next(i for i in itertools.count(at, width) if data[i : i + width] != other[i : i + width])
    return at


def _loads(data: bytes) -> Any:
    # An unknown field may hold an integer of a million digits, which Python refuses to read.
    return strangers.loads(data, parse_int=lambda digits: int(digits) if len(digits) < 20 else digits)  # noqa: PLR2004


def _differences(path: str, given: Any, kept: Any) -> Iterator[tuple[str, str]]:
    """Yield what a document says and the record does not hold; equal numbers in two spellings are not told apart here."""
    if isinstance(given, dict) and isinstance(kept, dict):
        for key, value in given.items():
            here = _step(path, key)
            if key not in kept:
                yield here, "unknown field"
            else:
                yield from _differences(here, value, kept[key])
        for key in kept.keys() - given.keys():
            yield _step(path, key), "missing field: a canonical document spells its nulls and defaults out"
    elif isinstance(given, list) and isinstance(kept, list):
        for i, (a, b) in enumerate(zip(given, kept, strict=False)):
            yield from _differences(_step(path, i), a, b)
    elif given != kept or type(given) is not type(kept):
        yield (
            path,
            f"second spelling: {_short(json.dumps(given))} where the canonical form has {_short(json.dumps(kept))}",
        )


def _records() -> list[type]:
    found: list[type] = [getattr(model, name) for name in model.__all__]
    return [kind for kind in found if dataclasses.is_dataclass(kind)]


def schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of every record, each under `$defs` by its name."""
    _, parts = msgspec.json.schema_components(_records(), ref_template="#/$defs/{name}")
    for part in parts.values():
        if part.get("type") == "object" and "properties" in part:
            part["additionalProperties"] = False
            part["required"] = sorted(part["properties"])  # canonical documents spell every field out
    whole = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Records of harness",
        "$ref": "#/$defs/Report",
        "$defs": dict(sorted(parts.items())),
    }
    document: dict[str, Any] = json.loads(json.dumps(whole))  # noqa: TID251 - our own; a default that is a tuple becomes the list it is in JSON
    return document
