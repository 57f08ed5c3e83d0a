"""JSON Schemas (draft 2020-12) of the views, each as narrow as its protocol and our use of it allow: for whoever reads our files without our code.

A schema checks form alone. That a document follows from the offer in it is what reading it back checks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness.errors import MisuseError
from harness.market.dialects import erc8294
from harness.market.dialects.carry import KEY
from harness.market.offers import envelope

__all__ = ["NAMES", "schema_of"]

Schema = dict[str, Any]
_TEXT: Schema = {"type": "string"}
_WHOLE: Schema = {"type": "integer", "minimum": 0}
_NUMBER: Schema = {"type": "string", "pattern": "^(0|[1-9][0-9]*)$"}
_ADDRESS: Schema = {"type": "string", "pattern": "^0x[0-9a-f]{40}$"}
_MIXED: Schema = {"type": "string", "pattern": "^0x[0-9a-fA-F]{40}$"}  # with the capitals of EIP-55
_HASH: Schema = {"type": "string", "pattern": "^0x[0-9a-f]{64}$"}
_SIGNATURE: Schema = {"type": "string", "pattern": "^0x[0-9a-f]{130}$"}
_NETWORK: Schema = {"type": "string", "pattern": "^eip155:[1-9][0-9]*$"}
_OBJECT: Schema = {"type": "object"}


def schema_of(name: str) -> Schema:
    """Return the JSON Schema of a view.

    Raises:
        MisuseError: there is none of that name.
    """
    if name not in _MAKERS:
        message = f"no schema of {name!r}; there are {', '.join(_MAKERS)}"
        raise MisuseError(message)
    made = {name: part for name, part in _MAKERS[name]().items() if name != "$schema"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}


def _closed(*optional: str, **properties: Any) -> Schema:
    required = sorted(set(properties) - set(optional))
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _list(items: Schema, *, least: int = 0) -> Schema:
    return {"type": "array", "items": items, "minItems": least}


def _with_offer(whole: Schema, *, at: str = KEY) -> Schema:
    """Return the schema of an object that carries the envelope, too."""
    carried = {name: part for name, part in envelope.schema().items() if name != "$schema"}
    properties = {**whole["properties"], at: carried}
    return {**whole, "properties": properties, "required": sorted({*whole["required"], at})}


def _x402() -> Schema:
    payload = _closed(
        version={"const": 1},
        resourceUrl=_TEXT,
        scheme={"const": "exact"},
        network=_NETWORK,
        asset=_MIXED,
        payTo=_MIXED,
        amount=_NUMBER,
        validUntil=_WHOLE,
    )
    signed = _closed(format={"const": "eip712"}, acceptIndex=_WHOLE, payload=payload, signature=_SIGNATURE)
    extra = _closed(
        name=_TEXT, version=_TEXT, paymentFlow={"const": "upfront"}, unit=_TEXT, units=_NUMBER, quoteId=_HASH
    )
    accepted = _closed(
        scheme={"const": "exact"},
        network=_NETWORK,
        asset=_MIXED,
        payTo=_MIXED,
        amount=_NUMBER,
        maxTimeoutSeconds=_WHOLE,
        extra=extra,
    )
    offers = _closed(info=_closed(offers=_list(signed, least=1)), schema=_OBJECT)
    extensions = _closed(**{"offer-receipt": offers})
    ours = _with_offer(_closed(schema=_OBJECT), at="info")
    extensions = {**extensions, "properties": {**extensions["properties"], KEY: ours}}
    extensions["required"] = sorted(extensions["properties"])
    return _closed(
        x402Version={"const": 2},
        resource=_closed(url=_TEXT, description=_TEXT, mimeType=_TEXT),
        accepts=_list(accepted, least=1),
        extensions=extensions,
    )


def _mpp() -> Schema:
    offer = _closed(
        intent={"enum": ["charge", "session"]},
        method=_TEXT,
        amount={"anyOf": [{"type": "null"}, _NUMBER]},
        currency=_MIXED,
        description=_TEXT,
    )
    post = _closed(
        **{
            "operationId": _TEXT,
            "summary": _TEXT,
            "x-payment-info": _closed(offers=_list(offer, least=1)),
            f"x-{KEY}-units": {"anyOf": [{"type": "null"}, _NUMBER]},
            "responses": {"type": "object", "required": ["402"]},
        }
    )
    return _closed(
        **{
            "openapi": {"const": "3.1.0"},
            "info": _closed(title=_TEXT, version=_TEXT),
            "servers": _list(_closed(url=_TEXT), least=1),
            "x-service-info": _closed(categories=_list(_TEXT)),
            "paths": {
                "type": "object",
                "additionalProperties": _closed(post=_with_offer(post, at=f"x-{KEY}")),
                "minProperties": 1,
            },
        }
    )


def _registration() -> Schema:
    service = _closed("version", name=_TEXT, endpoint=_TEXT, version=_TEXT)
    registry = {"type": "string", "pattern": "^eip155:[1-9][0-9]*:0x[0-9a-fA-F]{40}$"}
    return _with_offer(
        _closed(
            type={"const": "https://eips.ethereum.org/EIPS/eip-8004#registration-v1"},
            name=_TEXT,
            description=_TEXT,
            image=_TEXT,
            services=_list(service),
            x402Support={"type": "boolean"},
            active={"type": "boolean"},
            registrations=_list(_closed(agentId=_WHOLE, agentRegistry=registry)),
            supportedTrust=_list(_TEXT),
        )
    )


def _validation() -> Schema:
    request = _closed(chainId=_NUMBER, registry=_ADDRESS, agentId=_NUMBER, validator=_ADDRESS, salt=_HASH)
    return _with_offer(
        _closed(
            requestHash=_HASH,
            response={"type": "integer", "minimum": 0, "maximum": 100},
            responseURI=_TEXT,
            responseHash={**_HASH, "not": {"pattern": "^0x0{64}$"}},
            tag={"type": "string", "minLength": 1},
            request=request,
        )
    )


def _feedback() -> Schema:
    account = {"type": "string", "pattern": "^eip155:[1-9][0-9]*:0x[0-9a-f]{40}$"}
    registry = {"type": "string", "pattern": "^eip155:[1-9][0-9]*:0x[0-9a-fA-F]{40}$"}
    proof = _closed(
        fromAddress=_ADDRESS, toAddress=_ADDRESS, chainId=_NUMBER, txHash=_HASH, asset=_ADDRESS, amountAtomic=_NUMBER
    )
    return _with_offer(
        _closed(
            "proofOfPayment",
            agentRegistry=registry,
            agentId=_WHOLE,
            clientAddress=account,
            createdAt={"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$"},
            value={"type": "integer", "minimum": 0, "maximum": 10_000},
            valueDecimals={"enum": [0, 2]},
            tag1={"enum": ["starred", "successRate", "uptime", "speed"]},
            tag2=_TEXT,
            endpoint=_TEXT,
            proofOfPayment=proof,
        )
    )


def _aggregated() -> Schema:
    verdict = {"type": "integer", "minimum": 0, "maximum": 100}
    attestation = _closed(
        validator=_ADDRESS,
        verdict=verdict,
        evidenceHash=_HASH,
        issuedAt=_WHOLE,
        challengeKind=_HASH,
        nonceHash=_HASH,
        signature=_SIGNATURE,
    )
    return _closed(
        schema={"const": erc8294.SCHEMA},
        requestHash=_HASH,
        policy={"type": "string", "pattern": "^0x[0-9a-f]+$"},
        validators=_list(_ADDRESS, least=1),
        attestations=_list(attestation, least=1),
        attestationsRoot=_HASH,
        aggregatedVerdict={"enum": [0, 100]},
        verdictMode={"enum": ["any", "majority", "unanimous"]},
    )


def _job() -> Schema:
    return _with_offer(
        _closed(
            chainId=_NUMBER,
            provider=_ADDRESS,
            evaluator=_ADDRESS,
            providerAgentId=_NUMBER,
            token=_ADDRESS,
            budget=_NUMBER,
            units=_NUMBER,
            expiredAt=_NUMBER,
            description={"type": "string", "pattern": f"^{KEY}:0x[0-9a-f]{{64}}$"},
            hook=_ADDRESS,
        )
    )


def _evaluation() -> Schema:
    return _with_offer(
        _closed(
            chainId=_NUMBER,
            contract=_ADDRESS,
            jobId=_NUMBER,
            evaluator=_ADDRESS,
            action={"enum": ["complete", "reject"]},
            deliverable=_HASH,
            reason=_HASH,
        )
    )


def _commerce() -> Schema:
    addresses = ("operator", "payer", "receiver", "token", "feeReceiver")
    numbers = (
        "maxAmount",
        "preApprovalExpiry",
        "authorizationExpiry",
        "refundExpiry",
        "minFeeBps",
        "maxFeeBps",
        "salt",
    )
    info = _closed(**dict.fromkeys(addresses, _ADDRESS), **dict.fromkeys(numbers, _NUMBER))
    return _with_offer(_closed(paymentInfo=info, paymentInfoHash=_HASH, nonce=_HASH))


def _golem() -> Schema:
    gpu = "golem.!exp.gap-35.v1.inf.gpu"
    whole = _closed(
        f"{gpu}.memory.total.gib",
        **{
            "golem.com.pricing.model": {"const": "linear"},
            "golem.com.pricing.model.linear.coeffs": {
                **_list({"type": "number", "minimum": 0}, least=2),
                "maxItems": 2,
            },
            "golem.com.usage.vector": {"const": ["golem.usage.duration_sec"]},
            "golem.com.scheme": {"const": "payu"},
            f"{gpu}.model": _TEXT,
            f"{gpu}.memory.total.gib": _WHOLE,
        },
    )
    platform = {r"^golem\.com\.payment\.platform\.erc20-(mainnet|polygon)-glm\.address$": _ADDRESS}
    return _with_offer({**whole, "patternProperties": platform})


def _service() -> Schema:
    return _closed(
        serviceType=_TEXT,
        url=_TEXT,
        model=_TEXT,
        verifiability=_TEXT,
        inputPrice=_NUMBER,
        outputPrice=_NUMBER,
        additionalInfo={"type": "string", "maxLength": 4096},
        teeSignerAddress=_MIXED,
    )


def _weights() -> Schema:
    u16 = {"type": "integer", "minimum": 0, "maximum": 65_535}
    return _closed(
        schema={"const": "harness.weights/1"},
        netuid=u16,
        mechid=_WHOLE,
        block=_WHOLE,
        versionKey=_NUMBER,
        evidenceRoot=_HASH,
        quotes={"type": "object", "additionalProperties": _list({"type": "string", "pattern": "^[0-9a-f]{64}$"})},
        preview=_closed(uids=_list(u16), weights=_list(u16)),
    )


def _card() -> Schema:
    extension = _closed(uri=_TEXT, description=_TEXT, required={"type": "boolean"}, params=_OBJECT)
    interface = _closed(url=_TEXT, protocolBinding=_TEXT, protocolVersion=_TEXT)
    skill = _closed(id=_TEXT, name=_TEXT, description=_TEXT, tags=_list(_TEXT))
    capabilities = _closed(
        streaming={"type": "boolean"}, pushNotifications={"type": "boolean"}, extensions=_list(extension)
    )
    return _closed(
        name=_TEXT,
        description=_TEXT,
        version=_TEXT,
        supportedInterfaces=_list(interface, least=1),
        capabilities=capabilities,
        defaultInputModes=_list(_TEXT),
        defaultOutputModes=_list(_TEXT),
        skills=_list(skill, least=1),
    )


_MAKERS: dict[str, Callable[[], Schema]] = {
    "envelope": envelope.schema,
    "x402": _x402,
    "mpp": _mpp,
    "erc8004": _registration,
    "erc8004-validation": _validation,
    "erc8004-feedback": _feedback,
    "erc8294": _aggregated,
    "erc8183": _job,
    "erc8183-evaluation": _evaluation,
    "commerce": _commerce,
    "golem": _golem,
    "0g": _service,
    "bittensor": _weights,
    "a2a": _card,
}
NAMES = tuple(_MAKERS)
