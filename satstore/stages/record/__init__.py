"""Recording of models and loaders of one's own, as a run of satstore."""
