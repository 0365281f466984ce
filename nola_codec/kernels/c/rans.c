/* Interleaved rANS with static tables (nola_codec/entropy/rans.py; specification, "Entropy codecs").
 *
 * A section has L = 2^bits lanes, each with a state of 32 bits. Symbol i belongs to lane i mod L, and a row is one symbol
 * of each lane. The lanes that need a word take the next words in lane order. A run of symbols has one model.
 */
#include "nola.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

enum { PROBABILITY_BITS = 12, TOTAL = 1 << PROBABILITY_BITS, LOW = 1 << 16, MAX_LANE_BITS = 12, ALPHABET = 256 };
enum { FINE = 0, WORDS_RUN_OUT = 1, LEFT_OVER = 2, BAD_ARGUMENT = 3 };

static inline uint32_t word_at(const uint8_t *from) { return (uint32_t)from[0] | (uint32_t)from[1] << 8; }

/* An entry is symbol (8 bits) | frequency - 1 (12 bits) | slot - start (12 bits), from the lowest bit on. No sum leaves
 * 32 bits: 2^12 * (2^20 - 1) + 2^12 - 1 < 2^32. */
static inline uint32_t next_state(uint32_t state, uint32_t entry) {
    return (((entry >> 8) & 0xFFF) + 1) * (state >> PROBABILITY_BITS) + (entry >> 20);
}

/* Decode one symbol of `count` lanes that share a table. There are at least 2 * count + 32 bytes of words. Return the
 * number of bytes that were taken. */
static int64_t decode_lanes(uint32_t *state, int64_t count, const uint32_t *table, const uint8_t *words, uint8_t *out) {
    const uint8_t *next = words;
    int64_t i = 0;
#if defined(__AVX512F__) && defined(__AVX512BW__)
    for (; i + 16 <= count; i += 16) {
        __m512i x = _mm512_loadu_si512(state + i);
        __m512i entry = _mm512_i32gather_epi32(_mm512_and_si512(x, _mm512_set1_epi32(TOTAL - 1)), table, 4);
        __m512i less = _mm512_and_si512(_mm512_srli_epi32(entry, 8), _mm512_set1_epi32(0xFFF));
        __m512i frequency = _mm512_add_epi32(less, _mm512_set1_epi32(1));
        x = _mm512_mullo_epi32(frequency, _mm512_srli_epi32(x, PROBABILITY_BITS));
        x = _mm512_add_epi32(x, _mm512_srli_epi32(entry, 20));
        __mmask16 dry = _mm512_cmplt_epu32_mask(x, _mm512_set1_epi32(LOW));
        __m512i fresh = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)next));
        fresh = _mm512_maskz_expand_epi32(dry, fresh);
        x = _mm512_mask_or_epi32(x, dry, _mm512_slli_epi32(x, 16), fresh);
        _mm512_storeu_si512(state + i, x);
        _mm_storeu_si128((__m128i *)(out + i), _mm512_cvtepi32_epi8(entry));
        next += 2 * __builtin_popcount(dry);
    }
#endif
#if defined(__AVX2__)
    const __m256i low_bytes = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
                                               0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    for (; i + 8 <= count; i += 8) {
        __m256i x = _mm256_loadu_si256((const __m256i *)(state + i));
        __m256i entry = _mm256_i32gather_epi32((const int *)table, _mm256_and_si256(x, _mm256_set1_epi32(TOTAL - 1)), 4);
        __m256i less = _mm256_and_si256(_mm256_srli_epi32(entry, 8), _mm256_set1_epi32(0xFFF));
        __m256i frequency = _mm256_add_epi32(less, _mm256_set1_epi32(1));
        x = _mm256_mullo_epi32(frequency, _mm256_srli_epi32(x, PROBABILITY_BITS));
        x = _mm256_add_epi32(x, _mm256_srli_epi32(entry, 20));
        __m256i dry = _mm256_cmpeq_epi32(_mm256_srli_epi32(x, 16), _mm256_setzero_si256());
        uint32_t mask = (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(dry));
        /* Lane i takes word number popcount(mask below bit i): spread the bits to bytes, and sum those below. */
        uint64_t ones = _pdep_u64(mask, 0x0101010101010101u);
        uint64_t order = ones * 0x0101010101010100u;
        __m256i fresh = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)next));
        fresh = _mm256_permutevar8x32_epi32(fresh, _mm256_cvtepu8_epi32(_mm_cvtsi64_si128((int64_t)order)));
        x = _mm256_blendv_epi8(x, _mm256_or_si256(_mm256_slli_epi32(x, 16), fresh), dry);
        _mm256_storeu_si256((__m256i *)(state + i), x);
        __m256i bytes = _mm256_shuffle_epi8(entry, low_bytes);
        uint32_t halves[2] = {(uint32_t)_mm256_extract_epi32(bytes, 0), (uint32_t)_mm256_extract_epi32(bytes, 4)};
        memcpy(out + i, halves, 8);
        next += 2 * __builtin_popcount(mask);
    }
