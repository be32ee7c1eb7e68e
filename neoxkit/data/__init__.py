"""Text into tokens, tokens into rows, rows into batches."""
