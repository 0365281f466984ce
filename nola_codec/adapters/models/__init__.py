"""Base models on disk: their weights, the place of each delta in them, merged and unmerged copies."""
