"""Path tracing: the light of a small scene followed from surface to surface, as renderers do; divergent, hardly any memory.

Every device must return the same picture, bit for bit: the arithmetic is float32 in one order, no product is fused with a sum, and of
the functions only the square root is used, which IEEE 754 rounds one way. So `check` can ask for equality in every pixel.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.device.backend import CudaSource
from harness.registry import Case, Sized, Work, benchmark, require_memory

if TYPE_CHECKING:
    from harness.device.backend import Array, Backend

_DEPTH = 4  # rays a sample: also those of a path that has left the scene, so that their number is arithmetic
_SPHERES = 16
_THREADS = 128
_CHUNK = 1 << 18  # pixels that the array version takes at a time

_f = np.float32
_ZERO, _ONE, _TWO, _HALF, _UNIT, _PI = _f(0), _f(1), _f(2), _f(0.5), _f(2.0**-24), _f(math.pi)
_FAR, _NEAR, _TINY = _f(1e4), _f(1e-3), _f(1e-12)
_S3, _S5, _S7 = _f(-1 / 6), _f(1 / 120), _f(-1 / 5040)  # of a sine, good to 2e-4 up to a right angle
_EYE = (_f(0), _f(1.8), _f(6.5))
_TILT = _f(0.17)
_SKY, _FLOOR = -2, -1  # what a ray hits if it is none of the spheres
_SKY_DOWN, _SKY_UP = (_f(0.6), _f(0.6), _f(0.6)), (_f(0.25), _f(0.4), _f(0.7))
_DARK, _BRIGHT = _f(0.25), _f(0.75)  # squares of the floor
_LOW, _WORD, _EIGHT = np.uint64(0xFFFFFFFF), np.uint64(32), np.uint64(8)
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)


def pixels_on_cpu(lane, first, count, step, seed, spheres, width, height, samples, scale, share, out):  # type: ignore[no-untyped-def] # noqa: C901, PLR0912
    """Follow the paths of each pixel; three components a pixel. Row i of `spheres` is x, y, z, r^2, 1/r, rgb, glow, mirror."""
    k0_start, k1_start = seed & _LOW, seed >> _WORD
    left, top = _HALF * np.float32(width), _HALF * np.float32(height)
    for k in range(count):
        i = first + k * step
        column, row = np.float32(i % width), np.float32(i // width)
        red = green = blue = _ZERO
        for sample in range(samples):
            ox, oy, oz = _EYE
            dx = dy = dz = _ZERO
            wr = wg = wb = _ONE
            for bounce in range(_DEPTH):
                counter = i * samples + np.uint64(sample)
                c0, c1, c2, c3 = counter & _LOW, counter >> _WORD, np.uint64(bounce + 1), np.uint64(0)
                k0, k1 = k0_start, k1_start
                for _ in range(10):
                    p0, p1 = _M0 * c0, _M1 * c2
                    c0, c1, c2, c3 = (p1 >> _WORD) ^ c1 ^ k0, p1 & _LOW, (p0 >> _WORD) ^ c3 ^ k1, p0 & _LOW
                    k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
                if bounce == 0:
                    dx = (column + np.float32(c2 >> _EIGHT) * _UNIT - left) * scale
                    dy = (top - row - np.float32(c3 >> _EIGHT) * _UNIT) * scale - _TILT
                    shrink = _ONE / np.float32(math.sqrt(dx * dx + dy * dy + _ONE))
                    dx, dy, dz = dx * shrink, dy * shrink, -shrink
                nearest, hit = _FAR, _SKY
                if dy < _ZERO:
                    t = -oy / dy
                    if _NEAR < t < nearest:
                        nearest, hit = t, _FLOOR
                for s in range(_SPHERES):
                    x, y, z = spheres[s, 0] - ox, spheres[s, 1] - oy, spheres[s, 2] - oz
                    along = x * dx + y * dy + z * dz
                    inside = along * along - (x * x + y * y + z * z - spheres[s, 3])
                    if inside > _ZERO:
                        t = along - np.float32(math.sqrt(inside))
                        if _NEAR < t < nearest:
                            nearest, hit = t, s
                if hit == _SKY:
                    up = _HALF * dy + _HALF
                    red += wr * (_SKY_DOWN[0] + up * _SKY_UP[0])
                    green += wg * (_SKY_DOWN[1] + up * _SKY_UP[1])
                    blue += wb * (_SKY_DOWN[2] + up * _SKY_UP[2])
                    wr = wg = wb = _ZERO
                    continue
                ox, oy, oz = ox + nearest * dx, oy + nearest * dy, oz + nearest * dz
                nx, ny, nz, mirror = _ZERO, _ONE, _ZERO, _ZERO
                if hit == _FLOOR:
                    square = np.floor(ox) + np.floor(oz)
                    odd = square - _TWO * np.floor(_HALF * square)
                    tone = _BRIGHT if odd > _ZERO else _DARK
                    wr, wg, wb = wr * tone, wg * tone, wb * tone
                else:
                    ball = spheres[hit]
                    nx, ny, nz = (ox - ball[0]) * ball[4], (oy - ball[1]) * ball[4], (oz - ball[2]) * ball[4]
                    wr, wg, wb = wr * ball[5], wg * ball[6], wb * ball[7]
                    red, green, blue = red + wr * ball[8], green + wg * ball[8], blue + wb * ball[8]
                    mirror = ball[9]
                if mirror > _ZERO:
                    twice = _TWO * (dx * nx + dy * ny + dz * nz)
                    dx, dy, dz = dx - twice * nx, dy - twice * ny, dz - twice * nz
                else:  # a point of the unit sphere around the normal's tip: Lambert's cosine law
                    z = _ONE - _TWO * (np.float32(c0 >> _EIGHT) * _UNIT)
                    across = np.float32(math.sqrt(max(_ONE - z * z, _ZERO)))
                    a = (np.float32(c1 >> _EIGHT) * _UNIT - _HALF) * _PI
                    a2 = a * a
                    sine = a * (_ONE + a2 * (_S3 + a2 * (_S5 + a2 * _S7)))
                    cosine = np.float32(math.sqrt(max(_ONE - sine * sine, _ZERO)))
                    cosine = cosine if c2 & np.uint64(1) else -cosine
                    dx, dy, dz = nx + across * cosine, ny + across * sine, nz + z
                    shrink = _ONE / np.float32(math.sqrt(dx * dx + dy * dy + dz * dz + _TINY))
                    dx, dy, dz = dx * shrink, dy * shrink, dz * shrink
        at = np.uint64(3) * i
        out[at], out[at + np.uint64(1)], out[at + np.uint64(2)] = red * share, green * share, blue * share


def _dot(a: Array, b: Array) -> Array:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _draw(seed: Any, counter: Array, stream: int) -> list[Array]:
    """Return the four words of each counter (Philox4x32-10, as in `device.philox`)."""
    c = [counter & _LOW, counter >> _WORD, counter * np.uint64(0) + np.uint64(stream), counter * np.uint64(0)]
    key = [int(seed) & 0xFFFFFFFF, int(seed) >> 32]
    for turn in range(10):
        k0, k1 = (np.uint64((k + turn * int(w)) & 0xFFFFFFFF) for k, w in zip(key, (_W0, _W1), strict=True))
        p0, p1 = _M0 * c[0], _M1 * c[2]
        c = [(p1 >> _WORD) ^ c[1] ^ k0, p1 & _LOW, (p0 >> _WORD) ^ c[3] ^ k1, p0 & _LOW]
    return c


def _nearest(xp: Any, spheres: Array, o: Array, d: Array) -> tuple[Array, Array, Array]:
    """Return how far each ray goes, which sphere is nearest, and whether the floor is nearer."""
    falls = d[1] < 0
    floor = -o[1] / xp.where(falls, d[1], -_ONE)
    floor = xp.where(falls & (floor > _NEAR) & (floor < _FAR), floor, _FAR)
    to = spheres.T[:3, :, None] - o[:, None]
    along = _dot(to, d[:, None])
    inside = along * along - (_dot(to, to) - spheres[:, 3, None])
    t = along - xp.sqrt(xp.maximum(inside, _ZERO))
    t = xp.where((inside > 0) & (t > _NEAR), t, _FAR)
    nearest = t.min(axis=0)
    return xp.minimum(floor, nearest), t.argmin(axis=0), floor <= nearest


def _scattered(xp: Any, n: Array, c: list[Array], u: list[Array]) -> Array:
    z = _ONE - _TWO * u[0]
    across = xp.sqrt(xp.maximum(_ONE - z * z, _ZERO))
    a = (u[1] - _HALF) * _PI
    a2 = a * a
    sine = a * (_ONE + a2 * (_S3 + a2 * (_S5 + a2 * _S7)))
    cosine = xp.sqrt(xp.maximum(_ONE - sine * sine, _ZERO))
    cosine = xp.where(c[2] & np.uint64(1), cosine, -cosine)
    d = n + xp.stack([across * cosine, across * sine, z])
    return d * (_ONE / xp.sqrt(_dot(d, d) + _TINY))


def picture(
    xp: Any, seed: Any, spheres: Array, width: Any, height: Any, samples: Any, scale: Any, share: Any, out: Array
) -> None:
    """Trace the same paths by array operations: slower and written apart from the kernels, it judges them."""
    width, height, samples = int(width), int(height), int(samples)
    sky_down, sky_up = (xp.asarray(c)[:, None] for c in (_SKY_DOWN, _SKY_UP))
    for first in range(0, width * height, _CHUNK):
        i = xp.arange(first, min(first + _CHUNK, width * height), dtype=np.uint64)
        column, row = ((i % np.uint64(width)).astype(_f), (i // np.uint64(width)).astype(_f))
        light = xp.zeros((3, i.size), dtype=_f)
        for sample in range(samples):
            o = xp.asarray(_EYE)[:, None] + xp.zeros_like(light)
            weight, d = xp.ones_like(light), xp.zeros_like(light)
            for bounce in range(_DEPTH):
                c = _draw(seed, i * np.uint64(samples) + np.uint64(sample), bounce + 1)
                u = [(w >> _EIGHT).astype(_f) * _UNIT for w in c]
                if bounce == 0:
                    x = (column + u[2] - _HALF * _f(width)) * scale
                    y = (_HALF * _f(height) - row - u[3]) * scale - _TILT
                    shrink = _ONE / xp.sqrt(x * x + y * y + _ONE)
                    d = xp.stack([x * shrink, y * shrink, -shrink])
                far, which, on_floor = _nearest(xp, spheres, o, d)
                lost = far >= _FAR
                light += xp.where(lost, weight * (sky_down + (_HALF * d[1] + _HALF) * sky_up), _ZERO)
                to, ball = o + far * d, spheres[which].T
                square = xp.floor(to[0]) + xp.floor(to[2])
                tone = xp.where(square - _TWO * xp.floor(_HALF * square) > 0, _BRIGHT, _DARK)
                weight = xp.where(lost, _ZERO, weight * xp.where(on_floor, tone, ball[5:8]))
                light += xp.where(lost | on_floor, _ZERO, weight * ball[8])
                up = xp.asarray((_ZERO, _ONE, _ZERO))[:, None]
                n = xp.where(on_floor, up, (to - ball[:3]) * ball[4])
                mirrored = d - (_TWO * _dot(d, n)) * n
                bent = xp.where(~on_floor & (ball[9] > 0), mirrored, _scattered(xp, n, c, u))
                o, d = xp.where(lost, o, to), xp.where(lost, d, bent)
        out[3 * first : 3 * (first + i.size)] = (light * share).T.reshape(-1)


SOURCE = CudaSource(
    name="pathtrace",
    twin=functools.partial(picture, np),
    options=("--std=c++17", "--fmad=false"),  # a fused product is rounded otherwise than on a CPU
    text=r"""
