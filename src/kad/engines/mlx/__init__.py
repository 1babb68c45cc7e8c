"""The engine of MLX."""
