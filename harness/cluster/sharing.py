"""Shares work out through Ray: bytes leave, bytes come back, in the order in which they left. Imports no Ray: it is given what `connect` gives.

For pure functions only: Ray repeats a call whose worker died, a few times. A function that raises is not repeated.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

from harness.errors import FailureError, HarnessError

__all__ = ["shared"]

_RETRIES = 2  # of a call whose worker or node died
_ANSWER_S = 120.0  # for the oldest call, in which a worker may have to start; its work takes less than a second
_AHEAD = 2  # calls for each core: one at work, one that waits for it
_TOLD = 200  # characters of an error
_HELD_BYTES = 256 << 20  # of what has left and was not answered, whatever the number of cores


def shared(ray: Any, work: Callable[[bytes, bytes], bytes], common: bytes, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield what `work(common, chunk)` returns for each chunk, in their order, worked off by all cores of a Ray cluster.

    Chunks are taken as there is room for them. What they raise is raised when all before it was yielded.

    Args:
        ray: what `connect` gives.
        work: a pure function of a module that each node has.
        common: the same for all chunks: it travels to each node once.
        chunks: to be worked on.

    Raises:
        FailureError: Ray lost a chunk, or gave no answer in time.
    """
    sending = _Sending(ray, work, common)
    try:
        source, fault = iter(chunks), None
        while True:
            try:
                chunk = next(source, None)
            except HarnessError as err:
                fault, chunk = err, None
            if chunk is None:
                break
            while sending.is_full_for(chunk):
                yield sending.answer()
            sending.send(chunk)
        while sending.waiting:
            yield sending.answer()
        if fault:
            raise fault
    finally:
        sending.forget()


class _Sending:
    """Calls that are under way, oldest first."""

    def __init__(self, ray: Any, work: Callable[[bytes, bytes], bytes], common: bytes) -> None:
        self._ray = ray
        # Errors of the function are not repeated: they would be the same again.
        self._task = ray.remote(num_cpus=1, max_retries=_RETRIES, retry_exceptions=False)(work)
        self._common = ray.put(common)
        self._most = max(1, int(ray.cluster_resources().get("CPU", 0))) * _AHEAD
        self._bytes = 0
        self.waiting: deque[tuple[Any, int]] = deque()

    def is_full_for(self, chunk: bytes) -> bool:
        """Tell whether an answer has to be taken before a chunk may leave."""
        many = len(self.waiting) >= self._most or self._bytes + len(chunk) > _HELD_BYTES
        return bool(self.waiting) and many

    def send(self, chunk: bytes) -> None:
        """Let a chunk leave."""
        self.waiting.append((self._task.remote(self._common, chunk), len(chunk)))
        self._bytes += len(chunk)

    def answer(self) -> bytes:
        """Return the answer to the oldest chunk."""
        ref, size = self.waiting.popleft()
        self._bytes -= size
        errors = self._ray.exceptions
        try:
            data = self._ray.get(ref, timeout=_ANSWER_S)
        except errors.GetTimeoutError as err:
            msg = f"no answer from the Ray cluster within {_ANSWER_S:.0f} s: has none of its nodes a core to spare?"
            raise FailureError(msg) from err
        except errors.RayError as err:
            msg = f"a part of the work was lost on the Ray cluster ({_why(err)})"
            raise FailureError(msg) from err
        if not isinstance(data, bytes):
            msg = f"a part of the work came back from the Ray cluster as {type(data).__name__}; it should be bytes"
            raise FailureError(msg)
        return data

    def forget(self) -> None:
        """Call off what is still under way, since nobody will ask for it."""
        for ref, _ in self.waiting:
            with suppress(self._ray.exceptions.RayError):
                self._ray.cancel(ref)
        self.waiting.clear()


def _why(err: Exception) -> str:
    """Say in a line what Ray says in a page: of an error of the function itself, the last line of its traceback."""
    lines = [line for line in str(err).splitlines() if line.strip()]
    told = f": {lines[-1].strip()[:_TOLD]}" if lines and hasattr(err, "cause") else ""
    return type(err).__name__ + told
