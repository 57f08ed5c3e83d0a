"""Serves a model of ours, or whatever makes tokens one by one, in this process, to the same load generator that drives endpoints.

`Engine` batches continuously: a request takes a free row of the cache as soon as there is one, its prompt goes in by chunks beside the
tokens of the rows that are already generating, and it leaves the row when it is done. The model's rows do not see each other, so a
request's tokens do not depend on its company.

Not promised: that this is how a model is served fast. A step is as wide as its widest row, and the host waits for each step.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
import zlib
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from harness.errors import FailureError, MisuseError
from harness.inference.exchange import Event, Request, Usage

if TYPE_CHECKING:
    from harness.device.backend import Array
    from harness.inference.cache import Cache

__all__ = ["Engine", "OneByOne", "hashed_words"]

_Item = Event | BaseException | None  # None: the end


class _Model(Protocol):
    """What an engine needs of a model: `Model` and `FusedModel` have it."""

    spec: Any

    def cache(self, batch: int, capacity: int) -> Cache: ...

    def forward(self, tokens: Any, cache: Cache, *, counts: Any = None) -> Array | None: ...


class _Outbox:
    """Carries events from a worker's thread to the one who awaits them."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[_Item] = asyncio.Queue()
        self.closed = False

    def put(self, item: _Item) -> None:
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)
        except RuntimeError:  # the loop is gone, and with it whoever waited
            self.closed = True

    async def events(self) -> AsyncGenerator[Event, None]:
        try:
            while (item := await self._queue.get()) is not None:
                if isinstance(item, BaseException):
                    msg = f"the engine failed: {type(item).__name__}: {item}"
                    raise FailureError(msg) from item
                yield item
        finally:
            self.closed = True


def _ends(outbox: _Outbox, inputs: int, outputs: int) -> None:
    usage = Usage(input_tokens=inputs, output_tokens=outputs)
    outbox.put(Event(at_s=time.monotonic(), finish="length", usage=usage))
    outbox.put(None)


def hashed_words(vocab: int) -> Callable[[str], tuple[int, ...]]:
    """Return an encoder for models whose weights were never trained: any token will do, so each word is the one its CRC names."""
    return lambda text: tuple(zlib.crc32(word.encode()) % vocab for word in text.split())


# --- a model of ours --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Job:
    """A request on its way through the engine."""

    prompt: tuple[int, ...]
    wanted: int
    outbox: _Outbox
    taken: int = 0  # of the prompt
    made: list[int] = field(default_factory=list)

    def next_tokens(self, chunk: int) -> tuple[int, ...]:
        return self.prompt[self.taken : self.taken + chunk] if self.taken < len(self.prompt) else (self.made[-1],)

    @property
    def done(self) -> bool:
        return len(self.made) == self.wanted or self.outbox.closed


