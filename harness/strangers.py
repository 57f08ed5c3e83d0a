"""JSON that a stranger wrote, read without letting its depth end the process.

The parsers recurse in C for each level, and what stops them is Python's limit on recursion. A program around us may have raised that, as py_ecc does on
import (and with it eth-account) and Hypothesis while it runs; then 100 kB of brackets overflow the stack. So depth is counted first, without recursion.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any, TypeVar

import msgspec

__all__ = ["decode", "decode_by", "loads"]

T = TypeVar("T")

_DEPTH_MOST = 100
_SAFE_LIMIT = 5000  # of recursion: what the stack of a thread, 8 MB, holds of either parser's frames many times over
_NOT_BRACKETS = re.compile(
    rb'[^][{}"]+|"(?:[^"\\]|\\.)*+"?', re.DOTALL
)  # a string that does not end reaches to the end, so that no text is read twice


def loads(text: str | bytes, **options: Any) -> Any:
    """Return what a document says; `options` are those of `json.loads`.

    Raises:
        ValueError: it is not JSON, not UTF-8, or nested deeper than 100 levels.
    """
    told = text.decode() if isinstance(text, bytes) else text
    if _too_deep(told.encode(errors="surrogatepass")):
        raise ValueError(_told())
    return json.loads(told, **options)  # noqa: TID251 - this is the place


def decode(data: bytes, kind: type[T]) -> T:
    """Return the record that a document is, read strictly.

    Raises:
        msgspec.DecodeError: it is not JSON, or nested too deeply; or, of its subclass `ValidationError`, not such a record.
        UnicodeDecodeError: it is not UTF-8.
    """
    return decode_by(data, msgspec.json.Decoder(kind))


def decode_by(data: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Return what a decoder makes of a document; raises as `decode`."""
    if sys.getrecursionlimit() > _SAFE_LIMIT and _too_deep(data):
        raise msgspec.DecodeError(_told())
    try:
        return decoder.decode(data)
    except RecursionError as err:
        raise msgspec.DecodeError(_told()) from err


def _too_deep(data: bytes) -> bool:
    if data.count(b"[") + data.count(b"{") <= _DEPTH_MOST:
        return False
    depth = 0
    for bracket in _NOT_BRACKETS.sub(b"", data):
        depth += 1 if bracket in b"[{" else -1
        if depth > _DEPTH_MOST:
            return True
    return False


def _told() -> str:
    return f"nested deeper than {_DEPTH_MOST} levels"
