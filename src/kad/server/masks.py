"""Masks on log pi: penalties and biases of the OpenAI API, and JSON schemas. Functions of the answer's tokens so far.

They act on log pi before temperature, top-k and the rest. So tokens are drawn from pi, changed or conditioned as the
request says. Drafts go through the same masks, so speculation stays exact, with any engine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from kad.errors import UsageError, first_line, missing_extra
from kad.tokens.token_bytes import TokenBytes

LONGEST_SCHEMA = 1 << 17
_LONGEST_MESSAGE = 300


@dataclass(frozen=True)
class Penalties:
    """What is added to the score of a token v that occurs c times in the answer so far:
    bias[v] - frequency * c - presence * [c > 0]. This is the definition of the OpenAI API, with log pi as the scores.

    Attributes:
        frequency: what each occurrence costs.
        presence: what having occurred costs.
        bias: a number for some tokens.
    """

    frequency: float = 0.0
    presence: float = 0.0
    bias: Mapping[int, float] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.frequency or self.presence or self.bias)

    def mask(self, prompt_tokens: int, ids: Tensor, scores: Tensor) -> Tensor:
        """The scores (1, vocab) after ids (1, length), whose answer begins after the prompt.

        With the length of the prompt given, this is a `kad.text.streaming.Mask`.
        """
        counts = torch.bincount(ids[0, prompt_tokens:], minlength=scores.shape[-1])
        changed = scores - self.frequency * counts - self.presence * (counts > 0)
        if self.bias:
            tokens = torch.tensor(list(self.bias), device=scores.device)
            changed[0, tokens] += torch.tensor(list(self.bias.values()), dtype=scores.dtype, device=scores.device)
        return changed


class Grammars:
    """Makes grammars for the tokenizer of the aligned model. `ends` are the tokens that end a text."""

    def __init__(self, tokenizer: Any, ends: Sequence[int]) -> None:
        self._tokenizer, self._ends = tokenizer, list(ends)

    def of_schema(self, schema: dict[str, Any]) -> Grammar:
        """The grammar of JSON texts of a schema, without white space between their parts.

        Raises:
            UsageError: a schema that cannot be followed exactly.
            MissingExtraError: llguidance is not installed.
        """
        matcher_of = self._matcher_of  # checks that llguidance is installed
        from llguidance import LLMatcher

        try:
            text = json.dumps(schema)
            if len(text) > LONGEST_SCHEMA:
                raise UsageError(f"The schema has {len(text):,} characters; at most {LONGEST_SCHEMA:,} are allowed.")
            # llguidance itself bounds the steps and the memory of a grammar.
            grammar = LLMatcher.grammar_from_json_schema(
                text, overrides={"whitespace_flexible": False, "lenient": False}
            )
        except UsageError:
            raise
        except (ValueError, RecursionError) as error:
            raise UsageError(f"The schema cannot be used: {_short(error)}") from error
        matcher = matcher_of(grammar)
        if matcher.is_error():
            raise UsageError(f"The schema cannot be used: {_short(matcher.get_error())}")
        return Grammar(matcher, self._ends)

    @cached_property
    def _matcher_of(self) -> Any:
        try:
            from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
        except ModuleNotFoundError as error:
            raise missing_extra("server", "llguidance") from error
        if not self._ends:
            raise UsageError("This pair has no token that ends a text, so a grammar could not end it.")
        known = LLTokenizer(TokenizerWrapper(_Tokens(self._tokenizer, self._ends)), eos_token=self._ends)
        return lambda grammar: LLMatcher(known, grammar)


class Grammar:
    """The tokens that may follow a prefix of a text, for prefixes in any order.

    Speculative decoding asks for the scores after drafts, and then after other tokens. The matcher goes back to what
    two prefixes share.
    """

    def __init__(self, matcher: Any, ends: Sequence[int]) -> None:
        self._matcher, self._ends = matcher, frozenset(ends)
        self._read: list[int] = []

    def mask(self, prompt_tokens: int, ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (1, vocab) with -inf for what may not follow ids (1, length), whose text begins after the prompt.

        With the length of the prompt given, this is a `kad.text.streaming.Mask`.
        """
        allowed = self._allowed(ids[0, prompt_tokens:].tolist(), scores.shape[-1]).to(scores.device)
        return scores.masked_fill(~allowed, -torch.inf)

    def _allowed(self, text: list[int], size: int) -> Tensor:
        """(size,), whether a token may follow."""
        if not self._ends.isdisjoint(text):  # nothing that follows an end is ever emitted
            return torch.ones(size, dtype=torch.bool)
        pairs = enumerate(zip(self._read, text, strict=False))
        shared = next((place for place, (a, b) in pairs if a != b), min(len(self._read), len(text)))
        self._matcher.rollback(len(self._read) - shared)
        self._matcher.consume_tokens(text[shared:])
        self._read = text
        bits = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8)
        if self._matcher.is_error():
            raise UsageError(f"The text cannot go on under this schema: {_short(self._matcher.get_error())}")
        flags = ((bits.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8)) & 1).flatten().bool()
        allowed = torch.zeros(size, dtype=torch.bool)
        count = min(size, len(flags))
        allowed[:count] = flags[:count]
        return allowed


class _Tokens:
    """A tokenizer as llguidance wants it."""

    def __init__(self, tokenizer: Any, ends: Sequence[int]) -> None:
        size = len(tokenizer)
        view = TokenBytes.of(tokenizer, size)
        self.eos_token_id, self.bos_token_id = ends[0], None
        self.special_token_ids = [token for token, piece in enumerate(view.pieces) if not piece]
        # A special token has a name for llguidance, which no text can contain.
        self.tokens = [piece or b"\xff" + f"[{token}]".encode() for token, piece in enumerate(view.pieces)]
        self._view = view

    def __call__(self, text: bytes | str) -> list[int]:
        return list(self._view.encode(text.encode() if isinstance(text, str) else text))


def _short(error: object) -> str:
    text = first_line(error or "no reason given")
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]}..."
