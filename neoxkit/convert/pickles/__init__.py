"""Files of torch.save, read without running anything they ask for."""
