"""Who moves the money: a facilitator of x402 over HTTP, or a ledger in memory for tests and for trying things out. The door to httpx.

A facilitator answers, refuses, or leaves its outcome unknown. The third is not the second: who did not hear an answer must take it that the money
may have moved, and must not ask for it again.

Promised: what is no clear answer (a time-out, a broken line, a server's error, something unreadable, a refusal that names a transaction or gives
another reason than those that are found before one is sent) is never taken for a refusal.
Not promised: that the facilitator is honest. It says that a transaction settled; the chain knows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from harness.errors import FailureError, ForgeryError
from harness.market.offers.eip712 import Domain, Fields, digest
from harness.market.offers.secp256k1 import recover
from harness.strangers import loads

__all__ = ["TRANSFER", "Facilitator", "HttpFacilitator", "LocalFacilitator", "NoAnswerError", "Payment", "Settled"]

TRANSFER: Fields = (
    ("from", "address"),
    ("to", "address"),
    ("value", "uint256"),
    ("validAfter", "uint256"),
    ("validBefore", "uint256"),
    ("nonce", "bytes32"),
)
"""What a payer signs, by EIP-3009."""

_SERVER_ERROR = 500
_REFUSALS = frozenset(
    {
        "insufficient_funds",
        "invalid_exact_evm_payload_authorization_valid_after",
        "invalid_exact_evm_payload_authorization_valid_before",
        "invalid_exact_evm_payload_authorization_value",
        "invalid_exact_evm_payload_signature",
        "invalid_exact_evm_payload_recipient_mismatch",
        "invalid_network",
        "invalid_payload",
        "invalid_payment_requirements",
        "invalid_scheme",
        "unsupported_scheme",
        "invalid_x402_version",
        "invalid_exact_evm_insufficient_balance",  # this and the next are what x402's own facilitator says for two of those above
        "invalid_exact_evm_payload_authorization_value_mismatch",
    }
)
"""The reasons of x402's specification, version 2, part 9, that are found before a transaction is sent. What it has besides is not known to be:
`invalid_transaction_state` and `unexpected_settle_error`. Nor is what facilitators add, as `transaction_failed`, `settlement_pending`, and
`nonce_already_used`, which after a good look says that somebody has sent it."""
_ANSWER_MOST_BYTES = 64 << 10


class NoAnswerError(FailureError):
    """Nobody can say whether the facilitator did what it was asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Payment:
    """A payer's signed transfer, and what it was offered for, in x402's words; MPP's is turned into the same."""

    payer: str  # address, 0x and lower-case hex
    nonce: str  # 0x and 64 hex digits
    protocol: str  # x402 or mpp
    payload: Mapping[str, Any]  # a PaymentPayload
    requirements: Mapping[str, Any]  # PaymentRequirements

    @property
    def claim(self) -> str:
        """What makes this payment this payment, wherever it is shown: chain, token, payer and nonce."""
        return ":".join((self.requirements["network"], self.requirements["asset"].lower(), self.payer, self.nonce))


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """A facilitator's answer to the order to settle: the transaction, or why it surely did not happen."""

    transaction: str | None = None
    refusal: str | None = None


class Facilitator(Protocol):
    """Checks and settles payments; both may raise `NoAnswerError`."""

    async def verify(self, payment: Payment) -> str | None:
        """Return why a payment cannot be settled, or None. Moves nothing."""

    async def settle(self, payment: Payment) -> Settled:
        """Move the money."""

    async def close(self) -> None:
        """Hang up."""


