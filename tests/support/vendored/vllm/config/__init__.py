"""Stands for vLLM in tests; see README.md."""
