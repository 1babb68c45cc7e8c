"""A composed model answers: `generate` gives the whole `Answer`, `stream` its pieces as they come."""

from __future__ import annotations

from typing import Any

from kad.engines.base import ComposedModel
from kad.text.answer import Answer
from kad.text.prompts import Prompt, encode
from kad.text.sampling import Sampling
from kad.text.streaming import Stream


def generate(
    model: ComposedModel,
    prompt: Prompt,
    *,
    system: str | None = None,
    thinking: bool | None = None,
    raw: bool = False,
    sampling: Sampling | None = None,
    num_draft_tokens: int | str | None = None,
    rule: Any = None,
    deferral_temperature: float | None = None,
    origins: bool = True,
) -> Answer:
    """The answer of a composed model to a prompt.

    Args:
        model: a pair, as `kad.load` gives it.
        prompt: what the user says, the messages of a conversation, or token ids.
        system: a system message before it.
        thinking: for chat templates with a thinking switch; None leaves it to the template.
        raw: take the text as it stands, without the chat template.
        sampling: how to draw tokens; the aligned model's own settings where it says nothing.
        num_draft_tokens: how many tokens the aligned model drafts at a time. 0 is plain decoding; "auto" learns the
            number by the clock. None drafts where it should pay. The distribution of the text is the same.
        rule, deferral_temperature: replace the model's own for this answer.
        origins: find out which model each token came from, under rules where it comes from one.

    Returns:
        The answer: text, tokens with their origins, times, speculation.

    Raises:
        UsageError: a prompt that cannot be put to the model, options that contradict each other. RuleError: a bad rule.

    Example:
        >>> model = kad.load("tiny")
        >>> answer = kad.generate(model, "Ann has 5 pens. She buys 8 more. How many pens does she have now?")
        >>> answer.text
        'First, 5 + 8 = 13. The answer is \\\\boxed{13}.'
    """
    return stream(
        model, prompt, system=system, thinking=thinking, raw=raw, sampling=sampling, num_draft_tokens=num_draft_tokens,
        rule=rule, deferral_temperature=deferral_temperature, origins=origins,
    ).finish()  # fmt: skip


def stream(
    model: ComposedModel,
    prompt: Prompt,
    *,
    system: str | None = None,
    thinking: bool | None = None,
    raw: bool = False,
    sampling: Sampling | None = None,
    num_draft_tokens: int | str | None = None,
    rule: Any = None,
    deferral_temperature: float | None = None,
    origins: bool = True,
) -> Stream:
    """The pieces of an answer as they come; arguments and errors as `generate`.

    Example:
        >>> for piece in kad.stream(model, "Ann has 5 pens. She buys 8 more. How many pens does she have now?"):
        ...     print(piece.text, piece.base_share, piece.event)
    """
    prompt_ids = encode(model.tokenizer, prompt, system=system, thinking=thinking, raw=raw)
    composition = model.composed_by(rule, deferral_temperature)
    return Stream(model, prompt_ids, composition, sampling or Sampling(), num_draft_tokens, origins=origins)
