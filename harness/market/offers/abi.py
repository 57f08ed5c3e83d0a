"""Values as Ethereum's contracts read them: words of 32 bytes, calldata, and the checks that no value is quietly cut or padded.

Wrong width, sign, case or type is an error here, where common encoders pad a short `bytes32` and drop what they do not know.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from harness.errors import MisuseError
from harness.market.offers.keccak import keccak256

__all__ = ["ZERO_ADDRESS", "ZERO_BYTES32", "Value", "calldata", "checked", "checksummed", "encode", "word"]

Value = int | str | bool | bytes
ZERO_ADDRESS = "0x" + "0" * 40
ZERO_BYTES32 = "0x" + "0" * 64
_HEX = re.compile(r"0x([0-9a-f]{2})*")
_WORD = 32
_BYTES_OF = {"address": 20, "bytes32": 32}
_DYNAMIC = ("string", "bytes")


def checked(kind: str, value: Value, name: str = "value") -> Value:
    """Return a value that fits a type of Solidity exactly.

    Args:
        kind: uint8 to uint256, int8 to int256, bool, address, bytes32, bytes or string.
        value: an int, a bool, text, or for address, bytes32 and bytes `0x` and lower-case hex of the very length.
        name: what to call it in a message.

    Raises:
        MisuseError: it does not fit.
    """
    wanted = _fault(kind, value)
    if wanted:
        message = f"{name} is {value!r}; {kind} wants {wanted}"
        raise MisuseError(message)
    return value


def _fault(kind: str, value: Value) -> str | None:
    """Return what a value of this type would have to be, where this one is not."""
    if found := re.fullmatch(r"(u?)int(\d+)", kind):
        bits = int(found[2])
        low, high = (0, 2**bits - 1) if found[1] else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        whole = isinstance(value, int) and not isinstance(value, bool)
        return None if whole and low <= value <= high else f"a whole number from {low} to {high}"  # type: ignore[operator]
    if kind in _BYTES_OF or kind == "bytes":
        size = _BYTES_OF.get(kind)
        fits = isinstance(value, str) and _HEX.fullmatch(value) and size in (None, len(value) // 2 - 1)
        return None if fits else f"0x and {2 * size if size else 'an even number of'} lower-case hex digits"
    if kind == "bool":
        return None if isinstance(value, bool) else "true or false"
    if kind == "string":
        return None if isinstance(value, str) and _is_unicode(value) else "text"
    message = f"no type {kind!r} is known here"
    raise MisuseError(message)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def word(kind: str, value: Value) -> bytes:
    """Return the 32 bytes of a value of a static type.

    Raises:
        MisuseError: it does not fit.
    """
    checked(kind, value)
    if isinstance(value, int):
        return value.to_bytes(_WORD, "big", signed=kind.startswith("int"))
    data = bytes.fromhex(str(value)[2:])
    return data if kind == "bytes32" else data.rjust(_WORD, b"\0")


def encode(kinds: Sequence[str], values: Sequence[Value]) -> bytes:
    """Return `abi.encode` of values: static types in place, `string` and `bytes` behind them.

    Raises:
        MisuseError: there are not as many values as types, or one does not fit.
    """
    if len(kinds) != len(values):
        message = f"{len(values)} values were given for {len(kinds)} types"
        raise MisuseError(message)
    heads: list[bytes] = []
    tails: list[bytes] = []
    at = _WORD * len(kinds)
    for kind, value in zip(kinds, values, strict=True):
        if kind not in _DYNAMIC:
            heads.append(word(kind, value))
            continue
        checked(kind, value)
        data = str(value).encode() if kind == "string" else bytes.fromhex(str(value)[2:])
        tail = len(data).to_bytes(_WORD, "big") + data + bytes(-len(data) % _WORD)
        heads.append((at + sum(map(len, tails))).to_bytes(_WORD, "big"))
        tails.append(tail)
    return b"".join((*heads, *tails))


def calldata(signature: str, *values: Value) -> str:
    """Return what a transaction carries to call a function, such as `complete(uint256,bytes32,bytes)`.

    Raises:
        MisuseError: the signature names a type that is not known here, or a value does not fit.
    """
    found = re.fullmatch(r"(\w+)\(([\w,()]*)\)", signature)
    if not found:
        message = f"{signature!r} is not a function's signature, such as complete(uint256,bytes32,bytes)"
        raise MisuseError(message)
    inner = found[2].replace("(", "").replace(")", "")  # a tuple of static types lies in calldata as its members do
    kinds = [kind for kind in inner.split(",") if kind]
    if "(" in found[2] and any(kind in _DYNAMIC for kind in kinds):
        message = f"{signature!r} has a tuple beside text or bytes, which is not encoded here"
        raise MisuseError(message)
    return "0x" + (keccak256(signature.encode())[:4] + encode(kinds, values)).hex()


def checksummed(address: str) -> str:
    """Return an address with the capitals of EIP-55, for wallets and people.

    Raises:
        MisuseError: it is no address in lower case.
    """
    checked("address", address, "address")
    digits = keccak256(address[2:].encode()).hex()
    return "0x" + "".join(c.upper() if int(d, 16) >= 8 else c for c, d in zip(address[2:], digits, strict=False))  # noqa: PLR2004 - half of a digit
