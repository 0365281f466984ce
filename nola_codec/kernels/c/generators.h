/* Words of Philox4x32-10 of Random123 (Salmon et al., SC 2011), many counters at once. */
#ifndef NOLA_GENERATORS_H
#define NOLA_GENERATORS_H

#include "nola.h"
#if defined(__AVX2__)
#include <immintrin.h>
#endif

enum { RUN = 256 }; /* words that are made at once, of 64 counters */

typedef struct {
    uint32_t key[2], stream, purpose;
} word_stream;

#if defined(__AVX2__)
/* The high and the low halves of the products of 32-bit numbers with a constant. */
static inline void multiply_wide(u32_vector x, uint32_t by, u32_vector *high, u32_vector *low) {
#if defined(__AVX512F__)
    __m512i m = _mm512_set1_epi32((int)by), even = _mm512_mul_epu32((__m512i)x, m),
            odd = _mm512_mul_epu32(_mm512_srli_epi64((__m512i)x, 32), m);
    *high = (u32_vector)_mm512_mask_blend_epi32(0xAAAA, _mm512_srli_epi64(even, 32), odd);
    *low = (u32_vector)_mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32));
#else
    __m256i m = _mm256_set1_epi32((int)by), even = _mm256_mul_epu32((__m256i)x, m),
            odd = _mm256_mul_epu32(_mm256_srli_epi64((__m256i)x, 32), m);
    *high = (u32_vector)_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
    *low = (u32_vector)_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
#endif
}
#else
static inline void multiply_wide(uint32_t x, uint32_t by, uint32_t *high, uint32_t *low) {
    uint64_t product = (uint64_t)x * by;
    *high = (uint32_t)(product >> 32), *low = (uint32_t)product;
}
#endif

static inline word_stream open_stream(uint64_t seed, uint32_t stream, uint32_t purpose) {
    word_stream made = {{(uint32_t)seed, (uint32_t)(seed >> 32)}, stream, purpose};
    return made;
}

/* Set lanes to the low and the high words of the counters `first`, `first + 1`, ... */
static inline void count_from(uint64_t first, u32_vector *low, u32_vector *high) {
    for (int j = 0; j < LANES; j++)
        (*low)[j] = (uint32_t)(first + (uint64_t)j), (*high)[j] = (uint32_t)((first + (uint64_t)j) >> 32);
}

/* Ten rounds of Philox4x32 in place; the words are u32_vector with AVX2, and else uint32_t. */
#define MIX_PHILOX(TYPE, a, b, c, d, key)                                                                              \
    do {                                                                                                               \
        uint32_t k0 = (key)[0], k1 = (key)[1];                                                                         \
        for (int round = 0; round < 10; round++) {                                                                     \
            TYPE high0, low0, high1, low1;                                                                             \
            multiply_wide(a, 0xD2511F53u, &high0, &low0);                                                              \
            multiply_wide(c, 0xCD9E8D57u, &high1, &low1);                                                              \
            a = high1 ^ b ^ k0, b = low1;                                                                              \
            c = high0 ^ d ^ k1, d = low0;                                                                              \
            k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;                                                                      \
        }                                                                                                              \
    } while (0)

/* Philox4x32-10 of RUN / 4 counters from `first` on; the words of a counter follow each other in `out`. */
static inline void philox_run(const word_stream *from, uint64_t first, uint32_t out[RUN]) {
#if defined(__AVX2__)
    const u32_vector zero = {0};
    for (int begin = 0; begin < RUN; begin += 4 * LANES) {
        u32_vector a, b, c = zero + from->stream, d = zero + from->purpose;
        count_from(first + (uint64_t)begin / 4, &a, &b);
        MIX_PHILOX(u32_vector, a, b, c, d, from->key);
        for (int j = 0; j < LANES; j++) {
            uint32_t *to = out + begin + 4 * j;
            to[0] = a[j], to[1] = b[j], to[2] = c[j], to[3] = d[j];
        }
    }
#else
    for (uint64_t j = 0; j < RUN / 4; j++) {
        uint32_t a = (uint32_t)(first + j), b = (uint32_t)((first + j) >> 32), c = from->stream, d = from->purpose;
        MIX_PHILOX(uint32_t, a, b, c, d, from->key);
        out[4 * j] = a, out[4 * j + 1] = b, out[4 * j + 2] = c, out[4 * j + 3] = d;
    }
#endif
}

/* Write words `start` to `start + count` of a stream. */
static inline void write_words(const word_stream *from, uint64_t start, int64_t count, uint32_t *out) {
    uint64_t counter = start / 4;
    int64_t skip = (int64_t)(start % 4), done = 0;
    uint32_t run[RUN];
    while (done < count) {
        int64_t taken = RUN - skip < count - done ? RUN - skip : count - done;
        uint32_t *to = skip == 0 && taken == RUN ? out + done : run; /* whole runs need no copy */
        philox_run(from, counter, to);
        if (to == run)
            memcpy(out + done, run + skip, (size_t)taken * sizeof *out);
        done += taken;
        counter += RUN / 4;
        skip = 0;
    }
}

#endif
