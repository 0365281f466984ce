"""The reading side of quantization: codebooks, trellises, integer scales and bit packing.

The package `fit` chooses quantizers and searches for the best symbols. The files here:

    codebooks.py                scalar codebooks
    trellis.py                  quantizers with memory: trellises and dependent codebooks
    points.py                   symbols of any quantizer -> integer points
    scales.py                   scale and weight codes -> integer mantissa and shift
    packing.py                  symbols of a fixed width as bits
"""
