"""The engine of llama.cpp: GGUF files."""
