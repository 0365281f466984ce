"""Files of tensors (safetensors, npz, PyTorch pickles, GGUF), read and written whatever the tensors mean."""
