"""Experiments as users describe them: fields and checks, grid, JSON schema, keys, and names."""
