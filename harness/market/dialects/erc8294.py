"""ERC-8294, validation networks: verdicts of several validators, each signed, and the file that puts them together.

Format: the draft's text with schema `vni-aggregated-response/v1`. One validator is a network of one (N 1, D 1, M 1); for offers that are paid
for it suggests N 5, D 3, M 4.

Covers: what each validator signed, that all are about one request, that each of them is by a validator on a list of who runs which, that enough
operators stand behind them by that list, and the verdict that follows from them by the policy.
Does not cover: that the list is true, or that operators are independent of each other: that is the network's own methodology.
The draft leaves the Merkle tree of several attestations open: here a parent is the Keccak-256 of its children in ascending order, a last odd node moves up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import rfc8785

from harness.errors import ForgeryError, MisuseError
from harness.market.dialects.carry import agree, at, listed, text
from harness.market.offers.abi import ZERO_BYTES32, Value, encode
from harness.market.offers.eip712 import Domain, Fields, digest, struct_hash
from harness.market.offers.keccak import keccak256
from harness.market.offers.secp256k1 import Signer, recover

__all__ = ["BENCHMARK", "SCHEMA", "Attestation", "Policy", "Signed", "aggregated", "attest", "check"]

BENCHMARK = "0x" + keccak256(b"gpu-bench-v1").hex()  # our kind of challenge
SCHEMA = "vni-aggregated-response/v1"
_FIELDS: Fields = (
    ("requestHash", "bytes32"),
    ("agentId", "uint256"),
    ("validator", "address"),
    ("verdict", "uint8"),
    ("evidenceHash", "bytes32"),
    ("issuedAt", "uint64"),
    ("challengeKind", "bytes32"),
    ("nonceHash", "bytes32"),
)
_MODES = ("any", "majority", "unanimous")
_PASS, _MOST = 50, 100
_WORD = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Attestation:
    """One validator's verdict on one request. Hashes and addresses are `0x` and lower-case hex."""

    request_hash: str
    agent_id: int
    validator: str
    verdict: int  # 0 to 100
    evidence_hash: str
    issued_at: int  # seconds since 1970, by the validator's clock
    challenge_kind: str = BENCHMARK
    nonce_hash: str = ZERO_BYTES32

    def __post_init__(self) -> None:
        """Refuse what says nothing."""
        if not 0 <= self.verdict <= _MOST or self.evidence_hash == ZERO_BYTES32:
            message = f"verdict {self.verdict}, evidence {self.evidence_hash}: a verdict is 0 to 100, and its evidence not zero"
            raise MisuseError(message)

    def values(self) -> dict[str, Value]:
        """Return its fields by their signed names."""
        return {
            "requestHash": self.request_hash,
            "agentId": self.agent_id,
            "validator": self.validator,
            "verdict": self.verdict,
            "evidenceHash": self.evidence_hash,
            "issuedAt": self.issued_at,
            "challengeKind": self.challenge_kind,
            "nonceHash": self.nonce_hash,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """An attestation with its validator's signature."""

    attestation: Attestation
    signature: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How many validators are asked and how many must answer: `SelectionPolicy`, version 1."""

    selection_size: int = 1  # N
    min_operators: int = 1  # D
    min_responses: int = 1  # M
    deadline_s: int = 3600
    mode: Literal["any", "majority", "unanimous"] = "majority"
    challenge_kind: str = BENCHMARK

    def encoded(self) -> str:
        """Return `abi.encode` of the policy, without extensions.

        Raises:
            MisuseError: more are to answer, or to be distinct, than are asked.
        """
        if not (1 <= self.min_responses <= self.selection_size and 1 <= self.min_operators <= self.selection_size):
            message = f"{self.min_responses} answers of {self.min_operators} operators of {self.selection_size} asked: neither may be more, nor 0"
            raise MisuseError(message)
        kinds = ("uint8", "uint8", "uint8", "uint8", "uint64", "uint8", "bytes32", "bytes")
        counts = (1, self.selection_size, self.min_operators, self.min_responses, self.deadline_s)
        inner = encode(kinds, (*counts, _MODES.index(self.mode), self.challenge_kind, "0x"))
        return "0x" + (_WORD.to_bytes(_WORD, "big") + inner).hex()


def domain(chain_id: int, network: str) -> Domain:
    """Return what attestations of a network are signed for; `network` is its contract."""
    return Domain(name="ERC8004ValidationNetwork", version="1", chain_id=chain_id, verifying_contract=network)


def attest(attestation: Attestation, signer: Signer, *, chain_id: int, network: str) -> Signed:
    """Return a signed attestation.

    Raises:
        MisuseError: the key is not its validator's.
    """
    if signer.address != attestation.validator:
        message = f"the key is of {signer.address}; the attestation is by {attestation.validator}"
        raise MisuseError(message)
    signed = digest(domain(chain_id, network), "Attestation", _FIELDS, attestation.values())
    return Signed(attestation=attestation, signature=signer.sign(signed))


def aggregated(policy: Policy, answers: Sequence[Signed]) -> tuple[dict[str, Any], str]:
    """Return the file of all verdicts, and its hash: `responseURI` leads to the one, `responseHash` is the other.

    Raises:
        MisuseError: too few answers, two of one validator, or not all about one request.
    """
    about = {(one.attestation.request_hash, one.attestation.agent_id) for one in answers}
    validators = [one.attestation.validator for one in answers]
    kinds = {one.attestation.challenge_kind for one in answers}
    if len(about) != 1 or kinds != {policy.challenge_kind} or len(set(validators)) < len(validators):
        message = "attestations should be about one request of the policy's kind, each by another validator"
        raise MisuseError(message)
    if not policy.min_responses <= len(answers) <= policy.selection_size:
        message = f"{len(answers)} attestations; the policy wants {policy.min_responses} to {policy.selection_size}"
        raise MisuseError(message)
    ((request_hash, _),) = about
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "requestHash": request_hash,
        "policy": policy.encoded(),
        "validators": validators,
        "attestations": [_entry(one) for one in answers],
        "attestationsRoot": "0x" + _root([_leaf(one.attestation) for one in answers]).hex(),
        "aggregatedVerdict": _verdict(policy, answers),
        "verdictMode": policy.mode,
    }
    return document, "0x" + keccak256(rfc8785.dumps(document)).hex()


def check(  # noqa: PLR0913 - each is signed, or says who signed
    document: Any,
    policy: Policy,
    *,
    agent_id: int,
    chain_id: int,
    network: str,
    operators: Mapping[str, str],
) -> int:
    """Return the verdict of such a file, 0 or 100, if every signature is its validator's and all follows from them.

    Args:
        document: the file.
        policy: that was agreed on before.
        agent_id: whom the request is about.
        chain_id: of the network.
        network: its contract.
        operators: who runs each validator that was asked, by address; anybody can sign, so that no other's answer counts.

    Raises:
        ForgeryError: it does not, an answer is by a validator that is not listed, or fewer operators stand behind them than the policy wants.
        MisuseError: extra `sign` is missing.
    """
    answers = []
    for index, one in enumerate(listed(document, "attestations")):
        try:
            found = Attestation(
                request_hash=text(document, "requestHash"),
                agent_id=agent_id,
                validator=text(one, "validator"),
                verdict=at(one, "verdict"),
                evidence_hash=text(one, "evidenceHash"),
                issued_at=at(one, "issuedAt"),
                challenge_kind=text(one, "challengeKind"),
                nonce_hash=text(one, "nonceHash"),
            )
            signed = digest(domain(chain_id, network), "Attestation", _FIELDS, found.values())
        except (MisuseError, TypeError) as err:
            raise ForgeryError(str(err), f"$.attestations[{index}]") from err
        signer = recover(signed, text(one, "signature"))
        if signer != found.validator:
            what = f"signed by {signer}, not by {found.validator}"
            raise ForgeryError(what, f"$.attestations[{index}].signature")
        if signer not in operators:
            what = f"signed by {signer}, whom nobody listed as a validator that was asked"
            raise ForgeryError(what, f"$.attestations[{index}].validator")
        answers.append(Signed(attestation=found, signature=text(one, "signature")))
    try:
        made, _ = aggregated(policy, answers)
    except MisuseError as err:
        raise ForgeryError(str(err), "$.attestations") from err
    agree(made, document)
    _independent(policy, answers, operators)
    return _verdict(policy, answers)


def _independent(policy: Policy, answers: Sequence[Signed], operators: Mapping[str, str]) -> None:
    behind = {operators[one.attestation.validator] for one in answers}
    if len(behind) < policy.min_operators:
        what = f"{len(behind)} operators stand behind the answers; the policy wants {policy.min_operators}"
        raise ForgeryError(what, "$.validators")


def _entry(one: Signed) -> dict[str, Any]:
    values = one.attestation.values()
    names = ("validator", "verdict", "evidenceHash", "issuedAt", "challengeKind", "nonceHash")
    return {**{name: values[name] for name in names}, "signature": one.signature}


def _leaf(attestation: Attestation) -> bytes:
    return struct_hash("Attestation", _FIELDS, attestation.values())


def _root(nodes: list[bytes]) -> bytes:
    while len(nodes) > 1:
        pairs = [nodes[at : at + 2] for at in range(0, len(nodes), 2)]
        nodes = [keccak256(b"".join(sorted(pair))) if len(pair) > 1 else pair[0] for pair in pairs]
    return nodes[0]


def _verdict(policy: Policy, answers: Sequence[Signed]) -> int:
    passed = sum(one.attestation.verdict >= _PASS for one in answers)
    needed = {"any": 1, "majority": len(answers) // 2 + 1, "unanimous": len(answers)}[policy.mode]
    return _MOST if passed >= needed else 0
