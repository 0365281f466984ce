/* The search of trellises (fit/viterbi.py, `encode_trellis`): LANES vectors go through the steps together. */
#include "lanes.h"

#include <stdlib.h>

#define WINDOW 8
#define STATES (1 << WINDOW)

/* A trellis: the gain of a window is a sum of terms whose signs are parities of the window under masks. */
typedef struct {
    int64_t bits, stride, terms, size; /* size: the number of gains that are computed, STATES or half of it */
    const int64_t *masks, *coordinates;
    const float *weights;
    const float *half; /* (size,): half the energy of the points, or null if it decides nothing */
} trellis;

/* Two values of each pair become their sum and their difference: pairs `count` / 2 apart, then half as far, down to 1.
 * x: `count` vectors that are `stride` apart; count is at most 16. */
static inline __attribute__((always_inline)) void butterflies(f32_vector *x, int64_t stride, const int count) {
    f32_vector v[16];
    for (int i = 0; i < count; i++)
        v[i] = x[i * stride];
    for (int apart = count / 2; apart; apart /= 2)
        for (int i = 0; i < count; i++)
            if (!(i & apart)) {
                f32_vector sum = v[i] + v[i + apart];
                v[i + apart] = v[i] - v[i + apart];
                v[i] = sum;
            }
    for (int i = 0; i < count; i++)
        x[i * stride] = v[i];
}

/* Compute the gains of all windows for one step: the inner products of their points with the coefficients. */
static void find_gains(const trellis *own, const float *const *values, int64_t lanes, int64_t step, f32_vector *gains) {
    memset(gains, 0, (size_t)own->size * sizeof *gains);
    for (int64_t term = 0; term < own->terms; term++) {
        f32_vector each = {0};
        for (int64_t lane = 0; lane < lanes; lane++)
            each[lane] = values[lane][step * own->stride + own->coordinates[term]];
        gains[own->masks[term]] += each * spread(own->weights[term]);
    }
    if (own->size == STATES / 2)
        for (int64_t i = 0; i < 16; i++)
            butterflies(gains + i, 16, 8);
    else
        for (int64_t i = 0; i < 16; i++)
            butterflies(gains + i, 16, 16);
    for (int64_t i = 0; i < own->size; i += 16)
        butterflies(gains + i, 1, 16);
}

/* One bit a step, and flipping the newest bit of a window turns the signs of all its points. */
static void step_mirrored(const trellis *own, const f32_vector *cost, f32_vector *next, const f32_vector *gains,
                          lane_bits *made) {
    for (int64_t head = 0; head < STATES / 2; head++) {
        f32_vector low = cost[head], high = cost[head + STATES / 2];
        made[head] = less(low, high);
        f32_vector best = larger(low, high);
        if (own->half)
            best -= spread(own->half[head]);
        next[2 * head] = best + gains[head];
        next[2 * head + 1] = best - gains[head];
    }
}

/* One or two bits a step. Decisions take one lane_bits for each of them. */
static void step_any(const trellis *own, const f32_vector *cost, f32_vector *next, const f32_vector *gains,
                     lane_bits *made) {
    const int64_t ways = (int64_t)1 << own->bits, heads = STATES >> own->bits;
    for (int64_t head = 0; head < heads; head++) {
        f32_vector best = larger(cost[head], cost[head + heads]);
        lane_bits odd = less(cost[head], cost[head + heads]);
        if (ways == 4) {
            f32_vector third = cost[head + 2 * heads], fourth = cost[head + 3 * heads], later = larger(third, fourth);
            lane_bits upper = less(best, later), later_odd = less(third, fourth);
            odd = (lane_bits)((odd & ~upper) | (later_odd & upper));
            made[heads + head] = upper;
            best = larger(best, later);
        }
        made[head] = odd;
        for (int64_t way = 0; way < ways; way++) {
            int64_t state = head * ways + way;
            f32_vector gain = gains[state];
            if (own->half)
                gain -= spread(own->half[state]);
            next[state] = gain + best;
        }
    }
}

/* Find the path of largest gain through `count` steps from step `first` on, in a ring of `steps`.
 *
 * ring: the first and the last state of each lane, or null if both are free.
 * made: room for `count` * STATES / 2 decisions.
 * path: (count, LANES): the state after each step.
 */
