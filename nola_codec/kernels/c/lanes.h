/* Vectors of floats, one lane for each of LANES searches that run side by side.
 *
 * Only sums, differences, single products, comparisons, minima and maxima: each is rounded once, and so has the same
 * bits as in NumPy, whatever the number of lanes is.
 */
#ifndef NOLA_LANES_H
#define NOLA_LANES_H

#include "nola.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

typedef float f32_vector __attribute__((vector_size(4 * LANES)));
typedef int32_t i32_vector __attribute__((vector_size(4 * LANES)));

/* One bit for each lane. */
#if LANES == 16
typedef uint16_t lane_bits;
#else
typedef uint8_t lane_bits;
#endif

/* Bit k is 1 if a[k] < b[k]. */
static inline lane_bits less(f32_vector a, f32_vector b) {
#if defined(__AVX512F__)
    return (lane_bits)_mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ);
#elif defined(__AVX2__)
    return (lane_bits)_mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_LT_OQ));
#elif defined(__SSE2__)
    return (lane_bits)_mm_movemask_ps(_mm_cmplt_ps((__m128)a, (__m128)b));
#else
    i32_vector is_less = a < b;
    lane_bits bits = 0;
    for (int k = 0; k < LANES; k++)
        bits |= (lane_bits)((is_less[k] & 1) << k);
    return bits;
#endif
}

static inline f32_vector smaller(f32_vector a, f32_vector b) {
#if defined(__AVX512F__)
    return (f32_vector)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (f32_vector)_mm256_min_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
    return (f32_vector)_mm_min_ps((__m128)a, (__m128)b);
#else
    i32_vector first = a < b;
    return (f32_vector)(((i32_vector)a & first) | ((i32_vector)b & ~first));
#endif
}

static inline f32_vector larger(f32_vector a, f32_vector b) {
#if defined(__AVX512F__)
    return (f32_vector)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (f32_vector)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
    return (f32_vector)_mm_max_ps((__m128)a, (__m128)b);
#else
    i32_vector first = a > b;
    return (f32_vector)(((i32_vector)a & first) | ((i32_vector)b & ~first));
#endif
}

/* The same number in all lanes. */
static inline f32_vector spread(float value) {
    f32_vector made;
    for (int k = 0; k < LANES; k++)
        made[k] = value;
    return made;
}

#endif
