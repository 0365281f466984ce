/* The int16 sides of records: rows to columns, and float32 (nola_codec/decoder/factors.py). */
#include "nola.h"

enum { STRIP = 64 };

/* Write rows (rows, length) as the first columns of `out` (length, columns); its other columns become zero. */
KERNEL(nola_rows_to_columns)(const int16_t *from, int64_t rows, int64_t length, int64_t columns, int16_t *out) {
    if (rows < columns)
        memset(out, 0, (size_t)(length * columns) * sizeof *out);
    for (int64_t begin = 0; begin < length; begin += STRIP) { /* a strip of each row stays in the cache */
        const int64_t end = begin + STRIP < length ? begin + STRIP : length;
        for (int64_t row = 0; row < rows; row++)
            for (int64_t i = begin; i < end; i++)
                out[i * columns + row] = from[row * length + i];
    }
    return 0;
}

/* Write numbers times a power of two as float32, which is exact. */
KERNEL(nola_to_float32)(const int16_t *from, int64_t count, double power, float *out) {
    const float factor = (float)power;
    for (int64_t i = 0; i < count; i++)
        out[i] = (float)from[i] * factor;
    return 0;
}
