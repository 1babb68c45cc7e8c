"""How to ask each kind of server for the most probable tokens: that of vLLM, which kad's own speaks, and llama.cpp's.

Of a server it is found out which one it is, which model it has, and whether its tokens are those of our tokenizer.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from kad.engines.remote.client import Client, Refused
from kad.errors import PairError, ServerError, VocabularyError
from kad.words import shown

# (token, log-probability), the most probable first.
List = list[tuple[int, float]]
_BYTES = 256  # more than a token of a list takes
_PROBES = (
    "The cat sat on 12 mats, and it was 3.14159 o'clock; WASN'T it?\n\tdef f(x):\n        return x ** 2  # ok\n",
    "Zażółć gęślą jaźń — «déjà vu» — Ελληνικά, русский, 中文字符, 日本語, 한국어, العربية. 🙂👩‍👩‍👧",
)


class Dialect(ABC):
    """One model on one server.

    Args:
        client: asks the server.
        name: the model's name there.

    Attributes:
        context_length: the positions that the server has. None if it does not say.
        parameters: the number of the model's weights. None if it does not say.
    """

    longer = ""  # how to start this server so that it gives longer lists
    context_length: int | None = None
    parameters: int | None = None

    def __init__(self, client: Client, name: str) -> None:
        self.client, self.name = client, name

    def lists(self, prompts: Sequence[Sequence[int]], count: int) -> list[List]:
        """The `count` most probable tokens after each prompt.

        Raises:
            ServerError: no answer, or none that makes sense.
            Refused: the server says no.
        """
        answer = self._ask(prompts, count, limit=_BYTES * len(prompts) * (count + 4))
        try:
            found = self._read(answer)
            lists = [sorted(one, key=lambda pair: -pair[1])[:count] for one in found]
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ServerError(
                f"The base model's server {self.client.host} answers in a form that kad does not know: "
                f"{shown(repr(error))}."
            ) from error
        if len(lists) != len(prompts) or not all(map(_is_list, lists)):
            raise ServerError(
                f"The base model's server {self.client.host} gives no log-probabilities of the next token, or NaN, "
                f"after a text of {len(prompts[0])} tokens."
            )
        return lists

    @abstractmethod
    def _ask(self, prompts: Sequence[Sequence[int]], count: int, limit: int) -> Any: ...

    @abstractmethod
    def _read(self, answer: Any) -> list[List]: ...

    def text_after(self, token: int) -> str | None:
        """The text of the most probable token after this one. None: the server does not say."""
        return None

    @abstractmethod
    def tokens_of(self, text: str) -> list[int] | None:
        """The tokens of a text without special ones. None: the server has no way to say.

        Raises:
            ServerError: no answer.
        """


class Completions(Dialect):
    """Completions of the OpenAI API with what vLLM adds: prompts are token ids, and tokens are named by theirs."""

    longer = "start vLLM with a larger --max-logprobs"

    def _ask(self, prompts: Sequence[Sequence[int]], count: int, limit: int) -> Any:
        return self.client.ask(
            "/completions",
            {
                "model": self.name,
                "prompt": prompts,
                "max_tokens": 1,
                "temperature": 0,
                "logprobs": count,
                "return_tokens_as_token_ids": True,
            },
            limit=limit,
        )

    def _read(self, answer: Any) -> list[List]:
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        tops = [choice["logprobs"]["top_logprobs"][0] for choice in choices]
        return [[(int(name.removeprefix("token_id:")), float(value)) for name, value in top.items()] for top in tops]

    def text_after(self, token: int) -> str | None:
        body = {"model": self.name, "prompt": [[token]], "max_tokens": 1, "temperature": 0, "logprobs": 1}
        try:
            (text,) = self.client.ask("/completions", body)["choices"][0]["logprobs"]["top_logprobs"][0]
        except (Refused, LookupError, TypeError, ValueError):
            return None
        return None if not isinstance(text, str) or text.startswith("token_id:") else text

    def tokens_of(self, text: str) -> list[int] | None:
        return _tokens(self.client, {"model": self.name, "prompt": text, "add_special_tokens": False})


class LlamaServer(Dialect):
    """llama.cpp's own server."""

    longer = "give a server that names more tokens"

    def _ask(self, prompts: Sequence[Sequence[int]], count: int, limit: int) -> Any:
        body = {
            "prompt": prompts,
            "n_predict": 1,
            "n_probs": count,
            "temperature": 0,
            "cache_prompt": True,
            "response_fields": ["completion_probabilities"],
        }
        return self.client.ask("/../completion", body, limit=limit)

    def _read(self, answer: Any) -> list[List]:
        several = answer if isinstance(answer, list) else [answer]  # in the order of the prompts
        tops = [one["completion_probabilities"][0]["top_logprobs"] for one in several]
        return [[(int(entry["id"]), float(entry["logprob"])) for entry in top] for top in tops]

    def tokens_of(self, text: str) -> list[int] | None:
        return _tokens(self.client, {"content": text, "add_special": False})


