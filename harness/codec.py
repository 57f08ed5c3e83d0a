r"""Records <-> canonical bytes (RFC 8785, "JCS"), their digests, strict decoding, and their JSON Schema.

Decoding accepts one spelling only: what decodes and re-encodes to the very same bytes. That single rule refuses unknown
fields, duplicate keys, other key orders, white space, `1.0` for `1` and `\u0041` for `A`; the rest of this module finds the
words to say which of these it was, and where.

Schema history
    harness.report/1   2026-11: first version
    harness.quote/1    2026-11: first version
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import ijson
import msgspec
import rfc8785

from harness import model
from harness.errors import FailureError, ForgeryError, MisuseError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MAX_BYTES", "MAX_DEPTH", "decode", "digest", "encode", "plain", "read", "schema"]

T = TypeVar("T")

MAX_BYTES = 64 << 20
MAX_DEPTH = 32  # our deepest record has 7 levels


def plain(record: object) -> Any:
    """Turn a record into dicts, lists, strings and numbers; `Decimal` becomes a string."""
    return msgspec.to_builtins(record)


def encode(record: object) -> bytes:
    """Return the canonical bytes of a record.

    Raises:
        FailureError: a number is NaN, infinite, or an integer beyond 2**53 - 1, which JSON cannot carry exactly.
    """
    try:
        return rfc8785.dumps(plain(record))
    except rfc8785.CanonicalizationError as err:
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
    if len(data) > MAX_BYTES:
        msg = f"{len(data)} bytes are more than the {MAX_BYTES} a document may have"
        raise ForgeryError(msg)
    try:
        record = msgspec.json.decode(data, type=kind, strict=True)
    except msgspec.ValidationError as err:
        what, _, path = str(err).partition(" - at `")
        raise ForgeryError(what[0].lower() + what[1:], path.rstrip("`") or "$") from err
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as err:
        raise _malformed(data, str(err)) from err
    try:
        canonical = encode(record)
    except (FailureError, UnicodeError) as err:
        what = f"has no canonical form: {err}"
        raise ForgeryError(what) from err
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


def _step(path: str, key: str | int | None) -> str:
    if key is None:
        return path
    if isinstance(key, int):
        return f"{path}[{key}]"
    return f"{path}.{key}" if key.isidentifier() else f"{path}[{json.dumps(key)}]"


class _Cursor:
    """Follows parse events and knows the path of the value it stands on. Iterative, so depth cannot hurt it."""

    def __init__(self) -> None:
        self._keys: list[str | int | None] = []
        self._seen: list[set[str]] = []

    @property
    def path(self) -> str:
        path = "$"
        for key in self._keys:
            path = _step(path, key)
        return path

    def _next_element(self) -> None:
        if self._keys and isinstance(self._keys[-1], int):
            self._keys[-1] += 1

    def follow(self, event: str, value: object) -> None:
        if event == "map_key":
            self._keys[-1] = key = str(value)
            if key in self._seen[-1]:
                what = "the key appears twice"
                raise ForgeryError(what, self.path)
            self._seen[-1].add(key)
        elif event in {"end_map", "end_array"}:
            self._keys.pop()
            self._seen.pop()
        else:
            self._next_element()
            if event in {"start_map", "start_array"}:
                self._keys.append(None if event == "start_map" else -1)
                self._seen.append(set())
                if len(self._keys) > MAX_DEPTH:
                    what = f"nested deeper than {MAX_DEPTH} levels"
                    raise ForgeryError(what, self.path)


def _walk(data: bytes) -> tuple[str, bool]:
    """Parse as far as possible; return the path reached, and whether the text was whole."""
    cursor = _Cursor()
    try:
        for event, value in ijson.basic_parse(data, use_float=True):
            cursor.follow(event, value)
    except (ijson.JSONError, UnicodeDecodeError, ValueError):
        return cursor.path, False
    return cursor.path, True


def _malformed(data: bytes, why: str) -> ForgeryError:
    try:
        path, _ = _walk(data)
    except ForgeryError as fault:
        return fault
    if "truncated" in why:
        return ForgeryError("the file ends here: it is truncated", path)
    return ForgeryError(f"not JSON after this point ({why}); NaN and Infinity are not JSON either", path)


def _second_spelling(data: bytes, canonical: bytes) -> ForgeryError:
    try:
        _walk(data)
    except ForgeryError as fault:  # a duplicate key
        return fault
    for path, what in _differences("$", json.loads(data), json.loads(canonical)):
        return ForgeryError(what, path)
    same = next((i for i, (a, b) in enumerate(zip(data, canonical, strict=False)) if a != b), len(canonical))
    path, _ = _walk(data[:same])
    return ForgeryError(f"second spelling: not the canonical form of RFC 8785 (byte {same})", path)


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
        yield path, f"second spelling: {json.dumps(given)} where the canonical form has {json.dumps(kept)}"


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
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Records of harness",
        "$ref": "#/$defs/Report",
        "$defs": dict(sorted(parts.items())),
    }
