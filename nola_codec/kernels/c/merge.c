/* Exact merges: weight = round(float64(weight) + delta), and delta = fl(fl((left @ right) * factor) * scaling).
 *
 * The product of the int16 factors is exact: an int32 sum where the caller knows that it fits, else a sum of integers
 * below 2^53 in double. All else is one IEEE operation after the other in double, so the bits are those of NumPy.
 *
 * Rounding to 16 bits goes through float. Two roundings differ from one only if the first ends in the middle between
 * two 16-bit numbers without being exact. Such an element is rounded again from the float that lies beside the middle
 * on the side of the double.
 *
 * An element whose weight or sum is not finite stays as it is, and its index is returned: the caller treats it.
 */
#include "nola.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

/* A panel holds 64 columns of the right factor: for each pair of ranks, the two numbers of each column. A last panel is
 * padded with zeros, and so is a last pair. */
enum { PANEL = 64, PANELS_AT_ONCE = 8 };
enum { BF16, F16, F32, F64 }; /* the order of `DTYPES` in merges.py */

static inline float float_of(uint32_t bits) {
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static inline uint32_t bits_of(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

static inline int is_finite(float f) { return (bits_of(f) & 0x7F800000u) != 0x7F800000u; }

/* The conditions below are 0 or 1, or masks of all bits, and no branches, so that compilers make vectors of loops. */

static inline float widen_bf16(uint16_t w) { return float_of((uint32_t)w << 16); }

static inline float widen_f16(uint16_t w) {
    uint32_t low = w & 0x7FFFu, subnormal = 0u - (uint32_t)(low < 0x400u);
    uint32_t small = bits_of((float)(int32_t)low * 0x1p-24f), normal = (low << 13) + (112u << 23);
    return float_of((subnormal & small) | (~subnormal & normal) | (uint32_t)(w & 0x8000u) << 16);
}

/* Round f to 16 bits, to nearest even. *tie becomes 1 if f lies in the middle, *special if the result is not finite. */
static inline uint16_t round_bf16(float f, uint32_t *tie, uint32_t *special) {
    uint32_t bits = bits_of(f), rounded = bits + 0x7FFFu + ((bits >> 16) & 1u);
    *tie |= (uint32_t)((bits & 0xFFFFu) == 0x8000u);
    *special |= (uint32_t)((bits & 0x7F800000u) == 0x7F800000u) | (uint32_t)((rounded & 0x7F800000u) == 0x7F800000u);
    return (uint16_t)(rounded >> 16);
}

static inline uint16_t round_f16(float f, uint32_t *tie, uint32_t *special) {
    uint32_t sign = (bits_of(f) >> 16) & 0x8000u, low = bits_of(f) & 0x7FFFFFFFu;
    uint32_t subnormal = 0u - (uint32_t)(low < 0x38800000u); /* below 2^-14 */
    uint32_t normal = ((low + 0xFFFu + ((low >> 13) & 1u)) >> 13) - (112u << 10);
    /* The floats from 0.5 to 1 have the spacing of the subnormal float16, 2^-24. */
    float moved = float_of(low) + 0.5f, lost = (moved - 0.5f) - float_of(low);
    uint32_t is_half = (uint32_t)((bits_of(lost) & 0x7FFFFFFFu) == 0x33000000u); /* 2^-25 */
    *tie |= (subnormal & is_half) | (~subnormal & (uint32_t)((low & 0x1FFFu) == 0x1000u));
    *special |= ~subnormal & (uint32_t)(normal >= 0x7C00u);
    return (uint16_t)((subnormal & (bits_of(moved) - 0x3F000000u)) | (~subnormal & normal) | sign);
}

static inline float widen(uint16_t w, int dtype) { return dtype == BF16 ? widen_bf16(w) : widen_f16(w); }

static inline uint16_t round_16(float f, int dtype, uint32_t *tie, uint32_t *special) {
    return dtype == BF16 ? round_bf16(f, tie, special) : round_f16(f, tie, special);
}

/* The functions below add n <= PANEL deltas to weights. They return how many elements they have left as they are, and
 * write the indices of these to `left_alone`, counted from `index`. `dtype` and n are constants where it matters. */

static inline int64_t add_16(uint16_t *w, const double *delta, int64_t n, int dtype, int64_t index,
                             int64_t *left_alone) {
    float sums[PANEL];
    uint16_t rounded[PANEL];
    const uint32_t exponent = dtype == BF16 ? 0x7F80u : 0x7C00u;
    uint32_t again = 0;
    for (int64_t j = 0; j < n; j++)
        sums[j] = (float)((double)widen(w[j], dtype) + (delta[j] + 0.0)); /* a delta of -0 counts as 0 */
    for (int64_t j = 0; j < n; j++) {
        rounded[j] = round_16(sums[j], dtype, &again, &again);
        again |= (uint32_t)((w[j] & exponent) == exponent);
    }
    if (!again) {
        memcpy(w, rounded, (size_t)n * sizeof *w);
        return 0;
    }
    int64_t count = 0;
    for (int64_t j = 0; j < n; j++) {
        uint32_t tie = 0, special = (uint32_t)((w[j] & exponent) == exponent);
        double exact = (double)widen(w[j], dtype) + (delta[j] + 0.0), nearest = (double)sums[j];
        uint16_t result = round_16(sums[j], dtype, &tie, &special);
        if (tie && !special && nearest != exact) {
            int away_from_zero = exact > 0 ? exact > nearest : exact < nearest;
            result = round_16(float_of(bits_of(sums[j]) + (away_from_zero ? 1u : ~0u)), dtype, &tie, &special);
        }
        if (special)
            left_alone[count++] = index + j;
        else
            w[j] = result;
    }
    return count;
}

static inline int64_t add_f32(float *w, const double *delta, int64_t n, int64_t index, int64_t *left_alone) {
    float sums[PANEL];
    uint32_t special = 0;
    for (int64_t j = 0; j < n; j++) {
        sums[j] = (float)((double)w[j] + (delta[j] + 0.0));
        special |= (uint32_t)!is_finite(sums[j]);
    }
    if (!special) {
        memcpy(w, sums, (size_t)n * sizeof *w);
        return 0;
    }
    int64_t count = 0;
    for (int64_t j = 0; j < n; j++) {
        if (is_finite(sums[j]))
            w[j] = sums[j];
        else
            left_alone[count++] = index + j;
    }
    return count;
}

static inline int64_t add_f64(double *w, const double *delta, int64_t n, int64_t index, int64_t *left_alone) {
    int64_t count = 0;
    for (int64_t j = 0; j < n; j++) {
        double sum = w[j] + (delta[j] + 0.0);
        uint64_t bits;
        memcpy(&bits, &sum, sizeof bits);
        if ((bits >> 52 & 0x7FFu) != 0x7FFu)
            w[j] = sum;
        else
            left_alone[count++] = index + j;
    }
    return count;
}

static inline int64_t add_some(void *weights, const double *delta, int64_t n, int64_t dtype, int64_t index,
                               int64_t *left_alone) {
    switch (dtype) {
    case BF16:
        return add_16((uint16_t *)weights + index, delta, n, BF16, index, left_alone);
    case F16:
        return add_16((uint16_t *)weights + index, delta, n, F16, index, left_alone);
    case F32:
        return add_f32((float *)weights + index, delta, n, index, left_alone);
    default:
        return add_f64((double *)weights + index, delta, n, index, left_alone);
    }
}

static int64_t add_panel(void *weights, const double *delta, int64_t n, int64_t dtype, int64_t index,
                         int64_t *left_alone) {
    return n == PANEL ? add_some(weights, delta, PANEL, dtype, index, left_alone)
                      : add_some(weights, delta, n, dtype, index, left_alone);
}

/* Two rows of the left factor times a panel, int32. */
static inline void multiply_panel(const int16_t *row, const int16_t *other, const int16_t *panel, int64_t pairs,
                                  int32_t *products, int32_t *others) {
#if defined(__AVX512BW__)
    __m512i sums[8];
    for (int v = 0; v < 8; v++)
        sums[v] = _mm512_setzero_si512();
    for (int64_t k = 0; k < pairs; k++, panel += 2 * PANEL) {
        int32_t both[2];
        memcpy(both, row + 2 * k, 4);
        memcpy(both + 1, other + 2 * k, 4);
        __m512i a = _mm512_set1_epi32(both[0]), b = _mm512_set1_epi32(both[1]);
        for (int v = 0; v < 4; v++) {
            __m512i right = _mm512_loadu_si512(panel + 32 * v);
            sums[v] = _mm512_add_epi32(sums[v], _mm512_madd_epi16(a, right));
            sums[v + 4] = _mm512_add_epi32(sums[v + 4], _mm512_madd_epi16(b, right));
        }
    }
    for (int v = 0; v < 4; v++) {
        _mm512_storeu_si512(products + 16 * v, sums[v]);
        _mm512_storeu_si512(others + 16 * v, sums[v + 4]);
    }
#elif defined(__AVX2__)
    for (int half = 0; half < 2; half++) {
        const int16_t *columns = panel + half * PANEL;
        __m256i sums[8];
        for (int v = 0; v < 8; v++)
            sums[v] = _mm256_setzero_si256();
        for (int64_t k = 0; k < pairs; k++, columns += 2 * PANEL) {
            int32_t both[2];
            memcpy(both, row + 2 * k, 4);
            memcpy(both + 1, other + 2 * k, 4);
            __m256i a = _mm256_set1_epi32(both[0]), b = _mm256_set1_epi32(both[1]);
            for (int v = 0; v < 4; v++) {
                __m256i right = _mm256_loadu_si256((const __m256i *)(columns + 16 * v));
                sums[v] = _mm256_add_epi32(sums[v], _mm256_madd_epi16(a, right));
                sums[v + 4] = _mm256_add_epi32(sums[v + 4], _mm256_madd_epi16(b, right));
            }
        }
        for (int v = 0; v < 4; v++) {
            _mm256_storeu_si256((__m256i *)(products + 32 * half + 8 * v), sums[v]);
            _mm256_storeu_si256((__m256i *)(others + 32 * half + 8 * v), sums[v + 4]);
        }
    }
#else
    uint32_t sums[2][PANEL] = {{0}};
    for (int64_t k = 0; k < pairs; k++, panel += 2 * PANEL) {
        int32_t a = row[2 * k], b = row[2 * k + 1], c = other[2 * k], d = other[2 * k + 1];
        for (int j = 0; j < PANEL; j++) {
            sums[0][j] += (uint32_t)(a * panel[2 * j]) + (uint32_t)(b * panel[2 * j + 1]);
            sums[1][j] += (uint32_t)(c * panel[2 * j]) + (uint32_t)(d * panel[2 * j + 1]);
        }
    }
    memcpy(products, sums[0], sizeof sums[0]);
    memcpy(others, sums[1], sizeof sums[1]);
#endif
}

/* The same in double, for sums that may not fit into int32. */
static inline void multiply_panel_wide(const int16_t *row, const int16_t *panel, int64_t pairs, double *products) {
    for (int j = 0; j < PANEL; j++)
        products[j] = 0;
    for (int64_t k = 0; k < pairs; k++, panel += 2 * PANEL) {
        double a = row[2 * k], b = row[2 * k + 1];
        for (int j = 0; j < PANEL; j++)
            products[j] += a * (double)panel[2 * j] + b * (double)panel[2 * j + 1];
    }
}

/* The deltas of two rows and a panel of columns. */
static inline void make_deltas(const int16_t *row, const int16_t *other, const int16_t *panel, int64_t pairs,
                               int64_t is_wide, double factor, double scaling, double deltas[2][PANEL]) {
    if (is_wide) {
        multiply_panel_wide(row, panel, pairs, deltas[0]);
        multiply_panel_wide(other, panel, pairs, deltas[1]);
        for (int h = 0; h < 2; h++)
            for (int j = 0; j < PANEL; j++)
                deltas[h][j] *= factor;
    } else {
        int32_t products[2][PANEL];
        multiply_panel(row, other, panel, pairs, products[0], products[1]);
        for (int h = 0; h < 2; h++)
            for (int j = 0; j < PANEL; j++)
                deltas[h][j] = (double)products[h][j] * factor;
    }
    if (scaling != 1)
        for (int h = 0; h < 2; h++)
            for (int j = 0; j < PANEL; j++)
                deltas[h][j] *= scaling;
}

/* Add the deltas of factors to weights (rows, columns), or write them to `out` if `weights` is null.
 *
 * left      int16 (rows, 2 * pairs)
 * panels    int16 (columns / 64 rounded up, pairs, 64, 2)
 * is_wide   not 0 if a product may be outside of int32
 *
 * Returns how many elements of the weights were left alone; `left_alone` has room for all of them. */
KERNEL(nola_add_factors)(void *weights, int64_t dtype, int64_t rows, int64_t columns, const int16_t *left,
                         const int16_t *panels, int64_t pairs, int64_t is_wide, double factor, double scaling,
                         int64_t *left_alone, double *out) {
    int64_t count = 0, group = PANEL * PANELS_AT_ONCE;
    double deltas[2][PANEL];
    /* The panels of a group stay in the cache while all rows pass. */
    for (int64_t begin = 0; begin < columns; begin += group) {
        int64_t end = columns - begin < group ? columns : begin + group;
        for (int64_t i = 0; i < rows; i += 2) {
            int64_t both = i + 1 < rows ? 2 : 1;
            const int16_t *row = left + i * 2 * pairs, *other = both == 2 ? row + 2 * pairs : row;
            for (int64_t j = begin; j < end; j += PANEL) {
                int64_t n = end - j < PANEL ? end - j : PANEL;
                make_deltas(row, other, panels + j * 2 * pairs, pairs, is_wide, factor, scaling, deltas);
                for (int64_t h = 0; h < both; h++) {
                    int64_t index = (i + h) * columns + j;
                    if (weights)
                        count += add_panel(weights, deltas[h], n, dtype, index, left_alone + count);
                    else
                        memcpy(out + index, deltas[h], (size_t)n * sizeof *out);
                }
            }
        }
    }
    return count;
}

/* Add `count` deltas to as many weights. Returns how many were left alone, as above. */
KERNEL(nola_add_deltas)(void *weights, int64_t dtype, int64_t count, const double *deltas, int64_t *left_alone) {
    int64_t found = 0;
    for (int64_t j = 0; j < count; j += PANEL) {
        int64_t n = count - j < PANEL ? count - j : PANEL;
        found += add_panel(weights, deltas + j, n, dtype, j, left_alone + found);
    }
    return found;
}

/* Write sum w_i and sum (i + 1) w_i, modulo 2^64, to `sums`; w has `count` words.
 *
 * With a_l the sum of lane l and b_l the sum of its partial sums, (turn + 1) w_i has the sum (turns + 1) a_l - b_l. */
KERNEL(nola_word_sums)(const uint64_t *words, int64_t count, uint64_t *sums) {
    enum { SUM_LANES = 32 };
    uint64_t plain[SUM_LANES] = {0}, partial[SUM_LANES] = {0}, total = 0, weighted = 0;
    int64_t turns = count / SUM_LANES;
    for (int64_t turn = 0; turn < turns; turn++) {
        for (int l = 0; l < SUM_LANES; l++) {
            plain[l] += words[turn * SUM_LANES + l];
            partial[l] += plain[l];
        }
    }
    for (int l = 0; l < SUM_LANES; l++) {
        total += plain[l];
        weighted += (uint64_t)(l + 1) * plain[l] + SUM_LANES * ((uint64_t)turns * plain[l] - partial[l]);
    }
    for (int64_t i = turns * SUM_LANES; i < count; i++) {
        total += words[i];
        weighted += (uint64_t)(i + 1) * words[i];
    }
    sums[0] = total;
    sums[1] = weighted;
    return 0;
}
