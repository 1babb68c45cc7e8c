"""The application: the routes of the OpenAI API over one model, and the guard around them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from starlette.middleware.cors import CORSMiddleware

from kad import __version__
from kad.server import refusals
from kad.server.completions import Completions
from kad.server.desk import Desk
from kad.server.fields import ChatRequest, CompletionRequest, TokenizeRequest
from kad.server.guard import Guard
from kad.server.listening import MAX_REQUESTS, Listening

if TYPE_CHECKING:
    from kad.engines.load import Loaded


def make_app(
    model: Loaded, name: str, options: Listening | None = None, *, draft_tokens: int | str | None = None
) -> FastAPI:
    """The server as an ASGI application.

    Args:
        model: the pair, as `kad.load` gives it.
        name: its name in requests, the field `model`.
        options: which clients to answer.
        draft_tokens: the number of drafts if a request does not say it; see `kad.generate`.
    """
    options = options or Listening()
    desk = Desk(model, options.max_requests or MAX_REQUESTS, draft_tokens)
    completions = Completions(desk, name)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        desk.close()

    # The pages with documentation load scripts from elsewhere, so there are none.
    app = FastAPI(title="kad", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    refusals.install(app)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [completions.model()]}

    @app.get("/v1/models/{model:path}")
    async def one_model(model: str) -> dict[str, Any]:
        completions.check_name(model)
        return completions.model()

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, http: Request) -> Response:
        return await completions.respond(body, http)

    @app.post("/v1/completions")
    async def text(body: CompletionRequest, http: Request) -> Response:
        return await completions.respond(body, http)

    @app.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> dict[str, Any]:
        return await completions.tokens(body)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    app.add_middleware(Guard, api_key=options.key, hosts=options.names, origins=options.cors)
    if options.cors:
        app.add_middleware(CORSMiddleware, allow_origins=options.cors, allow_methods=["*"], allow_headers=["*"])
    return app
