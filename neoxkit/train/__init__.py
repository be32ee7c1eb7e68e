"""Training: the engine, its optimiser and schedule, the loop around it, and what it saves."""
