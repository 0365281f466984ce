"""Files that hold tensors, whatever the tensors mean: safetensors, npz, PyTorch pickles, GGUF."""
