"""Training through DeepSpeed: settings, processes, engine, checkpoints, progress, the loop."""
