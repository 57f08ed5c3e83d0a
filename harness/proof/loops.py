"""The verifier's compiled loops without their compiler: machine code out of a private cache, made by another process where there is none.

Numba and LLVM take 120 MiB of a process that compiles with them, more than twice what all else takes that checks a proof. So they run once, in a process of their own (`ahead`);
after that a check maps 4 kB of code and calls it.

Promised: code is run only if this user's process made it: the folder and the file must belong to this user, and nobody else may write to them, whoever
owns the folders above. It was made from these sources, by these versions, for this CPU: all that is in its name. What was torn or damaged
is made again.
Not promised: anything against who is this user, or root.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import mmap
import os
import platform
import secrets
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from harness.errors import FailureError, MisuseError

__all__ = ["STRIP", "loop"]

STRIP = 1024  # columns that the loops take at once

_MACHINE = "x86_64"  # what `ahead` can place
_SOURCES = ("cpu_kernels.py", "ahead.py", "loops.py")
_COMPILE_S = 120
_CODE_MOST_BYTES = 1 << 20
_DIGEST_BYTES, _BEGIN_BYTES = 32, 8
_SCALARS = (ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
_POINTER = ctypes.c_void_p

_log = logging.getLogger(__name__)


@functools.cache
def loop(name: str) -> Callable[..., None]:
    """Return a loop of `cpu_kernels`, which takes the generator's key and lane, n, the rows from where to where, and arrays of one dimension.

    Where no machine code can be had without it, Numba is loaded here, and 120 MiB with it; a warning says why.
    """
    try:
        return _Native(_code(name))
    except (FailureError, OSError) as err:
        _log.warning("the loop %s is compiled in this process, which takes some 120 MiB more: %s", name, err)
        return _by_numba(name)


def _by_numba(name: str) -> Callable[..., None]:
    from numba import njit

    from harness.proof import cpu_kernels

    compiled: Callable[..., None] = njit(cache=True, **cpu_kernels.OPTIONS)(getattr(cpu_kernels, name))

    def call(key: int, lane: int, n: int, begin: int, end: int, *arrays: np.ndarray[Any, Any]) -> None:
        compiled(np.uint64(key), np.uint64(lane), n, begin, end, *arrays)

    return call


class _Native:
    """Code as `ahead` writes it, in memory of its own; a call lets other threads run meanwhile."""

    def __init__(self, made: bytes) -> None:
        begin, code = int.from_bytes(made[:_BEGIN_BYTES], "little"), made[_BEGIN_BYTES:]
        self._room = mmap.mmap(-1, len(code), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._room.write(code)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._room))
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        if protect(address, len(code), mmap.PROT_READ | mmap.PROT_EXEC):
            number = ctypes.get_errno()
            raise OSError(number, f"memory cannot be made executable: {os.strerror(number)}")
        self._address = address + begin

    def __call__(self, key: int, lane: int, n: int, begin: int, end: int, *arrays: np.ndarray[Any, Any]) -> None:
        if not all(array.flags.c_contiguous for array in arrays):
            msg = "arrays must lie in memory without gaps: the loop gets their addresses alone"
            raise MisuseError(msg)
        # As Numba calls: before the arguments, where to put what is returned and what was raised. Nothing here, ever: the status is 0.
        out, pointers = (_POINTER(), _POINTER()), [array.ctypes.data for array in arrays]
        kinds = (_POINTER, _POINTER, *_SCALARS, *[_POINTER] * len(arrays))
        function = ctypes.CFUNCTYPE(ctypes.c_int32, *kinds)(self._address)
        if function(*map(ctypes.addressof, out), key, lane, n, begin, end, *pointers):
            msg = "the compiled loop says that it failed, where nothing can"
            raise FailureError(msg)


# --- where it is kept -------------------------------------------------------------------------------------------------


def _code(name: str) -> bytes:
    """Return a loop's code: kept from before, or made now, and kept if that can be.

    Raises:
        FailureError: it cannot be made here.
    """
    if platform.machine() != _MACHINE:
        msg = f"there is no machine code for {platform.machine()}"
        raise FailureError(msg)
    kept_as = f"{name}-{_origin()}"
    with _folder() as folder:
        known = None if folder is None else _read(folder, kept_as)
        if known:
            return known
        made = _made(name)
        if folder is not None:
            with suppress(OSError):  # a full disk: it is made again next time
                _write(folder, kept_as, made)
        return made


def _origin() -> str:
    """Return a digest of all that decides on the code: sources, versions, and what this CPU can do."""
    here = Path(__file__).parent
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = {line for line in lines if line.startswith(("model", "cpu family", "vendor_id", "flags"))}
    parts = [(here / name).read_bytes() for name in _SOURCES]
    parts += [f"{name} {version(name)}".encode() for name in ("numba", "llvmlite", "numpy")]
    parts += [line.encode() for line in sorted(cpu)]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()[:32]


def _made(name: str) -> bytes:
    """Let another process compile.

    Raises:
        FailureError: it could not.
    """
    # It imports from where this process does: -P keeps out the current folder, in which strangers' files may lie.
    package = str(Path(__file__).parents[2])
    environment = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_")}
    environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([*filter(None, sys.path), package]))
    command = [sys.executable, "-P", "-m", "harness.proof.ahead", name]
    try:
        done = subprocess.run(  # noqa: S603 - our own module
            command, env=environment, capture_output=True, check=False, timeout=_COMPILE_S
        )
    except subprocess.TimeoutExpired as err:
        msg = f"compiling took more than {_COMPILE_S} s"
        raise FailureError(msg) from err
    if done.returncode or not _BEGIN_BYTES < len(done.stdout) <= _CODE_MOST_BYTES:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        msg = f"the compiling process ended with {done.returncode}: {said[-1] if said else 'it said nothing'}"
        raise FailureError(msg)
    return done.stdout


@contextmanager
def _folder() -> Iterator[int | None]:
    """Open the folder of the cache, made if it is not there; None where it is not this user's alone."""
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "harness"
        root.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            (root / "loops").mkdir(mode=0o700)
        folder = os.open(root / "loops", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (OSError, RuntimeError) as err:  # RuntimeError: nobody's home
        _log.warning("compiled loops are not kept: %s", err)
        yield None
        return
    try:
        yield folder if _is_private(os.fstat(folder), 0o077) else None
    finally:
        os.close(folder)


def _is_private(status: os.stat_result, others: int) -> bool:
    """Tell whether something is this user's, and has none of these permissions for others; if not, say so."""
    if status.st_uid == os.geteuid() and not status.st_mode & others:
        return True
    _log.warning(
        "compiled loops are not kept: what is there belongs to user %d, mode %04o", status.st_uid, status.st_mode
    )
    return False


def _read(folder: int, name: str) -> bytes | None:
    """Return what is kept under a name, whole and by this user; None if nothing is."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or not _is_private(status, 0o022):
            return None
        found = file.read(_CODE_MOST_BYTES + _DIGEST_BYTES)
    digest, made = found[:_DIGEST_BYTES], found[_DIGEST_BYTES:]
    return made if made and hashlib.sha256(made).digest() == digest else None


def _write(folder: int, name: str, made: bytes) -> None:
    """Keep code under a name: all of it or nothing, whoever else does the same."""
    draft = f".{name}-{secrets.token_hex(8)}"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(hashlib.sha256(made).digest() + made)
        os.replace(draft, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        with suppress(OSError):
            os.unlink(draft, dir_fd=folder)
        raise
