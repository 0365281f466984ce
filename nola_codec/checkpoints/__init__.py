"""Read base models on disk: their weights, tensor by tensor, and the tie between their embeddings.

The packages `merger` and `encoder` and one dialect (`adapters.dialects.weight_changes`) read checkpoints, so this
package lies below all of them.
"""
