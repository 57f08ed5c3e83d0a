"""EIP-712, typed data that is signed: type hash, struct hash and digest of flat structs, by the standard's text.

Promised: a value that does not fit its type exactly, a field too many or too few, is refused before anything is hashed.
Not promised: structs inside structs and arrays; no document of this package has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.errors import MisuseError
from harness.market.offers.abi import Value, checked, word
from harness.market.offers.keccak import keccak256

__all__ = ["Domain", "Fields", "digest", "struct_hash", "type_hash", "typed_data"]

Fields = tuple[tuple[str, str], ...]  # of a struct: name and type, in order


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """What a signature is for: an application, a chain and, where there is one, a contract."""

    name: str
    version: str
    chain_id: int
    verifying_contract: str | None = None

    def fields(self) -> Fields:
        """Return the fields that the domain has."""
        always = (("name", "string"), ("version", "string"), ("chainId", "uint256"))
        return always if self.verifying_contract is None else (*always, ("verifyingContract", "address"))

    def values(self) -> dict[str, Value]:
        """Return its values by the standard's names."""
        known: dict[str, Value] = {"name": self.name, "version": self.version, "chainId": self.chain_id}
        return known | ({} if self.verifying_contract is None else {"verifyingContract": self.verifying_contract})


def type_hash(name: str, fields: Fields) -> bytes:
    """Return the Keccak-256 of a struct's type, as `Mail(address from,string text)`."""
    inner = ",".join(f"{kind} {field}" for field, kind in fields)
    return keccak256(f"{name}({inner})".encode())


def struct_hash(name: str, fields: Fields, values: Mapping[str, Value]) -> bytes:
    """Return the hash of a struct.

    Raises:
        MisuseError: a field is missing, unknown, or does not fit its type.
    """
    if set(values) != {field for field, _ in fields}:
        odd = sorted(set(values) ^ {field for field, _ in fields})
        message = f"a {name} has other fields than these: {', '.join(odd)} unknown or missing"
        raise MisuseError(message)
    parts = [type_hash(name, fields)]
    for field, kind in fields:
        value = checked(kind, values[field], f"{name}.{field}")
        if kind == "string":
            parts.append(keccak256(str(value).encode()))
        elif kind == "bytes":
            parts.append(keccak256(bytes.fromhex(str(value)[2:])))
        else:
            parts.append(word(kind, value))
    return keccak256(b"".join(parts))


def digest(domain: Domain, name: str, fields: Fields, values: Mapping[str, Value]) -> bytes:
    """Return the 32 bytes that are signed.

    Raises:
        MisuseError: as `struct_hash`.
    """
    separator = struct_hash("EIP712Domain", domain.fields(), domain.values())
    return keccak256(b"\x19\x01" + separator + struct_hash(name, fields, values))


def typed_data(domain: Domain, name: str, fields: Fields, values: Mapping[str, Value]) -> dict[str, Any]:
    """Return what `eth_signTypedData_v4` of a wallet takes; whole numbers as text, for JavaScript cuts them at 2^53."""
    struct_hash(name, fields, values)
    return {
        "types": {
            "EIP712Domain": [{"name": field, "type": kind} for field, kind in domain.fields()],
            name: [{"name": field, "type": kind} for field, kind in fields],
        },
        "primaryType": name,
        "domain": domain.values(),
        "message": {field: str(v) if type(v) is int else v for field, v in values.items()},
    }
