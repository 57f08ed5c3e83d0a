"""The 402: what is due, to clients of x402 and of MPP alike, and what they bring when they come back. The door to pympp.

Promised: a payment is handed on only if its payer signed it for exactly this amount, token, chain and recipient, in time, in the one spelling that a
signature has, and for this URL, as far as its protocol binds one.
Not promised: that it will settle; that the plain `exact` scheme of x402 signs the URL. It does not: the echoed URL and the claim, which is good once
everywhere, are what binds it.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from harness.errors import FailureError, ForgeryError
from harness.market.offers.abi import checksummed
from harness.market.offers.eip712 import Domain, digest
from harness.market.offers.secp256k1 import recover
from harness.market.sales.facilitator import TRANSFER, Payment
from harness.market.sales.shop import Token
from harness.market.sales.till import PaymentRefusedError, Sold

if TYPE_CHECKING:
    from mpp.methods.evm.intents import Authorization

__all__ = ["Asked", "Due", "Paywall", "Priced", "receipts", "requirements"]

Take = Callable[[Payment], Awaitable[Sold]]
_CREDENTIALS = ("authorization", "payment-signature")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request, as far as paying goes."""

    method: str
    url: str
    headers: Mapping[str, str]  # names in lower case

    @property
    def pays(self) -> bool:
        """Whether it brings a payment."""
        return "payment-signature" in self.headers or self.headers.get("authorization", "").lower().startswith(
            "payment "
        )

    @property
    def credential(self) -> str:
        """What it brings."""
        return "|".join(self.headers.get(name, "") for name in _CREDENTIALS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """What is due: x402's requirements, and what is said beside them."""

    requirements: Mapping[str, Any]
    resource: Mapping[str, Any]
    extensions: Mapping[str, Any]
    expires_s: int  # from now


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """A response that asks for a payment, or refuses one."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


def requirements(
    token: Token, *, pay_to: str, amount_atomic: int, timeout_s: int, extra: Mapping[str, str]
) -> dict[str, Any]:
    """Return x402's requirements for an amount of a token."""
    return {
        "scheme": "exact",
        "network": token.network,
        "amount": str(amount_atomic),
        "asset": checksummed(token.address),
        "payTo": checksummed(pay_to),
        "maxTimeoutSeconds": timeout_s,
        "extra": {"name": token.name, "version": token.version, "paymentFlow": "upfront", **extra},
    }


class Paywall:
    """Asks for payments in one token. Keeps nothing: what it asked for is bound into what it asked by a secret of its own."""

    def __init__(self, token: Token, realm: str) -> None:
        """Prepare.

        Raises:
            FailureError: extra `pay` is missing.
        """
        try:
            import mpp.methods.evm.server  # noqa: F401 - asked for before the first buyer comes
        except ImportError as err:
            message = "payments are read by pympp, which is not installed: pip install 'gpu-assay[pay]'"
            raise FailureError(message) from err
        self._token, self._realm, self._secret = token, realm, secrets.token_hex(32)

    async def gate(self, asked: Asked, priced: Priced, take: Take) -> Due | Sold:
        """Ask for what is due, or hand on what was brought.

        Args:
            asked: the request.
            priced: what is due for it.
            take: told a payment whose signature and terms are right. What it raises goes through, but for `PaymentRefusedError`, which asks again.
        """
        from mpp.errors import VerificationFailedError
        from mpp.server.http import Request
        from mpp.server.mpp import Mpp

        sold: list[Sold] = []

        async def settle(authorization: Authorization) -> str:
            payment = self._payment(authorization, priced)
            try:
                sold.append(await take(payment))
            except PaymentRefusedError as err:
                raise VerificationFailedError(str(err)) from err
            return sold[0].transaction or sold[0].id

        server = Mpp(methods=self._method(priced, settle), realm=self._realm, secret_key=self._secret)
        amount = Decimal(priced.requirements["amount"]).scaleb(-self._token.decimals)
        handler = server.charge(amount=format(amount, "f"), expires_in=timedelta(seconds=max(priced.expires_s, 1)))
        found = await handler(Request(asked.method, asked.url, dict(asked.headers)))
        if found.status == 200 and sold:  # noqa: PLR2004 - OK
            return sold[0]
        challenge = found.challenge
        headers = tuple((name, self._more(name, value, priced)) for name, value in challenge.headers.multi_items())
        return Due(status=challenge.status, headers=headers, body=challenge.body or b"")

    def _method(self, priced: Priced, settle: Callable[[Authorization], Awaitable[str]]) -> Any:
        """Return pympp's method with our requirements, and with no memory of its own: the journal is the one that claims."""
        from mpp.methods.evm import server as evm

        token = self._token
        method = evm.charge(
            currency=token.address,
            chain_id=token.chain_id,
            decimals=token.decimals,
            authorization={"name": token.name, "version": token.version},
            recipient=priced.requirements["payTo"],
            settle=settle,
            max_timeout_seconds=priced.requirements["maxTimeoutSeconds"],
            route_binding="resource",
            store=_Forgetful(),
        )
        return replace(method, x402=_Ours(method.x402, priced.requirements))

    def _payment(self, authorization: Authorization, priced: Priced) -> Payment:
        """Make one form of either protocol's payment.

        Raises:
            PaymentRefusedError: the signature is another spelling of one, such as its twin with a high s.
        """
        signed = authorization.payload
        names = ("from", "to", "value", "validAfter", "validBefore", "nonce")
        message = {name: signed[name] for name in names}
        lower = {name: signed[name].lower() for name in ("from", "to", "nonce")}
        whole = {name: int(signed[name]) for name in ("value", "validAfter", "validBefore")}
        token = self._token
        domain = Domain(
            name=token.name, version=token.version, chain_id=token.chain_id, verifying_contract=token.address
        )
        try:
            payer = recover(
                digest(domain, "TransferWithAuthorization", TRANSFER, lower | whole), signed["signature"].lower()
            )
        except ForgeryError as err:
            raise PaymentRefusedError(str(err)) from err
        if payer != lower["from"]:
            message_ = f"signed by {payer}, not by {lower['from']}"
            raise PaymentRefusedError(message_)
        return Payment(
            payer=payer,
            nonce=lower["nonce"],
            protocol="x402" if authorization.credential.challenge.id.startswith("x402:") else "mpp",
            payload={
                "x402Version": 2,
                "resource": dict(priced.resource),
                "accepted": dict(priced.requirements),
                "payload": {"authorization": message, "signature": signed["signature"]},
            },
            requirements=priced.requirements,
        )

    def _more(self, name: str, value: str, priced: Priced) -> str:
        """Put what pympp has no place for into its header: the resource in words, and signed offers."""
        from mpp.x402 import decode_payment_required, encode_payment_required

        if name.upper() != "PAYMENT-REQUIRED":
            return value
        document = dict(decode_payment_required(value))
        document["resource"] = dict(priced.resource)
        document["extensions"] = {**document.get("extensions", {}), **priced.extensions}  # type: ignore[dict-item]
        return encode_payment_required(document)  # type: ignore[arg-type]


def receipts(sold: Sold, signed: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Return the response headers by which a payer's client sees that it paid; the same whenever they are asked for.

    Args:
        sold: what the journal says of the sale.
        signed: a signed receipt, where x402 has its place for one.
    """
    from mpp import Receipt
    from mpp.x402 import encode_payment_response

    if sold.transaction is None:
        return {}
    at = datetime.fromisoformat(str(sold.captured_at))
    receipt = Receipt(status="success", timestamp=at, reference=sold.transaction, method="evm")
    made = {"Payment-Receipt": receipt.to_payment_receipt()}
    if sold.protocol == "x402":
        answer = {"success": True, "transaction": sold.transaction, "network": sold.network}
        answer["payer"] = checksummed(str(sold.payer))
        if signed is not None:
            answer["extensions"] = {"offer-receipt": {"info": {"receipt": dict(signed)}}}
        made["PAYMENT-RESPONSE"] = encode_payment_response(answer)  # type: ignore[arg-type]
    return made


class _Forgetful:
    """A store that claims nothing: pympp asks for one, and the journal must be the only judge of what was used."""

    async def get(self, key: str) -> None:
        """Know nothing."""

    async def put(self, key: str, value: Any) -> None:
        """Keep nothing."""

    async def delete(self, key: str) -> None:
        """Have nothing."""

    async def put_if_absent(self, key: str, value: Any) -> bool:  # noqa: ARG002 - the protocol's
        """Agree."""
        return True


class _Ours:
    """pympp's intent with our requirements in place of its own."""

    name = "charge"
    route_binding = "resource"

    def __init__(self, intent: Any, wanted: Mapping[str, Any]) -> None:
        self._intent, self._wanted = intent, wanted

    def x402_requirements(self, request: dict[str, Any]) -> Any:  # noqa: ARG002 - the protocol's
        """Return what is due."""
        return dict(self._wanted)

    def x402_credential_payload(self, payment: Any, request: dict[str, Any]) -> Any:
        """Turn x402's payload into MPP's."""
        return self._intent.x402_credential_payload(payment, request)
