"""The functions that hubs, servers and the command line call. They have the names of the commands.

    report = nola_codec.encode("lora_dir", "task.nola", size="50KB")
    with nola_codec.load("task.nola") as task:
        lora_A, lora_B = task.factors("model.layers.0.self_attn.q_proj")

Nothing here imports torch until tensors are asked for.
"""
