"""Base models on disk: their weights, read tensor by tensor, and which of their embeddings are tied.

    checkpoint.py               Checkpoint: a model directory of Transformers or Diffusers, read lazily
    embeddings.py               input and output embeddings, and the tie between them

Merging and the encoding of dense changes both read checkpoints, so this package lies below both.
"""
