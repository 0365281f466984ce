/* The last scaling, (y * M + 2^(s - 1)) >> s clamped to int16, with the signs of a basis before it. */
#ifndef NOLA_SCALING_H
#define NOLA_SCALING_H

#include "nola.h"
#if defined(__AVX2__)
#include <immintrin.h>
#endif

/* M and s, and what makes the scaling fit 32-bit lanes.
 *
 * y is clamped first, to the first numbers whose scaled value lies at or beyond the ends of int16: it then has fewer
 * than 18 bits. 2^62 is added before the shift, so that the shift is one of a number that is not negative.
 */
typedef struct {
    int32_t low, high, mantissa;
    int64_t addend;
    int shift;
    uint32_t excess; /* 2^62 >> s, modulo 2^32 */
} scale;

/* M is 1 to 65535, s is 1 to 62. */
static inline scale open_scale(int64_t mantissa, int64_t shift) {
    const int64_t half = (int64_t)1 << (shift - 1), bias = (int64_t)1 << 62;
    scale made = {INT32_MIN, INT32_MAX, (int32_t)mantissa, half + bias, (int)shift, (uint32_t)(bias >> shift)};
    if (shift <= 46) { /* for greater shifts every int32 scales to -1, 0 or 1 */
        int64_t high = (((int64_t)32767 << shift) - half + mantissa - 1) / mantissa;
        int64_t low = (((int64_t)32767 << shift) + half + mantissa) / mantissa;
        if (high < INT32_MAX)
            made.high = (int32_t)high;
        if (low < INT32_MAX)
            made.low = (int32_t)-low;
    }
    return made;
}

static inline int16_t scale_one(scale by, int32_t y) {
    y = y < by.low ? by.low : y > by.high ? by.high : y;
    uint64_t shifted = (uint64_t)((int64_t)y * by.mantissa + by.addend) >> by.shift;
    int32_t scaled = (int32_t)((uint32_t)shifted - by.excess);
    return (int16_t)(scaled < -32768 ? -32768 : scaled > 32767 ? 32767 : scaled);
}

/* Scale 32 numbers, with the signs of 32 bits. */
static inline void scale_32(const uint32_t *from, uint32_t bits, scale by, int16_t *out) {
#if defined(__AVX2__)
    const __m256i lanes = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128), low = _mm256_set1_epi32(by.low),
                  high = _mm256_set1_epi32(by.high), mantissa = _mm256_set1_epi32(by.mantissa),
                  addend = _mm256_set1_epi64x(by.addend), excess = _mm256_set1_epi32((int)by.excess);
    const __m128i shift = _mm_cvtsi32_si128(by.shift);
    __m256i scaled[4];
    for (int part = 0; part < 4; part++) {
        __m256i y = _mm256_loadu_si256((const __m256i *)(const void *)(from + 8 * part));
        __m256i minus = _mm256_and_si256(_mm256_set1_epi32((int)(bits >> 8 * part)), lanes);
        minus = _mm256_cmpeq_epi32(minus, lanes);
        y = _mm256_sub_epi32(_mm256_xor_si256(y, minus), minus);
        y = _mm256_max_epi32(_mm256_min_epi32(y, high), low);
        __m256i even = _mm256_mul_epi32(y, mantissa), odd = _mm256_mul_epi32(_mm256_srli_epi64(y, 32), mantissa);
        even = _mm256_srl_epi64(_mm256_add_epi64(even, addend), shift);
        odd = _mm256_srl_epi64(_mm256_add_epi64(odd, addend), shift);
        scaled[part] = _mm256_sub_epi32(_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA), excess);
    }
    for (int half = 0; half < 2; half++) { /* the instruction that packs saturates, and keeps 128-bit halves apart */
        __m256i packed = _mm256_packs_epi32(scaled[2 * half], scaled[2 * half + 1]);
        _mm256_storeu_si256((__m256i *)(void *)(out + 16 * half), _mm256_permute4x64_epi64(packed, 0xD8));
    }
#else
    for (int j = 0; j < 32; j++)
        out[j] = scale_one(by, (int32_t)with_sign(from[j], bits, j));
#endif
}

/* Write `count` numbers, with signs from bit `position` on, scaled to `out`. */
static inline void scale_run(const uint32_t *from, int64_t count, const uint32_t *signs, int64_t position, scale by,
                             int16_t *out) {
    int64_t i = 0;
    for (; i + 32 <= count; i += 32)
        scale_32(from + i, bits_at(signs, position + i), by, out + i);
    if (i < count) {
        uint32_t bits = bits_at(signs, position + i);
        for (int j = 0; i + j < count; j++)
            out[i + j] = scale_one(by, (int32_t)with_sign(from[i + j], bits, j));
    }
}

/* Write `count` numbers, times `root`, with signs from bit `position` on, to `out`. */
static inline void sign_run(const uint32_t *from, int64_t count, uint32_t root, const uint32_t *signs, int64_t position,
                            uint32_t *out) {
    int64_t i = 0;
    for (; i + 32 <= count; i += 32) {
        uint32_t bits = bits_at(signs, position + i);
        for (int j = 0; j < 32; j++)
            out[i + j] = with_sign(from[i + j] * root, bits, j);
    }
    if (i < count) {
        uint32_t bits = bits_at(signs, position + i);
        for (int j = 0; i + j < count; j++)
            out[i + j] = with_sign(from[i + j] * root, bits, j);
    }
}

#endif
