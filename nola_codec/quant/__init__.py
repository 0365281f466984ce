"""The reading side of quantization: codebooks, trellises, integer scales and bit packing."""
