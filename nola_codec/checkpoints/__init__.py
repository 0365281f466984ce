"""Base models on disk: their weights, read tensor by tensor, and which of their embeddings are tied.

Merging and the encoding of dense changes both read checkpoints, so this package lies below both.
"""
