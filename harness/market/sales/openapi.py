"""The OpenAPI document of the service: every error of every operation declared, and what is paid for marked as MPP's discovery wants it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi.openapi.utils import get_openapi

from harness.market.offers.abi import checksummed
from harness.market.sales.shop import Token
from harness.market.sales.wire import CODES, Problem

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["declared"]

_ALWAYS = ("bad_request", "slow", "too_large", "invalid", "rate_limited")
_SELLING = (
    "payment_required",
    "not_found",
    "already_decided",
    "device_taken",
    "expired",
    "failed",
    "forged",
    "idempotency_conflict",
    "in_progress",
    "misuse",
    "outcome_unknown",
    "payment_used",
    "settlement_refused",
)
_OF_OPERATIONS: dict[tuple[str, str], tuple[str, ...]] = {
    ("/v1/quotes", "post"): ("not_found", "misuse", "idempotency_conflict"),
    ("/v1/quotes/{quote_id}", "get"): ("not_found",),
    ("/v1/quotes/{quote_id}/accept", "get"): _SELLING,
    ("/v1/quotes/{quote_id}/accept", "post"): _SELLING,
    ("/v1/evidence/{hash}", "get"): ("not_found",),
    ("/v1/disputes", "post"): _SELLING,
    ("/v1/disputes/{dispute_id}", "get"): ("not_found",),
    ("/.well-known/agent-card.json", "get"): ("misuse",),
    ("/.well-known/agent-registration.json", "get"): ("misuse",),
}
_PAID = ("/v1/quotes/{quote_id}/accept", "/v1/disputes")
_OBJECT = {"application/json": {"schema": {"type": "object"}}}


def declared(server: FastAPI, token: Token) -> dict[str, Any]:
    """Return the document, made once."""
    if server.openapi_schema:
        return server.openapi_schema
    made = get_openapi(title=server.title, version=server.version, description=server.description, routes=server.routes)
    schemas = made.setdefault("components", {}).setdefault("schemas", {})
    schemas["Problem"] = Problem.model_json_schema()
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for path, operations in made["paths"].items():
        for method, operation in operations.items():
            _errors(operation, (*_ALWAYS, *_OF_OPERATIONS.get((path, method), ())))
            if path in _PAID:
                operation["x-payment-info"] = _payment(token)
    responses = made["paths"]["/v1/evidence/{hash}"]["get"]["responses"]
    responses["200"]["content"] = _OBJECT
    for name in ("agent-card", "agent-registration"):
        made["paths"][f"/.well-known/{name}.json"]["get"]["responses"]["200"]["content"] = _OBJECT
    made["paths"]["/v1/quotes/{quote_id}/accept"]["post"]["requestBody"] = {
        "required": False,
        "description": "The signed envelope, in its canonical bytes, where the service has forgotten the quote.",
        "content": {"application/json": {"schema": schemas["QuoteReply"]["properties"]["envelope"]}},
    }
    made["x-service-info"] = {"categories": ["compute"]}
    server.openapi_schema = made
    return made


def _errors(operation: dict[str, Any], codes: tuple[str, ...]) -> None:
    """Declare errors: those of one status together, each with its word."""
    by_status: dict[int, list[str]] = {}
    for code in codes:
        by_status.setdefault(CODES[code][0], []).append(code)
    for status, named in sorted(by_status.items()):
        told = "; ".join(f"`{code}`: {CODES[code][1]}" for code in named)
        schema = (
            {"type": "object"} if status == CODES["payment_required"][0] else {"$ref": "#/components/schemas/Problem"}
        )
        response: dict[str, Any] = {"description": told, "content": {"application/problem+json": {"schema": schema}}}
        if status == CODES["payment_required"][0]:
            headers = {"PAYMENT-REQUIRED": "x402, version 2", "WWW-Authenticate": "MPP"}
            response["headers"] = {
                name: {"description": what, "schema": {"type": "string"}} for name, what in headers.items()
            }
        if status == CODES["rate_limited"][0]:
            response["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
        operation["responses"][str(status)] = response


def _payment(token: Token) -> dict[str, Any]:
    offer = {"intent": "charge", "method": "evm", "amount": None, "currency": checksummed(token.address)}
    return {"offers": [{**offer, "description": f"EIP-3009 transfer on {token.network}; the 402 says how much"}]}
