"""A real server in a thread of this process: uvicorn, a port of its own, and whatever model it is given."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn

from kad.server.app import make_app
from kad.server.options import Listening
from kad.server.run import address_of, listen


@contextmanager
def running(model: Any, name: str = "pair", **options: Any) -> Iterator[str]:
    """The address of a server that runs until the block is left."""
    app = make_app(model, name, **options)
    with serving(uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))) as address:
        yield address


@contextmanager
def serving(server: uvicorn.Server, seconds_to_end: float = 30) -> Iterator[str]:
    """The address of a server that runs in a thread until the block is left."""
    listening = listen(Listening(port=0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield address_of(listening)
    finally:
        server.should_exit = True
        thread.join(timeout=seconds_to_end)
        listening.close()
        assert not thread.is_alive()


def client(address: str, **settings: Any) -> httpx.Client:
    """A client without proxies of the environment."""
    return httpx.Client(base_url=address, timeout=60, trust_env=False, **settings)


def events(response: httpx.Response) -> list[tuple[str | None, Any]]:
    """The server-sent events of a stream: their names and data."""
    found, name = [], None
    for line in response.iter_lines():
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            found.append((name, value if value == "[DONE]" else json.loads(value)))
            name = None
    return found


def until(condition: Any, seconds: float = 20) -> None:
    """Wait until something is true; what never becomes true fails the test."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never became true"
        time.sleep(0.01)
