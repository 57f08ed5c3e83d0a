"""One connection of a prover to its verifier: records there and back, bounded in size and time, and tried again where the network dropped it."""

from __future__ import annotations

import http.client
from typing import TypeVar
from urllib.parse import urlsplit

from harness import codec
from harness.errors import FailureError, MisuseError
from harness.market.offers.urls import is_root

__all__ = ["TIMEOUT_S", "Line"]

T = TypeVar("T")

TIMEOUT_S = 30.0  # above the verifier's longest pause
_REPLY_MOST_BYTES = 32 << 20  # above the results of a full epoch
_SAID_BYTES = 300
_OK, _EMPTY = 200, 204


class Line:
    """One connection to a verifier."""

    def __init__(self, url: str, *, timeout_s: float = TIMEOUT_S) -> None:
        """Prepare a connection; nothing is sent yet.

        Raises:
            MisuseError: the URL is none of HTTP.
        """
        if not is_root(url):
            msg = f"{url!r} is not the URL of a verifier, such as http://127.0.0.1:8440"
            raise MisuseError(msg)
        parts = urlsplit(url)
        make = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._timeout_s = timeout_s
        self._connection = make(parts.hostname or "", parts.port, timeout=timeout_s)
        self._root = parts.path.rstrip("/")

    def close(self) -> None:
        """Hang up."""
        self._connection.close()

    def get(self, path: str, kind: type[T]) -> T:
        """Ask for a record.

        Raises:
            FailureError: the verifier cannot be reached, or refuses.
            ForgeryError: its reply is no such record.
        """
        return codec.decode(self._ask("GET", path, None, None), kind)

    def post(self, path: str, record: object, kind: type[T], *, timeout_s: float | None = None) -> T:
        """Send a record, or bytes as they are, and return the reply.

        Raises:
            FailureError, ForgeryError: as `get`.
        """
        return codec.decode(self.send(path, record, timeout_s=timeout_s), kind)

    def send(self, path: str, record: object, *, timeout_s: float | None = None) -> bytes:
        """Send as `post` does, and return the reply as it is; nothing for an empty one.

        Raises:
            FailureError: as `get`.
        """
        return self._ask("POST", path, record if isinstance(record, bytes) else codec.encode(record), timeout_s)

    def _ask(self, method: str, path: str, body: bytes | None, timeout_s: float | None) -> bytes:
        line = self._connection
        try:
            status, data = self._exchange(method, path, body, timeout_s)
        except (OSError, http.client.HTTPException) as err:
            msg = f"the verifier at {line.host}:{line.port} does not answer: {type(err).__name__}: {err}"
            raise FailureError(msg) from err
        if status not in {_OK, _EMPTY}:
            said = " ".join(data[:_SAID_BYTES].decode(errors="replace").split())
            msg = f"the verifier refuses {path.rsplit('/', 1)[-1]!r} (HTTP {status}): {said}"
            raise FailureError(msg)
        if len(data) > _REPLY_MOST_BYTES:
            msg = f"the verifier's reply goes on past {_REPLY_MOST_BYTES} bytes"
            raise FailureError(msg)
        return data

    def _exchange(self, method: str, path: str, body: bytes | None, timeout_s: float | None) -> tuple[int, bytes]:
        """Send and receive, over a new connection where the old one was dropped: a verifier takes the same message twice."""
        line = self._connection
        again = line.sock is not None
        while True:
            try:
                if line.sock is None:
                    line.connect()
                line.sock.settimeout(timeout_s or self._timeout_s)
                line.request(method, self._root + path, body=body)
                reply = line.getresponse()
                return reply.status, reply.read(_REPLY_MOST_BYTES + 1)
            except (ConnectionError, http.client.RemoteDisconnected):
                line.close()
                if not again:
                    raise
                again = False
            except (OSError, http.client.HTTPException):
                line.close()
                raise
