/* Symbols of a fixed width as bits, the lowest bit first (nola_codec/quant/packing.py; specification, "Entropy codecs"). */
#include "nola.h"

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

/* Undo nola_pack; there are (count * width + 7) / 8 bytes. */
KERNEL(nola_unpack)(const uint8_t *packed, int64_t count, int64_t width, uint16_t *out) {
    const uint32_t mask = (1u << width) - 1;
    const int64_t size = (count * width + 7) / 8;
    int64_t i = 0;
    for (; i < count && (i * width >> 3) + 4 <= size; i++) { /* the 4 bytes of a symbol are there */
        uint32_t held;
        memcpy(&held, packed + (i * width >> 3), 4);
        out[i] = (uint16_t)(held >> (i * width & 7) & mask);
    }
    for (; i < count; i++) {
        uint32_t held = 0;
        for (int64_t at = i * width >> 3, shift = 0; at < size && shift < 32; at++, shift += 8)
            held |= (uint32_t)packed[at] << shift;
        out[i] = (uint16_t)(held >> (i * width & 7) & mask);
    }
    return 0;
}
