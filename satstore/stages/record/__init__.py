"""Record a caller's own model and loaders as a run."""
