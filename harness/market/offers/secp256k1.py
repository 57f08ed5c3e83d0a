"""Keys and signatures of Ethereum, through coincurve: the package's only door to it, opened on the first call.

Promised: signatures are deterministic, 65 bytes, low-s, v 27 or 28; any other spelling of one is refused, so that a quote has one signature of a key.
Not promised: that a contract's wallet (ERC-1271) signed: that takes a chain, and is not asked here.

The key of a quoting service is apart from the node's Ed25519 key (`harness keygen`): one signs prices, the other evidence.
"""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path
from typing import Any

from harness.errors import ForgeryError, MisuseError
from harness.market.offers.keccak import keccak256

__all__ = ["Signer", "keygen", "load_signer", "recover"]

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
_HEADER = "harness.secp256k1-key/1"  # the file is a line that says what it is and a line with the key
_SIGNATURE = re.compile(r"0x[0-9a-f]{130}")
_DIGEST_BYTES = 32
_V_BASE = 27
_WANTED = "prices are signed by coincurve, which is not installed: pip install 'gpu-assay[sign]'"


def _coincurve() -> Any:
    try:
        import coincurve
    except ImportError as err:
        raise MisuseError(_WANTED) from err
    return coincurve


class Signer:
    """A private key in memory. It is not shown by `repr`, and there is no way to read it back."""

    __slots__ = ("_key", "address")

    def __init__(self, private: bytes) -> None:
        """Take a private key.

        Raises:
            MisuseError: it is none, or extra `sign` is missing.
        """
        try:
            self._key = _coincurve().PrivateKey(private)
        except ValueError as err:
            message = "not a private key of secp256k1: 32 bytes, from 1 to below the order of the curve"
            raise MisuseError(message) from err
        self.address = _address(self._key.public_key)

    def sign(self, digest: bytes) -> str:
        """Return the signature of 32 bytes that are already a digest: `0x` and 130 hex digits, r, s, v."""
        found: bytes = self._key.sign_recoverable(_whole(digest), hasher=None)
        return "0x" + (found[:64] + bytes([found[64] + _V_BASE])).hex()


def recover(digest: bytes, signature: str) -> str:
    """Return the address whose key signed a digest.

    Raises:
        ForgeryError: the signature has another length, spelling or v, a high s, or is none of any key.
        MisuseError: extra `sign` is missing.
    """
    coincurve = _coincurve()
    if not isinstance(signature, str) or not _SIGNATURE.fullmatch(signature):
        what = f"a signature is 0x and 130 lower-case hex digits (65 bytes), not {str(signature)[:140]!r}"
        raise ForgeryError(what, "$.signature")
    data = bytes.fromhex(signature[2:])
    if data[64] not in (_V_BASE, _V_BASE + 1):
        what = f"v is {data[64]}; it should be 27 or 28"
        raise ForgeryError(what, "$.signature")
    if int.from_bytes(data[32:64], "big") > ORDER // 2:
        what = "s is in the upper half of the order: the twin of another signature by the same key, and refused"
        raise ForgeryError(what, "$.signature")
    compact = data[:64] + bytes([data[64] - _V_BASE])
    try:
        return _address(coincurve.PublicKey.from_signature_and_message(compact, _whole(digest), hasher=None))
    except Exception as err:  # coincurve raises a bare Exception where no key fits
        what = "no key gives this signature of this digest"
        raise ForgeryError(what, "$.signature") from err


def _whole(digest: bytes) -> bytes:
    if len(digest) != _DIGEST_BYTES:
        message = f"a digest of {len(digest)} bytes; it should have {_DIGEST_BYTES}"
        raise MisuseError(message)
    return digest


def _address(public: Any) -> str:
    return "0x" + keccak256(public.format(compressed=False)[1:])[-20:].hex()


def keygen(out: str | Path) -> str:
    """Make a key, write it to a new file that only its owner can read, and return its address. The key itself is never printed.

    Raises:
        MisuseError: the file exists (a key is never written over) or cannot be written, or extra `sign` is missing.
    """
    private = secrets.randbelow(ORDER - 1) + 1
    data = private.to_bytes(32, "big")
    address = Signer(data).address
    try:
        fd = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)  # never readable by others, not for a moment
    except FileExistsError as err:
        message = f"{str(out)!r} exists and is not written over; choose another name"
        raise MisuseError(message) from err
    except OSError as err:
        message = f"cannot write a key to {str(out)!r}: {err.strerror}"
        raise MisuseError(message) from err
    with os.fdopen(fd, "w", encoding="ascii") as file:
        file.write(f"{_HEADER}\n{data.hex()}\n")
    return address


def load_signer(path: str | Path) -> Signer:
    """Read a key that `keygen` wrote.

    Raises:
        MisuseError: there is no such file, others can read it, it holds no such key, or extra `sign` is missing.
    """
    try:
        text, mode = Path(path).read_text(encoding="ascii"), Path(path).stat().st_mode
    except (OSError, UnicodeDecodeError) as err:
        message = f"cannot read the key {str(path)!r}: {getattr(err, 'strerror', None) or 'not a key of this program'}"
        raise MisuseError(message) from err
    if mode & 0o077:
        message = f"the key {str(path)!r} can be read by others (mode {mode & 0o777:04o}): chmod 600 {path}"
        raise MisuseError(message)
    found = re.fullmatch(rf"{re.escape(_HEADER)}\n([0-9a-f]{{64}})\n", text)
    if not found:
        message = f"{str(path)!r} is not a key that signs prices; make one with `harness keygen --quotes --out PATH`"
        raise MisuseError(message)
    return Signer(bytes.fromhex(found[1]))
