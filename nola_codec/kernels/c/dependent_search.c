/* The search of dependent quantizers (fit/viterbi.py, `encode_dependent`): LANES vectors go through the steps together. */
#include "lanes.h"

#include <stdlib.h>

#define BLOCK 64 /* steps whose candidates are found at once; after a block the least cost is subtracted from all */
#define CUTS 128 /* numbers that a table has for each candidate */
#define MAX_STATES 256

/* The levels of one codebook and parity: which is best between two cuts, where it lies, and what its bits cost. */
typedef struct {
    const float *cuts, *places, *prices;
    int64_t count; /* of places; there is one cut less */
} candidates;

/* Find for each of BLOCK values the number of cuts below it, and the cost of that level. */
static inline void find_candidates(const candidates *own, const float *values, int32_t *index, float *cost) {
    memset(index, 0, BLOCK * sizeof *index);
    for (int64_t c = 0; c + 1 < own->count; c++) {
        float cut = own->cuts[c];
        for (int t = 0; t < BLOCK; t++)
            index[t] += cut < values[t];
    }
    for (int t = 0; t < BLOCK; t++) {
        float gap = values[t] - own->places[index[t]];
        float square = gap * gap;
        cost[t] = square + own->prices[index[t]];
    }
}

typedef struct {
    int64_t heads;             /* half the number of states: a head is two states that differ in the highest bit */
    uint8_t chooses[MAX_STATES];
    uint8_t order[MAX_STATES / 2]; /* the heads, first those whose lower state chooses the even codebook */
} graph;

static void make_graph(graph *made, int64_t mask) {
    int memory = 0;
    while (mask >> memory)
        memory++;
    made->heads = (int64_t)1 << (memory - 1);
    for (int64_t state = 0; state < 2 * made->heads; state++)
        made->chooses[state] = (uint8_t)__builtin_parityll((uint64_t)(state & mask));
    int64_t placed = 0;
    for (int choice = 0; choice < 2; choice++)
        for (int64_t head = 0; head < made->heads; head++)
            if (made->chooses[head] == choice)
                made->order[placed++] = (uint8_t)head;
}

/* Go one step on: the cheaper of the two ways into each state, and whether it is the one from the upper state. */
static inline __attribute__((always_inline)) void
step(const f32_vector *cost, f32_vector *next, const f32_vector *own, const uint8_t *order, int64_t heads,
     lane_bits *made) {
    for (int choice = 0; choice < 2; choice++) {
        f32_vector lower0 = own[2 * choice], lower1 = own[2 * choice + 1];
        f32_vector upper0 = own[2 * (1 - choice)], upper1 = own[2 * (1 - choice) + 1];
        for (int64_t i = choice * (heads / 2); i < (choice + 1) * (heads / 2); i++) {
            int64_t head = order[i];
            f32_vector lower = cost[head], upper = cost[head + heads];
            f32_vector a0 = lower + lower0, b0 = upper + upper0, a1 = lower + lower1, b1 = upper + upper1;
            made[2 * head] = less(b0, a0);
            made[2 * head + 1] = less(b1, a1);
            next[2 * head] = smaller(b0, a0);
            next[2 * head + 1] = smaller(b1, a1);
        }
    }
}

/* What a group of searches needs for the way back. */
typedef struct {
    lane_bits *made; /* (steps, states) */
    uint8_t *index;  /* (steps, 4, LANES) */
} history;

