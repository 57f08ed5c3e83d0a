"""Keccak-256, the hash of Ethereum: SHA-3 before its padding was changed, so that `hashlib.sha3_256` is another function.

Written here, because a quote's identity must be checkable with the base package alone; where pycryptodome is installed (extra `sign` brings it) it
does the work in C, and a test holds the two to each other.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

__all__ = ["keccak256"]

_MASK = (1 << 64) - 1
_RATE_BYTES = 136
_ROUNDS = 24


def keccak256(data: bytes) -> bytes:
    """Return the 32 bytes of Keccak-256 of some bytes."""
    return _implementation()(data)


@functools.cache
def _implementation() -> Callable[[bytes], bytes]:
    try:
        from Crypto.Hash import keccak
    except ImportError:
        return plain
    return lambda data: keccak.new(digest_bits=256, data=data).digest()


def plain(data: bytes) -> bytes:
    """Return Keccak-256, computed in Python: about 0.6 ms for each 136 bytes on the development machine."""
    padded = bytearray(data) + b"\x01" + bytes(-(len(data) + 1) % _RATE_BYTES)
    padded[-1] |= 0x80
    state = [0] * 25
    for start in range(0, len(padded), _RATE_BYTES):
        for lane in range(_RATE_BYTES // 8):
            state[lane] ^= int.from_bytes(padded[start + 8 * lane : start + 8 * lane + 8], "little")
        state = _permuted(state)
    return b"".join(lane.to_bytes(8, "little") for lane in state[:4])


def _turned(lane: int, bits: int) -> int:
    return ((lane << bits) | (lane >> (64 - bits))) & _MASK if bits else lane


def _permuted(state: list[int]) -> list[int]:
    """Apply Keccak-f[1600]; lane (x, y) stands at x + 5 y."""
    for constant in _constants():
        columns = [state[x] ^ state[x + 5] ^ state[x + 10] ^ state[x + 15] ^ state[x + 20] for x in range(5)]
        mixed = [columns[x - 1] ^ _turned(columns[(x + 1) % 5], 1) for x in range(5)]
        moved = [0] * 25
        for at, (target, bits) in enumerate(_moves()):
            moved[target] = _turned(state[at] ^ mixed[at % 5], bits)
        state = [
            moved[at] ^ (~moved[at - at % 5 + (at + 1) % 5] & moved[at - at % 5 + (at + 2) % 5]) for at in range(25)
        ]
        state[0] ^= constant
    return state


@functools.cache
def _moves() -> tuple[tuple[int, int], ...]:
    """Return for each lane where it goes and by how much it turns: steps rho and pi."""
    turns = [0] * 25
    x, y = 1, 0
    for step in range(24):
        turns[x + 5 * y] = (step + 1) * (step + 2) // 2 % 64
        x, y = y, (2 * x + 3 * y) % 5
    return tuple((at // 5 + 5 * ((2 * (at % 5) + 3 * (at // 5)) % 5), turns[at]) for at in range(25))


@functools.cache
def _constants() -> tuple[int, ...]:
    """Return what each round adds, from the shift register that the standard draws them from."""
    found, register = [], 1
    for _ in range(_ROUNDS):
        constant = 0
        for bit in range(7):
            constant |= (register & 1) << ((1 << bit) - 1)
            register = (register << 1) ^ (0x171 if register & 0x80 else 0)
        found.append(constant)
    return tuple(found)
