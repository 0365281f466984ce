/* Adaptive integers (nola_codec/entropy/adaptive.py; specification, "Adaptive integers"). */
#include "nola.h"

enum { ROLES = 272, MAX_BITS = 20, MOST_SEEN = 60 };

/* The probability of a bit at one place: of role `i` node i is the first bit. `next` is 0 where no bit was seen yet. */
typedef struct {
    int32_t next[2], share, seen;
} Node;

/* Adapt the node at `*at` to a bit, and go to the node of the next bit, which is the last of `*count` if it is new. */
static void follow(Node *nodes, int64_t *count, int32_t *at, int bit) {
    Node *node = nodes + *at;
    if (bit)
        node->share -= node->share / (node->seen + 2);
    else
        node->share += (65536 - node->share) / (node->seen + 2);
    node->seen += node->seen < MOST_SEEN;
    if (node->next[bit] == 0) {
        nodes[*count] = (Node){{0, 0}, 1 << 15, 0};
        node->next[bit] = (int32_t)(*count)++;
    }
    *at = node->next[bit];
}

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
    const int64_t bound = (state->range >> 16) * reader->nodes[*at].share;
    const int bit = state->code >= bound;
    if (bit) {
        state->code -= bound;
        state->range -= bound;
    } else
        state->range = bound;
    while (state->range < 1 << 24) {
        uint8_t byte = state->position < reader->size ? reader->data[state->position] : 0;
        state->code = state->code << 8 | byte;
        state->range <<= 8;
        state->position++;
    }
    follow(reader->nodes, &state->nodes, at, bit);
    return bit;
}

/* Read an integer of a role below ROLES. Return 0 if it has more than MAX_BITS bits. */
static int read_integer(Reader *reader, int64_t role, int64_t *value) {
    int32_t at = (int32_t)role;
    int length = 0;
    while (read_bit(reader, &at))
        if (++length > MAX_BITS)
            return 0;
    *value = 0;
    if (length == 0)
        return 1;
    const int negative = read_bit(reader, &at);
    int64_t magnitude = 1;
    while (--length)
        magnitude = magnitude << 1 | read_bit(reader, &at);
    *value = negative ? -magnitude : magnitude;
    return 1;
}

/* Read `count` integers, each of a role below ROLES.
 *
 * `memory` holds the nodes so far, and has room for 2 * MAX_BITS + 2 more for each integer. Return how many were read:
 * fewer than `count` if the next one has more than MAX_BITS bits. */
KERNEL(nola_read_integers)(const uint8_t *data, int64_t size, int64_t *state, int32_t *memory, const int64_t *roles,
                           int64_t count, int64_t *values) {
    Reader reader = {data, size, (State *)state, (Node *)memory};
    for (int64_t i = 0; i < count; i++)
        if (!read_integer(&reader, roles[i], values + i))
            return i;
    return count;
}

/* Read `count` integers, and add each to the total of its group, which is `latest[groups[i]]`, at least 0.
 *
 * The role of an integer is `role` + min(2, total before it), below ROLES. totals[i] becomes the total after it. Return
 * how many were read: fewer than `count` if the next one has too many bits, or after a total below 0. */
KERNEL(nola_read_totals)(const uint8_t *data, int64_t size, int64_t *state, int32_t *memory, int64_t role,
                         const int64_t *groups, int64_t count, int64_t *latest, int64_t *totals) {
    Reader reader = {data, size, (State *)state, (Node *)memory};
    for (int64_t i = 0; i < count; i++) {
        int64_t *total = latest + groups[i], value;
        if (!read_integer(&reader, role + (*total < 2 ? *total : 2), &value))
            return i;
        totals[i] = *total += value;
        if (*total < 0)
            return i + 1;
    }
    return count;
}

typedef struct {
    uint64_t low, range; /* low lies under 2^33: a carry above 2^32 goes to the bytes so far */
    uint8_t *out;
    int64_t size, nodes;
    Node *memory;
} Writer;

/* Move the highest byte of the lower end to the output, with its carry. */
static void push(Writer *writer) {
    if (writer->low >> 32) {
        int64_t last = writer->size - 1;
        while (writer->out[last] == 255)
            writer->out[last--] = 0;
        writer->out[last]++;
    }
    writer->out[writer->size++] = (uint8_t)(writer->low >> 24);
    writer->low = (writer->low & 0xFFFFFF) << 8;
}

/* Write a bit at `*at`, adapt the node, and go to the next one. */
static void write_bit(Writer *writer, int32_t *at, int bit) {
    const uint64_t bound = (writer->range >> 16) * (uint64_t)writer->memory[*at].share;
    if (bit) {
        writer->low += bound;
        writer->range -= bound;
    } else
        writer->range = bound;
    while (writer->range < 1 << 24) {
        push(writer);
        writer->range <<= 8;
    }
    follow(writer->memory, &writer->nodes, at, bit);
}

/* Write all integers of a section, each of a role below ROLES and of at most MAX_BITS bits.
 *
 * `memory` holds the nodes of the roles, and has room for 2 * MAX_BITS + 2 more for each integer; `out` has room for
 * twice as many bytes and eight more: a bit takes at most 16. Return the number of bytes, with zeros at the end. */
KERNEL(nola_write_integers)(const int64_t *roles, const int64_t *values, int64_t count, int32_t *memory, uint8_t *out) {
    Writer writer = {0, 0xFFFFFFFF, out, 0, ROLES, (Node *)memory};
    for (int64_t i = 0; i < count; i++) {
        int32_t at = (int32_t)roles[i];
        const int64_t magnitude = values[i] < 0 ? -values[i] : values[i];
        int length = 0;
        while (magnitude >> length)
            length++;
        for (int bit = 0; bit < length; bit++)
            write_bit(&writer, &at, 1);
        write_bit(&writer, &at, 0);
        if (length)
            write_bit(&writer, &at, values[i] < 0);
        for (int place = length - 2; place >= 0; place--)
            write_bit(&writer, &at, (int)(magnitude >> place & 1));
    }
    for (int zeros = 32; zeros >= 0; zeros--) { /* the number in the last range that ends in the most zeros */
        const uint64_t mask = ((uint64_t)1 << zeros) - 1, number = (writer.low + mask) & ~mask;
        if (number < writer.low + writer.range) {
            writer.low = number;
            break;
        }
    }
    for (int i = 0; i < 4; i++)
        push(&writer);
    return writer.size;
}
