"""Speculative decoding of pi: the aligned model drafts a window, the other models verify it in one forward pass."""
