"""What a training run leaves on disk: folder, checkpoints, metrics, recipe."""
