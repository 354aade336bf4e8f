"""Hooks: which layers are recorded, their samples, moments, pooled latents, and projections in them."""
