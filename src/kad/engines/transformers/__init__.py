"""The engine of Transformers."""
