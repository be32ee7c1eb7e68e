"""Layers whose parameters say which logical tensors they hold."""
