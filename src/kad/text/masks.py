"""Masks on log pi: a grammar, or functions of the caller. Each is a function of the tokens so far and of log pi.

They act on log pi before temperature, top-k and the rest. So tokens are drawn from pi, changed or conditioned as the
caller says. Drafts go through the same masks, so speculation stays exact, with any engine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from kad.errors import UsageError, first_line, missing_extra
from kad.tokens.token_bytes import TokenBytes

Mask = Callable[[Tensor, Tensor], Tensor]
"""From the ids (1, length) and log pi (1, vocab) to scores (1, vocab), as Transformers' logits processors."""
LONGEST_GRAMMAR = 1 << 17
_LONGEST_MESSAGE = 300


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
        strict = {"whitespace_flexible": False, "lenient": False}
        return self._of("schema", lambda: json.dumps(schema), "grammar_from_json_schema", overrides=strict)

    def of_lark(self, grammar: str) -> Grammar:
        """The grammar that a text of Lark describes; its rule `start` is the whole answer.

        Raises:
            UsageError: it is no such grammar.
            MissingExtraError: llguidance is not installed.
        """
        return self._of("grammar", lambda: grammar, "grammar_from_lark")

    def _of(self, what: str, write: Callable[[], str], reader: str, **options: Any) -> Grammar:
        matcher_of = self._matcher_of  # checks that llguidance is installed
        from llguidance import LLMatcher

        try:
            text = write()
            if len(text) > LONGEST_GRAMMAR:
                raise UsageError(f"The {what} has {len(text):,} characters; at most {LONGEST_GRAMMAR:,} are allowed.")
            # llguidance itself bounds the steps and the memory of a grammar.
            matcher = matcher_of(getattr(LLMatcher, reader)(text, **options))
        except UsageError:
            raise
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(f"The {what} cannot be used: {_short(error)}") from error
        if matcher.is_error():
            raise UsageError(f"The {what} cannot be used: {_short(matcher.get_error())}")
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


@lru_cache(maxsize=4)
def grammars_of(tokenizer: Any, ends: tuple[int, ...]) -> Grammars:
    """The same as `Grammars`, made once: it reads the whole vocabulary."""
    return Grammars(tokenizer, ends)


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

        With the length of the prompt given, this is a `Mask`.
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
            raise UsageError(f"The text cannot go on under this grammar: {_short(self._matcher.get_error())}")
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
