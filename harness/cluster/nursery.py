"""A small process that has imported the heavy libraries and forks one fresh child for each task.

Run as `python -m harness.cluster.nursery FD PRELOAD,...`; `isolate.Nursery` is its other end. A fork of a process that holds NumPy and
Numba starts in a hundredth of a second; a fresh interpreter takes over one. The nursery itself never opens a device and never runs a
kernel, so what it hands on is as clean as a new process, and CUDA, which may not be used across a fork, is first touched by the child.

On the socket FD: a request is one datagram with the task's bytes in a file descriptor beside it, and two descriptors to write to.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

__all__ = ["main", "sweep"]

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def main(argv: list[str]) -> None:
    """Serve requests on the socket until its other end is gone."""
    for module in filter(None, argv[1].split(",")):
        importlib.import_module(module)
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)  # what a task leaves behind becomes our child, to be ended
    gc.freeze()  # the children share these objects' pages and never need to look at them
    with socket.socket(fileno=int(argv[0])) as sock:
        sock.send(b'{"ready":true}')
        while True:
            header, fds, _, _ = socket.recv_fds(sock, 1 << 16, 3)
            if not header:
                return
            _serve(sock, json.loads(header), fds)  # noqa: TID251 - of the process that started this one


def _serve(sock: socket.socket, request: dict[str, dict[str, str]], fds: list[int]) -> None:
    with warnings.catch_warnings():
        # BLAS keeps threads; it registers fork handlers of its own for them, which Python cannot know.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        _child(sock, request["env"], *fds)
    for fd in fds:
        os.close(fd)
    with contextlib.suppress(
        OSError
    ):  # here as well as in the child, so that the group exists before anyone hears of it
        os.setpgid(pid, pid)
    sock.send(json.dumps({"pid": pid}).encode())
    handle = os.pidfd_open(pid)
    try:
        watched: list[int | socket.socket] = [handle, sock]
        ready, _, _ = select.select(watched, [], [])
        if handle not in ready:  # only an end of file can come now: whoever asked is gone
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        sweep()
    finally:
        os.close(handle)
    sock.send(json.dumps({"code": os.waitstatus_to_exitcode(status)}).encode())


def sweep() -> None:
    """End every process a task has left, in whatever group or session it hides. A nursery has no other children."""
    with contextlib.suppress(ChildProcessError):  # none is left
        while True:
            os.waitpid(-1, os.WNOHANG)
            for pid in _children():
                os.kill(pid, signal.SIGKILL)
            os.waitpid(-1, 0)


def _children() -> Iterator[int]:
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            _, parent, *_ = path.read_text().rpartition(")")[2].split()
            if int(parent) == os.getpid():
                yield int(path.parent.name)


def _child(sock: socket.socket, env: dict[str, str], task_fd: int, result_fd: int, log_fd: int) -> NoReturn:
    code = 1
    try:
        sock.close()
        os.setpgid(0, 0)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        with open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123 - if memory runs out, let it be this process
            file.write("1000")
        for fd in (1, 2):
            os.dup2(log_fd, fd)
        os.environ.update(env)
        from harness.cluster.task import perform

        with os.fdopen(task_fd, "rb") as task, os.fdopen(result_fd, "wb") as result:
            for answer in perform(task.read()):
                result.write(answer)
                result.flush()  # what is measured is told at once: a crash later on cannot take it back
        code = 0
    except BaseException:  # noqa: BLE001 - nothing may unwind into the nursery's own loop
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
