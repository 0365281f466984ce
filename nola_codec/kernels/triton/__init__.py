"""Kernels in Triton for devices: the same integers as `decoder.device` computes in PyTorch, fused.

    availability.py             `uses_triton`: whether the kernels run on a device
    rans.py                     rANS, one program a section
    philox.py                   Philox in registers; packed sign words
    hadamard.py                 symbols -> points -> Hadamard -> signs -> scale -> int16, one program a tile
    rademacher.py               the dense basis of signs, generated in registers and never stored
    merge.py                    W + B A in one pass: products of int8 limbs with int32 sums, one rounding

Triton compiles them for NVIDIA and AMD. Its interpreter (TRITON_INTERPRET=1) runs them on a processor, for tests. Each
file has kernels, which are functions that Triton compiles, and a launcher, which takes tensors of PyTorch. A launcher
checks nothing about a file: its callers hand over the numbers of a checked plan.
"""
