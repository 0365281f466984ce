/* What the loader asks: which sources the library was made of, and which variants this processor can run. */
#include "nola.h"

/* Copy the 64 hexadecimal digits of the SHA-256 of the sources, and a zero, to `out`. */
KERNEL(nola_sources)(char *out) {
    memcpy(out, NOLA_SOURCES, 65);
    return 0;
}

/* Return 1 if this processor runs variant 0 (generic), 1 (avx2) or 2 (avx512), else 0. */
KERNEL(nola_supports)(int64_t variant) {
    if (variant == 0)
        return 1;
#if defined(__x86_64__)
    __builtin_cpu_init();
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2");
    if (variant == 1)
        return avx2;
    return variant == 2 && avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
    return 0;
#endif
}
