/* Symbols of any quantizer -> integer coefficients (nola_codec/quant/points.py; specification, "Quantizers"). */
#include "nola.h"

enum { FINE = 0, BAD_ARGUMENT = 1 };
enum { CODEBOOK = 0, TRELLIS = 1, DEPENDENT = 2 };

/* A quantizer as PointTables in kernels/points.py describes it. */
typedef struct {
    int64_t form, size, first, detail, stride;
} Book;

#define DEFINE_LAYER(name, point_type, symbol_type)                                                                    \
    static int name(const Book *book, const int32_t *tables, const symbol_type *symbols, int64_t count,                \
                    int32_t weight, point_type *out) {                                                                 \
        const int32_t *points = tables + book->first;                                                                  \
        const int64_t steps = (count + book->stride - 1) / book->stride;                                               \
        uint32_t most = 0;                                                                                             \
        for (int64_t i = 0; i < steps; i++)                                                                            \
            most = symbols[i] > most ? symbols[i] : most;                                                              \
        if (most >= book->size)                                                                                        \
            return 0;                                                                                                  \
        if (book->form == CODEBOOK) {                                                                                  \
            if (weight == 1)                                                                                           \
                for (int64_t i = 0; i < count; i++)                                                                    \
                    out[i] += (point_type)points[symbols[i]];                                                          \
            else                                                                                                       \
                for (int64_t i = 0; i < count; i++)                                                                    \
                    out[i] += (point_type)(points[symbols[i]] * weight);                                               \
        } else if (book->form == DEPENDENT) {                                                                          \
            const uint32_t mask = (uint32_t)book->detail, odd = (uint32_t)(book->size >> 1) & 1;                       \
            uint32_t parities = 0;                                                                                     \
            for (int64_t i = 0; i < count; i++) {                                                                      \
                uint32_t chosen = (uint32_t)__builtin_parity(parities & mask);                                         \
                out[i] += (point_type)(points[chosen * (uint32_t)book->size + symbols[i]] * weight);                   \
                parities = parities << 1 | ((symbols[i] ^ odd) & 1);                                                   \
            }                                                                                                          \
        } else {                                                                                                       \
            const int bits = (int)book->detail;                                                                        \
            uint32_t window = 0;                                                                                       \
            for (int64_t back = 8 / bits - 1; back >= 1; back--) /* the ring: the last steps come before the first */ \
                window = window << bits | symbols[steps - 1 - (back - 1) % steps];                                     \
            for (int64_t step = 0, i = 0; step < steps; step++) {                                                      \
                window = (window << bits | symbols[step]) & 0xFF;                                                      \
                for (int64_t j = 0; j < book->stride && i < count; j++, i++)                                           \
                    out[i] += (point_type)(points[window * book->stride + j] * weight);                                \
            }                                                                                                          \
        }                                                                                                              \
        return 1;                                                                                                      \
    }
DEFINE_LAYER(layer_8_8, int8_t, uint8_t)
DEFINE_LAYER(layer_16_8, int16_t, uint8_t)
DEFINE_LAYER(layer_32_8, int32_t, uint8_t)
DEFINE_LAYER(layer_8_16, int8_t, uint16_t)
DEFINE_LAYER(layer_16_16, int16_t, uint16_t)
DEFINE_LAYER(layer_32_16, int32_t, uint16_t)

/* Add layers to the coefficients of vectors.
 *
 * Layer l adds weights[l] times the points of quantizer books[l] to row vectors[l] of `out` (rows, count), whose elements
 * have `out_width` bytes: 1, 2 or 4. Its symbols, of `width` bytes, 1 or 2, begin at symbol starts[l] of symbol_count.
 * `forms` has five numbers for each of book_count quantizers. The caller has bounded the sums. Return FINE or
 * BAD_ARGUMENT. */
KERNEL(nola_add_points)(const uint8_t *all_symbols, int64_t width, int64_t symbol_count, const int64_t *starts,
                        const int64_t *vectors, const int64_t *books, const int64_t *weights, int64_t layers,
                        const int64_t *forms, int64_t book_count, const int32_t *tables, int64_t count, int64_t rows,
                        int64_t out_width, uint8_t *out) {
    for (int64_t layer = 0; layer < layers; layer++) {
        if (vectors[layer] < 0 || vectors[layer] >= rows || books[layer] < 0 || books[layer] >= book_count)
            return BAD_ARGUMENT;
        const Book *book = (const Book *)forms + books[layer];
        const int64_t steps = (count + book->stride - 1) / book->stride;
        if (starts[layer] < 0 || starts[layer] > symbol_count || steps > symbol_count - starts[layer])
            return BAD_ARGUMENT;
        const uint8_t *symbols = all_symbols + starts[layer] * width;
        uint8_t *row = out + vectors[layer] * count * out_width;
        const uint16_t *wide = (const uint16_t *)(const void *)symbols;
        const int32_t weight = (int32_t)weights[layer];
        int good;
        if (out_width == 1)
            good = width == 1 ? layer_8_8(book, tables, symbols, count, weight, (int8_t *)row)
                              : layer_8_16(book, tables, wide, count, weight, (int8_t *)row);
        else if (out_width == 2)
            good = width == 1 ? layer_16_8(book, tables, symbols, count, weight, (int16_t *)(void *)row)
                              : layer_16_16(book, tables, wide, count, weight, (int16_t *)(void *)row);
        else
            good = width == 1 ? layer_32_8(book, tables, symbols, count, weight, (int32_t *)(void *)row)
                              : layer_32_16(book, tables, wide, count, weight, (int32_t *)(void *)row);
        if (!good)
            return BAD_ARGUMENT;
    }
    return FINE;
}
