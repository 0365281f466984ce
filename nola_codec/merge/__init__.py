"""Add decoded adapters to a base model, and take them off again."""
