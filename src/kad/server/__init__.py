"""A server for one person's machine: the OpenAI API and the routes of the playground over any composed model.

It needs the extra `server` (FastAPI and uvicorn). `kad.server.app.make_app` makes the application from a composed
model, `kad.server.run.serve` runs it.
"""
