"""Quantizers: integer codebooks, integer scales, bit packing."""
