"""Compiled kernels: the same integers as the NumPy code above, faster.

    lib = kernels.library()
    if lib is not None:
        packed = random_words(lib, seed=7, stream=0, purpose=0, start=0, count=100)

`library()` returns None where no compiler was there or NOLA_KERNELS=off, and the caller then goes on with NumPy. Both
paths give the same bits. A wrapper takes the library first, checks its arrays, and calls a C function.

    loading.py                  `library`: loads at the first use and chooses the variant for the processor
    compiling.py                compiles c/*.c, when the package is built or `make kernels` is called
    arguments.py                the checks of what a wrapper hands to C
    merges.py                   deltas of int16 factors, and weights with a delta added; the sums of the merge journal
    generators.py               words, signs and subsets of the counter-based generator; dense bases
    transforms.py               the Hadamard basis of one record or of many, and the last scaling to int16
    entropy.py                  rANS, and symbols of a fixed width as bits
    integers.py                 the adaptive integers of units sections
    points.py                   symbols of any quantizer -> integer coefficients
    sides.py                    int16 sides: rows to columns, float32, and pairs without components that are zero
    searches.py                 the encoder's Viterbi searches of trellises and dependent quantizers
    levels.py                   the encoder's scalar levels, and their sums
    triton/                     kernels for devices, in Triton

To add a kernel: a function in `c/`, a wrapper here, a call where NumPy does the work now, and tests that compare both.
"""

from nola_codec.kernels.loading import KernelStatus, Library, kernel_status, library, using

__all__ = ["KernelStatus", "Library", "kernel_status", "library", "using"]
