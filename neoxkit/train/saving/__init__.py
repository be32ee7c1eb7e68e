"""What becomes of a running model on disk: checkpoints, written beside training."""
