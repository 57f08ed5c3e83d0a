"""How to judge what was read from a chain: an escrow's code, a validation's request, and which of several verdicts counts. Reads nothing itself.

Covers: an escrow with other code is refused, proxies too, whose own code says nothing of what they do; a request's hash belongs to one chain,
registry, agent, validator and quote; the first verdict stands, and later ones are shown; no answer is no failure.
Does not cover: that the node that answered was honest. Ask one of your own, or several.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

from harness.errors import ForgeryError
from harness.market.offers.abi import ZERO_BYTES32, encode
from harness.market.offers.keccak import keccak256

__all__ = ["Request", "Response", "Standing", "check_escrow", "check_request", "standing"]

_FORWARDERS = (  # code that does what another account's code says, which may change
    re.compile(rb"\x36\x3d\x3d\x37\x3d\x3d\x3d\x36\x3d\x73.{20}\x5a\xf4", re.DOTALL),  # ERC-1167
    re.compile(rb"\xef\x01\x00.{20}", re.DOTALL),  # EIP-7702
)


def check_escrow(code: bytes, allowed: Collection[str]) -> str:
    """Return the Keccak-256 of an escrow's code (`eth_getCode`), if it is one of those that were looked at.

    Args:
        code: as it stands on the chain; constructor arguments that were baked in change it.
        allowed: hashes as `0x` and 64 hex digits.

    Raises:
        ForgeryError: there is no code, it forwards to another contract, or it is another.
    """
    if not code:
        what = "there is no contract at the escrow's address on this chain"
        raise ForgeryError(what, "$.quote.escrow")
    if any(pattern.match(code) for pattern in _FORWARDERS):
        what = "the escrow forwards to another contract, which may be changed"
        raise ForgeryError(what, "$.quote.escrow")
    found = "0x" + keccak256(code).hex()
    if found not in allowed:
        what = f"the escrow's code is {found}, which is none of those allowed"
        raise ForgeryError(what, "$.quote.escrow")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request for a validation (ERC-8004). Addresses and hashes are `0x` and lower-case hex."""

    chain_id: int
    registry: str
    agent_id: int
    validator: str
    quote_id: str
    salt: str  # 32 random bytes: whoever takes the hash first blocks nothing, as another salt gives another

    @property
    def hash(self) -> str:
        """The hash to ask by: Keccak-256 of `abi.encode` of the fields in order."""
        kinds = ("uint256", "address", "uint256", "address", "bytes32", "bytes32")
        values = (self.chain_id, self.registry, self.agent_id, self.validator, self.quote_id, self.salt)
        return "0x" + keccak256(encode(kinds, values)).hex()


def check_request(request: Request, *, request_hash: str, agent_id: int, validator: str) -> None:
    """Return if what stands on the chain is this request: a validator's first step, before any work.

    Raises:
        ForgeryError: somebody else took the hash for another agent or validator (ask again with another salt), or it is not this request's.
    """
    if request_hash != request.hash:
        what = f"the request's hash is {request_hash}; its fields give {request.hash}"
        raise ForgeryError(what, "$.requestHash")
    if (agent_id, validator) != (request.agent_id, request.validator):
        what = f"the hash was taken for agent {agent_id} and validator {validator}: ask again with another salt"
        raise ForgeryError(what, "$.requestHash")


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """One event `ValidationResponse` of a registry, with its place on the chain."""

    block: int
    index: int  # of the log in its block
    validator: str
    request_hash: str
    response: int
    response_hash: str
    tag: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What a registry's events say of one request."""

    state: Literal["pending", "passed", "failed"]
    counts: Response | None  # the first verdict
    later: tuple[Response, ...]  # by the same validator; they change nothing, and are shown


def standing(events: Iterable[Response], *, request_hash: str, validator: str, passes_at: int = 100) -> Standing:
    """Return which verdict counts: the first with a hash and a tag by the validator who was asked.

    The registry's own status keeps the last one only, and shows a failure without a hash as if nothing had been said.

    Args:
        events: in any order.
        request_hash: of the request.
        validator: who was asked.
        passes_at: the least response, 0 to 100, that is a pass.
    """
    said = (e for e in events if (e.request_hash, e.validator) == (request_hash, validator))
    verdicts = sorted((e for e in said if e.response_hash != ZERO_BYTES32 and e.tag), key=lambda e: (e.block, e.index))
    if not verdicts:
        return Standing(state="pending", counts=None, later=())
    first, *later = verdicts
    return Standing(state="passed" if first.response >= passes_at else "failed", counts=first, later=tuple(later))
