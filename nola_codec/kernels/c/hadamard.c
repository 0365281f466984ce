/* The Hadamard basis (specification, "Bases"): butterflies in cache, interleaving, signs, and the last scaling.
 *
 * Sums are made modulo 2^32. The caller has checked that no sum of the basis exceeds int32, so they are exact.
 */
#include "generators.h"
#include "scaling.h"
#include "sides.h"

/* Multiply a vector by the Sylvester matrix of its length, a power of two, in place. */
static void butterflies(uint32_t *x, int64_t length) {
    if (length < LANES) {
        for (int64_t h = 1; h < length; h *= 2)
            for (int64_t i = 0; i < length; i++)
                if (!(i & h)) {
                    uint32_t a = x[i], b = x[i + h];
                    x[i] = a + b, x[i + h] = a - b;
                }
        return;
    }
    const u32_vector lane = {LANE_NUMBERS};
    for (int64_t i = 0; i < length; i += LANES) {
        u32_vector v = load_u32(x + i), minus;
#define SWAP(h, ...) minus = (u32_vector)((lane & h) != 0), v = ((v ^ minus) - minus) + PERMUTE(v, __VA_ARGS__);
        LANE_SWAPS(SWAP)
#undef SWAP
        store_u32(x + i, v);
    }
    int64_t h = LANES;
    for (; h * 4 <= length; h *= 4)
        for (int64_t i = 0; i < length; i += 4 * h)
            for (int64_t j = i; j < i + h; j += LANES) {
                u32_vector a = load_u32(x + j), b = load_u32(x + j + h), c = load_u32(x + j + 2 * h),
                           d = load_u32(x + j + 3 * h);
                u32_vector ab = a + b, a_b = a - b, cd = c + d, c_d = c - d;
                store_u32(x + j, ab + cd), store_u32(x + j + h, a_b + c_d);
                store_u32(x + j + 2 * h, ab - cd), store_u32(x + j + 3 * h, a_b - c_d);
            }
    if (h < length)
        for (int64_t j = 0; j < h; j += LANES) {
            u32_vector a = load_u32(x + j), b = load_u32(x + j + h);
            store_u32(x + j, a + b), store_u32(x + j + h, a - b);
        }
}

typedef uint32_t u32_four __attribute__((vector_size(16)));

/* Write the transpose of 4 rows of 4 numbers; rows of `from` are `columns` apart, and those of `to` are `rows`. */
static inline void transpose_4x4(const uint32_t *from, int64_t columns, uint32_t *to, int64_t rows) {
    u32_four a, b, c, d;
    memcpy(&a, from, 16), memcpy(&b, from + columns, 16);
    memcpy(&c, from + 2 * columns, 16), memcpy(&d, from + 3 * columns, 16);
    u32_four ab_low = INTERLEAVE(a, b, 0, 4, 1, 5), ab_high = INTERLEAVE(a, b, 2, 6, 3, 7),
             cd_low = INTERLEAVE(c, d, 0, 4, 1, 5), cd_high = INTERLEAVE(c, d, 2, 6, 3, 7);
    a = INTERLEAVE(ab_low, cd_low, 0, 1, 4, 5), b = INTERLEAVE(ab_low, cd_low, 2, 3, 6, 7);
    c = INTERLEAVE(ab_high, cd_high, 0, 1, 4, 5), d = INTERLEAVE(ab_high, cd_high, 2, 3, 6, 7);
    memcpy(to, &a, 16), memcpy(to + rows, &b, 16);
    memcpy(to + 2 * rows, &c, 16), memcpy(to + 3 * rows, &d, 16);
}

/* Write (rows, columns) as (columns, rows), in strips of columns that fill a line of the cache. */
static void transpose(const uint32_t *restrict from, int64_t rows, int64_t columns, uint32_t *restrict to) {
    for (int64_t begin = 0; begin < columns; begin += 16) {
        int64_t end = begin + 16 < columns ? begin + 16 : columns, row = 0;
        if (end - begin == 16)
            for (; row + 4 <= rows; row += 4)
                for (int64_t column = begin; column < end; column += 4)
                    transpose_4x4(from + row * columns + column, columns, to + column * rows + row, rows);
        for (; row < rows; row++)
            for (int64_t column = begin; column < end; column++)
                to[column * rows + row] = from[row * columns + column];
    }
}

