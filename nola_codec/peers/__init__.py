"""What others would write for the same adapter: truncated and rounded SVDs, for comparison only.

No file of ours depends on anything here. `svd_peers` makes the ones that `sweep` shows; the benchmarks under tools/
build more from the same parts.
"""
