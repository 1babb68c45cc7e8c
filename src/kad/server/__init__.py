"""A server for one person's machine: the OpenAI API over any composed model, and the page of the playground.

It needs the extra `server` (FastAPI and uvicorn).
"""
