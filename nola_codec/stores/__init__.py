"""Read and write files of tensors (safetensors, npz, PyTorch pickles, GGUF), whatever the tensors mean.

`open_store.open_store` opens a file of any type. The files here:

    tensor_store.py             TensorStore: what every open file can do
    joined_store.py             several files seen as one
    live_store.py               tensors of a running program
    open_store.py               finds the type of a file by its first bytes
    safetensors_io.py, npz_io.py, gguf_io.py, pickle_io.py    one type each; safetensors_writer.py writes the first
    pickle_scan.py, zip_io.py   keep hostile pickles and archives out
    tensor_files.py             writes tensors as the type that a suffix names
    files.py                    helpers: outputs appear whole or not at all, and JSON is bounded
    replacing.py                temporary names of outputs, and what killed runs leave of them
    dtypes.py                   stored bytes <-> NumPy, and the rounding of floats
"""
