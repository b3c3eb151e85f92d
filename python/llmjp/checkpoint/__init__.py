"""Model checkpoints on disk, one module a format."""
