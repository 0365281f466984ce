"""Decode an open container to records, which are exact, and these to an `Adapter`. It knows no dialect and no model.

    decoder.py                  Decoder: one record, some or all, in batches of blocks on threads
    rungs.py                    the decoded SHA-256 of every rung, in one pass
    coefficients.py             sections -> symbols -> integer coefficients
    factors.py                  integer coefficients -> DecodedRecord: int16 sides, and a power of two for each
    joined_sides.py             the same of many records in one call of a kernel, side by side
    device/                     sections -> DecodedRecord on a device, from packed bytes, in PyTorch
    hashing.py                  the decoded SHA-256, on a thread of its own
    prediction.py               the records of an earlier version, added to those of a file that is coded against it
    adapters.py                 DecodedRecords -> Adapter in float32
    carried_forms.py            the forms of carried tensors (exact, bf16, int8, coded), and the way back from them
    torch_raw.py                carried tensors <-> PyTorch

The bits of a file are decided in `factors.py` and in what it calls: `basis`, `prng` and `quant`.
"""