#endif
    for (; i < count; i++) {
        uint32_t entry = table[state[i] & (TOTAL - 1)], x = next_state(state[i], entry);
        uint32_t dry = x < LOW; /* no branch: one symbol in three or so needs a word */
        state[i] = dry ? x << 16 | word_at(next) : x;
        out[i] = (uint8_t)entry;
        next += 2 * dry;
    }
    return next - words;
}

static int runs_are_good(const int64_t *models, const int64_t *lengths, int64_t runs, int64_t model_count, int64_t total) {
    for (int64_t r = 0; r < runs; r++) {
        if (models[r] < 0 || models[r] >= model_count || lengths[r] < 0 || lengths[r] > total)
            return 0;
        total -= lengths[r];
    }
    return total == 0;
}

static int64_t last_run(const int64_t *lengths, int64_t runs) {
    int64_t last = 0;
    for (int64_t r = 0; r < runs; r++)
        if (lengths[r])
            last = r;
    return last;
}

/* Decode a section of `size` bytes into `total` symbols.
 *
 * Run r has lengths[r] symbols of model models[r]. `tables` holds 4096 entries for each of `model_count` models. Return
 * FINE, WORDS_RUN_OUT, LEFT_OVER if words are left or a state is not the first one of the encoder, or BAD_ARGUMENT. */
KERNEL(nola_rans_decode)(const uint8_t *data, int64_t size, const int64_t *models, const int64_t *lengths, int64_t runs,
                         const uint32_t *tables, int64_t model_count, uint8_t *out, int64_t total) {
    uint32_t state[1 << MAX_LANE_BITS];
    if (size < 1 || data[0] > MAX_LANE_BITS || !runs_are_good(models, lengths, runs, model_count, total))
        return BAD_ARGUMENT;
    const int64_t lanes = (int64_t)1 << data[0], head = 1 + 4 * lanes;
    if (size < head || (size - head) % 2)
        return BAD_ARGUMENT;
    memcpy(state, data + 1, 4 * (size_t)lanes);
    const uint8_t *next = data + head, *const end = data + size;
    const int64_t filled = (total + lanes - 1) / lanes * lanes, last = last_run(lengths, runs);
    int64_t run = 0, left = runs ? lengths[0] : 0, lane = 0;
    for (int64_t done = 0, count; done < filled; done += count, left -= count, lane = (lane + count) & (lanes - 1)) {
        while (left == 0) /* the last run's model also fills the last row */
            left = run < last ? lengths[++run] : filled - done;
        const uint32_t *table = tables + models[run] * TOTAL;
        count = lanes - lane < left ? lanes - lane : left;
        if (end - next >= 2 * count + 32 && done + count <= total) {
            next += decode_lanes(state + lane, count, table, next, out + done);
            continue;
        }
        for (int64_t i = 0; i < count; i++) { /* near the end of the words or of the symbols */
            uint32_t entry = table[state[lane + i] & (TOTAL - 1)], x = next_state(state[lane + i], entry);
            if (x < LOW) {
                if (next == end)
                    return WORDS_RUN_OUT;
                x = x << 16 | word_at(next);
                next += 2;
            }
            state[lane + i] = x;
            if (done + i < total)
                out[done + i] = (uint8_t)entry;
        }
    }
    for (int64_t i = 0; i < lanes; i++)
        if (state[i] != LOW)
            return LEFT_OVER;
    return next == end ? FINE : LEFT_OVER;
}

