"""The seam to whatever runs models: what an engine gives (`base`), and the engine of Transformers."""
