"""Who may use the server, and how large a request may be. This is checked before anything else reads a request.

A page of another origin could otherwise use a server on the reader's own machine: browsers let any page send requests
to localhost, and a name that its owner points to 127.0.0.1 makes even the answers readable. So the `Host` must be one
of this machine's own names, and an `Origin` must be the server's own or an allowed one.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kad.server.listening import LOOPBACK
from kad.server.refusals import Refusal

_SECONDS_TO_SEND = 30.0
_SECONDS_TO_READ = 60.0
# Whether the server lives may be asked without a key. So may the page of the playground, which has a guard of its own.
_OPEN = ("/health",)


@dataclass(frozen=True)
class Guard:
    """An ASGI application around another one.

    Attributes:
        app: the application inside.
        api_key: asked for as `Authorization: Bearer KEY`. None asks for none.
        hosts: the names in `Host` that are answered. None answers all.
        origins: origins of other pages that may use the server. "*" allows all.
        most_bytes: the largest body of a request.
    """

    app: ASGIApp
    api_key: str | None = None
    hosts: Collection[str] | None = LOOPBACK
    origins: Collection[str] = ()
    most_bytes: int = 4 << 20

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            self._check(scope)
            body = await self._body(Headers(scope=scope), receive)
        except Refusal as refusal:
            await refusal.response()(scope, receive, send)
            return
        await self.app(scope, _Replay(body, receive), _patient(send))

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self.hosts is not None and _name(host) not in self.hosts:
            raise Refusal(
                403, f"This server answers only to {', '.join(self.hosts)}, and not to {host[:80]!r}.", code="host"
            )
        origin = headers.get("origin")
        if origin is not None and not self._allows(origin, host):
            raise Refusal(
                403, f"Pages of {origin[:80]!r} may not use this server. Allow it with --cors.", code="origin"
            )
        keyed = scope["path"] not in _OPEN
        if self.api_key is not None and keyed and not _equal(headers.get("authorization", ""), self.api_key):
            raise Refusal(401, "Give the key of this server: Authorization: Bearer KEY.", code="invalid_api_key")

    def _allows(self, origin: str, host: str) -> bool:
        return "*" in self.origins or origin in self.origins or (host != "" and urlsplit(origin).netloc == host)

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        """The whole body, if it is not too large and comes in time."""
        too_large = Refusal(413, f"The request is larger than {self.most_bytes:,} bytes.", code="too_large")
        announced = headers.get("content-length", "0")
        if announced.isdigit() and int(announced) > self.most_bytes:
            raise too_large
        parts, length = [], 0
        try:
            async with asyncio.timeout(_SECONDS_TO_SEND):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return b""
                    parts.append(message.get("body", b""))
                    length += len(parts[-1])
                    if length > self.most_bytes:
                        raise too_large
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise Refusal(408, "The request did not arrive in time.") from None


class _Replay:
    """A `receive` that returns a body again that was read already, and then passes on what the client sends."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        if self._body is None:
            return await self._receive()
        message = {"type": "http.request", "body": self._body, "more_body": False}
        self._body = None
        return message


def _patient(send: Send) -> Send:
    """Send, but wait only so long for a client that does not read."""

    async def patient(message: Message) -> None:
        async with asyncio.timeout(_SECONDS_TO_READ):
            await send(message)

    return patient


def _name(host: str) -> str:
    """The name in a `Host` header, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


def _equal(header: str, key: str) -> bool:
    kind, _, sent = header.partition(" ")
    # Starlette decodes every header as Latin-1.
    return kind.lower() == "bearer" and hmac.compare_digest(sent.strip().encode("latin-1"), key.encode())
