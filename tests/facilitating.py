"""A facilitator over HTTP, in a thread: a ledger in memory that can be made to hang, break or lie."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from harness.market.sales.facilitator import LocalFacilitator, Payment

__all__ = ["Desk", "facilitating"]


@dataclass(slots=True)
class Desk:
    """What the facilitator does and was asked."""

    ledger: LocalFacilitator
    url: str = ""
    asked: list[str] = field(default_factory=list)
    answers: dict[str, tuple[int, bytes]] = field(default_factory=dict)  # by what was asked: said instead of the truth
    settling: threading.Event = field(default_factory=threading.Event)
    hold: threading.Event | None = None  # settles, and waits for this before it says so

    def answer(self, what: str, order: dict[str, Any]) -> tuple[int, bytes]:
        self.asked.append(what)
        signed = order["paymentPayload"]["payload"]["authorization"]
        payment = Payment(
            payer=signed["from"].lower(),
            nonce=signed["nonce"].lower(),
            protocol="x402",
            payload=order["paymentPayload"],
            requirements=order["paymentRequirements"],
        )
        found: dict[str, Any]
        if what == "verify":
            refusal = asyncio.run(self.ledger.verify(payment))
            found = {"isValid": refusal is None, "invalidReason": refusal, "payer": payment.payer}
        else:
            settled = asyncio.run(self.ledger.settle(payment))
            found = {
                "success": settled.transaction is not None,
                "transaction": settled.transaction or "",
                "network": payment.requirements["network"],
                "errorReason": settled.refusal,
            }
            self.settling.set()
            if self.hold:
                self.hold.wait(20)
        return self.answers.get(what, (200, json.dumps(found).encode()))


@contextmanager
def facilitating(ledger: LocalFacilitator) -> Iterator[Desk]:
    """Serve a ledger on a free port of this machine."""
    desk = Desk(ledger)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            order = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, body = desk.answer(self.path.strip("/"), order)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    desk.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield desk
    finally:
        if desk.hold:
            desk.hold.set()
        server.shutdown()
        server.server_close()
        thread.join()
