"""Requests that a broken or hostile client may send, as bytes, and the status that each must get.

Against kad's own server by test_server_openai.py, against vLLM's by tests/vllm/fuzz.py.
"""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
JSON = "application/json"
OF_VLLM = (422, 413, 415)
_NAN, _INF = float("nan"), float("inf")
_NO_JSON = {
    "nothing": b"",
    "half an object": b"{",
    "a list": b"[]",
    "null": b"null",
    "a text": b'"Hi"',
    "no UTF-8": b"\xff",
    "UTF-16": '{"model": "x"}'.encode("utf-16"),
    "two objects": b"{}{}",
    "a form": b"model=x&messages=y",
    "100,000 lists in each other": b"[" * 100_000,
    "100,000 objects in each other": b'{"a":' * 100_000,
    "a number of 5,000 digits": b'{"model": ' + b"1" * 5000 + b"}",
}
# Field: values that are refused, each alone in a request that is good otherwise.
_CHAT: dict[str, list[Any]] = {
    "model": [7, ["x"], {}],
    "messages": ["Hi", {}, [None], [7], [{"role": 7, "content": "x"}], [{"content": "Hi"}], [[{"role": "user"}]]],
    "temperature": ["hot", [], {}, -1, _NAN, _INF, -_INF],
    "top_p": ["x", -1, 3, _NAN],
    "top_k": ["x", 1.5, -7],
    "min_p": [-1, 2, _NAN],
    "max_tokens": ["x", 0, -1, 1.5, 10**400],
    "n": ["x", 0, -1, 1.5, 10**9],
    "seed": ["x", 1.5, 1 << 70],
    "presence_penalty": ["x", 9, _NAN],
    "frequency_penalty": [[], -9, _INF],
    "repetition_penalty": [0, -1, _NAN],
    "stop": [7, [7], {"a": 1}],
    "logit_bias": [[1], {"x": 1}, {"5": "x"}, {"99999999": 1}],
    "stream": ["perhaps", 7],
    "top_logprobs": ["x", -5, 10**6],
    "response_format": [7, {"type": "no"}, {"type": "json_schema"}],
    "vllm_xargs": [
        7,
        {"rule": 7},
        {"rule": "duel"},
        {"rule": "dual:threshold=nan"},
        {"rule": "a" * 100_000},
        {"rule": "a" * 4_000_000},
    ],
}
_TEXT: dict[str, list[Any]] = {"prompt": [7, {}, [-1], [10**9], [1.5], [[]], [None], "x " * 5000]}


class Request(NamedTuple):
    """One request: its body, where it goes, and the statuses that may come back."""

    name: str
    body: bytes
    path: str = CHAT
    kind: str | None = JSON
    allowed: tuple[int, ...] = (400,)


def requests(model: str) -> list[Request]:
    """All of them, for a server that serves this model."""
    chat = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    text = {"model": model, "prompt": "Hi", "max_tokens": 2}
    found = [Request(name, body) for name, body in _NO_JSON.items()]
    found += [Request(f"{name}, of no type", body, kind=None) for name, body in _NO_JSON.items()]
    for path, good, changes in ((CHAT, chat, _CHAT), (TEXT, text, _TEXT)):
        for field, values in changes.items():
            without = {name: value for name, value in good.items() if name != field}
            for value in values:
                # The digits are written out: json.dumps refuses numbers that are too long to print.
                shown = "1" + "0" * 400 if value == 10**400 else json.dumps(value)
                body = json.dumps(without)[:-1] + f', "{field}": {shown}}}'
                found.append(Request(f"{field}: {shown[:60]}", body.encode(), path))
    found.append(Request("another model", json.dumps(chat | {"model": "gpt"}).encode(), allowed=(404,)))
    found.append(Request("another place", json.dumps(chat).encode(), "/v1/../../etc", allowed=(404,)))
    return found


def broken_off(address: str) -> None:
    """Connections that end in the middle of a request, or that carry no HTTP."""
    head = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {JSON}\r\n"
    place = urlsplit(address)
    heads = ["Content-Length: 900\r\n\r\n{", "Content-Length: -1\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\nzz\r\n"]
    for sent in ("", "\0\xff\r\n\r\n", head, *(head + more for more in heads), f"{head}X: {'y' * 100_000}\r\n\r\n"):
        with socket.create_connection((place.hostname, place.port), timeout=10) as line, suppress(ConnectionError):
            line.sendall(sent.encode("latin-1"))


def wrong(address: str, model: str, others: tuple[int, ...] = ()) -> list[str]:
    """What came back and should not have; `others` are statuses that vLLM may answer with, too.

    At the end the server must be healthy, and answer a good request.
    """
    found = []
    with httpx.Client(base_url=address, timeout=60, trust_env=False) as http:
        for asked in requests(model):
            headers = {"Content-Type": asked.kind} if asked.kind else {}
            got = http.post(asked.path, content=asked.body, headers=headers)
            error, said = got.json().get("error"), got.json().get("detail")
            explained = (error or said) if others else (error or {}).get("message")
            if got.status_code not in asked.allowed + others or not explained:
                found.append(f"{asked.name}: {got.status_code} {got.text[:200]}")
        broken_off(address)
        good = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
        for got in (http.get("/health"), http.post(CHAT, json=good)):
            if got.status_code != 200:
                found.append(f"afterwards: {got.status_code} {got.text[:200]}")
    return found