struct V { float x, y, z; };
__device__ V operator+(V a, V b) { return {a.x + b.x, a.y + b.y, a.z + b.z}; }
__device__ V operator-(V a, V b) { return {a.x - b.x, a.y - b.y, a.z - b.z}; }
__device__ V operator*(V a, V b) { return {a.x * b.x, a.y * b.y, a.z * b.z}; }
__device__ V operator*(float a, V b) { return {a * b.x, a * b.y, a * b.z}; }
__device__ float dot(V a, V b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
__device__ float unit(unsigned word) { return (word >> 8) * 0x1p-24f; }

struct Ball { V centre; float r2, inverse_r; V colour; float glow, mirror; };

__device__ void draw(unsigned c[4], unsigned k0, unsigned k1) {  // Philox4x32-10
    for (int turn = 0; turn < 10; turn++, k0 += 0x9E3779B9, k1 += 0xBB67AE85) {
        const unsigned high0 = __umulhi(0xD2511F53, c[0]), low0 = 0xD2511F53 * c[0];
        const unsigned high1 = __umulhi(0xCD9E8D57, c[2]), low1 = 0xCD9E8D57 * c[2];
        c[0] = high1 ^ c[1] ^ k0, c[1] = low1, c[2] = high0 ^ c[3] ^ k1, c[3] = low0;
    }
}

__device__ V scattered(V n, const unsigned c[4]) {
    const float z = 1 - 2 * unit(c[0]), across = sqrtf(fmaxf(1 - z * z, 0)), a = (unit(c[1]) - 0.5f) * 3.14159265f;
    const float a2 = a * a, sine = a * (1 + a2 * (-1 / 6.f + a2 * (1 / 120.f + a2 * (-1 / 5040.f))));
    const float cosine = sqrtf(fmaxf(1 - sine * sine, 0));
    const V d = n + V{across * (c[2] & 1 ? cosine : -cosine), across * sine, z};
    return 1 / sqrtf(dot(d, d) + 1e-12f) * d;
}

extern "C" __global__ void __launch_bounds__(128) pathtrace(
    unsigned long long seed, const Ball* balls, unsigned width, unsigned height, unsigned samples, float scale, float share, V* out) {
    const unsigned i = blockIdx.x * 128 + threadIdx.x;
    if (i >= width * height) return;
    V light = {};
    for (unsigned sample = 0; sample < samples; sample++) {
        V o = {0, 1.8f, 6.5f}, d = {}, weight = {1, 1, 1};
        for (unsigned bounce = 0; bounce < DEPTH; bounce++) {
            const unsigned long long counter = (unsigned long long)i * samples + sample;
            unsigned c[4] = {(unsigned)counter, (unsigned)(counter >> 32), bounce + 1, 0};
            draw(c, (unsigned)seed, (unsigned)(seed >> 32));
            if (bounce == 0) {
                d.x = (i % width + unit(c[2]) - 0.5f * width) * scale;
                d.y = (0.5f * height - i / width - unit(c[3])) * scale - 0.17f;
                d.z = 1;
                d = 1 / sqrtf(dot(d, d)) * d;
                d.z = -d.z;
            }
            float nearest = 1e4f;
            int hit = -2;  // -2 is the sky, -1 the floor
            if (d.y < 0) {
                const float t = -o.y / d.y;
                if (t > 1e-3f && t < nearest) nearest = t, hit = -1;
            }
            for (int s = 0; s < SPHERES; s++) {
                const V to = balls[s].centre - o;
                const float along = dot(to, d), inside = along * along - (dot(to, to) - balls[s].r2);
                if (inside > 0) {
                    const float t = along - sqrtf(inside);
                    if (t > 1e-3f && t < nearest) nearest = t, hit = s;
                }
            }
            if (hit == -2) {
                light = light + weight * (V{0.6f, 0.6f, 0.6f} + (0.5f * d.y + 0.5f) * V{0.25f, 0.4f, 0.7f});
                weight = {};
                continue;
            }
            o = o + nearest * d;
            V n = {0, 1, 0};
            bool mirror = false;
            if (hit == -1) {
                const float square = floorf(o.x) + floorf(o.z);
                weight = (square - 2 * floorf(0.5f * square) > 0 ? 0.75f : 0.25f) * weight;
            } else {
                const Ball ball = balls[hit];
                n = ball.inverse_r * (o - ball.centre);
                weight = weight * ball.colour;
                light = light + ball.glow * weight;
                mirror = ball.mirror > 0;
            }
            d = mirror ? d - 2 * dot(d, n) * n : scattered(n, c);
        }
    }
    out[i] = share * light;
}
""".replace("DEPTH", str(_DEPTH)).replace("SPHERES", str(_SPHERES)),
)


def _scene(uniform: Any) -> Any:
    """Place a mirror, a lamp, and two rows of balls of random place, size and colour, every third a mirror."""
    place = np.arange(_SPHERES)
    radius = _f(0.28) + _f(0.2) * uniform[:, 0]
    x = _f(1.4) * (place % 7 - 3) + _f(0.5) * (uniform[:, 1] - _f(0.5))
    z = np.where(place <= _SPHERES // 2, _f(2.3), _f(-1.9)) + _f(0.5) * (uniform[:, 2] - _f(0.5))
    spheres = np.zeros((_SPHERES, 10), dtype=np.float32)
    spheres[:, 0], spheres[:, 1], spheres[:, 2] = x, radius, z
    spheres[:, 5:8] = _f(0.25) + _f(0.7) * uniform[:, 3:6]
    spheres[:, 9] = place % 3 == 0
    spheres[5, 8] = 3
    radius[:2] = 1.1, 1.3
    spheres[0, :3], spheres[1, :3] = (0, 1.1, 0), (-2.6, 5, 2)
    spheres[0, 5:8], spheres[1, 5:] = 0.9, (1, 0.9, 0.7, 9, 0)
    spheres[:, 3], spheres[:, 4] = radius * radius, _ONE / radius
    return spheres


@benchmark(
    version=1,
    metric="throughput",
    quick=False,
    width=Sized(check=32, cpu=256, cuda=1920),
    samples=Sized(check=2, cpu=8, cuda=16),
)
def pathtrace(backend: Backend, seed: int, *, width: int, samples: int) -> Case:
    """Rays followed through a scene of 16 spheres, four a sample; width is a multiple of 16, the picture 16:9."""
    xp, height = backend.xp, width * 9 // 16
    pixels = width * height
    require_memory(backend, 12 * pixels + 1024 * _CHUNK)
    uniform = backend.rng(seed).uniform((_SPHERES, 6))
    spheres = xp.asarray(_scene(backend.to_host(uniform)))
    out = xp.zeros(3 * pixels, dtype=np.float32)
    view = (_f(1.3 / width), _f(1 / samples))
    on_cpu = backend.device.kind == "cpu"
    launch = backend.compile(pixels_on_cpu) if on_cpu else backend.load(SOURCE)

    def run() -> Array:
        if on_cpu:
            launch(pixels, np.uint64(seed), spheres, *map(np.uint64, (width, height, samples)), *view, out)
        else:
            sizes = map(np.uint32, (width, height, samples))
            launch(-(-pixels // _THREADS), _THREADS, np.uint64(seed), spheres, *sizes, *view, out)
        return out

    def check(answer: Array) -> bool:
        truth = xp.empty_like(answer)
        picture(xp, seed, spheres, width, height, samples, *view, truth)
        return bool((answer == truth).all())

    return Case(
        run=run,
        work=Work(items=pixels * samples * _DEPTH, item="ray", counting="four a sample, also beyond the scene"),
        check=check,
        inputs=(uniform,),
        distribution="uniform in [0, 1)",
    )
