/* What all kernels share: the form of an exported function, vectors, and signs.
 *
 * Every file is compiled once for each variant (generic, avx2, avx512; compiling.py has the flags). KERNEL(name) defines
 * `name_<variant>`. Its arguments are pointers, int64_t or double, and it returns an int64_t: then Python needs no
 * signatures (Library.call in loading.py). The typed wrappers in Python check dtypes, lengths and bounds.
 *
 * Whatever decodes is made of integers. -ffp-contract=off keeps products and sums apart in the others.
 */
#ifndef NOLA_H
#define NOLA_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define NOLA_JOIN_(name, variant) name##_##variant
#define NOLA_JOIN(name, variant) NOLA_JOIN_(name, variant)
#define KERNEL(name) __attribute__((visibility("default"))) int64_t NOLA_JOIN(name, NOLA_VARIANT)

/* LANES 32-bit numbers fill a vector register of the variant. */
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif
typedef uint32_t u32_vector __attribute__((vector_size(4 * LANES)));

/* PERMUTE gives the lanes of x in another order, INTERLEAVE those of x and y, which are counted through.
 * LANE_SWAPS(M) calls M(h, order) for the orders j ^ h, h = 1, 2, ... */
#if defined(__clang__)
#define PERMUTE(x, ...) __builtin_shufflevector(x, x, __VA_ARGS__)
#define INTERLEAVE(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define PERMUTE(x, ...) __builtin_shuffle(x, (__typeof__(x)){__VA_ARGS__})
#define INTERLEAVE(x, y, ...) __builtin_shuffle(x, y, (__typeof__(x)){__VA_ARGS__})
#endif
#if LANES == 16
#define LANE_NUMBERS 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
#define LANE_SWAPS(M)                                                                                                  \
    M(1, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14)                                                         \
    M(2, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13)                                                         \
    M(4, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11)                                                         \
    M(8, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7)
#elif LANES == 8
#define LANE_NUMBERS 0, 1, 2, 3, 4, 5, 6, 7
#define LANE_SWAPS(M) M(1, 1, 0, 3, 2, 5, 4, 7, 6) M(2, 2, 3, 0, 1, 6, 7, 4, 5) M(4, 4, 5, 6, 7, 0, 1, 2, 3)
#else
#define LANE_NUMBERS 0, 1, 2, 3
#define LANE_SWAPS(M) M(1, 1, 0, 3, 2) M(2, 2, 3, 0, 1)
#endif

static inline u32_vector load_u32(const void *from) {
    u32_vector v;
    memcpy(&v, from, sizeof v); /* no alignment is asked for */
    return v;
}

static inline void store_u32(void *to, u32_vector v) { memcpy(to, &v, sizeof v); }

/* The 32 bits of a stream that begin at bit `position`; the stream has one word more than it needs. */
static inline uint32_t bits_at(const uint32_t *words, int64_t position) {
    uint64_t pair = (uint64_t)words[position >> 5] | (uint64_t)words[(position >> 5) + 1] << 32;
    return (uint32_t)(pair >> (position & 31));
}

/* A number with the sign of a basis that bit j holds: 1 means minus. */
static inline uint32_t with_sign(uint32_t y, uint32_t bits, int j) {
    uint32_t minus = 0u - (bits >> j & 1u);
    return (y ^ minus) - minus;
}

#endif
