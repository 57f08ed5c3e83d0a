"""`harness serve`: the counter behind HTTP. The door to FastAPI.

    GET  /                                  the page for people
    GET  /v1/devices                        what is for sale
    POST /v1/quotes                         a signed offer, free
    GET  /v1/quotes/{id}                    where it stands
    GET, POST /v1/quotes/{id}/accept        402, and then the sale
    GET  /v1/evidence/{hash}                what an offer names by its hash
    POST /v1/disputes                       402 for the bond, and then the dispute
    GET  /v1/disputes/{id}                  where it stands
    GET  /openapi.json, /.well-known/agent-card.json, /.well-known/agent-registration.json

HEAD is answered wherever GET is, and buys nothing. Each error is a problem of `wire.CODES`, and each operation declares its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import FastAPI, Header, Path, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.routing import Match

from harness import codec
from harness.errors import HarnessError, MisuseError
from harness.market.dialects.a2a import to_card
from harness.market.dialects.erc8004 import Service, to_registration
from harness.market.offers import envelope as envelopes
from harness.market.sales import page as pages
from harness.market.sales.counter import Counter, Standing
from harness.market.sales.docket import Claim, Dispute
from harness.market.sales.guard import App, Guard, problem
from harness.market.sales.limits import Limits
from harness.market.sales.openapi import declared
from harness.market.sales.paywall import Asked, Due, receipts
from harness.market.sales.shop import Shelved
from harness.market.sales.till import Sold
from harness.market.sales.wire import (
    HASH,
    DeviceReply,
    DevicesReply,
    DisputeReply,
    DisputeRequest,
    QuoteReply,
    QuoteRequest,
    SaleReply,
    problem_of,
)

__all__ = ["app"]

_REFRESH_S = 5.0
_DESCRIPTION = "Sells hours of measured GPUs: signed offers with the benchmark that backs them, paid by x402 or MPP."
_NAME = "GPU compute by signed quote"

_Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern="^[A-Za-z0-9_.:-]{16,128}$",
        description="Makes a repeated request one request: same key, same answer; another request with it is refused.",
    ),
]
_QuoteId = Annotated[str, Path(pattern=HASH, description="0x and 64 hex digits.")]
_Name = Annotated[str, Path(pattern="^(0x)?[0-9a-f]{64}$", description="Keccak-256 with 0x, or SHA-256 without.")]


def app(counter: Counter, limits: Limits | None = None) -> App:
    """Return the ASGI application of a counter, behind its guard."""
    server = FastAPI(
        title=_NAME,
        version=version("gpu-assay"),
        description=_DESCRIPTION,
        docs_url=None,  # they load scripts from elsewhere
        redoc_url=None,
        lifespan=_life(counter),
        redirect_slashes=False,
    )
    _handle_errors(server)
    _browse(server, counter)
    _quotes(server, counter)
    _disputes(server, counter)
    server.openapi = lambda: declared(server, counter.shop.seller.token)  # type: ignore[method-assign]
    return Guard(server, limits or Limits())


def _life(counter: Counter) -> Callable[[FastAPI], contextlib.AbstractAsyncContextManager[None]]:
    async def refreshing() -> None:
        while True:
            await asyncio.sleep(_REFRESH_S)
            with contextlib.suppress(HarnessError, OSError):
                await asyncio.to_thread(counter.shop.refresh)

    @contextlib.asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(counter.start)
        await asyncio.to_thread(counter.shop.refresh)
        counter.shop.by_itself = False
        task = asyncio.create_task(refreshing())
        yield
        task.cancel()
        await counter.close()

    return life


def _handle_errors(server: FastAPI) -> None:
    @server.exception_handler(HarnessError)
    async def on_purpose(_: Request, err: HarnessError) -> Response:
        return _problem(*problem_of(err))

    @server.exception_handler(RequestValidationError)
    async def invalid(_: Request, err: RequestValidationError) -> Response:
        first = err.errors()[0] if err.errors() else {"loc": (), "msg": "unreadable"}
        where = ".".join(str(part) for part in first["loc"])
        return _problem("invalid", f"{where}: {first['msg']}"[:500])

    @server.exception_handler(HTTPException)
    async def http(request: Request, err: HTTPException) -> Response:
        code = {404: "not_found", 405: "method_not_allowed"}.get(err.status_code, "bad_request")
        headers = dict(err.headers or {})
        if code == "method_not_allowed":  # the router names the methods of the first route of this path only
            here = (route for route in server.routes if route.matches(request.scope)[0] is not Match.NONE)
            headers["Allow"] = ", ".join(sorted({method for route in here for method in getattr(route, "methods", ())}))
        return _problem(code, str(err.detail), headers)


def _problem(code: str, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    status, body = problem(code, detail)
    retry = {"Retry-After": "1"} if code in {"in_progress", "failed"} else {}
    return Response(body, status, {**retry, **(headers or {})}, media_type="application/problem+json")


# --- what is for sale -------------------------------------------------------------------------------------------------


def _browse(server: FastAPI, counter: Counter) -> None:
    shop = counter.shop

    @server.get("/", response_class=HTMLResponse, summary="The page for people")
    async def root() -> Response:
        html = pages.page([pages.listing(one) for one in shop.listings()], now=datetime.now(UTC))
        return HTMLResponse(html, headers=dict(pages.HEADERS))

    @server.get("/v1/devices", response_model=DevicesReply, summary="What is for sale")
    async def devices() -> Response:
        seller = shop.seller
        return JSONResponse(
            {
                "provider": shop.signer.address,
                "network": seller.token.network,
                "asset": seller.token.address,
                "seconds_least": seller.seconds_least,
                "seconds_most": seller.seconds_most,
                "devices": [_device(one, counter) for one in shop.listings()],
            }
        )

    @server.get("/v1/evidence/{hash}", summary="A document by its hash", response_class=Response)
    async def evidence(hash: _Name) -> Response:  # noqa: A002 - the name in the path
        found = counter.document(hash)
        kept = {"Cache-Control": "public, max-age=31536000, immutable", "ETag": f'"{hash}"'}
        return Response(found.data, media_type=found.media_type, headers=kept)

    @server.get("/.well-known/agent-card.json", summary="The agent's card (A2A)", response_class=JSONResponse)
    async def card() -> Response:
        made = _sample(counter)
        return JSONResponse(
            to_card(made, url=counter.url, name=_NAME, description=_DESCRIPTION, version=version("gpu-assay"))
        )

    @server.get(
        "/.well-known/agent-registration.json",
        summary="The agent's registration (ERC-8004)",
        response_class=JSONResponse,
    )
    async def registration() -> Response:
        services = [Service("web", counter.url), Service("A2A", f"{counter.url}/.well-known/agent-card.json", "1.0")]
        made = _sample(counter)
        return JSONResponse(to_registration(made, name=_NAME, description=_DESCRIPTION, image="", services=services))


def _sample(counter: Counter) -> envelopes.Envelope:
    """Return an offer of the first device, for the documents of which one is a part."""
    first = next(iter(counter.shop.listings()), None)
    if first is None:
        message = "nothing is for sale now"
        raise MisuseError(message)
    least = counter.shop.seller.seconds_least
    return counter.quote(device=first.device.uuid, seconds=least, supersedes=None, key=None).envelope


def _device(one: Shelved, counter: Counter) -> dict[str, Any]:
    quote = one.quote
    return DeviceReply(
        device=one.device.uuid,
        name=one.device.name,
        kind=one.device.kind,
        usd_per_hour=str(quote.price_usd_per_hour),
        low_usd_per_hour=None if quote.low_usd_per_hour is None else str(quote.low_usd_per_hour),
        high_usd_per_hour=None if quote.high_usd_per_hour is None else str(quote.high_usd_per_hour),
        profile=quote.profile,
        cycles_per_s=None if quote.cycles_per_s is None else str(quote.cycles_per_s),
        measured_at=one.report.sealed_at,
        report=quote.report_digest,
        quote=codec.digest(quote),
        available=not counter.journal.is_let(one.device.uuid),
    ).model_dump()


# --- quotes -----------------------------------------------------------------------------------------------------------


def _quotes(server: FastAPI, counter: Counter) -> None:
    @server.post("/v1/quotes", status_code=201, response_model=QuoteReply, summary="Ask for a signed offer")
    async def ask(wanted: QuoteRequest, key: _Key = None) -> Response:
        issued = counter.quote(device=wanted.device, seconds=wanted.seconds, supersedes=wanted.supersedes, key=key)
        standing = Standing(envelope=envelopes.plain(issued.envelope), state="QUOTED")
        where = f"/v1/quotes/{issued.offer.quote_id}"
        return JSONResponse(_standing(standing, counter), 201, {"Location": where})

    @server.get("/v1/quotes/{quote_id}", response_model=QuoteReply, summary="Where a quote stands")
    async def read(quote_id: _QuoteId) -> Response:
        return JSONResponse(_standing(await asyncio.to_thread(counter.standing, quote_id), counter))

    async def accept(request: Request, quote_id: str, key: str | None, body: bytes) -> Response:
        found = await counter.accept(_asked(request, counter), quote_id, body, key)
        if isinstance(found, Due):
            return _due(found)
        return await _sold(found, counter)

    @server.get(
        "/v1/quotes/{quote_id}/accept", response_model=SaleReply, summary="Accept a quote that is remembered here"
    )
    async def accept_known(request: Request, quote_id: _QuoteId, key: _Key = None) -> Response:
        return await accept(request, quote_id, key, b"")

    @server.post(
        "/v1/quotes/{quote_id}/accept", response_model=SaleReply, summary="Accept a quote; its envelope may be brought"
    )
    async def accept_brought(request: Request, quote_id: _QuoteId, key: _Key = None) -> Response:
        return await accept(request, quote_id, key, await request.body())


def _asked(request: Request, counter: Counter) -> Asked:
    """Return the request as the payer signed it: at the URL under which this service is known, whatever a proxy made of it."""
    query = f"?{request.url.query}" if request.url.query else ""
    return Asked(method=request.method, url=f"{counter.url}{request.url.path}{query}", headers=dict(request.headers))


def _due(due: Due) -> Response:
    told = json.loads(due.body or b"{}") | {"code": "payment_required"}  # noqa: TID251 - a body of our own
    response = Response(json.dumps(told), due.status)
    for name, value in due.headers:
        if name.lower() == "content-type":
            response.headers[name] = value
        else:
            response.headers.append(name, value)
    return response


async def _sold(sold: Sold, counter: Counter) -> Response:
    url = f"{counter.url}/v1/quotes/{sold.id}/accept"
    receipt = await asyncio.to_thread(counter.receipt, sold, url)
    return JSONResponse({**_sale(sold), "receipt": receipt}, headers=receipts(sold, receipt))


def _sale(sold: Sold) -> dict[str, Any]:
    told = asdict(sold)
    amount, _ = told.pop("amount_atomic"), told.pop("protocol")
    return {
        "quote_id": told.pop("id"),
        **told,
        "amount_atomic": None if amount is None else str(amount),
        "receipt": None,
    }


def _standing(standing: Standing, counter: Counter) -> dict[str, Any]:
    fields = standing.envelope["quote"]
    return {
        "state": standing.state,
        "quote_id": fields["quoteId"],
        "amount_atomic": fields["maxTotalAtomic"],
        "accept": f"{counter.url}/v1/quotes/{fields['quoteId']}/accept",
        "envelope": standing.envelope,
        # What was delivered may be a secret of the buyer's, and who knows a quote's id need not be the buyer.
        "sale": {**_sale(standing.sold), "delivery": None} if standing.sold else None,
    }


# --- disputes ---------------------------------------------------------------------------------------------------------


def _disputes(server: FastAPI, counter: Counter) -> None:
    @server.post(
        "/v1/disputes", status_code=201, response_model=DisputeReply, summary="Dispute a capture, against a bond"
    )
    async def file(request: Request, wanted: DisputeRequest, key: _Key = None) -> Response:
        body = json.dumps(wanted.model_dump(), sort_keys=True).encode()
        found = await counter.dispute(_asked(request, counter), Claim(**wanted.model_dump()), body, key)
        if isinstance(found, Due):
            return _due(found)
        where = {"Location": f"/v1/disputes/{found.id}"}
        return JSONResponse(_dispute(counter.disputed(found.id)), 201, {**receipts(found), **where})

    @server.get("/v1/disputes/{dispute_id}", response_model=DisputeReply, summary="Where a dispute stands")
    async def read(dispute_id: _QuoteId) -> Response:
        return JSONResponse(_dispute(counter.disputed(dispute_id)))


def _dispute(found: Dispute) -> dict[str, Any]:
    said = found.judgement or {"verdict": None, "reason": None, "measured_cycles_per_s": None, "reports": []}
    refund = found.refund_atomic
    return {
        "dispute_id": found.dispute_id,
        "quote_id": found.quote_id,
        "state": found.state,
        "seed": found.seed,
        "deadline_s": found.deadline_s,
        **said,
        "refund_atomic": None if refund is None else str(refund),
        "refunded_by": found.refunded_by,
    }
