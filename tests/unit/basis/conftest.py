"""These tests run on NumPy and with the compiled kernels."""

from kernel_paths import each_path

__all__ = ["each_path"]
