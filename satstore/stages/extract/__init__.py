"""The stage that stores latents: planned, then written."""
