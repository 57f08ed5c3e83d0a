"""A socket and a server on it, for the verifier and for the quoting service. The door to uvicorn."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

from harness.errors import FailureError

__all__ = ["hurried", "listen"]

_CONNECTIONS_MOST = 4096


def listen(  # noqa: PLR0913 - how long each thing may take
    app: Callable[[str], Any],
    host: str,
    port: int,
    started: Callable[[str], None],
    *,
    head_s: float,
    idle_s: float,
    stop_s: int = 2,
    lifespan: bool = False,
) -> None:
    """Serve an application in the foreground until SIGINT or SIGTERM.

    Args:
        app: makes the application, told the URL.
        host: address to listen at.
        port: 0 takes a free one.
        started: told the URL once somebody may connect.
        head_s: from a connection to its first request.
        idle_s: between two requests.
        stop_s: that what is under way may take once it is to end.
        lifespan: whether the application has something to do before and after.

    Raises:
        FailureError: the extra `serve` is not installed, or the address cannot be had.
    """
    try:
        import uvicorn
    except ImportError as err:
        msg = "a service needs the extra `serve`: pip install 'gpu-assay[serve]'"
        raise FailureError(msg) from err
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
        except OSError as err:
            msg = f"cannot listen at {host}:{port}: {err.strerror}"
            raise FailureError(msg) from err
        listening.listen(128)
        at = listening.getsockname()
        url = f"http://[{at[0]}]:{at[1]}" if ":" in host else f"http://{at[0]}:{at[1]}"
        config = uvicorn.Config(
            app(url),
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # who asks is who connects: a header is anybody's word
            limit_concurrency=_CONNECTIONS_MOST,
            timeout_keep_alive=int(idle_s),
            timeout_graceful_shutdown=stop_s,
            http=hurried(head_s, idle_s),
            ws="none",
            lifespan="on" if lifespan else "off",
        )
        started(url)
        uvicorn.Server(config).run(sockets=[listening])


def hurried(head_s: float, idle_s: float) -> type[asyncio.Protocol]:
    """Return uvicorn's protocol with an end to connections whose request does not come: it waits for a head for ever."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Hurried(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.loop.call_later(head_s, self._look, None)

        def _look(self, before: object) -> None:
            """Hang up where nothing was asked since the last look, and nothing is being answered."""
            if self.transport.is_closing():
                return
            if self.cycle is before and (before is None or self.cycle.response_complete):
                self.transport.close()
            else:
                self.loop.call_later(idle_s, self._look, self.cycle)

    return Hurried
