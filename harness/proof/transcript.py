"""Transcripts as files: one line of canonical JSON, then the openings it names by their digest, as raw bytes.

Promised: a line longer than a transcript can be is not read, and nothing else is read here; `verifier` measures the rest before it reads it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import IO, Protocol

from harness import codec
from harness.errors import ForgeryError, MisuseError
from harness.model import Transcript
from harness.proof.signing import Key, is_signed_by

__all__ = ["DOMAIN", "Openings", "is_signed", "open_file", "require_writable", "signed", "write"]

DOMAIN = b"harness.transcript/2\0"
_LINE_MOST_BYTES = 1 << 18  # a thousand scans take 70 kB


class Openings(Protocol):
    """Bytes that can be read twice: an open binary file is one."""

    def seek(self, offset: int, /) -> object:
        """Go to a place."""
        ...

    def read(self, size: int, /) -> bytes:
        """Return up to so many bytes from there on."""
        ...


class _Rest:
    """What follows the first line of a file."""

    def __init__(self, file: IO[bytes], begin: int) -> None:
        self._file, self._begin = file, begin

    def seek(self, offset: int, /) -> object:
        return self._file.seek(self._begin + offset)

    def read(self, size: int, /) -> bytes:
        return self._file.read(size)


def require_writable(path: Path) -> None:
    """See that a file can be written, before work is done for it; leaves what is there as it is.

    Raises:
        MisuseError: it cannot.
    """
    there = path.exists()
    try:
        with path.open("ab"):
            pass
    except OSError as err:
        msg = f"cannot write the transcript {str(path)!r}: {err.strerror}"
        raise MisuseError(msg) from err
    if not there:
        path.unlink()


def write(path: Path, transcript: Transcript, openings: bytes) -> None:
    """Write a transcript and its openings.

    Raises:
        MisuseError: the file cannot be written.
    """
    try:
        path.write_bytes(codec.encode(transcript) + b"\n" + openings)
    except OSError as err:
        msg = f"cannot write the transcript {str(path)!r}: {err.strerror}"
        raise MisuseError(msg) from err


def open_file(file: IO[bytes]) -> tuple[Transcript, Openings]:
    """Read the record of a transcript's file, and leave its openings in the file.

    Raises:
        ForgeryError: it does not begin with a transcript.
    """
    line = file.readline(_LINE_MOST_BYTES)
    if not line.endswith(b"\n"):
        what = f"no line within {_LINE_MOST_BYTES} bytes: a transcript is a line of JSON, then its openings"
        raise ForgeryError(what)
    return codec.decode(line[:-1], Transcript), _Rest(file, len(line))


def _digest(transcript: Transcript) -> str:
    return codec.digest(replace(transcript, signature=None))


def signed(transcript: Transcript, key: Key) -> Transcript:
    """Return the transcript with the signature of this key, over all but the signature."""
    named = replace(transcript, public_key=key.public_hex, signature=None)
    return replace(named, signature=key.sign(_digest(named), domain=DOMAIN))


def is_signed(transcript: Transcript) -> bool:
    """Tell whether the signature fits the transcript and the key it names."""
    key, signature = transcript.public_key, transcript.signature
    return bool(key and signature and is_signed_by(key, _digest(transcript), signature, domain=DOMAIN))
