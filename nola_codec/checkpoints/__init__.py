"""Weights of whole models, read tensor by tensor."""