/* Numbers of 1, 2 or 4 bytes as numbers of 32 bits. */
static void widen(const char *from, int64_t itemsize, int64_t count, uint32_t *to) {
    if (itemsize == 4)
        memcpy(to, from, (size_t)count * 4);
    else if (itemsize == 2)
        for (int64_t i = 0; i < count; i++)
            to[i] = (uint32_t)(int32_t)((const int16_t *)(const void *)from)[i];
    else
        for (int64_t i = 0; i < count; i++)
            to[i] = (uint32_t)(int32_t)((const int8_t *)from)[i];
}

/* Where the results of a pass go: as int32 with their signs, or scaled to int16. */
typedef struct {
    const uint32_t *signs;
    const scale *by; /* NULL for int32 */
    char *out;
} target;

static void emit(const uint32_t *from, int64_t count, uint32_t root, int64_t position, target to) {
    if (!to.by)
        sign_run(from, count, root, to.signs, position, (uint32_t *)(void *)to.out + position);
    else if (root == 1)
        scale_run(from, count, to.signs, position, *to.by, (int16_t *)(void *)to.out + position);
    else { /* at most 63 elements, those that a pass leaves out */
        uint32_t multiplied[64];
        for (int64_t i = 0; i < count; i++)
            multiplied[i] = from[i] * root;
        scale_run(multiplied, count, to.signs, position, *to.by, (int16_t *)(void *)to.out + position);
    }
}

/* One pass over `blocks` blocks: transform each, and put element p of block b at place first + p * blocks + b. */
static void pass(const char *from, int64_t itemsize, int64_t blocks, int64_t block, int64_t first, int64_t panel,
                 uint32_t *work, target to) {
    uint32_t *mixed = work + panel * block;
    for (int64_t begin = 0; begin < blocks; begin += panel) {
        int64_t own = blocks - begin < panel ? blocks - begin : panel;
        widen(from + begin * block * itemsize, itemsize, own * block, work);
        for (int64_t b = 0; b < own; b++)
            butterflies(work + b * block, block);
        if (own == 1)
            for (int64_t p = 0; blocks > 1 && p < block; p++)
                emit(work + p, 1, 1, first + p * blocks + begin, to);
        else
            transpose(work, own, block, mixed);
        if (own == blocks)
            emit(own == 1 ? work : mixed, blocks * block, 1, first, to);
        else if (own > 1)
            for (int64_t p = 0; p < block; p++)
                emit(mixed + p * own, own, 1, first + p * blocks + begin, to);
    }
}

/* Synthesize vectors in one Hadamard basis.
 *
 * coefficients   (vectors, num_basis) integers of `itemsize` bytes
 * places         NULL, or the ascending place of each coefficient among n
 * block, passes  of length n
 * panel          the number of blocks that are transformed at once
 * first, second  the signs of both passes, a bit an element, and one word more
 * work           2 * panel * block numbers, n more for places, or 2 * n more for two passes
 * mantissas      NULL, and the results are int32 (vectors, n); or M of each vector, and shifts its s: then they are int16
 */
