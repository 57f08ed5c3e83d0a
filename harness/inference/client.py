"""An OpenAI-compatible endpoint over HTTP: vLLM, SGLang, llama-server, Ollama and their kin. The only door to aiohttp.

Promised: an event bears the time at which this process read it from its socket, before anything is parsed; a reply that breaks off, is
no stream, or says it failed is a `FailureError`; no reply, however long or malformed, takes more than bounded memory.
Not promised: that what the server says of itself (model, counts of tokens) is true.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Self
from urllib.parse import SplitResult, urlsplit

import msgspec

from harness import strangers
from harness.errors import FailureError, MisuseError
from harness.inference.exchange import Event, Request, Usage

if TYPE_CHECKING:
    import aiohttp

__all__ = ["EVENT_BYTES_MOST", "REPLY_BYTES_MOST", "Endpoint", "EventStream", "base_url", "checked_key"]

EVENT_BYTES_MOST = 1 << 20
REPLY_BYTES_MOST = 64 << 20
_SAID_BYTES = 300  # of an error's body, in a message
_CONNECT_S = 10.0
_DRAIN_S = 0.1
_DONE = b"[DONE]"


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None  # tokens like any other: who hides them hides time
    reasoning: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]  # of tokens: what no reply has, no record must hold


class _Counts(msgspec.Struct):
    prompt_tokens: _Count | None = None
    completion_tokens: _Count | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Counts | None = None
    error: Any = None
    object: Any = None  # "error" where the whole event is one
    message: Any = None


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


class EventStream:
    """Cuts server-sent events out of bytes as they come, without I/O. Only `data` matters here: other fields and comments pass by.

    Lines end in LF, CR or CR LF, also where one is cut in two; an event ends at an empty line; one that the stream breaks off is dropped.
    """

    def __init__(self) -> None:
        self._line = bytearray()
        self._data: list[bytes] = []
        self._size = 0
        self._after_cr = False
        self._first = True

    def feed(self, received: bytes) -> list[bytes]:
        """Take bytes and return the data of each event that they complete.

        Raises:
            FailureError: an event is larger than any reply's chunk.
        """
        if not received:
            return []
        after_cr, self._after_cr = self._after_cr, received.endswith(b"\r")
        if after_cr:
            received = received.removeprefix(b"\n")
        pieces = received.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        found = []
        for piece in pieces[:-1]:
            line = bytes(self._line) + piece
            self._line.clear()
            if (data := self._take(line)) is not None:
                found.append(data)
        self._line += pieces[-1]
        self._check(len(self._line))
        return found

    def _take(self, line: bytes) -> bytes | None:
        if self._first:
            line, self._first = line.removeprefix(b"\xef\xbb\xbf"), False
        if not line:
            data, self._data, self._size = self._data, [], 0
            return b"\n".join(data) if data else None
        name, _, value = line.partition(b":")
        if name == b"data":
            self._size += len(value)
            self._check(0)
            self._data.append(value.removeprefix(b" "))
        return None

    def _check(self, more: int) -> None:
        if self._size + more > EVENT_BYTES_MOST:
            msg = f"an event of more than {EVENT_BYTES_MOST} bytes is no chunk of a reply"
            raise FailureError(msg)


def base_url(url: str) -> str:
    """Return the root that `/chat/completions` hangs on: `http://host:8000` and any path below it end in `/v1`.

    Raises:
        MisuseError: not the address of an HTTP server, or one with a password in it.
    """
    parts = _split(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        msg = f"{url!r} is not the address of an endpoint, such as http://127.0.0.1:8000"
        raise MisuseError(msg)
    if parts.username or parts.password or parts.query or parts.fragment:
        msg = f"the address of {parts.hostname!r} holds more than a host and a path; a key goes into a file (--api-key)"
        raise MisuseError(msg)
    path = parts.path.rstrip("/")
    for ending in ("/chat/completions", "/completions", "/models"):
        path = path.removesuffix(ending)
    return f"{parts.scheme}://{parts.netloc}{path or '/v1'}"


def checked_key(text: str, source: str = "the key") -> str:
    """Return an endpoint's key without the white space around it; `source` is where it came from, for the error. It is not repeated.

    Raises:
        MisuseError: it is not one line of printable characters, which is all that a header can hold.
    """
    key = text.strip()
    if not key.isascii() or not key.isprintable() or " " in key or not key:
        msg = f"{source} holds no key: it should be one line of printable characters"
        raise MisuseError(msg)
    return key


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises where it is no number
    except ValueError as err:
        msg = f"{url!r} is not the address of an endpoint: {err}"
        raise MisuseError(msg) from err
    return parts


class Endpoint:
    """One model behind an address. Enter it (`async with`) before anything is sent.

    Args:
        url: the server; any path below its root will do.
        model: what to ask for; `models` lists what there is.
        key: sent as a bearer token.
        chat: `/chat/completions`, else `/completions`.
        ignore_eos: asks the server to go on to the very number of tokens (vLLM, SGLang, llama-server); the public APIs refuse the word.
    """

    def __init__(
        self, url: str, *, model: str = "", key: str | None = None, chat: bool = True, ignore_eos: bool = True
    ) -> None:
        self.base = base_url(url)
        self.model, self.chat, self.ignore_eos = model, chat, ignore_eos
        self._headers = {"Authorization": f"Bearer {checked_key(key)}"} if key else {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        import aiohttp

        # No limit of the client's own: what may be in flight is the load's to say. Nothing is decoded or retried behind its back.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
            headers=self._headers,
            auto_decompress=True,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session:
            await self._session.close()
            self._session = None

    async def models(self) -> tuple[str, ...]:
        """Return the names of the models that the endpoint serves.

        Raises:
            FailureError: it does not answer, or not with a list of models.
        """
        async with self._call("GET", "/models") as response:
            body = await _read(response)
        try:
            listed = strangers.decode(body, _Models)
        except (msgspec.DecodeError, UnicodeDecodeError) as err:
            msg = f"{self.base}/models does not list models: {err}; name one with --model"
            raise FailureError(msg) from err
        return tuple(m.id for m in listed.data)

    async def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        """Ask for a completion and yield its chunks.

        Raises:
            FailureError: the server refuses, breaks off, sends what is no stream of chunks, or says that it failed.
        """
        now = asyncio.get_running_loop().time
        path = "/chat/completions" if self.chat else "/completions"
        async with self._call("POST", path, json=self._body(request)) as response:
            _check_type(response)
            stream, received_bytes, finished = EventStream(), 0, False
            async for received in response.content.iter_any():
                at_s = now()
                received_bytes += len(received)
                if received_bytes > REPLY_BYTES_MOST:
                    msg = f"the reply went on past {REPLY_BYTES_MOST} bytes"
                    raise FailureError(msg)
                for data in stream.feed(received):
                    if data.strip() == _DONE:
                        _check_end(finished=finished)
                        await _drain(response)
                        return
                    event = _event(data, at_s)
                    finished = finished or event.finish is not None
                    yield event
            _check_end(finished=finished)

    def _body(self, request: Request) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": request.output_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.chat:
            body["messages"] = [{"role": "user", "content": request.prompt}]
        else:
            body["prompt"] = request.prompt
        return body | ({"ignore_eos": True} if self.ignore_eos else {})

    @asynccontextmanager
    async def _call(self, method: str, path: str, json: object = None) -> AsyncIterator[aiohttp.ClientResponse]:
        """Open one request. What goes wrong on the way is a `FailureError` that says what."""
        import aiohttp

        if self._session is None:
            msg = "the endpoint is not open: use it in `async with`"
            raise MisuseError(msg)
        try:
            async with self._session.request(method, self.base + path, json=json, allow_redirects=False) as response:
                if response.status != 200:  # noqa: PLR2004 - OK
                    said = (await response.content.read(_SAID_BYTES)).decode(errors="replace")
                    msg = f"HTTP {response.status} {response.reason}: {' '.join(said.split())}"
                    raise FailureError(msg)
                yield response
        except aiohttp.ClientPayloadError as err:
            msg = f"the stream broke off: {err}"
            raise FailureError(msg) from err
        except (aiohttp.ClientError, OSError) as err:
            msg = f"{type(err).__name__}: {err}"
            raise FailureError(msg) from err


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """Read a body to its end; what is longer than any list of models is cut there."""
    body = bytearray()
    async for received in response.content.iter_any():
        body += received
        if len(body) > EVENT_BYTES_MOST:
            break
    return bytes(body)


async def _drain(response: aiohttp.ClientResponse) -> None:
    """Read the end of the body, which makes the connection fit for the next request; a server that holds it back loses it.

    The reply is whole: however the connection ends, it does not undo that.
    """
    import aiohttp

    with contextlib.suppress(TimeoutError, aiohttp.ClientError, OSError):
        async with asyncio.timeout(_DRAIN_S):
            await response.content.readany()


def _check_end(*, finished: bool) -> None:
    if not finished:  # some servers leave out [DONE], none the reason of the end; one that failed may send [DONE] alone
        msg = "the stream ended before the reply did: it gave no reason of its end"
        raise FailureError(msg)


def _check_type(response: aiohttp.ClientResponse) -> None:
    if response.content_type != "text/event-stream":
        msg = f"the reply is {response.content_type!r}, not 'text/event-stream': the server does not stream"
        raise FailureError(msg)


def _event(data: bytes, at_s: float) -> Event:
    try:
        chunk = strangers.decode(data, _Chunk)
    except (msgspec.DecodeError, UnicodeDecodeError) as err:
        msg = f"an event is not a chunk of a completion: {err}"
        raise FailureError(msg) from err
    error = chunk.message if chunk.object == "error" else chunk.error
    if error is not None or chunk.object == "error":
        said = msgspec.json.encode(error)[:_SAID_BYTES]
        msg = f"the server reports an error: {said.decode(errors='replace')}"
        raise FailureError(msg)
    choices = chunk.choices or []
    counts = chunk.usage
    return Event(
        at_s=at_s,
        text=_text(choices[0]) if choices else "",
        finish=choices[0].finish_reason if choices else None,
        usage=Usage(input_tokens=counts.prompt_tokens, output_tokens=counts.completion_tokens) if counts else None,
    )


def _text(choice: _Choice) -> str:
    delta = choice.delta or _Delta()
    return (choice.text or "") + (delta.reasoning_content or delta.reasoning or "") + (delta.content or "")
