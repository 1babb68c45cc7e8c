"""`kad.trace`: let a pair answer, or take a given answer, and trace it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Unpack

from kad.engines.pair import pair_of
from kad.pair.base_prompt import BasePrompt
from kad.text.answer import Answer
from kad.text.answering import stream
from kad.text.contexts import Asking
from kad.text.keywords import Answered, asking, check
from kad.text.prompts import Prompt, text_ids
from kad.tracing.tracer import public_name, trace_tokens

if TYPE_CHECKING:
    from kad.engines.load import Loaded
    from kad.engines.pair import Pair
    from kad.tracing.schema import Trace


def trace(
    model: Loaded, prompt: Prompt, text: str | Sequence[int] | None = None, **keywords: Unpack[Answered]
) -> Trace:
    """What the rule did at every position of an answer: who each token came from, and the distributions behind it.

    Args:
        model: a pair, as `kad.load` gives it.
        prompt: what the user says, the messages of a conversation, or token ids.
        text: a given answer to trace, or its token ids. By default the pair answers.
        **keywords: those of `kad.generate`, without `origins` and `compile`; see `kad.text.keywords.Answered`.

    Raises:
        UsageError: an empty answer, or as `kad.generate`.

    Example:
        >>> kad.trace(model, "Ann has 5 pens. She buys 8 more. How many pens does she have now?").save("trace.html")
    """
    check("kad.trace", keywords, Answered)
    pair = pair_of(model)
    pair.needs_logits("kad.trace")
    asked = asking(prompt, keywords)
    question = _question(pair, asked)
    with pair.using(keywords.get("rule"), keywords.get("deferral_temperature")):
        if text is not None:
            generation: dict[str, Any] = {"source": "given"} | question
            context = asked.context(pair)
            ids = text_ids(pair.tokenizer, text, context.ids)
            return trace_tokens(pair, pair.tokenizer, context, ids, generation=generation)
        answer = stream(pair, prompt, **keywords, origins=False).finish()
        return trace_tokens(
            pair, pair.tokenizer, answer.prompt, answer.token_ids,
            events=answer.pieces if answer.drafting.speculates else (), generation=how_generated(answer) | question,
        )  # fmt: skip


def _question(pair: Pair, asking: Asking) -> dict[str, Any]:
    """The question, so that the page can show the command that repeats it under another rule."""
    if not isinstance(asking.prompt, str):
        return {}
    options = {name: getattr(asking, name) for name in ("system", "thinking", "raw")}
    options = {name: value for name, value in options.items() if value not in (None, False)}
    own = BasePrompt.named(pair.base_prompt if asking.base_prompt is None else asking.base_prompt)
    options |= {"base_prompt": own} if own else {}
    name = public_name(pair.config.name_or_path)
    return {"asked": {"prompt": asking.prompt, **({"pair": name} if name else {}), **options}}


def how_generated(answer: Answer) -> dict[str, Any]:
    """`Trace.generation` of an answer."""
    generation: dict[str, Any] = {"source": "generated", "do_sample": answer.seed is not None}
    if answer.seed is not None:
        generation |= {"temperature": answer.temperature, "seed": answer.seed}
    return generation | {"finish_reason": answer.finish_reason, "draft_tokens": answer.drafting.draft_tokens}
