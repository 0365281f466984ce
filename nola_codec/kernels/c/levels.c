/* Levels of scalar quantizers, and the sums to which codebooks are fitted (fit/coders.py, fit/books.py). */
#include "nola.h"

#define BLOCK 256

/* Write the level of each value: the number of thresholds that its magnitude reaches, with the sign of the value.
 * thresholds: (size,), size at most 127. */
KERNEL(nola_scalar_levels)(const float *values, int64_t count, const float *thresholds, int64_t size, int8_t *levels) {
    for (int64_t first = 0; first < count; first += BLOCK) {
        int64_t here = count - first < BLOCK ? count - first : BLOCK;
        float magnitudes[BLOCK] = {0};
        int32_t reached[BLOCK] = {0};
        for (int64_t i = 0; i < here; i++)
            magnitudes[i] = values[first + i] < 0 ? -values[first + i] : values[first + i];
        for (int64_t t = 0; t < size; t++) {
            float threshold = thresholds[t];
            for (int i = 0; i < BLOCK; i++)
                reached[i] += magnitudes[i] >= threshold;
        }
        for (int64_t i = 0; i < here; i++)
            levels[first + i] = (int8_t)(values[first + i] < 0 ? -reached[i] : reached[i]);
    }
    return 0;
}

/* For each vector, add up in their order the counts and the sums of the magnitudes of the values of each |level|.
 * levels, values: (vectors, length). counts, sums: (vectors, size), size at most 128 and over all magnitudes of levels;
 * the sum of level 0 is 0. */
KERNEL(nola_scalar_sums)(const int8_t *levels, const float *values, int64_t vectors, int64_t length, int64_t size,
                         double *counts, double *sums) {
    for (int64_t vector = 0; vector < vectors; vector++, levels += length, values += length) {
        int64_t found[128 + 4] = {0}; /* level 0 has four places: a place is slow to add to again and again */
        double total[128 + 4] = {0};
        for (int64_t i = 0; i < length; i++) {
            int sign = levels[i] >> 7, level = ((levels[i] ^ sign) - sign) & 127; /* no branches: signs are random */
            int place = level ? level : 128 + (int)(i & 3);
            found[place]++;
            total[place] += __builtin_fabsf(values[i]);
        }
        found[0] = found[128] + found[129] + found[130] + found[131];
        for (int64_t level = 0; level < size; level++) {
            counts[vector * size + level] = (double)found[level];
            sums[vector * size + level] = total[level];
        }
    }
    return 0;
}

/* Do the same for a dependent quantizer: for each (codebook, |level|), with the value times the sign of its level.
 * mask: at most 8 bits. counts, sums: (vectors, 2, size). */
KERNEL(nola_dependent_sums)(const int8_t *levels, const float *values, int64_t vectors, int64_t length, int64_t mask,
                            int64_t size, double *counts, double *sums) {
    uint8_t chooses[256];
    for (int64_t window = 0; window < 256; window++)
        chooses[window] = (uint8_t)__builtin_parityll((uint64_t)(window & mask));
    for (int64_t vector = 0; vector < vectors; vector++, levels += length, values += length) {
        int64_t found[2 * 128] = {0};
        double total[2 * 128] = {0};
        uint8_t window = 0;
        for (int64_t i = 0; i < length; i++) {
            int level = levels[i], sign = (level > 0) - (level < 0);
            int place = 128 * chooses[window] + (sign * level & 127);
            found[place]++;
            total[place] += (float)sign * values[i];
            window = (uint8_t)(window << 1 | (level & 1));
        }
        for (int64_t book = 0; book < 2; book++)
            for (int64_t level = 0; level < size; level++) {
                counts[(2 * vector + book) * size + level] = (double)found[128 * book + level];
                sums[(2 * vector + book) * size + level] = total[128 * book + level];
            }
    }
    return 0;
}
