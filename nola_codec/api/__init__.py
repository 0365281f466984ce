"""The functions that hubs, servers and the command line call. They have the names of the commands.

    report = nola_codec.encode("lora_dir", "task.nola", size="50KB")
    with nola_codec.load("task.nola") as task:
        lora_A, lora_B = task.factors("model.layers.0.self_attn.q_proj")

Each is a thin front: it checks what the caller gave, and calls the flow below.

    encoding.py                 encode, encode_bytes                  -> encoder/pipeline.py
    delta_encoding.py           encode_delta                          -> encoder/change_splitting.py, then as above
    decoding.py                 decode, verify, read_adapter          -> decoder/, adapters/
    change_conversion.py        the change of a model as a LoRA, for decode
    merging.py                  merge, unmerge                        -> merger/engine.py
    joining.py                  merge_adapters                        -> adapters/joining.py, encoder/pipeline.py
    opened.py                   load: NolaFile                        -> decoder/, merger/in_memory.py
    safe_opening.py, tensor_index.py    safe_open: single tensors by key -> decoder/
    tensor_saving.py            what nola_codec.torch and nola_codec.numpy save
    inspecting.py, truncating.py, comparing.py, sweeping.py, plotting.py, selftest.py     one function each
    expecting.py                what to expect of a file, for the verdict of inspect and reports
    signing.py                  sign, and the check of a signature for verify
    reference_sources.py        earlier versions, for encode(reference=...) -> references/
    live_sources.py             models and mappings of tensors as sources
    checking.py                 the content SHA-256 and what each rung decodes to
    arguments.py, keywords.py   checks of sources and targets, writing to one; the options of `encode`, typed

Nothing here imports torch until tensors are asked for.
"""
