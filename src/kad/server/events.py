"""Answers as one document or as server-sent events. The work on them ends when the client closes the connection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable
from contextlib import suppress
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from kad.server.refusals import ClientGone, refusal_of

Result = TypeVar("Result")


async def unless_gone(receive: Receive, work: Awaitable[Result]) -> Result:
    """The result of some work. If the client closes the connection, it is cancelled, and ClientGone is raised."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for either in (task, watch):
            either.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await either


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def event(data: Any) -> bytes:
    """One server-sent event. `data` becomes JSON on one line."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode("utf-8", "replace")


class EventStream(Response):
    """A stream of server-sent events. Its first event must already be there: until then, an error has a status.

    An error in the middle is an event of its own, {"error": ...}, and the last one.

    Args:
        first: the first event.
        rest: the others. It is closed when the client closes the connection.
    """

    media_type = "text/event-stream"

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes]) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._first, self._rest = first, rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def part(chunk: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": chunk, "more_body": more})

        async def write() -> None:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await part(self._first)
            try:
                async for chunk in self._rest:
                    await part(chunk)
            except (TimeoutError, OSError):
                raise  # the client does not read
            except Exception as error:  # noqa: BLE001  (the status is sent; the error goes the same way as the text)
                await part(event(refusal_of(error).body()))
            await part(b"", more=False)

        try:
            with suppress(ClientGone, TimeoutError, OSError):
                await unless_gone(receive, write())
        finally:
            await self._rest.aclose()
