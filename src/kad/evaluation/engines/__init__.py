"""Who generates: prompts in, completions out. One module for each engine, and what they share."""
