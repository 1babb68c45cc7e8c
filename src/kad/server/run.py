"""Run the application until it is interrupted."""

from __future__ import annotations

import os
import socket
from importlib.util import find_spec
from typing import TYPE_CHECKING

from kad.errors import UsageError, missing_extra
from kad.server.options import HOST, MAX_REQUESTS, PORT, Listening

if TYPE_CHECKING:
    from collections.abc import Collection

    import uvicorn
    from fastapi import FastAPI
    from starlette.types import ASGIApp

    from kad.engines.load import Loaded


_SECONDS_TO_END = 3
_KEY_VARIABLE = "KAD_API_KEY"


def check_installed() -> None:
    """Raise MissingExtraError unless the packages of the server are installed."""
    for package in ("fastapi", "uvicorn"):
        if find_spec(package) is None:
            raise missing_extra("server", package)


def listen(options: Listening) -> socket.socket:
    """A socket at the address, before models are loaded. Who connects early waits until they are.

    Raises:
        UsageError: nothing can listen there.
    """
    host, port = options.host or HOST, PORT if options.port is None else options.port
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(128)
    except OSError as error:
        raise UsageError(
            f"Cannot listen at {host} port {port}: {error.strerror or error}. Choose another --port or --host."
        ) from error
    return found


def address_of(listening: socket.socket) -> str:
    """The address as a URL."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def is_loopback(options: Listening) -> bool:
    """Whether only this machine can reach the server."""
    return (options.host or HOST) in ("localhost", "::1") or (options.host or HOST).startswith("127.")


def key_of(options: Listening) -> str | None:
    """The key that clients must give; None if there is none."""
    return options.api_key or os.environ.get(_KEY_VARIABLE) or None


def hosts_of(options: Listening) -> Collection[str] | None:
    """The names in the header `Host` that are answered; None for all."""
    from kad.server.guard import LOOPBACK

    return (*LOOPBACK, options.host or HOST) if is_loopback(options) else None


def app_of(model: Loaded, name: str, options: Listening, *, draft_tokens: int | str | None = None) -> FastAPI:
    """The application for a pair.

    Args:
        model: the pair.
        name: the name under which it is served.
        options: whom to answer.
        draft_tokens: how many tokens are drafted at a time where a request does not say; see `kad.generate`.
    """
    from kad.server.app import make_app

    return make_app(
        model, name,
        api_key=key_of(options),
        hosts=hosts_of(options),
        origins=options.cors,
        most_requests=options.max_requests or MAX_REQUESTS,
        draft_tokens=draft_tokens,
    )  # fmt: skip


def server_of(app: ASGIApp) -> uvicorn.Server:
    """What runs an application: `server_of(app).run(sockets=[listening])`, until Ctrl-C."""
    import uvicorn

    config = uvicorn.Config(
        app,
        log_level="warning",
        timeout_graceful_shutdown=_SECONDS_TO_END,
        server_header=False,
        lifespan="on",
    )
    return uvicorn.Server(config)
