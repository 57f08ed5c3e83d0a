"""Servers that do what a script says, to the millisecond: simulated in an event loop, or over HTTP in a process of its own.

Both play the same steps, so what a client should see follows from the script. The HTTP server also logs when it really sent what, by the
clock that all processes of a machine share: a busy machine makes it late, and that is not the client's fault.

    python tests/scripted.py PORT-FILE      serves until its stdin closes
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from aiohttp import web

from harness.errors import FailureError
from harness.inference.exchange import Event, Request, Usage

WORDS = ("amber", "brisk", "cedar", "delta", "ember", "fjord", "gusty", "hazel")


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """How a server behaves. Times in seconds from when it has the request."""

    first_s: float = 0.08
    gap_s: float = 0.015
    bundle: int = 1  # tokens in a chunk
    role_first: bool = True  # a chunk without content, at once
    stall_after: int | None = None  # chunks, then a pause
    stall_s: float = 0.0
    fail_every: int | None = None  # requests: HTTP 500
    busy_first: int = 0  # requests: HTTP 429
    cut_after: int | None = None  # chunks, then the connection is gone
    stop_at: int | None = None  # tokens: ends early, of its own
    says_length: bool = False  # and calls that the length asked for
    usage_factor: float | None = 1.0  # of the tokens it sent; None: tells none
    usage_tokens: int | None = None  # what it claims, whatever it sent
    raw: bytes | None = None  # all it answers, and then the connection is closed
    hold: int | None = None  # chunks; what follows waits for the last
    decoy: bool = False  # a first token from nowhere, at once
    caches: bool = False  # a prompt it knows is answered at once
    caches_prefix: bool = False  # as honest servers do: a prompt it knows has its first token sooner
    same_reply: bool = False
    jitter: float = 0.0  # sigma of log-normal times
    freeze_every_s: float | None = None
    freeze_s: float = 0.0
    in_process_error: dict[str, Any] | None = None  # said inside the stream, after two chunks; then [DONE]
    done_after: int | None = None  # chunks, then [DONE], without a reason of the end
    unfinished_after: int | None = None  # chunks, then an orderly end that is none of the reply
    linger_s: float = 0.0  # between the end of the reply and that of its body
    hangs_up: bool = False  # after [DONE], without the chunk that ends the body
    strict: bool = False  # refuses what it does not know, as the public APIs do


SCRIPTS = {
    "exact": Script(),
    "bundled": Script(bundle=4, gap_s=0.03),
    "stalling": Script(stall_after=5, stall_s=0.4, gap_s=0.01),
    "failing": Script(fail_every=4),
    "truncated": Script(cut_after=3),
    "erring": Script(in_process_error={"error": {"message": "CUDA error", "code": 500}}),
    "erring_flat": Script(in_process_error={"object": "error", "message": "CUDA out of memory", "code": 500}),
    "done_early": Script(done_after=3, first_s=0.01),
    "usage": Script(usage_factor=2.0),
    "huge": Script(usage_tokens=2**60, first_s=0.01, gap_s=0.0),
    "negative": Script(usage_tokens=-5, first_s=0.01, gap_s=0.0),
    "latin-1": Script(raw=b"HTTP/1.1 503 D\xe9bord\xe9\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
    "short": Script(stop_at=5),
    "liar": Script(stop_at=5, says_length=True, usage_factor=3.2),
    "burst": Script(hold=0),
    "burst-after-first": Script(hold=1, first_s=0.02, gap_s=0.01),
    "decoy": Script(decoy=True),
    "caching": Script(caches=True),
    "parrot": Script(same_reply=True),
    "freezing": Script(first_s=0.01, gap_s=0.0, freeze_every_s=1.5, freeze_s=0.3),
    "unfinished": Script(unfinished_after=3, first_s=0.01),
    "lingering": Script(first_s=0.004, gap_s=0.002, linger_s=0.03),
    "locked": Script(raw=b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
    "busy": Script(first_s=0.004, gap_s=0.002, busy_first=1),
    "hanging_up": Script(first_s=0.004, gap_s=0.002, hangs_up=True),
    "strict": Script(first_s=0.004, gap_s=0.002, strict=True),
    "fast": Script(first_s=0.004, gap_s=0.002),
    "prefix": Script(caches_prefix=True, jitter=0.25),
    "noisy": Script(jitter=0.35, bundle=2, caches_prefix=True),
}


class Step(NamedTuple):
    """Wait, then send a chunk of so many tokens; none: a chunk without content."""

    wait_s: float
    text: str
    tokens: int


def reply(prompt: str, count: int) -> list[str]:
    return [f" {word}" for word in random.Random(prompt).choices(WORDS, k=count)]  # noqa: S311


class Player:
    """Plays one script: what is sent, and after which wait."""

    def __init__(self, script: Script, seed: int = 0) -> None:
        self.script = script
        self._rng = random.Random(seed)  # noqa: S311
        self._known: set[str] = set()
        self._requests = self._busy = 0

    def refuses(self) -> bool:
        self._requests += 1
        every = self.script.fail_every
        return every is not None and self._requests % every == 0

    def busy(self) -> bool:
        self._busy += 1
        return self._busy <= self.script.busy_first

    def _noise(self) -> float:
        return self._rng.lognormvariate(0, self.script.jitter) if self.script.jitter else 1.0

    def count(self, asked: int) -> int:
        return min(asked, self.script.stop_at or asked)

    def steps(self, prompt: str, asked: int) -> Iterator[Step]:
        s = self.script
        known = prompt in self._known
        self._known.add(prompt)
        words = reply("" if s.same_reply else prompt, self.count(asked))
        chunks = ["".join(words[i : i + s.bundle]) for i in range(0, len(words), s.bundle)]
        sizes = [len(words[i : i + s.bundle]) for i in range(0, len(words), s.bundle)]
        first = s.first_s * (0.2 if known and s.caches_prefix else 1.0) * self._noise()
        waits = [first, *(s.gap_s * self._noise() for _ in chunks[1:])]
        if known and s.caches:
            waits = [0.001] * len(chunks)
        if s.stall_after is not None and len(waits) > s.stall_after:
            waits[s.stall_after] += s.stall_s
        if s.hold is not None and len(waits) > s.hold:
            waits[s.hold :] = [sum(waits[s.hold :])] + [0.0] * (len(waits) - s.hold - 1)
        if s.decoy:
            waits, chunks, sizes = [0.001, *waits], [" The", *chunks], [1, *sizes]
            waits, chunks, sizes = waits[:-1], chunks[:-1], sizes[:-1]
        if s.role_first:
            yield Step(0.0, "", 0)
        yield from map(Step, waits, chunks, sizes)

    def usage(self, prompt: str, asked: int) -> Usage | None:
        if self.script.usage_factor is None:
            return None
        counted = min(int(self.count(asked) * self.script.usage_factor), 10**6)
        if self.script.usage_tokens is not None:
            counted = self.script.usage_tokens
        return Usage(input_tokens=len(prompt.split()) + 7, output_tokens=counted)  # 7: its template

    def finish(self, asked: int) -> str:
        return "stop" if self.count(asked) < asked and not self.script.says_length else "length"

    def thaw_s(self, now_s: float) -> float:
        """How long it stays frozen from now on."""
        s = self.script
        if s.freeze_every_s is None:
            return 0.0
        return max(s.freeze_s - now_s % s.freeze_every_s, 0.0)


class Simulated:
    """A scripted server inside the event loop, without a network. Times are the loop's."""

    def __init__(self, script: Script, seed: int = 0, **changes: Any) -> None:
        self.player = Player(replace(script, **changes), seed)
        self.most_in_flight = self._in_flight = 0

    async def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        self._in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            async for event in self._stream(str(request.prompt), request.output_tokens):
                yield event
        finally:
            self._in_flight -= 1

    async def _stream(self, prompt: str, asked: int) -> AsyncGenerator[Event, None]:
        now, player = asyncio.get_running_loop().time, self.player
        if player.refuses():
            msg = "HTTP 500 Internal Server Error"
            raise FailureError(msg)
        for sent, step in enumerate(player.steps(prompt, asked)):
            if player.script.cut_after is not None and sent > player.script.cut_after:
                msg = "the stream broke off"
                raise FailureError(msg)
            await asyncio.sleep(step.wait_s)
            await asyncio.sleep(player.thaw_s(now()))
            yield Event(at_s=now(), text=step.text)
        yield Event(at_s=now(), finish=player.finish(asked))
        if usage := player.usage(prompt, asked):
            yield Event(at_s=now(), usage=usage)


