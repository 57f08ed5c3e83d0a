"""Before anything is read: how often somebody may ask, how much and how slowly they may send. Refusals cost no more than a few bytes.

Promised: nothing of a refused request is kept but a counter; the counters are bounded in number; a body is cut off at its limit of size and time.
Not promised: that an address is a person. Behind a proxy, all come from its address: let it do the limiting, or raise the limit here.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import math
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from harness.market.sales.limits import Buckets, Limits
from harness.market.sales.wire import CODES

__all__ = ["Guard", "problem"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_SAFE = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"), (b"cache-control", b"no-store"))
_V6_PREFIX = 64  # what one household gets


def problem(code: str, detail: str) -> tuple[int, bytes]:
    """Return the status and the body of an error."""
    status, title = CODES[code]
    told = {"type": f"urn:harness:problem:{code}", "title": title, "status": status, "detail": detail, "code": code}
    return status, json.dumps(told, ensure_ascii=False).encode("utf-8", "replace")


class Guard:
    """Stands before an application."""

    def __init__(self, app: App, limits: Limits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._app, self._limits = app, limits
        self.each = Buckets(limits.per_minute, limits.addresses_most, clock)
        self._all = Buckets(limits.all_per_minute, 1, clock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, with its body read, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        head = scope["method"] == "HEAD"
        send = _headless(send) if head else send
        wait_s = self.each.wait_s(_address(scope)) or self._all.wait_s("all")
        if wait_s:
            detail = f"ask again in {math.ceil(wait_s)} s"
            await _refuse(send, "rate_limited", detail, (b"retry-after", str(math.ceil(wait_s)).encode()))
            return
        try:
            async with asyncio.timeout(self._limits.body_s):
                body = await _body(scope, receive, self._limits.body_most_bytes)
        except TimeoutError:
            await _refuse(
                send, "slow", f"the body took more than {self._limits.body_s:.0f} s", (b"connection", b"close")
            )
            return
        if body is None:
            most = f"more than {self._limits.body_most_bytes} bytes"
            await _refuse(send, "too_large", most, (b"connection", b"close"))
            return
        await self._app(_as_get(scope) if head else scope, _replayed(body, receive), _safe(send))


def _address(scope: Scope) -> str:
    host = (scope.get("client") or ("unknown",))[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return str(host)
    if address.version == 4:  # noqa: PLR2004 - IPv4
        return host if isinstance(host, str) else str(address)
    return str(ipaddress.ip_network((address, _V6_PREFIX), strict=False))


async def _body(scope: Scope, receive: Receive, most_bytes: int) -> bytes | None:
    """Return a whole body, or None where it is too large; what it says of its size is believed only if that is too much."""
    told = dict(scope["headers"]).get(b"content-length", b"")
    if told.isdigit() and int(told[:20]) > most_bytes:
        return None
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            break
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > most_bytes:
            return None
    return body


def _replayed(body: bytes, receive: Receive) -> Receive:
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _as_get(scope: Scope) -> Scope:
    """Return a HEAD as a GET that brings no payment: asking what something is must not buy it."""
    kept = [(name, value) for name, value in scope["headers"] if name not in {b"authorization", b"payment-signature"}]
    return {**scope, "method": "GET", "headers": kept}


def _headless(send: Send) -> Send:
    async def without(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return without


def _safe(send: Send) -> Send:
    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            have = {name for name, _ in message["headers"]}
            message = {**message, "headers": [*message["headers"], *(pair for pair in _SAFE if pair[0] not in have)]}
        await send(message)

    return with_headers


async def _refuse(send: Send, code: str, detail: str, *more: tuple[bytes, bytes]) -> None:
    status, body = problem(code, detail)
    size = str(len(body)).encode()
    headers = [(b"content-type", b"application/problem+json"), (b"content-length", size), *_SAFE, *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
