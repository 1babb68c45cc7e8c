"""The connections of a server: how many there may be, how long a client may take to ask, and how they end.

uvicorn leaves a connection open that asks nothing, or sends the head of a request for ever. So all file descriptors of
the process could be taken, and nobody else would be answered.
"""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from kad.server.listening import MAX_REQUESTS, Listening
from kad.server.refusals import Refusal

_MORE = 64  # connections that ask nothing of the models, beside those that do
_BACKLOG = 64  # connections that the system keeps for us
_SECONDS_TO_ASK = 10.0
_SECONDS_TO_KEEP = 5
_SECONDS_TO_END = 3
_SECONDS_TO_LOOK = 0.5
_HEADERS = [("X-Content-Type-Options", "nosniff"), ("Content-Security-Policy", "frame-ancestors 'none'")]


def server_of(app: ASGIApp, options: Listening | None = None) -> uvicorn.Server:
    """What runs an application: `server_of(app, options).run(sockets=[listening])`, until Ctrl-C or SIGTERM."""
    connection: Any = partial(_Connection, options or Listening())
    return _Server(
        uvicorn.Config(
            app, http=connection, ws="none", lifespan="on", log_level="error", server_header=False, headers=_HEADERS,
            backlog=_BACKLOG, timeout_keep_alive=_SECONDS_TO_KEEP, timeout_graceful_shutdown=_SECONDS_TO_END,
        )
    )  # fmt: skip


class _Server(uvicorn.Server):
    """Ends the work of the application first: its answers say so, and nobody waits until they are complete."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self.lifespan.shutdown()
        await super().shutdown(sockets)


class _Connection(H11Protocol):
    """A connection. Where others can reach the server, one address gets half of the places and of the connections."""

    def __init__(self, options: Listening, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self._places = options.max_requests or MAX_REQUESTS
        self._most = min(self._places + _MORE, _file_descriptors() // 2)
        self._shared = not options.is_loopback

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.timeout_keep_alive_task = self.loop.call_later(_SECONDS_TO_ASK, self.timeout_keep_alive_handler)
        others: Any = self.connections
        address = self.client[0] if self.client and self._shared else None
        own = sum(other.client[0] == address for other in others if other.client)
        if len(self.connections) > self._most or own > max(1, self._most // 2):
            transport.abort()
        elif own > max(1, self._places // 2):
            refused = Refusal(429, "This address has too many connections.", code="busy").response()
            refused.headers["Connection"] = "close"  # the next one may find a place
            self.app = refused

    def data_received(self, data: bytes) -> None:
        # In uvicorn, the first byte of a request stops the clock. Here its whole head does.
        self.conn.receive_data(data)
        self.handle_events()

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client has closed the connection, or only its own half of it, and waits for the answer."""
        asked = self.cycle is not None and not self.cycle.more_body and not self.cycle.response_complete
        waits = asked and self.scope["http_version"] == "1.1"
        if waits:
            self.cycle.keep_alive = False
            self._look()
        return waits

    def _look(self) -> None:
        """Find out whether the client is still there. Only writing tells: this line may come before any answer."""
        if not self.transport.is_closing() and not self.cycle.response_complete:
            if not self.cycle.response_started:
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.loop.call_later(_SECONDS_TO_LOOK, self._look)


def _file_descriptors() -> int:
    """How many files and connections this process may have."""
    try:
        import resource
    except ImportError:  # Windows
        return 512
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft > 0 else 1 << 20