class Engine:
    """Serves one model greedily; nothing ends a reply early. Enter it (`async with`) before it is asked.

    Args:
        model: a model of ours.
        rows: requests that are worked on at once.
        capacity: tokens of prompt and reply that a row holds.
        chunk_tokens: of a prompt at a time: more are faster, fewer hold the other rows up less.
        to_host: copies an array of the model's device to the host.
        encode: turns text into token ids; without it prompts are token ids.
    """

    def __init__(  # noqa: PLR0913 - each can be left out
        self,
        model: _Model,
        *,
        rows: int = 8,
        capacity: int = 2048,
        chunk_tokens: int = 64,
        to_host: Callable[[Array], np.ndarray[Any, Any]] = np.asarray,
        encode: Callable[[str], Sequence[int]] | None = None,
    ) -> None:
        if chunk_tokens < 1:
            msg = f"chunk_tokens is {chunk_tokens!r}; it should be 1 or more"
            raise MisuseError(msg)
        self._model, self._capacity, self._chunk, self._to_host = model, capacity, chunk_tokens, to_host
        self._encode = encode
        self._cache = model.cache(rows, capacity)
        self._rows: list[_Job | None] = [None] * rows
        self._inbox: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self.steps_count = 0

    async def __aenter__(self) -> Self:
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._inbox.put(None)
        if self._thread:
            await asyncio.to_thread(self._thread.join)
            self._thread = None

    async def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        """Generate. A token's text is its number.

        Raises:
            FailureError: the prompt is none of the model's, or does not fit with its reply.
            MisuseError: the engine is not open.
        """
        if self._thread is None:
            msg = "the engine is not open: use it in `async with`"
            raise MisuseError(msg)
        job = _Job(prompt=self._checked(request), wanted=request.output_tokens, outbox=_Outbox())
        self._inbox.put(job)
        async for event in job.outbox.events():
            yield event

    def _checked(self, request: Request) -> tuple[int, ...]:
        prompt, vocab = request.prompt, self._model.spec.vocab
        if isinstance(prompt, str) and self._encode is not None:
            prompt = tuple(self._encode(prompt))
        if isinstance(prompt, str) or not prompt or not all(0 <= token < vocab for token in prompt):
            msg = f"a prompt is token ids from 0 to {vocab - 1}, not {prompt[:4]!r}..."
            raise FailureError(msg)
        if request.output_tokens < 1 or len(prompt) + request.output_tokens > self._capacity:
            msg = (
                f"{len(prompt)} tokens of prompt and {request.output_tokens} of reply do not fit into {self._capacity}"
            )
            raise FailureError(msg)
        return prompt

    def _work(self) -> None:
        waiting: deque[_Job] = deque()
        try:
            while self._receive(waiting):
                self._admit(waiting)
                self._step()
        except BaseException as err:  # noqa: BLE001 - told to all who wait; nobody else could hear of it
            for job in (*filter(None, self._rows), *waiting):
                job.outbox.put(err)
            self._refuse_all(err)

    def _refuse_all(self, err: BaseException) -> None:
        while (job := self._inbox.get()) is not None:
            job.outbox.put(err)

    def _receive(self, waiting: deque[_Job]) -> bool:
        """Take what has come in; wait only where there is nothing to do. False: the engine is to end."""
        idle = not waiting and not any(self._rows)
        while idle or not self._inbox.empty():
            job = self._inbox.get()
            if job is None:
                return False
            waiting.append(job)
            idle = False
        return True

    def _admit(self, waiting: deque[_Job]) -> None:
        lengths = self._cache.lengths.copy()
        for row, job in enumerate(self._rows):
            if job is not None and job.done:
                self._rows[row] = None
            if self._rows[row] is None:
                lengths[row] = 0
                while waiting and self._rows[row] is None:
                    following = waiting.popleft()
                    self._rows[row] = None if following.outbox.closed else following
        self._cache.rewind(lengths)

    def _step(self) -> None:
        fed = [job.next_tokens(self._chunk) if job else () for job in self._rows]
        width = max(map(len, fed))
        if not width:
            return
        tokens = np.zeros((len(fed), width), dtype=np.int64)
        for row, given in enumerate(fed):
            tokens[row, : len(given)] = given
        logits = self._model.forward(tokens, self._cache, counts=[len(given) for given in fed])
        chosen = self._to_host(logits.argmax(axis=-1))  # type: ignore[union-attr]
        at_s = time.monotonic()
        self.steps_count += 1
        for row, job in enumerate(self._rows):
            if job is not None:
                self._advance(job, len(fed[row]), int(chosen[row]), at_s)

    def _advance(self, job: _Job, taken: int, token: int, at_s: float) -> None:
        if job.taken < len(job.prompt):
            job.taken += taken
        if job.taken < len(job.prompt):
            return  # what follows the middle of a prompt is the prompt's to say
        job.made.append(token)
        job.outbox.put(Event(at_s=at_s, text=f" {token}", token_count=1))
        if len(job.made) == job.wanted:
            _ends(job.outbox, len(job.prompt), job.wanted)


# --- anything that makes tokens one by one ----------------------------------------------------------------------------


class OneByOne:
    """Serves one request after the other from a blocking generator, in a thread of its own. Enter it before it is asked.

    Args:
        generate: takes a request and yields the text of each token; it may stop early.
        count: tokens of a prompt, where it can tell.
        close: lets go of what `generate` holds.
    """

    def __init__(
        self,
        generate: Callable[[Request], Iterable[str]],
        *,
        count: Callable[[Request], int | None] = lambda _: None,
        close: Callable[[], object] = lambda: None,
    ) -> None:
        self._generate, self._count, self._close = generate, count, close
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._close()

    async def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        """Generate.

        Raises:
            FailureError: the generator raised.
        """
        async with self._turn:
            outbox = _Outbox()
            worker = threading.Thread(target=self._run, args=(request, outbox), daemon=True)
            worker.start()
            try:
                async for event in outbox.events():
                    yield event
            finally:
                outbox.closed = True
                await asyncio.to_thread(worker.join)  # two at once is what this class is there to prevent

    def _run(self, request: Request, outbox: _Outbox) -> None:
        try:
            made = self._made(request, outbox)
            finish = "length" if made == request.output_tokens else "stop"
            usage = Usage(input_tokens=self._count(request), output_tokens=made)
            outbox.put(Event(at_s=time.monotonic(), finish=finish, usage=usage))
            outbox.put(None)
        except BaseException as err:  # noqa: BLE001 - told to the one who waits; nobody else could hear of it
            outbox.put(err)

    def _made(self, request: Request, outbox: _Outbox) -> int:
        made = 0
        texts: Iterator[str] = iter(self._generate(request))
        for text in texts:
            outbox.put(Event(at_s=time.monotonic(), text=text, token_count=1))
            made += 1
            if outbox.closed or made == request.output_tokens:
                break
        return made
