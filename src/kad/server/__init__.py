"""A server for one person's machine: the OpenAI API over any composed model, and the page of the playground.

It needs the extra `server` (FastAPI and uvicorn). `kad.server.app.make_app` makes the application from a composed
model, `kad.server.listening.server_of` runs it.
"""
