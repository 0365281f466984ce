"""Keep thousands of `.nola` files in memory beside one base model, and apply one of them or stack the factors of many.

    with nola_codec.TaskBank(model, memory="256MB") as bank:
        bank.add("poems", "poems.nola")
        bank.switch("poems")

Its files, from the top down:

    bank.py           `TaskBank`: the public methods
    tasks.py          the tasks by name, and the bytes that their files take
    usage.py          how much memory each task takes
    factor_cache.py   rebuilt tasks within a budget of bytes; threads that ask for the same one wait for it
    rebuilding.py     a packed file back to int16 pairs of factors, each with its weight of the model
    pairs.py          these pairs, without components that are zero, and their factors in floating point
    packed.py         a file and the earlier versions that it needs, as bytes
    applying.py       put a rebuilt task into the model, and the bits of the base model back
    branches.py       the products of factors that run beside linear layers, embeddings and convolutions
    stacking.py       the factors of several tasks as one tensor for each module
"""

from nola_codec.errors import require_torch

require_torch("nola_codec.TaskBank")
