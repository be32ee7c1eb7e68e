"""neoxkit: train, convert, inspect and run large language models around one sharded checkpoint."""

__version__ = "0.1.0"
