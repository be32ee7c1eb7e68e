"""From raw text to the batches that training reads."""
