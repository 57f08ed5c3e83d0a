"""SHA-256: integer work with no memory traffic to speak of, and an answer that anybody can check."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from harness.device.cpu import CpuDevice
from harness.registry import Case, Sized, Work, benchmark, require_memory

if TYPE_CHECKING:
    from harness.device.backend import Array, Backend

# Fractional parts of the cube roots of the first 64 primes, and of the square roots of the first 8 (FIPS 180-4).
_PRIMES = [p for p in range(2, 312) if all(p % q for q in range(2, p))]


def _fraction_bits(n: int, root: int) -> int:
    """Return the first 32 bits of the fractional part of the n's root, by integers alone."""
    scaled = n << (32 * root)
    guess: int = round(scaled ** (1 / root))
    while guess**root > scaled:
        guess -= 1
    while (guess + 1) ** root <= scaled:
        guess += 1
    return guess & 0xFFFFFFFF


_K = np.array([_fraction_bits(p, 3) for p in _PRIMES[:64]], dtype=np.uint32)
_H = np.array([_fraction_bits(p, 2) for p in _PRIMES[:8]], dtype=np.uint32)


def digests(lane, first, count, step, key, out):  # type: ignore[no-untyped-def]
    """Hash the 40 bytes key || i, big-endian, for each index i; eight words a digest."""
    for k in range(count):
        i = first + k * step
        w0, w1, w2, w3, w4, w5, w6, w7 = key[0], key[1], key[2], key[3], key[4], key[5], key[6], key[7]
        w8 = np.uint32(i >> np.uint64(32))
        w9 = np.uint32(i & np.uint64(0xFFFFFFFF))
        w10 = np.uint32(0x80000000)  # the padding's one bit
        w11 = w12 = w13 = w14 = np.uint32(0)
        w15 = np.uint32(320)  # bits in the message
        a, b, c, d, e, f, g, h = _H[0], _H[1], _H[2], _H[3], _H[4], _H[5], _H[6], _H[7]
        for t in range(64):
            r6 = (e >> np.uint32(6)) | (e << np.uint32(26))
            r11 = (e >> np.uint32(11)) | (e << np.uint32(21))
            r25 = (e >> np.uint32(25)) | (e << np.uint32(7))
            t1 = np.uint32(h + (r6 ^ r11 ^ r25) + ((e & f) ^ (~e & g)) + _K[t] + w0)
            r2 = (a >> np.uint32(2)) | (a << np.uint32(30))
            r13 = (a >> np.uint32(13)) | (a << np.uint32(19))
            r22 = (a >> np.uint32(22)) | (a << np.uint32(10))
            t2 = np.uint32((r2 ^ r13 ^ r22) + ((a & b) ^ (a & c) ^ (b & c)))
            h, g, f, e, d, c, b, a = g, f, e, np.uint32(d + t1), c, b, a, np.uint32(t1 + t2)
            # The schedule as a window that moves one word a round; the last 16 words it makes are never used.
            s0 = (
                ((w1 >> np.uint32(7)) | (w1 << np.uint32(25)))
                ^ ((w1 >> np.uint32(18)) | (w1 << np.uint32(14)))
                ^ (w1 >> np.uint32(3))
            )
            s1 = (
                ((w14 >> np.uint32(17)) | (w14 << np.uint32(15)))
                ^ ((w14 >> np.uint32(19)) | (w14 << np.uint32(13)))
                ^ (w14 >> np.uint32(10))
            )
            new = np.uint32(w0 + s0 + w9 + s1)
            w0, w1, w2, w3, w4, w5, w6, w7 = w1, w2, w3, w4, w5, w6, w7, w8
            w8, w9, w10, w11, w12, w13, w14, w15 = w9, w10, w11, w12, w13, w14, w15, new
        at = np.uint64(8) * i
        out[at] = a + _H[0]
        out[at + np.uint64(1)] = b + _H[1]
        out[at + np.uint64(2)] = c + _H[2]
        out[at + np.uint64(3)] = d + _H[3]
        out[at + np.uint64(4)] = e + _H[4]
        out[at + np.uint64(5)] = f + _H[5]
        out[at + np.uint64(6)] = g + _H[6]
        out[at + np.uint64(7)] = h + _H[7]


@benchmark(version=1, metric="throughput", n=Sized(check=1 << 8, cpu=1 << 17, cuda=1 << 22))
def sha256(backend: Backend, seed: int, *, n: int) -> Case:
    """Rate of SHA-256 over n messages of 40 bytes, each one block; every digest is checked."""
    require_memory(backend, 32 * n)
    xp = backend.xp
    key = backend.rng(seed).words(8)
    out = xp.zeros(8 * n, dtype=np.uint32)
    launch = backend.compile(digests)

    def run() -> Array:
        launch(n, key, out)
        return out

    def check(answer: Array) -> bool:
        # hashlib judges a sample, and the kernel's CPU twin, itself judged by that sample, all the rest.
        host, host_key = backend.to_host(answer), backend.to_host(key)
        twin = np.zeros_like(host)
        CpuDevice(backend.device).compile(digests)(n, host_key, twin)
        prefix = host_key.astype(">u4").tobytes()
        sample = range(0, n, max(1, n // 256))
        honest = all(
            hashlib.sha256(prefix + i.to_bytes(8, "big")).digest() == twin[8 * i : 8 * i + 8].astype(">u4").tobytes()
            for i in sample
        )
        return honest and bool((host == twin).all())

    return Case(
        run=run,
        work=Work(items=n, item="hash", counting="messages of one block"),
        check=check,
        inputs=(key,),
        distribution="random bits",
    )
