"""gpt-neox (Megatron and DeepSpeed) checkpoints: their pickles, settings and tensors."""
