"""Running a model: sampling and text."""
