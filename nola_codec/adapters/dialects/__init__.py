"""The dialects, and helpers that several of them share."""
