"""Evaluation: the published tasks, all methods in one run, and statistics for the differences."""
