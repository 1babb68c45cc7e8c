"""Where a server listens and which clients it answers: options of `kad serve` and `kad playground`. Cheap to import."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated, ClassVar

from kad.errors import OptionError, UsageError, missing_extra
from kad.options import Option, check_fields

HOST, PORT, MAX_REQUESTS = "127.0.0.1", 8000, 64
LOOPBACK = ("localhost", "127.0.0.1", "::1")
_KEY_VARIABLE = "KAD_API_KEY"


@dataclass(frozen=True)
class Listening:
    """Where a server listens, and which clients it answers."""

    PANEL: ClassVar[str] = "Server"

    host: Annotated[
        str | None,
        Option("The address to listen at. 0.0.0.0 is every address of this machine.", "ADDRESS", shown=HOST),
    ] = None
    port: Annotated[int | None, Option("The port; 0 takes a free one.", "N", allowed="[0, 65535]", shown=str(PORT))] = (
        None
    )
    api_key: Annotated[
        str | None,
        Option("A key that clients must give. Other users can see a command line: better set KAD_API_KEY.", "KEY"),
    ] = None
    cors: Annotated[
        tuple[str, ...],
        Option(
            "An origin whose pages may use the server, like http://localhost:3000; may be given several times. * is "
            "every page.",
            "ORIGIN",
        ),
    ] = ()
    max_requests: Annotated[
        int | None,
        Option(
            "The most requests at a time, the waiting ones included. More get status 429.", "N", allowed=">= 1",
            shown=str(MAX_REQUESTS),
        ),
    ] = None  # fmt: skip

    def __post_init__(self) -> None:
        check_fields(self)
        self.key  # noqa: B018  (an empty one is refused here)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return self.host is None or self.host in ("localhost", "::1") or self.host.startswith("127.")

    @property
    def key(self) -> str | None:
        """The key that clients must give; None if there is none.

        Raises:
            UsageError: an empty one. Whoever gives it wants a key, and would have none.
        """
        key = os.environ.get(_KEY_VARIABLE) if self.api_key is None else self.api_key
        if key is not None and not key.strip():
            name = f"The variable {_KEY_VARIABLE}" if self.api_key is None else "`api_key`"
            raise OptionError(f"{name} is empty. Give a key, or leave it out for a server without one.")
        return key

    @property
    def names(self) -> tuple[str, ...] | None:
        """The names in the header `Host` that are answered; None for all."""
        return (*LOOPBACK, self.host or HOST) if self.is_loopback else None


def check_installed() -> None:
    """Raise MissingExtraError unless the packages of the server are installed."""
    for package in ("fastapi", "uvicorn"):
        if find_spec(package) is None:
            raise missing_extra("server", package)


def listen(options: Listening) -> socket.socket:
    """A socket at the address, before the models are loaded: clients that connect early wait.

    Raises:
        UsageError: nothing can listen there.
    """
    host, port = options.host or HOST, PORT if options.port is None else options.port
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        # With its protocol, asyncio sends small writes at once. Else each answer waits 40 ms for the client's system.
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
    except OSError as error:
        raise UsageError(
            f"Cannot listen at {host} port {port}: {error.strerror or error}. Choose another --port or --host."
        ) from error
    return listening


def address_of(listening: socket.socket) -> str:
    """The address as a URL."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
