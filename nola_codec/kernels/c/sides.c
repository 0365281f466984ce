/* The int16 sides of records: rows to columns, and float32 (nola_codec/decoder/factors.py). */
#include "sides.h"

KERNEL(nola_rows_to_columns)(const int16_t *from, int64_t rows, int64_t length, int64_t columns, int16_t *out) {
    rows_to_columns(from, rows, length, columns, out);
    return 0;
}

/* Write the numbers of arrays, times a factor for each array, as float32.
 *
 * arrays   three numbers for each: its address, its size, and where its results begin in `out` */
KERNEL(nola_to_float32)(const int64_t *arrays, const double *factors, int64_t count, float *out) {
    for (int64_t a = 0; a < count; a++) {
        const int16_t *from = (const int16_t *)(intptr_t)arrays[3 * a];
        const int64_t size = arrays[3 * a + 1];
        float *to = out + arrays[3 * a + 2];
        const float single = (float)factors[a];
        if ((double)single == factors[a]) /* the product of doubles is exact, so both ways round once */
            for (int64_t i = 0; i < size; i++)
                to[i] = (float)from[i] * single;
        else
            for (int64_t i = 0; i < size; i++)
                to[i] = (float)((double)from[i] * factors[a]);
    }
    return 0;
}

typedef struct {
    int64_t lora_B, lora_A, out, rank, in;
} Pair;

static int is_zero(const int16_t *numbers, int64_t count) {
    int16_t any = 0;
    int64_t i = 0;
    for (; i + STRIP <= count && !any; i += STRIP)
        for (int64_t j = 0; j < STRIP; j++)
            any |= numbers[i + j];
    for (; i < count; i++)
        any |= numbers[i];
    return !any;
}

/* Mark the components that are not zero on either side, a byte for each of all pairs.
 *
 * pairs   five numbers for each: the addresses of lora_B (out, rank) and of lora_A (rank, in), and out, rank and in */
KERNEL(nola_used_components)(const int64_t *pairs, int64_t count, uint8_t *used) {
    for (int64_t p = 0; p < count; p++) {
        const Pair pair = ((const Pair *)pairs)[p];
        const int16_t *lora_B = (const int16_t *)(intptr_t)pair.lora_B, *lora_A = (const int16_t *)(intptr_t)pair.lora_A;
        for (int64_t k = 0; k < pair.rank; k++) {
            int64_t row = 0;
            used[k] = !is_zero(lora_A + k * pair.in, pair.in);
            while (used[k] && row < pair.out && lora_B[row * pair.rank + k] == 0)
                row++;
            used[k] = used[k] && row < pair.out;
        }
        used += pair.rank;
    }
    return 0;
}

/* Write the used components of pairs to `out`: lora_B (out, components) and lora_A (components, in) of each. */
KERNEL(nola_take_components)(const int64_t *pairs, int64_t count, const uint8_t *used, int16_t *out) {
    for (int64_t p = 0; p < count; p++) {
        const Pair pair = ((const Pair *)pairs)[p];
        const int16_t *lora_B = (const int16_t *)(intptr_t)pair.lora_B, *lora_A = (const int16_t *)(intptr_t)pair.lora_A;
        int64_t components = 0, done = 0;
        for (int64_t k = 0; k < pair.rank; k++)
            components += used[k] != 0;
        if (components == pair.rank)
            memcpy(out, lora_B, (size_t)(pair.out * pair.rank) * sizeof *out);
        else
            for (int64_t k = 0; k < pair.rank; k++) {
                if (!used[k])
                    continue;
                for (int64_t row = 0; row < pair.out; row++)
                    out[row * components + done] = lora_B[row * pair.rank + k];
                done++;
            }
        out += pair.out * components;
        for (int64_t k = 0; k < pair.rank; k++)
            if (used[k]) {
                memcpy(out, lora_A + k * pair.in, (size_t)pair.in * sizeof *out);
                out += pair.in;
            }
        used += pair.rank;
    }
    return 0;
}
