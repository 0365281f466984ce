/* Adaptive integers (nola_codec/entropy/adaptive.py; specification, "Adaptive integers"). */
#include "nola.h"

enum { ROLES = 32, MAX_BITS = 20, MOST_SEEN = 60 };

/* The probability of a bit at one place: of role `i` node i is the first bit. `next` is 0 where no bit was seen yet. */
typedef struct {
    int32_t next[2], share, seen;
} Node;

typedef struct {
    int64_t code, range, position, nodes;
} State;

typedef struct {
    const uint8_t *data;
    int64_t size;
    State *state;
    Node *nodes;
} Reader;

/* Read a bit at `*at`, adapt the node, and go to the next one. */
static int read_bit(Reader *reader, int32_t *at) {
    State *state = reader->state;
    Node *node = reader->nodes + *at;
    const int64_t bound = (state->range >> 16) * node->share;
    const int bit = state->code >= bound;
    if (bit) {
        state->code -= bound;
        state->range -= bound;
        node->share -= node->share / (node->seen + 2);
    } else {
        state->range = bound;
        node->share += (65536 - node->share) / (node->seen + 2);
    }
    node->seen += node->seen < MOST_SEEN;
    while (state->range < 1 << 24) {
        uint8_t byte = state->position < reader->size ? reader->data[state->position] : 0;
        state->code = state->code << 8 | byte;
        state->range <<= 8;
        state->position++;
    }
    if (node->next[bit] == 0) {
        reader->nodes[state->nodes] = (Node){{0, 0}, 1 << 15, 0};
        node->next[bit] = (int32_t)state->nodes++;
    }
    *at = node->next[bit];
    return bit;
}

/* Read `count` integers, each of a role below ROLES.
 *
 * `memory` holds the nodes so far, and has room for 2 * MAX_BITS + 2 more for each integer. Return how many were read:
 * fewer than `count` if the next one has more than MAX_BITS bits. */
KERNEL(nola_read_integers)(const uint8_t *data, int64_t size, int64_t *state, int32_t *memory, const int64_t *roles,
                           int64_t count, int64_t *values) {
    Reader reader = {data, size, (State *)state, (Node *)memory};
    for (int64_t i = 0; i < count; i++) {
        int32_t at = (int32_t)roles[i];
        int length = 0;
        while (read_bit(&reader, &at))
            if (++length > MAX_BITS)
                return i;
        values[i] = 0;
        if (length == 0)
            continue;
        const int negative = read_bit(&reader, &at);
        int64_t magnitude = 1;
        while (--length)
            magnitude = magnitude << 1 | read_bit(&reader, &at);
        values[i] = negative ? -magnitude : magnitude;
    }
    return count;
}
