"""Read base models on disk: their weights, tensor by tensor, and the tie between their embeddings.

    checkpoint.py               Checkpoint: a model directory of Transformers or Diffusers, read lazily
    fingerprint.py              a hash that tells one base model from another
    weights_files.py            the files of weights in a model directory, with variants and pickles
    embeddings.py               input and output embeddings, and the tie between them
    quantization.py             quantized weights, and the name of the method
    key_renames.py              the names that Transformers gives to stored tensors, by type of model

The packages `merger` and `encoder` and one dialect (`adapters.dialects.weight_changes`) read checkpoints, so this
package lies below all of them.
"""
