"""Files of tensors, read and written whatever the tensors mean; `open_store.open_store` opens one of any type.

tensor_store.py             TensorStore: what every open file can do
open_store.py               finds the type of a file by its first bytes
safetensors_io.py, npz_io.py, gguf_io.py, pickle_io.py    one type each; `pickle_scan.py` and `zip_io.py` keep
                            hostile pickles and archives out
tensor_files.py             writes tensors as the type that a suffix names
files.py                    helpers: outputs appear whole or not at all, and JSON is bounded
dtypes.py                   stored bytes <-> NumPy, and the rounding of floats
"""
