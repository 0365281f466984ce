"""Exact sums of deltas and weights."""
