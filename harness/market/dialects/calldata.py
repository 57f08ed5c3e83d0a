"""What a wallet is to send, written offline: calls of an escrow, of ERC-8004's validation registry, and of an ERC-8183 job.

Covers: the bytes, whom they are for, and on which chain; a call is only data until somebody signs and sends it.
Does not cover: sending. No chain is contacted here, no gas is guessed, and no key is read. What stands on the chain must be read there first:
the escrow's code (`onchain.check_escrow`), the token's decimals, and who asked for a validation (`onchain.Request`).
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.errors import MisuseError
from harness.market.offers.abi import ZERO_ADDRESS, ZERO_BYTES32, Value, calldata, checked, encode
from harness.market.offers.envelope import Envelope
from harness.market.offers.keccak import keccak256
from harness.market.offers.offer import FIELDS, Offer, digest_of, held_atomic, plain

__all__ = [
    "AUTHORIZE",
    "Call",
    "approve",
    "authorize",
    "capture",
    "reclaim",
    "refund",
    "release",
    "validation_request",
    "validation_response",
    "verdict",
]

_QUOTE = "(" + ",".join(kind for _, kind in FIELDS) + ")"
AUTHORIZE = f"authorize({_QUOTE},bytes,uint256,uint64)"
_WORD = 32
_RESPONSE_MOST = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a contract, to be signed and sent by whoever may make it."""

    chain_id: int
    to: str
    data: str  # `0x` and hex
    does: str  # for people


def approve(offer: Offer, *, units: int) -> Call:
    """Let the offer's escrow take exactly what so many units cost at most: the buyer's first call."""
    escrow, amount = _escrow(offer), held_atomic(offer, units)
    data = calldata("approve(address,uint256)", escrow, amount)
    return Call(chain_id=offer.chain_id, to=offer.asset, data=data, does=f"let {escrow} take {amount} atoms")


def authorize(envelope: Envelope, *, units: int, capture_by: int) -> Call:
    """Pay in for so many units: the buyer's second call. What was not captured by `capture_by` (seconds since 1970) he may reclaim.

    Raises:
        MisuseError: the offer names no escrow, was not signed by its provider, or is not for so many units.
    """
    offer = envelope.offer
    if not offer.min_units <= units <= offer.max_units:
        message = f"units is {units}; the offer is for {offer.min_units} to {offer.max_units}"
        raise MisuseError(message)
    signature = next((one.signature for one in envelope.signatures if one.signer == offer.provider), None)
    if signature is None:
        message = f"the provider {offer.provider} did not sign the offer"
        raise MisuseError(message)
    does = f"hold {held_atomic(offer, units)} atoms for {units} x {offer.unit} of quote {offer.quote_id}"
    return _to_escrow(offer, _authorize_data(offer, signature, units, capture_by), does)


def _authorize_data(offer: Offer, signature: str, units: int, capture_by: int) -> str:
    """Encode a tuple with text in it beside bytes: both lie behind the words of the head, the tuple as a call of its own would."""
    texts = plain(offer)
    values: list[Value] = [int(texts[name]) if kind.startswith("uint") else texts[name] for name, kind in FIELDS]
    quote = encode([kind for _, kind in FIELDS], values)
    signed = encode(["bytes"], [signature])[_WORD:]
    head = encode(["uint256"] * 4, [4 * _WORD, 4 * _WORD + len(quote), units, int(checked("uint64", capture_by))])
    return "0x" + (keccak256(AUTHORIZE.encode())[:4] + head + quote + signed).hex()


def capture(offer: Offer, *, units: int) -> Call:
    """Take what so many used units cost, once: the provider's call. The rest goes back to the buyer.

    Raises:
        MisuseError: the offer names no escrow, or is not for so many units.
    """
    if not 0 <= units <= offer.max_units:
        message = f"units is {units}; the offer is for at most {offer.max_units}"
        raise MisuseError(message)
    data = calldata("capture(bytes32,uint256)", _digest(offer), units)
    return _to_escrow(offer, data, f"capture {units} x {offer.unit}")


