"""Add decoded files to a base model, and take them off again, to the bit.

    MergeRequest          the request of the caller                                  request.py
      -> MergeFile        a `.nola` file, decoded and checked                        merge_files.py
      -> PlacedFile       the file and its `MergePlan`: which delta has which place  places.py, matching.py, plan.py
      -> ModelChange      the plans of all files in one, and the delta of a weight   model_change.py, row_deltas.py
      -> MergedTensor     the tensors of each merged shard, in order                 shards.py
      -> FileWrite        the pieces of a shard: read, add rows, write, on threads   stream.py, arithmetic/
      -> Journal          the finished shards, kept when the run is killed           journal.py, checksums.py
      -> nola_undo.bin    with `keep_undo`: the bits that rounding lost              undo_recorder.py, undo_file.py,
                          whose index is checked before it is used                   undo_index.py
      -> MergeReport      the number of files and weights that were written          merged_model.py, request.py

`engine.py` holds this flow, and `restored_model.py` is its way back. `diffusers_pipeline.py` and `lone_file.py` turn a
base that is not a model directory into merges of model directories; `in_memory.py` is the short form of the flow for a
model in memory, with `memory_model.py` and `memory_change.py`, and `layer_deltas.py` makes one delta alone.
`model_directory.py` has the other files of a model directory, and `vocabulary.py` larger embeddings. A place
(`weight_places.py`) is the weight that a delta is added to, or a part of one (`terms.py`). `arithmetic/` says which
bits come out, and nothing else in this package decides a bit.

A weight is found by `model_names.py`, with the rules of Transformers, and by `stored_names.py`, with the names that
other tools give it; `part_places.py` finds the parts of fused weights, `layout_places.py` the weights of image models
in another layout, and `pipeline_components.py` the component of a pipeline. `misfits.py` says what has no place, and
`model_families.py` which families do not fit each other. `quantized_bases.py` and `quantized_modules.py` refuse
quantized weights. `pickled_base.py` reads a base from pickles, and `weight_counter.py` counts for a progress display.
"""
