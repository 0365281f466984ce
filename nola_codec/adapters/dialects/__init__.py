"""What the keys of an adapter mean: one module a dialect, and conversion between them."""
