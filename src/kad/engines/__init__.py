"""Engines run models. `protocols` says what an engine provides; `transformers` is the engine of Transformers."""
