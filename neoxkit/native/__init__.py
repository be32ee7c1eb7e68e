"""Code of our own for the CPU at hand, where torch has no single operation for what a decoder does with few tokens."""
