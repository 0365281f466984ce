"""The bits of a merge: exact sums of deltas and weights, and one rounding.

Let W be a weight of some float dtype, B and A the int16 factors of a LoRA module, and eB, eA their exponents. The
contract (`spec/conventions.md`, "delta_W and merging") is

    D      = (B A) * 2^(eB + eA) * scaling         float64: an exact integer product, then one rounding at most
    merged = round_dtype(float64(W) + D)           one float64 sum, then one rounding to nearest even

The product is exact because its sums stay below 2^53, so no order of summation, thread, device or library can change a
bit of it. Several files add as fl(fl(w1 D1) + fl(w2 D2)), in their order.

    deltas.py      D: a few rows at a time, for every kind of record
    parts.py       a part of D, and D of parts of a weight, such as its experts
    rounding.py    the merged weight, in place and fast: compiled, or by float32 arithmetic with a proof of its bits
    float32.py     the float32 product that `rounding` uses without the kernels, and the bound of its error
    residuals.py   the bits that rounding loses, for an undo
    sum.py         the merged weight for whole tensors of PyTorch in memory
"""
