"""Decode on a device from packed bytes, in PyTorch: sections are copied there as they are, and nothing comes back.

    packed.py                   sections -> one array of bytes, which is what lies on a device
    plan.py                     header -> where each symbol and each coefficient lies: DevicePlan
    symbols.py                  packed bytes -> symbols: packed bits, rANS
    points.py                   symbols -> integer coefficients
    fused.py                    symbols -> int16 sides in one kernel of Triton, where there is a device for it
    decoding.py                 decode_on_device: packed bytes -> DecodedRecords
    resident.py                 files whose packed bytes stay on a device

The basis and the last scaling are those of `decoder.factors`. All of it is integers, so the bits are those of NumPy.
"""
