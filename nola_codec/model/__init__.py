"""Dataclasses that the layers hand to each other. They compute nothing but derived sizes.

Its files:

    adapter.py                  Adapter, LoraModule, VectorTensor: what was read, whatever its dialect
    tensors.py                  RawTensor, Draw: a carried and a drawn tensor
    header.py                   Header, Rung: all of a file but symbols and carried bytes
    records.py                  CodedRecord and others, and the kinds that families of records share
    quantizers.py               Quantizer, codebooks, and the runs of symbols that entropy codecs code
"""
