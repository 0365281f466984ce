"""The files that other tools would write for the same adapter: truncated and rounded SVDs, for comparison only.

`svd.svd_peers` makes the common ones; the other benchmarks build more from the same parts.
"""
