"""Servers for the tests of a remote base model: one that answers from a table, and a proxy that does wrong."""

from __future__ import annotations

import http.client
import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

# Given a path and the body of a request, or None: the status and the answer.
Answering = Callable[[str, Any], tuple[int, Any]]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that goes away is no news."""


@contextmanager
def listening(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def answering(answer: Answering, seen: list[Any] | None = None) -> Iterator[str]:
    """A server that answers with JSON, or with bytes as they are. `seen` gets the headers of its requests."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # the head and the body are two writes: the second one would wait 40 ms

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if seen is not None:
                seen.append(dict(self.headers))
            status, said = answer(self.path, json.loads(body) if body else None)
            raw = said if isinstance(said, bytes) else json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw)))
            if status in (301, 302, 307):
                self.send_header("Location", str(said))
            self.end_headers()
            self.wfile.write(raw)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None: ...

    with listening(Handler) as address:
        yield address


def completions(
    rows: Callable[[list[int]], list[float]], tokenize: Any = None, text: Any = "token_id:{}".format
) -> Answering:
    """vLLM's dialect, over what gives the row after some tokens, the tokens of a text, and the text of a token."""

    def answer(path: str, body: Any) -> tuple[int, Any]:
        if path == "/v1/models":
            return 200, {"data": [{"id": "toy", "owned_by": "vllm", "max_model_len": 128}]}
        if path == "/tokenize" and tokenize is not None:
            return 200, {"tokens": tokenize(body["prompt"])}
        if path != "/v1/completions":
            return 404, {"error": {"message": "no such place"}}
        choices = []
        for index, prompt in enumerate(body["prompt"]):
            row = rows(prompt)
            best = sorted(range(len(row)), key=lambda token: -row[token])[: body["logprobs"]]
            named = "token_id:{}".format if body.get("return_tokens_as_token_ids") else text
            names = {named(token): row[token] for token in best}
            choices.append({"index": index, "text": "", "logprobs": {"top_logprobs": [names]}})
        return 200, {"choices": choices[::-1]}

    return answer


FAULTS = ("500", "429", "gone", "half", "garbage", "empty", "late")


@contextmanager
def faulty(address: str, share: float, seed: int = 0, kinds: tuple[str, ...] = FAULTS) -> Iterator[tuple[str, Any]]:
    """A proxy before a server that spoils a share of the answers. Gives its address and the list of its faults."""
    luck, lock, done, place = random.Random(seed), threading.Lock(), list[str](), urlsplit(address)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # the head and the body are two writes: the second one would wait 40 ms

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with lock:
                kind = luck.choice(kinds) if luck.random() < share else ""
                done.extend([kind] if kind else [])
            if kind == "gone":
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            if kind in ("500", "429"):
                self._send(int(kind), b'{"error": {"message": "busy"}}')
                return
            connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=30)
            headers = {"Content-Type": "application/json", "Authorization": self.headers.get("Authorization", "")}
            connection.request(self.command, self.path, body or None, headers)
            response = connection.getresponse()
            raw = response.read()
            connection.close()
            if kind == "late":
                time.sleep(0.3)
            if kind in ("half", "garbage", "empty"):
                cut = {"half": raw[: len(raw) // 2], "garbage": b"<html>", "empty": b""}[kind]
                self._send(200, cut, len(raw) if kind == "half" else len(cut))
                self.close_connection = True
                return
            self._send(response.status, raw)

        do_GET = do_POST

        def _send(self, status: int, raw: bytes, length: int | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw) if length is None else length))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: Any) -> None: ...

    with listening(Handler) as own:
        yield own, done