class HttpFacilitator:
    """An x402 facilitator's API: `POST URL/verify` and `POST URL/settle`."""

    def __init__(self, url: str, *, timeout_s: float = 20.0) -> None:
        """Prepare to ask; nothing is sent yet.

        Raises:
            FailureError: extra `pay` is missing.
        """
        try:
            import httpx
        except ImportError as err:
            message = "a facilitator is asked through httpx, which is not installed: pip install 'gpu-assay[pay]'"
            raise FailureError(message) from err
        self._url, self._errors = url.rstrip("/"), (httpx.HTTPError, httpx.InvalidURL)
        self._client = httpx.AsyncClient(timeout=timeout_s, follow_redirects=False, trust_env=False)

    async def verify(self, payment: Payment) -> str | None:
        """Ask whether a payment would settle."""
        found = await self._ask("verify", payment)
        if not isinstance(found.get("isValid"), bool):
            message = f"the facilitator's answer to verify has no isValid: {str(found)[:200]}"
            raise NoAnswerError(message)
        return None if found["isValid"] else str(found.get("invalidReason") or "refused")[:200]

    async def settle(self, payment: Payment) -> Settled:
        """Order the payment to be settled, once."""
        found = await self._ask("settle", payment)
        transaction, reason = found.get("transaction"), found.get("errorReason")
        if found.get("success") is True and isinstance(transaction, str) and transaction:
            return Settled(transaction=transaction[:200])
        if found.get("success") is False and not transaction and isinstance(reason, str) and reason in _REFUSALS:
            return Settled(refusal=reason)
        message = f"the facilitator did not say what became of it: {str(found)[:200]}"
        raise NoAnswerError(message)

    async def _ask(self, what: str, payment: Payment) -> dict[str, Any]:
        order = {
            "x402Version": 2,
            "paymentPayload": dict(payment.payload),
            "paymentRequirements": dict(payment.requirements),
        }
        try:
            async with self._client.stream("POST", f"{self._url}/{what}", json=order) as answer:
                body = b""
                async for piece in answer.aiter_bytes():
                    body += piece
                    if len(body) > _ANSWER_MOST_BYTES:
                        break
            found = loads(body)
        except (*self._errors, ValueError, RecursionError) as err:
            message = f"the facilitator gave no answer to {what}: {type(err).__name__}"
            raise NoAnswerError(message) from err
        if answer.status_code >= _SERVER_ERROR or not isinstance(found, dict):
            message = f"the facilitator answered {what} with HTTP {answer.status_code}"
            raise NoAnswerError(message)
        return found

    async def close(self) -> None:
        """Hang up."""
        await self._client.aclose()


@dataclass(slots=True)
class LocalFacilitator:
    """A token in memory that checks signatures as its contract would: for tests, and to try a service without a chain.

    `ledger`, a file with a line a transfer, outlives the process. `balances` are in atoms; who is not named there has `default_balance`.
    """

    name: str  # the token's, as it stands in its EIP-712 domain
    version: str
    balances: dict[str, int] = field(default_factory=dict)
    default_balance: int = 10**30
    ledger: Path | None = None
    transfers: list[dict[str, Any]] = field(default_factory=list)

    async def verify(self, payment: Payment) -> str | None:
        """Check signature, recipient, amount, balance and nonce."""
        return self._flaw(payment)

    async def settle(self, payment: Payment) -> Settled:
        """Check all that again, and move the money."""
        flaw = self._flaw(payment)
        if flaw:
            return Settled(refusal=flaw)
        signed = payment.payload["payload"]["authorization"]
        value = int(signed["value"])
        transaction = "0x" + f"{len(self._used()) + 1:064x}"
        transfer = {"transaction": transaction, "claim": payment.claim, "to": signed["to"].lower(), "value": value}
        self.transfers.append(transfer)
        if self.ledger:
            with self.ledger.open("a", encoding="utf-8") as file:
                file.write(json.dumps(transfer) + "\n")
        self.balances[payment.payer] = self.balances.get(payment.payer, self.default_balance) - value
        return Settled(transaction=transaction)

    def _flaw(self, payment: Payment) -> str | None:
        wanted, inner = payment.requirements, payment.payload["payload"]
        signed = inner["authorization"]
        domain = Domain(
            name=self.name,
            version=self.version,
            chain_id=int(wanted["network"].removeprefix("eip155:")),
            verifying_contract=wanted["asset"].lower(),
        )
        whole = {name: int(signed[name]) for name in ("value", "validAfter", "validBefore")}
        lower = {name: signed[name].lower() for name in ("from", "to", "nonce")}
        try:
            signer = recover(
                digest(domain, "TransferWithAuthorization", TRANSFER, lower | whole), inner["signature"].lower()
            )
        except ForgeryError as err:
            return f"invalid_exact_evm_payload_signature: {err}"
        if signer != lower["from"] or signer != payment.payer:
            return "invalid_exact_evm_payload_signature"
        if lower["to"] != wanted["payTo"].lower():
            return "invalid_exact_evm_payload_recipient_mismatch"
        if whole["value"] != int(wanted["amount"]):
            return "invalid_exact_evm_payload_authorization_value"
        if payment.claim in self._used():
            return "nonce_already_used"
        return None if self.balances.get(signer, self.default_balance) >= whole["value"] else "insufficient_funds"

    def _used(self) -> set[str]:
        kept = self.ledger.read_text(encoding="utf-8").splitlines() if self.ledger and self.ledger.exists() else []
        return {one["claim"] for one in (*self.transfers, *map(json.loads, kept))}  # noqa: TID251 - written here

    async def close(self) -> None:
        """Do nothing."""
