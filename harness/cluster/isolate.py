"""One task, one fresh process, one deadline: what goes wrong in it is told, and goes no further.

What this contains: crashes, hangs (signals ignored or not), memory running out, floods of output, children left behind.
What it does not: a benchmark that means harm. A plug-in is code run as the user.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, Self

from harness.errors import FailureError
from harness.model import FailureKind

__all__ = ["Ended", "Interrupted", "Nursery", "child_environment"]

_TAIL = 8 << 10
_LINE = 500
_START_S = 120.0
_MAX_RESULT = 64 << 20
_LOST = "the process that starts others died"
_SECRET = ("RAY_", "AWS_", "HARNESS_KEY")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a task ended; `result` is what it had said until then."""

    how: Literal["ok"] | FailureKind
    result: bytes
    why: str
    elapsed_s: float


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while a task ran; `result` is what it had said until then."""

    def __init__(self, result: bytes) -> None:
        super().__init__()
        self.result = result


def child_environment() -> dict[str, str]:
    """Return this environment without secrets and without Ray, with the paths that make the same modules importable.

    Numba's cache goes to a folder named after our own sources: its index knows when the file of a kernel changed, not when
    something the kernel calls did.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(_SECRET)}
    kept["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    kept["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    kept["CUDA_MODULE_LOADING"] = "EAGER"
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    kept.setdefault("NUMBA_CACHE_DIR", str(root / "harness" / "numba" / _sources_key()))
    return kept


def _sources_key() -> str:
    package = Path(__file__).parent.parent
    stats = [(str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(package.rglob("*.py"))]
    return hashlib.sha256(repr(stats).encode()).hexdigest()[:16]


class Nursery:
    """Runs tasks one at a time, each in a process forked from a clean one. Use it as a context, from one thread."""

    def __init__(self, preload: Sequence[str] = ("harness.cluster.task",)) -> None:
        self._preload = preload
        self._sock: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the nursery and whatever it still runs."""
        if self._sock:
            self._sock.close()
        if self._process:
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._sock = self._process = None

    def abort(self) -> None:
        """End what it runs, from another thread than the one that uses it: there it ends as a crash."""
        process = self._process
        if process:
            process.kill()  # its child ends with it

    def _ready(self) -> socket.socket:
        if self._process and self._process.poll() is not None:
            self.close()  # it was killed while nothing ran
        return self._sock or self._start()

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, tempfile.TemporaryFile() as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                # -P: `python -m` would put the working folder, whatever lies in it, before the standard library.
                [sys.executable, "-P", "-m", "harness.cluster.nursery", str(theirs.fileno()), ",".join(self._preload)],
                pass_fds=[theirs.fileno()],
                env=child_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,  # Ctrl-C is for us to answer
            )
            theirs.close()
            self._sock = ours
            if _receive(ours, time.monotonic() + _START_S) is None:
                why = _tail(log) or "it did not answer"
                self.close()
                msg = f"cannot start a process to measure in: {why}"
                raise FailureError(msg)
        return ours

    def run(self, task: bytes, *, deadline_s: float, env: Mapping[str, str] | None = None) -> Ended:
        """Run one task. Never raises for what happens inside it.

        Raises:
            FailureError: no process could be started at all.
            Interrupted: by Ctrl-C; the task has ended.
        """
        sock = self._ready()
        began = time.monotonic()
        with tempfile.TemporaryFile() as asked, tempfile.TemporaryFile() as log:
            asked.write(task)
            asked.seek(0)
            reader, writer = os.pipe()
            result = bytearray()
            with os.fdopen(reader, "rb", buffering=0) as pipe:
                try:
                    with os.fdopen(writer, "wb"):
                        request = json.dumps({"env": dict(env or {})}).encode()
                        socket.send_fds(sock, [request], [asked.fileno(), writer, log.fileno()])
                    return self._follow(sock, pipe, log, result, began, deadline_s)
                except OSError as err:  # it died a moment ago
                    self.close()
                    return _ended("crashed", b"", f"{_LOST}: {err.strerror}", began)
                except KeyboardInterrupt as err:
                    self.close()
                    raise Interrupted(_rest(pipe, result)) from err
                except BaseException:  # what still runs must end, and its answer find no later task
                    self.close()
                    raise

    def _follow(  # noqa: PLR0913 - the ends of one conversation
        self,
        sock: socket.socket,
        pipe: IO[bytes],
        log: IO[bytes],
        result: bytearray,
        began: float,
        deadline_s: float,
    ) -> Ended:
        born = _receive(sock, began + deadline_s + _START_S)
        if born is None:
            self.close()
            return _ended("crashed", b"", _why(_LOST, log), began)
        end = _attend(sock, pipe, result, began + deadline_s)
        if isinstance(end, int):
            return _judge(end, bytes(result), log, began)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(born["pid"], signal.SIGKILL)
        if _receive(sock, time.monotonic() + _START_S) is None:
            self.close()  # not even SIGKILL ended it, or the nursery is gone; the next task gets a new one
        if end == "late":
            return _ended("timeout", bytes(result), f"still running after {deadline_s:.0f} s: killed", began)
        if end == "large":
            return _ended("crashed", b"", f"its result is larger than {_MAX_RESULT} bytes", began)
        return _ended("crashed", bytes(result), _why(_LOST, log), began)


def _attend(
    sock: socket.socket, pipe: IO[bytes], result: bytearray, deadline: float
) -> int | Literal["late", "lost", "large"]:
    """Collect the result until the process has ended; return the exit code, or why there is none.

    The end of the pipe does not tell that: a child left behind may hold it open.
    """
    open_ends: list[IO[bytes] | socket.socket] = [pipe, sock]
    while len(result) <= _MAX_RESULT:
        ready, _, _ = select.select(open_ends, [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return "late"
        if pipe in ready:
            part = pipe.read(1 << 20)
            result += part
            if not part:
                open_ends.remove(pipe)
        else:
            message = _receive(sock, deadline)
            return message["code"] if message else "lost"
    return "large"


def _rest(pipe: IO[bytes], result: bytearray) -> bytes:
    """Return the result with what is still in the pipe, of a process that has ended; a child left behind may hold it open."""
    while len(result) <= _MAX_RESULT and select.select([pipe], [], [], 0.0)[0]:
        part = pipe.read(1 << 20)
        if not part:
            break
        result += part
    return bytes(result)


def _judge(code: int, result: bytes, log: IO[bytes], began: float) -> Ended:
    if code == 0:
        return _ended("ok", result, "", began)
    if code == -signal.SIGKILL:
        return _ended("out_of_memory", result, "killed from outside, most likely because memory ran out", began)
    return _ended("crashed", result, _why(f"signal {_signal(-code)}" if code < 0 else f"exit code {code}", log), began)


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have no name
        return str(number)


def _why(how: str, log: IO[bytes]) -> str:
    return ": ".join(filter(None, [how, _tail(log)]))


def _ended(how: Literal["ok"] | FailureKind, result: bytes, why: str, began: float) -> Ended:
    return Ended(how=how, result=result, why=why, elapsed_s=time.monotonic() - began)


def _wait(file: socket.socket, deadline: float) -> bool:
    ready, _, _ = select.select([file], [], [], max(0.0, deadline - time.monotonic()))
    return bool(ready)


def _receive(sock: socket.socket, deadline: float) -> dict[str, int] | None:
    if not _wait(sock, deadline):
        return None
    try:
        data = sock.recv(1 << 16)
    except OSError:
        return None
    message: dict[str, int] | None = json.loads(data) if data else None  # noqa: TID251 - 64 kB at most, of the nursery
    return message


def _tail(log: IO[bytes]) -> str:
    """Return the last line of what a process wrote, cut to a length that a report can hold."""
    size = os.fstat(log.fileno()).st_size
    text = os.pread(log.fileno(), _TAIL, max(0, size - _TAIL)).decode(errors="replace")
    return next((line.strip()[:_LINE] for line in reversed(text.splitlines()) if line.strip()), "")