def refund(offer: Offer, *, amount: int, reason: str) -> Call:
    """Give some of what was captured back: the evaluator's call.

    Args:
        offer: what was captured for.
        amount: atoms of the token.
        reason: `0x` and the 32 bytes of the evidence's digest in hex; without any, nobody could check it.

    Raises:
        MisuseError: the offer names no escrow or no evaluator, more than its most, or no reason.
    """
    if offer.evaluator == ZERO_ADDRESS:
        message = "the offer names no evaluator, so nobody can order a refund"
        raise MisuseError(message)
    if not 0 <= amount <= offer.max_total_atomic:
        message = f"amount is {amount} atoms; at most {offer.max_total_atomic} were paid"
        raise MisuseError(message)
    data = calldata("refund(bytes32,uint256,bytes32)", _digest(offer), amount, _said("reason", reason))
    return _to_escrow(offer, data, f"give {amount} atoms back to the buyer")


def release(offer: Offer) -> Call:
    """Send the provider what was captured and not refunded: anybody's call, after the window."""
    return _to_escrow(offer, calldata("release(bytes32)", _digest(offer)), "send the provider what is left")


def reclaim(offer: Offer) -> Call:
    """Take everything back: the buyer's call, where nothing was captured in time."""
    return _to_escrow(offer, calldata("reclaim(bytes32)", _digest(offer)), "take back what was not captured")


def validation_request(  # noqa: PLR0913 - it mirrors the standard's
    *, chain_id: int, registry: str, validator: str, agent_id: int, uri: str, request_hash: str
) -> Call:
    """Ask a validator for a verdict on an agent (ERC-8004): the call of the agent's owner. The hash is `onchain.Request.hash`."""
    data = calldata(
        "validationRequest(address,uint256,string,bytes32)",
        validator,
        agent_id,
        uri,
        _said("request_hash", request_hash),
    )
    return Call(
        chain_id=chain_id, to=_address(registry), data=data, does=f"ask {validator} to validate agent {agent_id}"
    )


def validation_response(  # noqa: PLR0913 - it mirrors the standard's
    *, chain_id: int, registry: str, request_hash: str, response: int, uri: str, response_hash: str, tag: str
) -> Call:
    """Answer such a request: the validator's call.

    Args:
        chain_id: of the registry.
        registry: its address.
        request_hash: what is answered.
        response: 0 for a failure to 100 for a pass.
        uri: where the verdict's document lies.
        response_hash: its Keccak-256; not zero, since a failure without one reads like no answer.
        tag: what was validated, such as `gpu-bench:v1`; not empty, for the same reason.

    Raises:
        MisuseError: a value is out of range, or the hash or the tag is missing.
    """
    if not 0 <= response <= _RESPONSE_MOST:
        message = f"response is {response}; it should be 0 to {_RESPONSE_MOST}"
        raise MisuseError(message)
    if not tag:
        message = "tag is empty: a failure without a tag reads like no answer"
        raise MisuseError(message)
    hashes = _said("request_hash", request_hash), _said("response_hash", response_hash)
    data = calldata("validationResponse(bytes32,uint8,string,bytes32,string)", hashes[0], response, uri, hashes[1], tag)
    return Call(chain_id=chain_id, to=_address(registry), data=data, does=f"answer {response} of 100, as {tag}")


def verdict(*, chain_id: int, contract: str, job_id: int, upheld: bool, reason: str) -> Call:
    """Complete or reject a job (ERC-8183, as its reference contract takes it): the evaluator's call, which pays the provider or the client.

    Raises:
        MisuseError: the reason is missing: it is the digest of the evidence.
    """
    name = "complete" if upheld else "reject"
    data = calldata(f"{name}(uint256,bytes32,bytes)", job_id, _said("reason", reason), "0x")  # the last is for hooks
    return Call(chain_id=chain_id, to=_address(contract), data=data, does=f"{name} job {job_id}")


def _to_escrow(offer: Offer, data: str, does: str) -> Call:
    return Call(chain_id=offer.chain_id, to=_escrow(offer), data=data, does=does)


def _escrow(offer: Offer) -> str:
    if offer.escrow == ZERO_ADDRESS:
        message = "the offer names no escrow; ask for one that does"
        raise MisuseError(message)
    return offer.escrow


def _digest(offer: Offer) -> str:
    return "0x" + digest_of(offer).hex()


def _said(name: str, digest: str) -> str:
    checked("bytes32", digest, name)
    if digest == ZERO_BYTES32:
        message = f"{name} is zero: give the digest of what it stands for"
        raise MisuseError(message)
    return digest


def _address(address: str) -> str:
    checked("address", address)
    if address == ZERO_ADDRESS:
        message = "the contract's address is zero"
        raise MisuseError(message)
    return address
