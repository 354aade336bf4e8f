"""Experiment configs: fields and checks, grid, JSON schema, keys, and names."""
