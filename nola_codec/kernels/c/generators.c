/* Words and signs of the generator. */
#include "generators.h"

/* Write words `start` to `start + count` of a stream to `out`. */
KERNEL(nola_words)(int64_t seed, int64_t stream, int64_t purpose, int64_t start, int64_t count, uint32_t *out) {
    word_stream from = open_stream((uint64_t)seed, (uint32_t)stream, (uint32_t)purpose);
    write_words(&from, (uint64_t)start, count, out);
    return 0;
}

/* Write the bits of words as signs, 1 for a bit of 0 and -1 for one of 1, least significant bit first. */
KERNEL(nola_signs)(const uint32_t *words, int64_t count, int8_t *out) {
    for (int64_t i = 0; i < count / 32; i++)
        for (int j = 0; j < 32; j++)
            out[32 * i + j] = (int8_t)(1 - 2 * (int)(words[i] >> j & 1));
    for (int64_t i = count / 32 * 32; i < count; i++)
        out[i] = (int8_t)(1 - 2 * (int)(words[i / 32] >> (i % 32) & 1));
    return 0;
}
