"""Token files into rows, rows into batches."""