/* Count the symbols of each model in counts (model_count, 256), which is zero before.
 *
 * A symbol has `width` bytes, 1 or 2. Return FINE, or BAD_ARGUMENT if a run is wrong or a symbol is above 255. */
KERNEL(nola_count_symbols)(const uint8_t *symbols, int64_t width, const int64_t *models, const int64_t *lengths,
                           int64_t runs, int64_t model_count, int64_t *counts, int64_t total) {
    if (!runs_are_good(models, lengths, runs, model_count, total))
        return BAD_ARGUMENT;
    for (int64_t r = 0; r < runs; r++) {
        int64_t *own = counts + models[r] * ALPHABET;
        if (width == 1) {
            int64_t parts[4][ALPHABET] = {{0}}; /* equal neighbours would wait for each other */
            int64_t i = 0;
            for (; i + 4 <= lengths[r]; i += 4)
                for (int part = 0; part < 4; part++)
                    parts[part][symbols[i + part]]++;
            for (; i < lengths[r]; i++)
                parts[0][symbols[i]]++;
            for (int symbol = 0; symbol < ALPHABET; symbol++)
                own[symbol] += parts[0][symbol] + parts[1][symbol] + parts[2][symbol] + parts[3][symbol];
        } else {
            for (int64_t i = 0; i < lengths[r]; i++) {
                if (symbols[2 * i + 1])
                    return BAD_ARGUMENT;
                own[symbols[2 * i]]++;
            }
        }
        symbols += width * lengths[r];
    }
    return FINE;
}

/* Code `total` symbols of `width` bytes, 1 or 2, on 2^bits lanes.
 *
 * `tables` (model_count, 256) holds frequency << 16 | start of each symbol. The states go to `states`, and the words to
 * the end of `words`, which has room for `room` of them: one for each symbol of each row. Return the number of words,
 * or -BAD_ARGUMENT if a run is wrong or a symbol has no frequency. */
KERNEL(nola_rans_encode)(const uint8_t *symbols, int64_t width, const int64_t *models, const int64_t *lengths,
                         int64_t runs, const uint32_t *tables, int64_t model_count, int64_t total, int64_t bits,
                         uint32_t *states, uint16_t *words, int64_t room) {
    if (bits < 0 || bits > MAX_LANE_BITS || !runs_are_good(models, lengths, runs, model_count, total))
        return -BAD_ARGUMENT;
    const int64_t lanes = (int64_t)1 << bits, filled = (total + lanes - 1) / lanes * lanes;
    if (room < filled)
        return -BAD_ARGUMENT;
    for (int64_t i = 0; i < lanes; i++)
        states[i] = LOW;
    int64_t run = last_run(lengths, runs), left = filled - total, at = room;
    uint32_t cheapest = 0; /* the entry of the symbol that fills the last row: the first one of the greatest frequency */
    for (int symbol = 0; symbol < ALPHABET && left; symbol++) {
        uint32_t entry = tables[models[run] * ALPHABET + symbol];
        if (entry >> 16 > cheapest >> 16)
            cheapest = entry;
    }
    int filling = 1;
    for (int64_t i = filled - 1; i >= 0; i--) { /* backwards, since the decoder goes forwards */
        while (left == 0) {
            if (filling)
                left = lengths[run];
            else
                left = lengths[--run];
            filling = 0;
        }
        left--;
        uint32_t entry = cheapest;
        if (!filling) {
            uint32_t symbol = symbols[width * i];
            if (width == 2 && symbols[2 * i + 1])
                return -BAD_ARGUMENT;
            entry = tables[models[run] * ALPHABET + symbol];
        }
        const uint32_t frequency = entry >> 16;
        if (frequency == 0)
            return -BAD_ARGUMENT;
        uint32_t *state = states + (i & (lanes - 1)), x = *state;
        if (x >> 20 >= frequency) { /* a state at or above frequency * 2^20 would leave 32 bits */
            words[--at] = (uint16_t)x;
            x >>= 16;
        }
        *state = x / frequency * (TOTAL - frequency) + x + (entry & 0xFFFF);
    }
    return room - at;
}
