/* Symbols of a fixed width as bits, the lowest bit first (nola_codec/quant/packing.py; specification, "Entropy codecs"). */
#include "nola.h"

enum { FINE = 0, BAD_SYMBOL = 1, BAD_ARGUMENT = 2 };

/* Write `count` symbols of `width` bits, 1 to 16, to (count * width + 7) / 8 bytes. Each symbol is below 2^width. */
KERNEL(nola_pack)(const uint16_t *symbols, int64_t count, int64_t width, uint8_t *out) {
    uint64_t held = 0;
    int64_t bits = 0;
    for (int64_t i = 0; i < count; i++) {
        held |= (uint64_t)symbols[i] << bits;
        for (bits += width; bits >= 8; bits -= 8, held >>= 8)
            *out++ = (uint8_t)held;
    }
    if (bits)
        *out = (uint8_t)held;
    return 0;
}

#define DEFINE_RUN(name, symbol_type)                                                                                  \
    /* Unpack `count` symbols from bit `first` on, of which 4 bytes more can be read. Return the largest. */           \
    static uint32_t name(const uint8_t *packed, int64_t first, int64_t count, int64_t width, symbol_type *out) {       \
        const uint32_t mask = (1u << width) - 1;                                                                       \
        uint32_t most = 0;                                                                                             \
        for (int64_t i = 0; i < count; i++) {                                                                          \
            const int64_t bit = first + i * width;                                                                     \
            uint32_t held;                                                                                             \
            memcpy(&held, packed + (bit >> 3), 4);                                                                     \
            held = held >> (bit & 7) & mask;                                                                           \
            most = held > most ? held : most;                                                                          \
            out[i] = (symbol_type)held;                                                                                \
        }                                                                                                              \
        return most;                                                                                                   \
    }
DEFINE_RUN(run_8, uint8_t)
DEFINE_RUN(run_16, uint16_t)

/* Write the symbols of runs: those of models with a width come from packed bits, the others from `others`.
 *
 * packed          `bytes` bytes, and 4 more that may be any
 * models, lengths of each run
 * widths, sizes   the bits of a symbol and the size of the alphabet of each model; a width of 0 means `others`
 * bits            where the symbols of each model begin; afterwards, where they end
 * out             `room` numbers of `itemsize` bytes, 1 or 2
 * Return FINE; BAD_SYMBOL if a symbol is not in its alphabet; BAD_ARGUMENT. */
KERNEL(nola_unpack_runs)(const uint8_t *packed, int64_t bytes, const int64_t *models, const int64_t *lengths,
                         int64_t runs, const int64_t *widths, const int64_t *sizes, int64_t *bits, int64_t model_count,
                         const uint8_t *others, int64_t other_count, char *out, int64_t itemsize, int64_t room) {
    int64_t done = 0, taken = 0;
    for (int64_t r = 0; r < runs; r++) {
        const int64_t model = models[r], count = lengths[r];
        if (model < 0 || model >= model_count || count < 0 || count > room - done)
            return BAD_ARGUMENT;
        const int64_t width = widths[model];
        char *to = out + done * itemsize;
        if (width == 0) {
            if (count > other_count - taken)
                return BAD_ARGUMENT;
            if (itemsize == 1)
                memcpy(to, others + taken, (size_t)count);
            else
                for (int64_t i = 0; i < count; i++)
                    ((uint16_t *)(void *)to)[i] = others[taken + i];
            taken += count;
        } else {
            const int64_t first = bits[model];
            if (width < 0 || width > 16 || first < 0 || first > bytes * 8 || count > (bytes * 8 - first) / width)
                return BAD_ARGUMENT;
            const uint32_t most = itemsize == 1 ? run_8(packed, first, count, width, (uint8_t *)to)
                                                : run_16(packed, first, count, width, (uint16_t *)(void *)to);
            if (count && most >= sizes[model])
                return BAD_SYMBOL;
            bits[model] = first + count * width;
        }
        done += count;
    }
    return done == room && taken == other_count ? FINE : BAD_ARGUMENT;
}
