"""Training: the loop, the session that it advances, checkpoints, optimizers, metrics, several GPUs."""