static void search_path(const trellis *own, const float *const *values, int64_t lanes, int64_t first, int64_t count,
                        int64_t steps, const uint8_t *ring, lane_bits *made, uint8_t *path) {
    f32_vector before[STATES], after[STATES], gains[STATES];
    f32_vector *cost = before, *next = after;
    const int64_t ways = (int64_t)1 << own->bits, heads = STATES >> own->bits, kept = own->bits * heads;
    for (int64_t state = 0; state < STATES; state++) {
        cost[state] = spread(ring ? -1e30f : 0.0f);
        for (int64_t lane = 0; ring && lane < lanes; lane++)
            if (ring[lane] == state)
                cost[state][lane] = 0;
    }
    for (int64_t number = 0; number < count; number++) {
        find_gains(own, values, lanes, (first + number) % steps, gains);
        if (own->size < STATES)
            step_mirrored(own, cost, next, gains, made + number * kept);
        else
            step_any(own, cost, next, gains, made + number * kept);
        f32_vector *swap = cost;
        cost = next, next = swap;
    }
    uint8_t ends[LANES] = {0};
    for (int64_t lane = 0; lane < lanes; lane++) {
        if (ring) {
            ends[lane] = ring[lane];
            continue;
        }
        float most = cost[0][lane];
        for (int64_t state = 1; state < STATES; state++)
            if (cost[state][lane] > most)
                most = cost[state][lane], ends[lane] = (uint8_t)state;
    }
    for (int64_t number = count - 1; number >= 0; number--) {
        const lane_bits *own_made = made + number * kept;
        for (int64_t lane = 0; lane < lanes; lane++) {
            int64_t head = ends[lane] >> own->bits;
            path[number * LANES + lane] = ends[lane];
            int64_t way = own_made[head] >> lane & 1;
            if (ways == 4)
                way |= (own_made[heads + head] >> lane & 1) << 1;
            ends[lane] = (uint8_t)(way << (WINDOW - own->bits) | head);
        }
    }
}

/* Search the symbols whose points are nearest in angle to vectors; the window runs in a ring.
 *
 * values: (vectors, steps * stride).
 * symbols: (vectors, steps).
 * bits: 1 or 2.
 * size: 256 gains, or 128 if flipping the newest bit of a window turns all signs; then masks lack their newest bit.
 * masks, coordinates, weights: (terms,): the gain of a window is the sum of weight * coordinate * (-1)^parity(window & mask).
 * half: (size,), or null.
 * reach: the steps at each end that the search for the joint looks at, at most steps / 2.
 *
 * Return 0, or -1 if there is not enough memory.
 */
KERNEL(nola_search_trellis)(const float *values, uint8_t *symbols, int64_t vectors, int64_t steps, int64_t stride,
                            int64_t bits, int64_t size, const int64_t *masks, const int64_t *coordinates,
                            const float *weights, int64_t terms, const float *half, int64_t reach) {
    trellis own = {bits, stride, terms, size, masks, coordinates, weights, half};
    lane_bits *made = malloc((size_t)(steps * (STATES / 2)) * sizeof *made);
    uint8_t *path = malloc((size_t)(steps * LANES));
    int64_t result = made && path ? 0 : -1;
    for (int64_t first = 0; first < vectors && !result; first += LANES) {
        int64_t lanes = vectors - first < LANES ? vectors - first : LANES;
        const float *from[LANES];
        uint8_t ring[LANES];
        for (int64_t lane = 0; lane < lanes; lane++)
            from[lane] = values + (first + lane) * steps * stride;
        search_path(&own, from, lanes, reach ? steps - reach : 0, reach ? 2 * reach : steps, steps, NULL, made, path);
        memcpy(ring, path + ((reach ? reach : steps) - 1) * LANES, sizeof ring);
        search_path(&own, from, lanes, 0, steps, steps, ring, made, path);
        for (int64_t lane = 0; lane < lanes; lane++)
            for (int64_t step = 0; step < steps; step++)
                symbols[(first + lane) * steps + step] = path[step * LANES + lane] & (uint8_t)((1 << bits) - 1);
    }
    free(made);
    free(path);
    return result;
}
