"""What was measured stays on its node until whoever asked for it has it on disk: one file a try, in a folder that is ours alone.

A reply can be lost on its way: the network parts, the driver is killed, the node is taken for dead. The result need not be.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import tempfile
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from harness import codec
from harness.errors import FailureError, ForgeryError
from harness.model import Outcome

__all__ = ["Reply", "Spool", "claim", "spool_folder"]

_NAME = re.compile(r"[0-9A-Za-z_-]{1,64}")
_KEPT_S = 14 * 86400.0  # a run that nobody took up again by then is forgotten


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What came of one try at a batch of jobs."""

    attempt: str  # the name that whoever asked gave the try
    started_at: str
    elapsed_s: float
    outcomes: tuple[Outcome, ...]
    contended: str | None = None  # who else computed on the device before it or after it
    device_lost: str | None = None  # how the device has gone


def spool_folder() -> Path:
    """Return where this user's spool is on this node."""
    state = os.environ.get("XDG_STATE_HOME")
    return Path(state) / "harness" / "spool" if state else Path(tempfile.gettempdir()) / f"harness-spool-{os.getuid()}"


class Spool:
    """The replies of one device in one run that nobody has acknowledged yet."""

    def __init__(self, run: str, uuid: str, root: Path | None = None) -> None:
        """Open the spool, making its folder where that is missing.

        Raises:
            FailureError: it cannot be made, or it is not ours alone.
        """
        root = root or spool_folder()
        self._folder = root / codec.digest([run, uuid])[:32]
        _make(root, self._folder)
        _forget_old(root, self._folder)

    def keep(self, reply: Reply) -> None:
        """Put a reply on disk; once this returns it outlives the power."""
        path, beside = self._path(reply.attempt), self._folder / f".{reply.attempt}"
        with beside.open("wb") as file:
            file.write(codec.encode(reply))
            file.flush()
            os.fsync(file.fileno())
        beside.rename(path)
        _sync(self._folder)

    def collect(self, have: Collection[str]) -> tuple[Reply, ...]:
        """Return what is still unacknowledged, in the order in which it was measured; forget what the other side has.

        Only for who has claimed the device: what somebody else was about to write is taken for what a kill left unfinished.
        """
        self.forget(have)
        for path in self._folder.glob(".*"):
            path.unlink(missing_ok=True)
        found: list[tuple[int, Reply]] = []
        for path in self._folder.glob("[!.]*"):
            # A file torn by a power cut is no result.
            with contextlib.suppress(ForgeryError, OSError):
                found.append((path.stat().st_mtime_ns, codec.decode(path.read_bytes(), Reply)))
        return tuple(reply for _, reply in sorted(found, key=lambda entry: entry[0]))

    def forget(self, attempts: Collection[str]) -> None:
        """Remove replies that have arrived."""
        for attempt in attempts:
            self._path(attempt).unlink(missing_ok=True)

    def close(self) -> None:
        """Remove the folder if nothing is left in it."""
        with contextlib.suppress(OSError):
            self._folder.rmdir()

    def _path(self, attempt: str) -> Path:
        if not _NAME.fullmatch(attempt):
            what = f"{attempt[:80]!r} is not the name of a try"
            raise ForgeryError(what)
        return self._folder / attempt


def claim(uuid: str, root: Path | None = None) -> int:
    """Wait until no other lease of this node has a device; return a descriptor that holds it until it is closed.

    Ray only counts GPUs: two leases that it grants on a node may be meant for the same one.

    Raises:
        FailureError: there is no place for the lock.
    """
    root = root or spool_folder()
    _make(root)
    handle = os.open(root / f"lock-{codec.digest(uuid)[:32]}", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(handle, fcntl.LOCK_EX)
    return handle


def _make(root: Path, *folders: Path) -> None:
    try:
        for folder in (root, *folders):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _private(root)
    except OSError as err:
        msg = f"cannot keep results in {str(root)!r}: {err.strerror}; name another folder with XDG_STATE_HOME"
        raise FailureError(msg) from err


def _private(folder: Path) -> None:
    """Refuse a folder that somebody else made, or may write to: what is read from it would be sealed as measured."""
    info = folder.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & 0o077:
        msg = f"{str(folder)!r} must be a folder of this user's, with mode 0700: `chmod 700` it, or move it away"
        raise FailureError(msg)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _forget_old(root: Path, keep: Path) -> None:
    for folder in root.iterdir():
        with contextlib.suppress(OSError):
            if folder != keep and time.time() - folder.stat().st_mtime > _KEPT_S:
                for path in _files(folder):
                    path.unlink()
                folder.rmdir()


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if path.is_file())
