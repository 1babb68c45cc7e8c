"""The engine of vLLM, and in `plugin` the pair inside vLLM."""
