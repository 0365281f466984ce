/* Components as rows become components as columns. */
#ifndef NOLA_SIDES_H
#define NOLA_SIDES_H

#include "nola.h"

enum { STRIP = 64 };

/* Write rows (rows, length) as the first columns of `out` (length, columns); its other columns become zero. */
static inline void rows_to_columns(const int16_t *from, int64_t rows, int64_t length, int64_t columns, int16_t *out) {
    if (rows < columns)
        memset(out, 0, (size_t)(length * columns) * sizeof *out);
    for (int64_t begin = 0; begin < length; begin += STRIP) { /* a strip of each row stays in the cache */
        const int64_t end = begin + STRIP < length ? begin + STRIP : length;
        for (int64_t row = 0; row < rows; row++)
            for (int64_t i = begin; i < end; i++)
                out[i * columns + row] = from[row * length + i];
    }
}

#endif
