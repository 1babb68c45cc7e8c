"""A real server in a thread of this process: uvicorn, a port of its own, and whatever model it is given."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import httpx
import uvicorn

from kad.server.app import make_app
from kad.server.connections import server_of
from kad.server.listening import Listening, address_of, listen


@contextmanager
def running(model: Any, name: str = "pair", **options: Any) -> Iterator[str]:
    """The address of a server that runs until the block is left."""
    chosen = Listening(**options)
    with serving(server_of(make_app(model, name, chosen), chosen)) as address:
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


def events(response: httpx.Response) -> list[Any]:
    """The data of the server-sent events of a stream."""
    lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


class Detailed(NamedTuple):
    """A chat completion as a stream with the field `kad`.

    Attributes:
        tokens: what the field says of each token.
        end: what it says at the end.
        content: the text for those who do not know the field.
        usage: the counts.
    """

    tokens: list[dict[str, Any]]
    end: dict[str, Any]
    content: str
    usage: dict[str, Any]


def detailed(http: httpx.Client, request: dict[str, Any], **field: Any) -> Detailed:
    """The stream of an answer, asked for with this field `kad`."""
    body = {"stream": True, "stream_options": {"include_usage": True}, "kad": field, **request}
    with http.stream("POST", "/v1/chat/completions", json=body) as response:
        *chunks, usage, done = events(response)
    assert (done, usage["choices"]) == ("[DONE]", [])
    *tokens, end = [chunk["kad"] for chunk in chunks if "kad" in chunk]
    assert [set(token) - {"trace"} for token in tokens] == [{"position", "vocabulary", "seconds"}] * len(tokens)
    assert ["trace" in token for token in tokens] == [True] + [False] * (len(tokens) - 1)
    assert set(end) == {"text", "generation", "tokens_per_second"}
    content = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    return Detailed(tokens, end, content, usage["usage"])


def until(condition: Any, seconds: float = 20) -> None:
    """Wait until something is true; what never becomes true fails the test."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never became true"
        time.sleep(0.01)
