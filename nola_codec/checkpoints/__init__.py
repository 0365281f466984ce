"""Read base models on disk: their weights, tensor by tensor, and the tie between their embeddings.

    checkpoint.py               Checkpoint: a model directory of Transformers or Diffusers, read lazily
    embeddings.py               input and output embeddings, and the tie between them

The packages `merger` and `encoder` and one dialect (`adapters.dialects.weight_changes`) read checkpoints, so this
package lies below all of them.
"""
