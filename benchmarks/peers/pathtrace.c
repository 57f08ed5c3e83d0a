/* The paths of the benchmark `pathtrace` followed in plain C with OpenMP: its peer. The picture must be the same in every bit, so the
 * compiler may not fuse a product with a sum (-ffp-contract=off), and each sum is made in the order in which the benchmark makes it. */

#include <math.h>
#include <stdbool.h>
#include <stdint.h>

enum { DEPTH = 4, SPHERES = 16, FLOOR = -1, SKY = -2 };

typedef struct { float x, y, z; } V;
typedef struct { V centre; float r2, inverse_r; V colour; float glow, mirror; } Ball;
typedef struct { uint32_t w[4]; } Words;

static inline V plus(V a, V b) { return (V){a.x + b.x, a.y + b.y, a.z + b.z}; }
static inline V minus(V a, V b) { return (V){a.x - b.x, a.y - b.y, a.z - b.z}; }
static inline V tint(V a, V b) { return (V){a.x * b.x, a.y * b.y, a.z * b.z}; }
static inline V scaled(float s, V a) { return (V){s * a.x, s * a.y, s * a.z}; }
static inline float dot(V a, V b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
static inline float unit(uint32_t word) { return (word >> 8) * 0x1p-24f; }

/* Philox4x32-10 */
static inline Words draw(uint64_t counter, uint32_t stream, uint64_t seed)
{
    Words c = {{counter, counter >> 32, stream, 0}};
    uint32_t k0 = seed, k1 = seed >> 32;
    for (int turn = 0; turn < 10; turn++, k0 += 0x9E3779B9, k1 += 0xBB67AE85) {
        uint64_t p0 = (uint64_t)0xD2511F53 * c.w[0], p1 = (uint64_t)0xCD9E8D57 * c.w[2];
        c = (Words){{(uint32_t)(p1 >> 32) ^ c.w[1] ^ k0, p1, (uint32_t)(p0 >> 32) ^ c.w[3] ^ k1, p0}};
    }
    return c;
}

static inline int nearest_of(V o, V d, const Ball *balls, float *nearest)
{
    int hit = SKY;
    *nearest = 1e4f;
    if (d.y < 0) {
        float t = -o.y / d.y;
        if (t > 1e-3f && t < *nearest)
            *nearest = t, hit = FLOOR;
    }
    for (int s = 0; s < SPHERES; s++) {
        V to = minus(balls[s].centre, o);
        float along = dot(to, d), inside = along * along - (dot(to, to) - balls[s].r2);
        if (inside > 0) {
            float t = along - sqrtf(inside);
            if (t > 1e-3f && t < *nearest)
                *nearest = t, hit = s;
        }
    }
    return hit;
}

/* A point of the unit sphere around the normal's tip: Lambert's cosine law. */
static inline V scattered(V n, Words c)
{
    float z = 1 - 2 * unit(c.w[0]), across = sqrtf(fmaxf(1 - z * z, 0)), a = (unit(c.w[1]) - 0.5f) * 3.14159265f, a2 = a * a;
    float sine = a * (1 + a2 * (-1 / 6.f + a2 * (1 / 120.f + a2 * (-1 / 5040.f)))), cosine = sqrtf(fmaxf(1 - sine * sine, 0));
    V d = plus(n, (V){across * (c.w[2] & 1 ? cosine : -cosine), across * sine, z});
    return scaled(1 / sqrtf(dot(d, d) + 1e-12f), d);
}

/* Also a ray that has left the scene is followed to the end of its path, in vain: the benchmark counts it. */
static inline V follow_path(
    V light, float column, float row, float left, float top, float scale, uint64_t counter, uint64_t seed, const Ball *balls)
{
    V weight = {1, 1, 1}, o = {0, 1.8f, 6.5f}, d = {0, 0, 0};
    for (int bounce = 0; bounce < DEPTH; bounce++) {
        Words c = draw(counter, bounce + 1, seed);
        if (bounce == 0) {
            V to = {(column + unit(c.w[2]) - left) * scale, (top - row - unit(c.w[3])) * scale - 0.17f, -1};
            d = scaled(1 / sqrtf(to.x * to.x + to.y * to.y + 1), to);
        }
        float nearest;
        int hit = nearest_of(o, d, balls, &nearest);
        if (hit == SKY) {
            light = plus(light, tint(weight, plus((V){0.6f, 0.6f, 0.6f}, scaled(0.5f * d.y + 0.5f, (V){0.25f, 0.4f, 0.7f}))));
            weight = (V){0, 0, 0};
            continue;
        }
        o = plus(o, scaled(nearest, d));
        V n = {0, 1, 0};
        bool mirror = false;
        if (hit == FLOOR) {
            float square = floorf(o.x) + floorf(o.z);
            weight = scaled(square - 2 * floorf(0.5f * square) > 0 ? 0.75f : 0.25f, weight);
        } else {
            const Ball *ball = &balls[hit];
            n = scaled(ball->inverse_r, minus(o, ball->centre));
            weight = tint(weight, ball->colour);
            light = plus(light, scaled(ball->glow, weight));
            mirror = ball->mirror > 0;
        }
        d = mirror ? minus(d, scaled(2 * dot(d, n), n)) : scattered(n, c);
    }
    return light;
}

void pathtrace(uint64_t seed, const Ball *balls, uint64_t width, uint64_t height, uint64_t samples, float scale, float share, V *out)
{
#pragma omp parallel for schedule(dynamic)
    for (uint64_t row = 0; row < height; row++)
        for (uint64_t column = 0; column < width; column++) {
            uint64_t i = row * width + column;
            V light = {0, 0, 0};
            for (uint64_t sample = 0; sample < samples; sample++)
                light = follow_path(
                    light, column, row, 0.5f * width, 0.5f * height, scale, i * samples + sample, seed, balls);
            out[i] = scaled(share, light);
        }
}
