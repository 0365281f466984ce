"""The dialects, and the rules that several of them share."""
