"""Receptive fields, followed through a model's own forward pass."""