def find(client: Client, served: str | None) -> Dialect:
    """The model on a server, asked in the server's own way.

    Args:
        client: asks the server.
        served: the model's name there. None: it is the only one.

    Raises:
        ServerError: the server cannot be reached.
        PairError: it is no such server, or it has no such model.
    """
    try:
        models = client.ask("/models", patient=False)["data"]
        entries = {str(model["id"]): model for model in models}
    except Refused as refusal:
        hint = "Set KAD_BASE_API_KEY to its key." if refusal.status in (401, 403) else "Its address ends in /v1."
        raise PairError(f"{client.host} does not say which models it has ({refusal}). {hint}") from refusal
    except (LookupError, TypeError, AttributeError) as error:
        raise PairError(f"{client.host} does not say which models it has. Its address ends in /v1.") from error
    names = ", ".join(map(shown, entries))
    if served is not None and served not in entries:
        raise PairError(f"{client.host} has no model {served!r}. It has: {names}.")
    if served is None and len(entries) != 1:
        raise PairError(f"{client.host} has several models. Write {client.host}/v1#NAME with one of: {names}.")
    name = next(iter(entries)) if served is None else served
    entry = entries[name]
    owner = entry.get("owned_by")
    dialect: Dialect = LlamaServer(client, name) if owner == "llamacpp" else Completions(client, name)
    if owner == "llamacpp":
        meta = entry.get("meta") or {}
        dialect.parameters, dialect.context_length = _number(meta.get("n_params")), _number(meta.get("n_ctx"))
    else:
        dialect.context_length = _number(entry.get("max_model_len"))
    return dialect


def check_tokens(dialect: Dialect, tokenizer: Any, start: int) -> None:
    """Refuse a server whose tokens are not those of our tokenizer.

    Args:
        dialect: the server.
        tokenizer: our tokenizer.
        start: a token to begin a text with.

    Raises:
        VocabularyError: they differ.
        PairError: the server does not speak the dialect.
    """
    for text in _PROBES:
        theirs = dialect.tokens_of(text)
        if theirs is None:  # then by the texts of single tokens
            break
        ours = tokenizer.encode(text, add_special_tokens=False)
        if theirs != ours:
            place = next((at for at, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other), -1)
            raise VocabularyError(
                f"The server {dialect.client.host} has another tokenizer than `base_tokenizer`: of {text[:20]!r}... it "
                f"makes {len(theirs)} tokens, the tokenizer {len(ours)}, and token {place} differs. Name the tokenizer "
                f"of the model that it serves, {shown(dialect.name)}."
            )
    try:
        (found,) = dialect.lists([[start]], 1)
    except Refused as refusal:
        raise PairError(
            f"The server {dialect.client.host} does not give the most probable tokens of {shown(dialect.name)} "
            f"({refusal}). It must be vLLM, llama.cpp's server or kad's own."
        ) from refusal
    token = found[0][0]
    own = decode_token(tokenizer, token) if token < len(tokenizer) else None
    said = dialect.text_after(start)
    if own is None or (said is not None and "\ufffd" not in said and said.strip() != own.strip()):
        raise VocabularyError(
            f"The server {dialect.client.host} names the token {token}, {shown(repr(said))}, which is {own!r} for "
            f"`base_tokenizer`. Name the tokenizer of the model that it serves, {shown(dialect.name)}."
        )


def decode_token(tokenizer: Any, token: int) -> str:
    """The text of one token."""
    return str(tokenizer.decode([token]))


def largest(refusal: Refused, asked: int) -> int | None:
    """The longest list that a server gives, from its words when it refused a longer one. None: it does not say."""
    numbers = [int(number) for number in re.findall(r"\d+", refusal.text)]
    below = [number for number in numbers if 0 < number < asked]
    return below[-1] if refusal.status in (400, 422) and below else None


def _tokens(client: Client, body: dict[str, Any]) -> list[int] | None:
    try:
        found = client.ask("/../tokenize", body)["tokens"]
    except (Refused, LookupError, TypeError):
        return None
    return list(found) if isinstance(found, list) else None


def _is_list(found: List) -> bool:
    return bool(found) and all(math.isfinite(value) and value <= 1e-3 and token >= 0 for token, value in found)


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and value > 0 else None
