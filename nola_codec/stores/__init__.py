"""Read and write files of tensors (safetensors, npz, PyTorch pickles, GGUF), whatever the tensors mean."""
