"""Evaluation: the published tasks, every method in one run, and the statistics to believe the difference."""