static void synthesize(const char *coefficients, int64_t itemsize, const int64_t *places, int64_t vectors,
                       int64_t num_basis, int64_t n, int64_t block, int64_t passes, int64_t panel,
                       const uint32_t *first, const uint32_t *second, uint32_t *work, const int64_t *mantissas,
                       const int64_t *shifts, char *out) {
    uint32_t *whole = work + 2 * panel * block, *between = whole + n;
    const int64_t blocks = n / block, rest = n - blocks * block;
    const uint32_t root = block == 64 ? 8 : block == 16 ? 4 : 2;
    for (int64_t v = 0; v < vectors; v++) {
        const char *from = coefficients + v * num_basis * itemsize;
        scale by = {0};
        if (mantissas)
            by = open_scale(mantissas[v], shifts[v]);
        target to = {passes == 2 ? second : first, mantissas ? &by : NULL, out + v * n * (mantissas ? 2 : 4)};
        int64_t size = itemsize;
        if (places || passes == 2) {
            if (places) {
                memset(whole, 0, (size_t)n * 4);
                for (int64_t i = 0; i < num_basis; i++)
                    widen(from + i * itemsize, itemsize, 1, whole + places[i]);
            } else
                widen(from, itemsize, n, whole);
            from = (const char *)whole;
            size = 4;
        }
        if (passes == 1) {
            pass(from, size, blocks, block, 0, panel, work, to);
            continue;
        }
        target middle = {first, NULL, (char *)between};
        pass(from, size, blocks, block, 0, panel, work, middle);
        emit(whole + n - rest, rest, root, n - rest, middle);
        pass((const char *)(between + rest), 4, blocks, block, rest, panel, work, to);
        emit(between, rest, root, 0, to);
    }
}

KERNEL(nola_hadamard)(const char *coefficients, int64_t itemsize, const int64_t *places, int64_t vectors,
                      int64_t num_basis, int64_t n, int64_t block, int64_t passes, int64_t panel, const uint32_t *first,
                      const uint32_t *second, uint32_t *work, const int64_t *mantissas, const int64_t *shifts,
                      char *out) {
    synthesize(coefficients, itemsize, places, vectors, num_basis, n, block, passes, panel, first, second, work,
               mantissas, shifts, out);
    return 0;
}

typedef struct {
    int64_t n, block, passes, panel;
} Plan;

typedef struct {
    int64_t coefficients, itemsize, vectors, stream, plan, components, is_columns, place;
} Side;

/* Synthesize the sides of many records; num_basis is n, and the signs of a side's basis are drawn here.
 *
 * sides      eight numbers for each: the address of its coefficients (vectors, n), the bytes of one, the number of its
 *            vectors, the stream of its basis, the number of its plan, the number of components that the array of the
 *            side has, 1 if these are its columns and 0 if its rows, and the place of the array in `out`
 * plans      n, block, passes and panel, as in `synthesize`
 * signs      2 * (n / 32 + 2) words for the greatest n
 * work       2 * panel * block numbers, 2 * n more for two passes
 * rows       the vectors of the longest side whose components are columns
 * mantissas, shifts   of all vectors, those of one side after the other
 * Components without a vector become zero. */
KERNEL(nola_hadamard_sides)(const int64_t *sides, int64_t count, const int64_t *plans, int64_t seed,
                            int64_t first_purpose, int64_t second_purpose, uint32_t *signs, uint32_t *work,
                            int16_t *rows, const int64_t *mantissas, const int64_t *shifts, int16_t *out) {
    for (int64_t s = 0; s < count; s++) {
        const Side side = ((const Side *)sides)[s];
        const Plan plan = ((const Plan *)plans)[side.plan];
        const int64_t words = plan.n / 32 + 2;
        for (int64_t p = 0; p < plan.passes && side.vectors > 0; p++) {
            word_stream from = open_stream((uint64_t)seed, (uint32_t)side.stream,
                                           (uint32_t)(p ? second_purpose : first_purpose));
            write_words(&from, 0, words, signs + p * words);
        }
        int16_t *own = out + side.place, *made = side.is_columns && side.components > 1 ? rows : own;
        synthesize((const char *)(intptr_t)side.coefficients, side.itemsize, NULL, side.vectors, plan.n, plan.n,
                   plan.block, plan.passes, plan.panel, signs, signs + words, work, mantissas, shifts, (char *)made);
        mantissas += side.vectors, shifts += side.vectors;
        if (made == rows)
            rows_to_columns(rows, side.vectors, plan.n, side.components, own);
        else if (side.vectors < side.components)
            memset(own + side.vectors * plan.n, 0, (size_t)((side.components - side.vectors) * plan.n) * sizeof *own);
    }
    return 0;
}
