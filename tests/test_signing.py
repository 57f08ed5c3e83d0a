"""Keys that nobody owns: Ed25519's points of small order, for which anybody can write signatures."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from harness.proof.signing import REPORT, Key, is_signed_by

P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P
Point = tuple[int, int]


def added(a: Point, b: Point) -> Point:
    (x1, y1), (x2, y2) = a, b
    t = D * x1 * x2 * y1 * y2
    return (x1 * y2 + x2 * y1) * pow(1 + t, -1, P) % P, (y1 * y2 + x1 * x2) * pow(1 - t, -1, P) % P


def root(square: int) -> int | None:
    """Return a square root modulo P, None where there is none."""
    x = pow(square, (P + 3) // 8, P)
    x = x if x * x % P == square else x * pow(2, (P - 1) // 4, P) % P
    return x if x * x % P == square else None


def torsion() -> set[Point]:
    """Return the points of order 1, 2, 4 and 8: what is left of any point once it is multiplied by the order of the large group."""
    order, y = 2**252 + 27742317777372353535851937790883648493, 2
    while True:
        x = root((y * y - 1) * pow(D * y * y + 1, -1, P) % P)
        if x is not None:
            found, step, left = (0, 1), (x, y), order
            while left:
                found, step, left = added(found, step) if left & 1 else found, added(step, step), left >> 1
            whole = [(0, 1)]
            while len(whole) < 8:
                whole.append(added(whole[-1], found))
            if len(set(whole)) == 8:
                return set(whole)
        y += 1


def spellings() -> set[bytes]:
    """Return all encodings of these points: each sign of x with each y, and y + P where that has 255 bits."""
    ys = {y for _, y in torsion()}
    return {
        (y | sign << 255).to_bytes(32, "little")
        for known in ys
        for y in (known, known + P)
        if y < 2**255
        for sign in (0, 1)
    }


def test_a_key_of_small_order_signs_nothing() -> None:
    """By the signature 01 00 .. 00: R is the identity and S is 0, so that what is left to hold is [h]A = 0."""
    keys, taken = spellings(), 0
    assert len(keys) == 14
    signature = (1).to_bytes(64, "little")
    for key in keys:
        for number in range(24):
            digest = bytes([number]) * 32
            assert not is_signed_by(key.hex(), digest.hex(), signature.hex())
            try:
                Ed25519PublicKey.from_public_bytes(key).verify(signature, REPORT + digest)
            except InvalidSignature:
                continue
            taken += 1
    assert taken > 24  # the library takes them


def test_an_owners_key_signs() -> None:
    own = Key(Ed25519PrivateKey.from_private_bytes(bytes(32)))
    assert is_signed_by(own.public_hex, "ab" * 32, own.sign("ab" * 32))
    assert not is_signed_by(own.public_hex, "cd" * 32, own.sign("ab" * 32))
