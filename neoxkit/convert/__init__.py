"""Copying tensors between sources and sinks: import, export, reshard, load, compare."""
