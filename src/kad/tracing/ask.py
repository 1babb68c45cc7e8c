"""`kad.trace`: let a pair answer, or take a given answer, and trace it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kad.engines.protocols import check_scorers
from kad.pair.base_prompt import BasePrompt
from kad.text.answer import Answer
from kad.text.contexts import AnyBasePrompt, context_of
from kad.text.generate import stream
from kad.text.prompts import Prompt, text_ids
from kad.text.sampling import Sampling
from kad.tracing.tracer import public_name, trace_tokens

if TYPE_CHECKING:
    from kad.engines.load import Loaded
    from kad.tracing.schema import Trace


def trace(
    model: Loaded,
    prompt: Prompt,
    text: str | Sequence[int] | None = None,
    *,
    system: str | None = None,
    thinking: bool | None = None,
    raw: bool = False,
    base_prompt: AnyBasePrompt | None = None,
    sampling: Sampling | None = None,
    num_draft_tokens: int | str | None = None,
    rule: Any = None,
    deferral_temperature: float | None = None,
) -> Trace:
    """What the rule did at every position of an answer: who each token came from, and the distributions behind it.

    Args:
        model: a pair, as `kad.load` gives it.
        prompt: what the user says, the messages of a conversation, or token ids.
        text: a given answer to trace, or its token ids. By default the pair answers.
        system: see `kad.generate`, also for the other options.
        thinking: for chat templates with a thinking switch.
        raw: use the prompt without the chat template.
        base_prompt: how the base model is asked, see `kad.generate`.
        sampling: how to draw tokens.
        num_draft_tokens: how many tokens the aligned model drafts at a time.
        rule: replaces the model's own rule.
        deferral_temperature: replaces the model's own deferral temperature.

    Raises:
        UsageError: an empty answer, or as `kad.generate`.

    Example:
        >>> kad.trace(model, "Ann has 5 pens. She buys 8 more. How many pens does she have now?").save("trace.html")
    """
    check_scorers(model, "kad.trace")
    question = _question(model, prompt, base_prompt, system=system, thinking=thinking, raw=raw)
    with model.using(rule, deferral_temperature):
        if text is not None:
            context = context_of(model, prompt, system=system, thinking=thinking, raw=raw, base_prompt=base_prompt)
            generation: dict[str, Any] = {"source": "given"} | question
            return trace_tokens(model, model.tokenizer, context, text_ids(model.tokenizer, text), generation=generation)
        answer = stream(
            model, prompt, system=system, thinking=thinking, raw=raw, base_prompt=base_prompt, sampling=sampling,
            num_draft_tokens=num_draft_tokens, origins=False,
        ).finish()  # fmt: skip
        return trace_tokens(
            model, model.tokenizer, answer.prompt, answer.token_ids,
            events=answer.pieces if answer.drafting.speculates else (), generation=how_generated(answer) | question,
        )  # fmt: skip


def _question(model: Loaded, prompt: Prompt, base_prompt: AnyBasePrompt | None, **options: Any) -> dict[str, Any]:
    """The question as it was given, so that the page can show the command that asks it again under another rule."""
    if not isinstance(prompt, str):
        return {}
    words = {name: value for name, value in options.items() if value not in (None, False)}
    own = BasePrompt.named(model.base_prompt if base_prompt is None else base_prompt)
    words |= {"base_prompt": own} if own else {}
    pair = public_name(getattr(model.config, "_name_or_path", ""))
    return {"asked": {"prompt": prompt, **({"pair": pair} if pair else {}), **words}}


def how_generated(answer: Answer) -> dict[str, Any]:
    """`Trace.generation` of an answer."""
    generation: dict[str, Any] = {"source": "generated", "do_sample": answer.seed is not None}
    if answer.seed is not None:
        generation |= {"temperature": answer.temperature, "seed": answer.seed}
    return generation | {"finish_reason": answer.finish_reason, "draft_tokens": answer.drafting.draft_tokens}
