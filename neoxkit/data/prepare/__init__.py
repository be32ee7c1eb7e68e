"""Text into token files."""