# --- over HTTP --------------------------------------------------------------------------------------------------------


def _chunk(text: str | None = None, finish: str | None = None, role: str | None = None) -> bytes:
    delta = {k: v for k, v in (("role", role), ("content", text)) if v is not None}
    return _data(
        {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
    )


_DONE = b"data: [DONE]\n\n"


def _data(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


class _Served:
    """One process serves all scripts: the model's name says which."""

    def __init__(self) -> None:
        self._players = {name: Player(script) for name, script in SCRIPTS.items()}
        self._log: list[dict[str, Any]] = []
        self._since_s = time.monotonic()

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_post("/v1/completions", self._complete)
        app.router.add_get("/log", self._give_log)
        return app

    async def _models(self, request: web.Request) -> web.StreamResponse:
        body = json.dumps({"object": "list", "data": [{"id": name} for name in self._players]}).encode()
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.content_length = len(body)
        await response.prepare(request)
        for part in (body[:20], body[20:]):  # as a network may deliver it
            await response.write(part)
            await asyncio.sleep(0.02)
        return response

    async def _give_log(self, _: web.Request) -> web.Response:
        given, self._log = self._log, []
        return web.json_response(given)

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        arrived_s = time.monotonic()
        body = await request.json()
        player, asked = self._players[body["model"]], body.get("max_tokens") or body["max_completion_tokens"]
        prompt = body["messages"][0]["content"] if "messages" in body else body["prompt"]
        if player.script.strict and "ignore_eos" in body:
            return web.json_response({"error": {"message": "unknown field ignore_eos"}}, status=400)
        if player.busy():
            return web.json_response({"error": {"message": "too many requests"}}, status=429)
        if player.refuses():
            return web.json_response({"error": {"message": "out of memory"}}, status=500)
        if player.script.raw is not None:
            assert request.transport
            self._log.append({"model": body["model"], "prompt": prompt, "body": body})
            request.transport.write(player.script.raw)
            request.transport.close()
            return web.Response()  # of which nothing is sent
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        sent_s = await self._play(request, response, player, prompt, asked, arrived_s)
        entry = {"model": body["model"], "prompt": prompt, "arrived_s": arrived_s, "sent_s": sent_s, "body": body}
        self._log.append(entry | {"authorization": request.headers.get("Authorization")})
        return response

    async def _play(
        self,
        request: web.Request,
        response: web.StreamResponse,
        player: Player,
        prompt: str,
        asked: int,
        arrived_s: float,
    ) -> list[float]:
        sent_s: list[float] = []
        due_s = arrived_s
        for step in player.steps(prompt, asked):
            if len(sent_s) == player.script.unfinished_after:
                return sent_s
            if player.script.cut_after is not None and len(sent_s) >= player.script.cut_after:
                assert request.transport
                request.transport.abort()
                return sent_s
            due_s += step.wait_s
            due_s += player.thaw_s(due_s - self._since_s)
            await asyncio.sleep(max(due_s - time.monotonic(), 0))
            if step.tokens:
                sent_s.append(time.monotonic())
            await response.write(_chunk(step.text) if step.tokens else _chunk("", role="assistant"))
            if player.script.in_process_error and len(sent_s) == 2:
                await response.write(_data(player.script.in_process_error) + _DONE)
                return sent_s
            if player.script.done_after == len(sent_s):
                await response.write(_DONE)
                return sent_s
        tail = _chunk(finish=player.finish(asked))
        if usage := player.usage(prompt, asked):
            counts = {"prompt_tokens": usage.input_tokens, "completion_tokens": usage.output_tokens}
            tail += _data({"choices": [], "usage": counts})
        await response.write(tail + _DONE)
        if player.script.hangs_up:
            assert request.transport
            request.transport.close()
        await asyncio.sleep(player.script.linger_s)
        return sent_s


async def _serve(port_file: Path) -> None:
    runner = web.AppRunner(_Served().app(), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    waiting = port_file.with_suffix(".new")
    waiting.write_text(str(port))
    waiting.rename(port_file)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await runner.cleanup()


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Run the server in a process of its own and give its address."""
    port = folder / "port"
    command = [sys.executable, __file__, str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while not port.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port.read_text()}"
        assert process.stdin
        process.stdin.close()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))
