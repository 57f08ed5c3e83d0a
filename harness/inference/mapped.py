"""A file of weights in memory, and the words for what is wrong in one."""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from harness.errors import FailureError, ForgeryError, MisuseError

__all__ = ["MAX_TENSORS", "Mapped", "from_bfloat16", "refuse", "spelled"]

MAX_TENSORS = 1 << 18  # of a file; the most that any known model has in all its files is 94,000


def refuse(where: str, what: str, cause: Exception | None = None) -> NoReturn:
    """Raise `ForgeryError`: `where` in JSONPath form."""
    raise ForgeryError(what, where) from cause


class Mapped:
    """A regular file in memory, read-only; a page of it is read when it is first used. Errors call it `name`.

    Raises:
        MisuseError: there is no such file, it cannot be opened, or it is none (a folder, a pipe, a device).
        ForgeryError: it is empty.
        FailureError: the system does not map it.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.name = name or path.name
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # without waiting for a pipe's other end
        except (OSError, ValueError) as err:
            msg = f"cannot read weights from {str(path)!r}: {getattr(err, 'strerror', None) or err}"
            raise MisuseError(msg) from err
        try:
            state = os.fstat(handle)
            if not stat.S_ISREG(state.st_mode):
                msg = f"cannot read weights from {str(path)!r}: it is no regular file"
                raise MisuseError(msg)
            if state.st_size == 0:
                self.refuse("$", "the file is empty")
            self.data = mmap.mmap(handle, 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as err:
            msg = f"cannot map {str(path)!r} into memory: {err}"
            raise FailureError(msg) from err
        finally:
            os.close(handle)
        self.size_bytes = len(self.data)

    def refuse(self, where: str, what: str, cause: Exception | None = None) -> NoReturn:
        """Raise `ForgeryError` for something wrong in this file."""
        refuse(where, f"{what} (in {self.name!r})", cause)

    def sha256(self) -> str:
        """Return the digest of the bytes that are mapped, in hexadecimal."""
        return hashlib.sha256(self.data).hexdigest()

    def values(self, dtype: str, first_byte: int, count: int) -> np.ndarray[Any, Any]:
        """Return `count` numbers as they lie in the file, read-only; copied only where their address is not a multiple of their size."""
        if count == 0:
            return np.empty(0, dtype)
        return np.require(np.frombuffer(self.data, dtype, count, first_byte), requirements="A")


def from_bfloat16(bits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the float32 values of bfloat16 numbers held as uint16: the same numbers, with nothing but the result allocated."""
    wide: np.ndarray[Any, Any] = np.left_shift(bits, np.uint32(16), dtype=np.uint32)
    return wide.view(np.float32)


def spelled(name: str) -> str:
    """Return the JSONPath of a tensor, cut where a name is too long for a message."""
    return f"$[{name if len(name) <= 100 else name[:99] + '…'!r}]"  # noqa: PLR2004 - characters of a line
