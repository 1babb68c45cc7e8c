"""The page of `kad playground`, and the server that shows it before the models are loaded."""

from __future__ import annotations

import asyncio
import hmac
import html
import json
import socket
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from functools import partial
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.types import Receive, Scope, Send

from kad.server.connections import server_of
from kad.server.guard import Guard
from kad.server.listening import Listening
from kad.server.refusals import Refusal
from kad.tracing.page import blank_page, fill, script_safe

_ASSETS = files("kad.server") / "assets"


def playground_page(models: str) -> str:
    """The page as text, which waits for `models`. It loads nothing but the answers of its own server.

    It holds the page of a trace without a trace, so that an answer can be saved as a page while the server is away.
    """

    def own(name: str) -> str:
        return (_ASSETS / name).read_text(encoding="utf-8")

    body = own("playground.html").replace("<!-- kad:models -->", html.escape(models))
    return fill(
        "kad playground", body, own("prose.js") + own("answer.js") + own("playground.js"), style=own("playground.css"),
        data=script_safe(json.dumps(blank_page("kad trace"))), connect="'self'",
    )  # fmt: skip


class Playground:
    """The server as an ASGI application that shows its page at once. Other requests wait until the models are loaded.

    Args:
        make: loads the models and makes the application (`kad.server.app.make_app`). Runs in its own thread.
        failed: called with the error if `make` fails.
        options: which clients to answer.
        models: the name of what is loaded, for the page.
        code: gets the key of the server, once. Others may read the address that a browser is started with, or its
            history.
    """

    def __init__(
        self, make: Callable[[], FastAPI], failed: Callable[[BaseException], None], options: Listening, models: str,
        code: str | None = None,
    ) -> None:  # fmt: skip
        self._make, self._failed, self._key, self._code = make, failed, options.key, code
        page = HTMLResponse(playground_page(models), headers={"Cache-Control": "no-store"})
        self._page, self._exchange = Guard(page, hosts=options.names), Guard(self._key_for_code, hosts=options.names)
        self._loading: asyncio.Future[FastAPI]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http" and scope["path"] == "/":
            await self._page(scope, receive, send)
        elif scope["type"] == "http" and scope["path"] == "/key":
            await self._exchange(scope, receive, send)
        else:
            await asyncio.wait([self._loading])
            failed = self._loading.cancelled()
            app = Refusal(503, "The models could not be loaded.").response() if failed else self._loading.result()
            await app(scope, receive, send)

    async def _key_for_code(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The key for who sends the code first, as the body of a POST."""
        sent = await Request(scope, receive).body()
        answer = Refusal(403, "This code has been used, or never was one.", code="code").response()
        if scope["method"] == "POST" and self._code is not None and hmac.compare_digest(sent, self._code.encode()):
            answer, self._code = JSONResponse({"key": self._key}, headers={"Cache-Control": "no-store"}), None
        await answer(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        """From the start of the server to its end. The application inside lives from when it is loaded."""
        await receive()
        async with AsyncExitStack() as inside:
            self._loading = asyncio.ensure_future(self._load(inside))
            await send({"type": "lifespan.startup.complete"})
            await receive()
            self._loading.cancel()
        await send({"type": "lifespan.shutdown.complete"})

    async def _load(self, inside: AsyncExitStack) -> FastAPI:
        loop = asyncio.get_running_loop()
        loaded: asyncio.Future[FastAPI] = loop.create_future()

        def work() -> None:
            settle: Callable[[], Any]
            try:
                settle = partial(loaded.set_result, self._make())
            except BaseException as error:  # noqa: BLE001  (it is raised where the server is run)
                self._failed(error)
                settle = loaded.cancel
            with suppress(RuntimeError):  # the server has ended meanwhile
                loop.call_soon_threadsafe(lambda: loaded.done() or settle())

        # A daemon thread ends with the process, so Ctrl-C does not wait until a large model is loaded.
        threading.Thread(target=work, daemon=True).start()
        app = await loaded
        await inside.enter_async_context(app.router.lifespan_context(app))
        return app


def run(
    make: Callable[[], FastAPI], listening: socket.socket, options: Listening, models: str, code: str | None = None
) -> None:
    """Serve a playground at a socket until Ctrl-C; see `Playground`. Raises what `make` raised."""
    failures: list[BaseException] = []

    def failed(error: BaseException) -> None:
        failures.append(error)
        server.should_exit = True

    server = server_of(Playground(make, failed, options, models, code), options)
    with listening:
        server.run(sockets=[listening])
    if failures:
        raise failures[0]