/* Search the levels of at most LANES vectors; the first one is the longest. */
static void search_group(const graph *g, const float *const *values, const int64_t *lengths, const candidates *const *own,
                         int64_t lanes, history past, int8_t *const *levels, const int64_t *const *lowest) {
    f32_vector even[MAX_STATES], odd[MAX_STATES]; /* the costs after even and after odd steps */
    f32_vector costs[BLOCK][4];
    float *scattered = (float *)costs;
    f32_vector *cost = even, *next = odd;
    int64_t states = 2 * g->heads, steps = lengths[0];
    uint8_t ends[LANES] = {0};
    for (int64_t state = 0; state < states; state++)
        cost[state] = spread(state ? 1e30f : 0.0f);
    memset(costs, 0, sizeof costs);
    for (int64_t first = 0; first < steps; first += BLOCK) {
        int64_t here = steps - first < BLOCK ? steps - first : BLOCK;
        for (int64_t lane = 0; lane < lanes; lane++) {
            float block[BLOCK] = {0}, found[BLOCK];
            int32_t index[BLOCK];
            int64_t left = lengths[lane] - first;
            if (left <= 0)
                continue;
            left = left < here ? left : here;
            memcpy(block, values[lane] + first, (size_t)left * sizeof *block);
            for (int part = 0; part < 4; part++) {
                find_candidates(own[lane] + part, block, index, found);
                for (int64_t t = 0; t < left; t++) {
                    scattered[(4 * t + part) * LANES + lane] = found[t];
                    past.index[(4 * (first + t) + part) * LANES + lane] = (uint8_t)index[t];
                }
            }
        }
        for (int64_t t = 0; t < here; t++) {
            if (g->heads == 32) /* the encoder's own mask: the compiler knows the number */
                step(cost, next, costs[t], g->order, 32, past.made + (first + t) * 64);
            else
                step(cost, next, costs[t], g->order, g->heads, past.made + (first + t) * states);
            f32_vector *swap = cost;
            cost = next, next = swap;
            if (t == BLOCK - 1) {
                f32_vector least = cost[0];
                for (int64_t state = 1; state < states; state++)
                    least = smaller(cost[state], least);
                for (int64_t state = 0; state < states; state++)
                    cost[state] -= least;
            }
            for (int64_t lane = lanes - 1; lane >= 0 && lengths[lane] <= first + t + 1; lane--) {
                if (lengths[lane] != first + t + 1)
                    continue;
                float least = cost[0][lane];
                for (int64_t state = 1; state < states; state++)
                    if (cost[state][lane] < least)
                        least = cost[state][lane], ends[lane] = (uint8_t)state;
            }
        }
    }
    for (int64_t t = steps - 1; t >= 0; t--) {
        const lane_bits *made = past.made + t * states;
        const uint8_t *index = past.index + 4 * t * LANES;
        for (int64_t lane = 0; lane < lanes && lengths[lane] > t; lane++) {
            int64_t state = ends[lane];
            int64_t before = (state >> 1) + (made[state] >> lane & 1) * g->heads;
            int64_t part = 2 * g->chooses[before] + (state & 1);
            levels[lane][t] = (int8_t)(lowest[lane][part] + 2 * index[part * LANES + lane]);
            ends[lane] = (uint8_t)before;
        }
    }
}

/* Search the levels of vectors with the least squared error plus price, each from state 0 on and with a free end.
 *
 * values, levels: the vectors one after the other; vector i begins at starts[i] and has lengths[i] > 0 numbers.
 * lengths: do not rise.
 * tables: for each vector, the number of its table.
 * cuts, places, prices: (tables, 4, CUTS) for each (codebook, parity): `cuts` ascends.
 * counts, lowest: (tables, 4): the number of places, 1 to CUTS, and the level of the first one; the next is 2 higher.
 * mask: of 2 to 8 bits.
 *
 * Return 0, or -1 if there is not enough memory.
 */
KERNEL(nola_search_dependent)(const float *values, int8_t *levels, const int64_t *starts, const int64_t *lengths,
                              const int64_t *tables, int64_t vectors, const float *cuts, const float *places,
                              const float *prices, const int64_t *counts, const int64_t *lowest, int64_t mask) {
    graph g;
    if (!vectors)
        return 0;
    make_graph(&g, mask);
    history past = {malloc((size_t)(lengths[0] * 2 * g.heads) * sizeof(lane_bits)),
                    malloc((size_t)(lengths[0] * 4 * LANES))};
    int64_t result = past.made && past.index ? 0 : -1;
    for (int64_t first = 0; first < vectors && !result; first += LANES) {
        int64_t lanes = vectors - first < LANES ? vectors - first : LANES;
        const float *from[LANES];
        int8_t *to[LANES];
        candidates own[LANES][4];
        const candidates *each[LANES];
        const int64_t *low[LANES];
        for (int64_t lane = 0; lane < lanes; lane++) {
            int64_t table = 4 * tables[first + lane];
            from[lane] = values + starts[first + lane];
            to[lane] = levels + starts[first + lane];
            low[lane] = lowest + table;
            each[lane] = own[lane];
            for (int64_t part = 0; part < 4; part++) {
                int64_t at = (table + part) * CUTS;
                own[lane][part] = (candidates){cuts + at, places + at, prices + at, counts[table + part]};
            }
        }
        search_group(&g, from, lengths + first, each, lanes, past, to, low);
    }
    free(past.made);
    free(past.index);
    return result;
}
