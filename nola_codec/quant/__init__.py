"""Quantizers as a decoder needs them: symbols to integers, and scales as integers. `fit` chooses and searches them.

codebooks.py                scalar codebooks
trellis.py                  quantizers with memory: trellises and dependent codebooks
points.py                   symbols of any quantizer -> integer points
scales.py                   scale and weight codes -> integer mantissa and shift
packing.py                  symbols of a fixed width as bits
"""
