"""The answer of a composed model: `generate` returns the whole `Answer`, `stream` its pieces as they come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack, overload

from kad.engines.pair import Pair, pair_of
from kad.errors import OptionError
from kad.text.answer import Answer, LiveAnswer
from kad.text.batch import generate_all, seeds_from
from kad.text.keywords import Keywords, asking, check, masks_of, sampling_of
from kad.text.prompts import Message, Prompt
from kad.text.streaming import Stream
from kad.text.whole import WholeStream

if TYPE_CHECKING:
    from kad.engines.load import Loaded

    Prompts = list[str] | list[list[Message]] | list[list[dict[str, str]]] | list[list[int]]


@overload
def generate(model: Loaded, prompt: Prompt, **keywords: Unpack[Keywords]) -> Answer: ...
@overload
def generate(model: Loaded, prompt: Prompts, **keywords: Unpack[Keywords]) -> list[Answer]: ...


def generate(model: Loaded, prompt: Prompt | Prompts, **keywords: Unpack[Keywords]) -> Answer | list[Answer]:
    """The answer of a composed model to a prompt, or the answers to a list of prompts.

    A list of prompts is a list of texts, of conversations, or of lists of token ids. Where the engine can, they are
    answered together, without drafts. With drafts, a grammar or a `logits_processor`, one follows the other. Answers to
    a list have no pieces, and so no origins. From one seed each of them gets its own, which `Answer.seed` says.

    Args:
        model: a pair, as `kad.load` gives it.
        prompt: what the user says, the messages of a conversation, or token ids; or a list of such prompts.
        **keywords: those of `kad.text.keywords.Keywords`: `max_new_tokens=5`, `temperature=0`, `stop="="`,
            `system="..."`, `rule="dual:0.6"`, `num_draft_tokens=4`, `json_schema={...}`, ...

    Returns:
        The answer: text, tokens with their origins, times, speculation. For a list of prompts, a list of answers.

    Raises:
        UsageError: a prompt that the model cannot take, an unknown keyword, or options that contradict each other.
        RuleError: a bad rule.

    Example:
        >>> model = kad.load("tiny")
        >>> answer = kad.generate(model, "Ann has 5 pens. She buys 8 more. How many pens does she have now?")
        >>> answer.text
        'First, 5 + 8 = 13. The answer is \\\\boxed{13}.'
    """
    check("kad.generate", keywords, Keywords)
    if is_many(prompt):
        return _generate_each(pair_of(model), prompt, keywords)  # type: ignore[arg-type]
    return stream(model, prompt, **keywords).finish()  # type: ignore[arg-type]


def stream(model: Loaded, prompt: Prompt, **keywords: Unpack[Keywords]) -> LiveAnswer:
    """The pieces of an answer as they come. Arguments and errors are those of `generate`, with one prompt.

    Example:
        >>> for piece in kad.stream(model, "Ann has 5 pens. She buys 8 more. How many pens does she have now?"):
        ...     print(piece.text, piece.base_share, piece.event)
    """
    check("kad.stream", keywords, Keywords)
    if is_many(prompt):
        raise OptionError("kad.stream answers one prompt, but got a list of them. Use kad.generate.")
    pair, compile = pair_of(model), keywords.get("compile", False)
    context = asking(prompt, keywords).context(pair)
    composition = pair.composed_by(keywords.get("rule"), keywords.get("deferral_temperature"))
    how, drafts, masks = sampling_of(keywords), keywords.get("num_draft_tokens"), masks_of(pair, keywords)
    if pair.whole is not None:
        if compile:
            raise OptionError("`compile` captures forward passes of Transformers. vLLM compiles by itself.")
        return WholeStream(pair, context, composition, how, drafts)
    return Stream(
        pair, context, composition, how, drafts,
        origins=keywords.get("origins", True), compile=compile, masks=masks(context) if masks else (),
    )  # fmt: skip


def is_many(prompt: Any) -> bool:
    """Whether it is a list of prompts: of texts, conversations, or lists of token ids."""
    return not isinstance(prompt, str) and len(prompt) > 0 and isinstance(prompt[0], Sequence)


def _generate_each(pair: Pair, prompts: Sequence[Prompt], keywords: Mapping[str, Any]) -> list[Answer]:
    if keywords.get("compile"):
        raise OptionError("`compile` captures the forward passes of one answer. Leave it out for a list of prompts.")
    contexts = [asking(prompt, keywords).context(pair) for prompt in prompts]
    how = sampling_of(keywords).seeded()
    assert how.seed is not None
    with pair.using(keywords.get("rule"), keywords.get("deferral_temperature")):
        return generate_all(
            pair, pair.tokenizer, contexts, sampling=how, seeds=seeds_from(how.seed, len(contexts)),
            num_draft_tokens=keywords.get("num_draft_tokens"), masks=masks_of(pair, keywords),
        )  # fmt: skip
