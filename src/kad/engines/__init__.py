"""Engines run models. `base` says what an engine provides; `transformers` is the engine of Transformers."""
