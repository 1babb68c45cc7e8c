"""The check of a teacher: does a server of vLLM that has just started give log pi as its `prompt_logprobs`?

A trainer sends texts as token ids and reads the log-probabilities of each of their tokens. So one text is asked for,
over the whole vocabulary and under several rules: p alone, q* alone, the pair's own. The first ones, composed here,
must be the last. It costs a few forward passes of two tokens, and some megabytes of JSON for a large vocabulary.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from typing import Any

import torch
from torch import Tensor

from kad.errors import KadError, first_line, one_line
from kad.hosts import VLLM
from kad.method.composition import compose
from kad.pair.config import KadConfig
from kad.pair.folder import resolve

_TEXT = "1 + 1 ="
# Total variation. float32 leaves 1e-6. The rest is for bfloat16, where rows depend on what else is in their batch.
_TOLERANCE = 0.02
_SECONDS = 120
_LONGEST_QUOTE = 300


class Server:
    """A server of a pair at an address, as a client sees it.

    Args:
        address: without the path: http://127.0.0.1:8000.
        key: the key that it asks for.
    """

    def __init__(self, address: str, key: str | None = None) -> None:
        self.address = address
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # this machine, past any proxy

    def is_ready(self) -> bool:
        """Whether it answers."""
        try:
            self._open("/health")
        except (OSError, HTTPException):
            return False
        return True

    def rows(self, rules: Sequence[str | None]) -> list[Tensor]:
        """The log-probabilities of one token in a context of one, for every token of the vocabulary: (vocab,) each.

        Args:
            rules: None is the pair's own.

        Raises:
            KadError: the server refuses, or answers something else.
        """
        model = self._ask("/v1/models")["data"][0]["id"]
        prompt = self._ask("/tokenize", {"model": model, "prompt": _TEXT})["tokens"][:2]
        asked = {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": -1}
        return [
            _row(self._ask("/v1/completions", asked | ({} if rule is None else {"vllm_xargs": {"rule": rule}})))
            for rule in rules
        ]

    def _ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        try:
            return json.loads(self._open(path, None if body is None else json.dumps(body).encode()))
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")[:_LONGEST_QUOTE]
            raise KadError(f"{path} was answered with status {error.code}: {said}") from error
        except (OSError, HTTPException, ValueError) as error:
            raise KadError(f"{path} was not answered: {first_line(error)}") from error

    def _open(self, path: str, data: bytes | None = None) -> bytes:
        request = urllib.request.Request(self.address + path, data, self._headers)
        with self._opener.open(request, timeout=_SECONDS) as answer:
            body: bytes = answer.read()
        return body


def _row(answer: Mapping[str, Any]) -> Tensor:
    entries = answer["choices"][0]["prompt_logprobs"][1]
    if sorted(map(int, entries)) != list(range(len(entries))):
        raise KadError(f"prompt_logprobs of the whole vocabulary have {len(entries):,} tokens, with gaps between them")
    return torch.tensor([entries[str(token)]["logprob"] for token in range(len(entries))], dtype=torch.float32)


def problem(server: Server, config: KadConfig) -> str | None:
    """Why a server of the pair `config` is no teacher, in a sentence; None if it is one."""
    # Where there is a reference model: log q* - log q, up to a constant.
    ratio = ["product:base=0,aligned=1"] if config.reference else []
    try:
        own, log_p, log_aligned, *gained = server.rows([None, "base_only", "aligned_only", *ratio])
        log_reference = (log_aligned - gained[0]).log_softmax(-1) if gained else None
        expected = compose(config.parsed_rule, log_p, log_aligned, log_reference)
    except KadError as error:
        return f"This server is no teacher: {error}"
    except (LookupError, TypeError, ValueError) as error:
        return f"This server is no teacher: it answers in another form than vLLM {VLLM.newest} ({one_line(error)})."
    distance = float((expected.exp() - own.exp()).abs().sum() / 2)
    if distance <= _TOLERANCE:
        return None
    return (
        f"This server is no teacher: its prompt_logprobs are not log pi of {config.parsed_rule}. What p and q*, asked "
        f"from the same server, compose to is {distance:.2g} away in total variation. Drop the options that change "
        "logits or log-probabilities."
    )


def started(arguments: Sequence[str]) -> tuple[Server, KadConfig]:
    """The server that `serve PAIR --host HOST --port PORT ...` is, and its pair.

    Args:
        arguments: as `kad serve --teacher` writes them: host and port are there, as two words each.
    """
    words = list(arguments)
    host, port = (words[words.index(name) + 1] for name in ("--host", "--port"))
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    config = resolve(words[words.index("serve") + 1], trust_remote_code="--trust-remote-code" in words)
    return Server(f"http://{f'[{host}]' if ':' in host else host}:{port}", os.environ.get("VLLM_API_KEY")), config
