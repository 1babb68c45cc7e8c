"""What a run leaves: its directory, the statistics over it, the report."""
