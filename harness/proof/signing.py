"""Ed25519 keys of a node, through `cryptography`: made, kept in a file of mode 0600, used to sign.

Promised: a signature binds the key's owner to exactly these bytes, as one kind of document of this program and no other.
Not promised: that the owner told the truth, or that the key was not copied.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from harness.errors import MisuseError

__all__ = ["HEX32", "REPORT", "Key", "is_signed_by", "keygen", "load_key"]

HEX32 = re.compile(r"[0-9a-f]{64}")
_HEX64 = re.compile(r"[0-9a-f]{128}")
# Ed25519 keys of small order sign anything: their y, whichever sign of x is named, and any spelling of it, as y and y + p are one number.
_P = 2**255 - 19
_OF_ORDER_8 = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
_SMALL_ORDER_Y = frozenset({0, 1, _P - 1, _OF_ORDER_8, _P - _OF_ORDER_8})
REPORT = b"harness.report/2\0"  # the domain of a report's signature: no signature of one kind of document passes for another's


class Key:
    """A private key in memory."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private

    @property
    def public_hex(self) -> str:
        """The public key, 64 hex digits: the node's identity."""
        return self._private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()

    def sign(self, digest: str, *, domain: bytes = REPORT) -> str:
        """Return the signature of a digest, 128 hex digits; the domain says of what kind of document, a report by default."""
        return self._private.sign(domain + bytes.fromhex(digest)).hex()


def keygen(out: str | Path) -> str:
    """Make a key, write it to a new file that only its owner can read, and return the public key in hex.

    Raises:
        MisuseError: the file exists (a key is never written over) or cannot be written.
    """
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        # Created with its mode, not changed to it: there is no moment at which others could read it.
        fd = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as err:
        msg = f"{str(out)!r} exists and is not written over; choose another name"
        raise MisuseError(msg) from err
    except OSError as err:
        msg = f"cannot write a key to {str(out)!r}: {err.strerror}"
        raise MisuseError(msg) from err
    with os.fdopen(fd, "wb") as file:
        file.write(pem)
    return Key(key).public_hex


def load_key(path: str | Path) -> Key:
    """Read a key that `keygen` wrote.

    Raises:
        MisuseError: there is no such file, others can read it, or it holds no Ed25519 key.
    """
    try:
        pem, mode = Path(path).read_bytes(), Path(path).stat().st_mode
    except OSError as err:
        msg = f"cannot read the key {str(path)!r}: {err.strerror}"
        raise MisuseError(msg) from err
    if mode & 0o077:
        msg = f"the key {str(path)!r} can be read by others (mode {mode & 0o777:04o}): chmod 600 {path}"
        raise MisuseError(msg)
    try:
        private = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as err:
        msg = f"{str(path)!r} is not a key made by `harness keygen`"
        raise MisuseError(msg) from err
    if not isinstance(private, Ed25519PrivateKey):
        msg = f"{str(path)!r} holds another kind of key than Ed25519; make one with `harness keygen`"
        raise MisuseError(msg)
    return Key(private)


def is_signed_by(public_hex: str, digest: str, signature_hex: str, *, domain: bytes = REPORT) -> bool:
    """Tell whether this key signed this digest, for this kind of document.

    Lower-case hex only: a second spelling is a changed byte. No key of small order: one signature of such a key fits nearly anything.
    """
    if not (HEX32.fullmatch(public_hex) and HEX32.fullmatch(digest) and _HEX64.fullmatch(signature_hex)):
        return False
    y = int.from_bytes(bytes.fromhex(public_hex), "little") & (2**255 - 1)
    if y % _P in _SMALL_ORDER_Y:
        return False
    try:
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_hex))
        public.verify(bytes.fromhex(signature_hex), domain + bytes.fromhex(digest))
    except (InvalidSignature, ValueError):
        return False
    return True
