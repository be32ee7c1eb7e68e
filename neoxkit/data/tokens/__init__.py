"""Token files: what they hold, written whole or not at all."""
