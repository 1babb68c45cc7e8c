"""A base model on a server, over links with a delay: tokens a second, requests and bytes a token.

python -m benchmarks.remote --url http://127.0.0.1:8000/v1 --questions 12

The server is one that runs the embedded family's big base model, such as an unmodified vLLM:

vllm serve src/kad/tiny/weights/big-base --max-model-len 512 --dtype float32

The delay is that of a proxy on this machine, which holds every request back for the time of a round trip. Beside it
stands the way of Nudging: the base model writes a word a request. Its figures are for the same text and for the base
model's requests alone, so that its small model costs nothing here.
"""

from __future__ import annotations

import argparse
import http.client
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import torch

import kad
from benchmarks.harness import save
from kad.engines.remote.client import Client
from kad.text.prompts import encode
from kad.tiny.problems import problems

DELAYS = (0, 20, 100)
DRAFTS = (0, 4, 8, "auto")
SAMPLING = kad.Sampling(temperature=0, max_new_tokens=80)


@contextmanager
def far(url: str, milliseconds: float) -> Iterator[str]:
    """A proxy before a server that lies so many milliseconds away, there and back."""
    place = urlsplit(url)

    class Handler(BaseHTTPRequestHandler):
        protocol_version, disable_nagle_algorithm = "HTTP/1.1", True

        def setup(self) -> None:
            super().setup()
            self.behind = http.client.HTTPConnection(str(place.hostname), place.port)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            time.sleep(milliseconds / 1000)
            self.behind.request(self.command, self.path, body or None, {"Content-Type": "application/json"})
            response = self.behind.getresponse()
            raw = response.read()
            head = f"HTTP/1.1 {response.status} X\r\nContent-Length: {len(raw)}\r\n\r\n"
            self.wfile.write(head.encode() + raw)

        do_GET = do_POST

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}{place.path}"
    server.shutdown()
    server.server_close()


def measured(pair: Any, questions: list[str], drafts: Any) -> dict[str, float]:
    """kad's way: tokens a second (the median of the answers), requests and bytes a token."""
    traffic = pair.models["base"].client.traffic
    before, tokens, speeds = (traffic.requests, traffic.sent, traffic.received), 0, []
    for question in questions:
        answer = kad.generate(pair, question, sampling=SAMPLING, num_draft_tokens=drafts, origins=False)
        tokens += len(answer.token_ids)
        speeds.append(answer.tokens_per_second)
    counts = (traffic.requests - before[0], traffic.sent - before[1], traffic.received - before[2])
    return _figures(statistics.median(speeds), tokens, *counts)


def nudged(url: str, pair: Any, questions: list[str], texts: list[list[int]], name: str) -> dict[str, float]:
    """Nudging's way over the same texts: one request for every word, with the probabilities of its tokens."""
    client, tokens, speeds = Client(url), 0, []
    for question, ids in zip(questions, texts, strict=True):
        prompt = encode(pair.tokenizer, question)
        started = time.perf_counter()
        for start, end in _words(pair.tokenizer, ids):
            body = {"model": name, "prompt": [*prompt, *ids[:start]], "max_tokens": end - start, "temperature": 0}
            client.ask("/completions", {**body, "logprobs": 1})
        speeds.append(len(ids) / (time.perf_counter() - started))
        tokens += len(ids)
    traffic = client.traffic
    return _figures(statistics.median(speeds), tokens, traffic.requests, traffic.sent, traffic.received)


def _words(tokenizer: Any, ids: list[int]) -> Iterator[tuple[int, int]]:
    """Where each word of a text begins and ends, in tokens."""
    starts = [0, *(at for at in range(1, len(ids)) if tokenizer.decode([ids[at]]).startswith((" ", "\n")))]
    yield from zip(starts, [*starts[1:], len(ids)], strict=True)


def _figures(speed: float, tokens: int, requests: int, sent: int, received: int) -> dict[str, float]:
    return {
        "tokens_per_second": round(speed, 2),
        "requests_per_token": round(requests / tokens, 3),
        "bytes_sent_per_token": round(sent / tokens, 1),
        "bytes_received_per_token": round(received / tokens, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--questions", type=int, default=12)
    parser.add_argument("--server", default="vLLM", help="what to call it in the result")
    options = parser.parse_args()
    torch.set_num_threads(1)
    questions = [problem.question for problem in problems("held-out", options.questions)]
    rows = []
    for delay in DELAYS:
        with far(options.url, delay) as url:
            pair = kad.load(base=url, base_tokenizer="tiny:big-base", aligned="tiny:small-aligned", dtype="float32")
            texts = [kad.generate(pair, one, sampling=SAMPLING, origins=False).token_ids for one in questions]
            for drafts in DRAFTS:
                rows.append({"way": "kad", "delay_ms": delay, "drafts": drafts, **measured(pair, questions, drafts)})
                print(rows[-1], flush=True)
            name = pair.models["base"].dialect.name
            rows.append({"way": "a word a request", "delay_ms": delay, **nudged(url, pair, questions, texts, name)})
            print(rows[-1], flush=True)
    save("remote", {"server": options.server, "rule": str(pair.rule), "questions": len(questions), "rows": rows})


if __name__ == "__main__":
    main()
