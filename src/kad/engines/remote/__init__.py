"""The engine of a base model that runs on a server: asked over HTTP for its most probable tokens."""
