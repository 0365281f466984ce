/* The dense bases: their entries are made in registers, used and forgotten (specification, "Bases"). */
#include "generators.h"

enum { RADEMACHER = 3, UNIFORM = 4 }; /* the purposes of their words */

/* Add rows of independent signs times coefficients: sums (vectors, n) += q (vectors, num_basis) G.
 *
 * Row j begins at word j * ceil(n / 32). Sums are made modulo 2^32; the caller has checked that none exceeds int32.
 */
KERNEL(nola_rademacher)(int64_t seed, int64_t stream, const int32_t *coefficients, int64_t vectors,
                        int64_t num_basis, int64_t n, uint32_t *sums) {
    word_stream from = open_stream((uint64_t)seed, (uint32_t)stream, RADEMACHER);
    const int64_t pitch = (n + 31) / 32;
    for (int64_t begin = 0; begin < pitch; begin += RUN) { /* RUN words are signs for 32 KiB of sums */
        const int64_t count = pitch - begin < RUN ? pitch - begin : RUN;
        for (int64_t j = 0; j < num_basis; j++) {
            uint32_t words[RUN];
            write_words(&from, (uint64_t)(j * pitch + begin), count, words);
            for (int64_t v = 0; v < vectors; v++) {
                const uint32_t q = (uint32_t)coefficients[v * num_basis + j];
                uint32_t *to = sums + v * n + 32 * begin;
                const int64_t own = n - 32 * begin < 32 * count ? n - 32 * begin : 32 * count;
                if (q == 0)
                    continue;
                for (int64_t i = 0; i < own / 32; i++)
                    for (int b = 0; b < 32; b++)
                        to[32 * i + b] += with_sign(q, words[i], b);
                for (int64_t i = own / 32 * 32; i < own; i++)
                    to[i] += with_sign(q, words[i / 32], (int)(i % 32));
            }
        }
    }
    return 0;
}

/* The same for uniform 16-bit entries, two from a word; row j begins at word j * ceil(n / 2). Sums are modulo 2^64. */
KERNEL(nola_uniform)(int64_t seed, int64_t stream, const int32_t *coefficients, int64_t vectors,
                     int64_t num_basis, int64_t n, uint64_t *sums) {
    word_stream from = open_stream((uint64_t)seed, (uint32_t)stream, UNIFORM);
    const int64_t pitch = (n + 1) / 2;
    for (int64_t begin = 0; begin < pitch; begin += RUN) {
        const int64_t count = pitch - begin < RUN ? pitch - begin : RUN;
        const int64_t own = n - 2 * begin < 2 * count ? n - 2 * begin : 2 * count;
        for (int64_t j = 0; j < num_basis; j++) {
            uint32_t words[RUN];
            int32_t entries[2 * RUN];
            write_words(&from, (uint64_t)(j * pitch + begin), count, words);
            for (int64_t i = 0; i < count; i++) {
                entries[2 * i] = (int32_t)(words[i] & 0xFFFF) - 32768;
                entries[2 * i + 1] = (int32_t)(words[i] >> 16) - 32768;
            }
            for (int64_t v = 0; v < vectors; v++) {
                const int32_t q = coefficients[v * num_basis + j];
                uint64_t *to = sums + v * n + 2 * begin;
                for (int64_t i = 0; i < own; i++)
                    to[i] += (uint64_t)((int64_t)q * entries[i]);
            }
        }
    }
    return 0;
}

/* Write the positions of the `size` smallest of `population` words, ascending; equal words go by position. */
KERNEL(nola_subset)(const uint32_t *words, int64_t population, int64_t size, int64_t *positions) {
    if (size <= 0)
        return 0;
    /* The greatest word that is taken, found digit by digit: `left` words are to be taken among those with its prefix. */
    static const int digits[3] = {12, 12, 8};
    uint32_t prefix = 0;
    int64_t left = size;
    for (int level = 0, shift = 32; level < 3; level++) {
        int64_t counts[4096] = {0};
        const int above = shift;
        shift -= digits[level];
        const uint32_t mask = (1u << digits[level]) - 1;
        for (int64_t i = 0; i < population; i++)
            if ((uint64_t)words[i] >> above == (uint64_t)prefix >> above)
                counts[words[i] >> shift & mask]++;
        uint32_t digit = 0;
        while (digit < mask && counts[digit] < left)
            left -= counts[digit++];
        prefix |= digit << shift;
    }
    for (int64_t i = 0, taken = 0; i < population && taken < size; i++)
        if (words[i] < prefix || (words[i] == prefix && left-- > 0))
            positions[taken++] = i;
    return 0;
}
