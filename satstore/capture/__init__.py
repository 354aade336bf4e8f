"""Forward hooks: the layers to record, their samples, moments and pooled latents; projections."""
