"""The answer of a composed model: `generate` returns the whole `Answer`, `stream` its pieces as they come."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kad.engines.pair import pair_of
from kad.errors import OptionError
from kad.text.answer import Answer, LiveAnswer
from kad.text.contexts import AnyBasePrompt, Asking
from kad.text.prompts import Prompt
from kad.text.sampling import Sampling
from kad.text.streaming import Stream
from kad.text.whole import WholeStream

if TYPE_CHECKING:
    from kad.engines.load import Loaded


def generate(
    model: Loaded,
    prompt: Prompt,
    *,
    system: str | None = None,
    thinking: bool | None = None,
    raw: bool = False,
    base_prompt: AnyBasePrompt | None = None,
    sampling: Sampling | None = None,
    num_draft_tokens: int | str | None = None,
    rule: Any = None,
    deferral_temperature: float | None = None,
    origins: bool = True,
    compile: bool | str = False,
) -> Answer:
    """The answer of a composed model to a prompt.

    Args:
        model: a pair, as `kad.load` gives it.
        prompt: what the user says, the messages of a conversation, or token ids.
        system: a system message before the prompt.
        thinking: for chat templates with a thinking switch. None leaves it to the template.
        raw: use the text without the chat template.
        base_prompt: how the base model is asked: "qa", "chat", "plain", "few-shot:FILE", a template with `{question}`
            or `{messages}`, a file, token ids, or "same" (the aligned model's prompt). None: as the pair says.
        sampling: how to draw tokens. Where it says nothing, the aligned model's own settings hold.
        num_draft_tokens: how many tokens the aligned model drafts at a time. 0 is plain decoding. "auto" measures and
            chooses the number. None drafts if it should be faster. The distribution of the text is always the same.
        rule: replaces the model's own rule for this answer.
        deferral_temperature: replaces the model's own deferral temperature for this answer.
        origins: whether the pieces say which model each token came from. Product rules and vLLM never say so.
        compile: capture the forward passes, see `kad.speculative`.

    Returns:
        The answer: text, tokens with their origins, times, speculation.

    Raises:
        UsageError: a prompt that the model cannot take, or options that contradict each other.
        RuleError: a bad rule.

    Example:
        >>> model = kad.load("tiny")
        >>> answer = kad.generate(model, "Ann has 5 pens. She buys 8 more. How many pens does she have now?")
        >>> answer.text
        'First, 5 + 8 = 13. The answer is \\\\boxed{13}.'
    """
    return stream(
        model, prompt, system=system, thinking=thinking, raw=raw, base_prompt=base_prompt, sampling=sampling,
        num_draft_tokens=num_draft_tokens, rule=rule, deferral_temperature=deferral_temperature, origins=origins,
        compile=compile,
    ).finish()  # fmt: skip


def stream(
    model: Loaded,
    prompt: Prompt,
    *,
    system: str | None = None,
    thinking: bool | None = None,
    raw: bool = False,
    base_prompt: AnyBasePrompt | None = None,
    sampling: Sampling | None = None,
    num_draft_tokens: int | str | None = None,
    rule: Any = None,
    deferral_temperature: float | None = None,
    origins: bool = True,
    compile: bool | str = False,
) -> LiveAnswer:
    """The pieces of an answer as they come. Arguments and errors are those of `generate`.

    Example:
        >>> for piece in kad.stream(model, "Ann has 5 pens. She buys 8 more. How many pens does she have now?"):
        ...     print(piece.text, piece.base_share, piece.event)
    """
    pair = pair_of(model)
    context = Asking(prompt, system, thinking, raw, base_prompt).context(pair)
    composition = pair.composed_by(rule, deferral_temperature)
    how = sampling or Sampling()
    if pair.whole is not None:
        if compile:
            raise OptionError("`compile` captures forward passes of Transformers. vLLM compiles by itself.")
        return WholeStream(pair, context, composition, how, num_draft_tokens)
    return Stream(pair, context, composition, how, num_draft_tokens, origins=origins, compile=compile)
