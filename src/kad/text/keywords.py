"""The keywords of `kad.generate`, `stream`, `trace` and `score`: named once, checked once, and what they stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from functools import partial
from typing import TYPE_CHECKING, Any, TypedDict

import torch

from kad.engines.transformers.speculative import check_processors
from kad.errors import OptionError
from kad.text.contexts import AnyBasePrompt, Asking, Context
from kad.text.masks import Mask, grammars_of
from kad.text.prompts import Prompt
from kad.text.sampling import Sampling, Stops, end_tokens

if TYPE_CHECKING:
    from kad.engines.pair import Pair


class Asked(TypedDict, total=False):
    """How a pair is asked, and how it is composed: the keywords of `kad.score`.

    Attributes:
        system: a system message before the prompt.
        thinking: for chat templates with a thinking switch. None leaves it to the template.
        raw: use the text without the chat template.
        base_prompt: how the base model is asked: "qa", "chat", "plain", "few-shot:FILE", a template with `{question}`
            or `{messages}`, a file, token ids, or "same" (the aligned model's prompt). None: as the pair says.
        rule: replaces the model's own rule for this call.
        deferral_temperature: replaces the model's own deferral temperature for this call.
    """

    system: str | None
    thinking: bool | None
    raw: bool
    base_prompt: AnyBasePrompt | None
    rule: Any
    deferral_temperature: float | None


class Drawn(TypedDict, total=False):
    """How tokens are drawn: the fields of `kad.Sampling`, which says what each of them means."""

    max_new_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    stop: Stops
    seed: int | None


class Answered(Asked, Drawn, total=False):
    """How a pair is asked and how it answers: the keywords of `kad.trace`.

    Attributes:
        sampling: how to draw tokens. The fields of `kad.Sampling` are keywords, too: `temperature=0`; they replace
            those of `sampling`. Where nobody says anything, the aligned model's own settings hold.
        num_draft_tokens: how many tokens the aligned model drafts at a time. 0 is plain decoding. "auto" measures and
            chooses the number. None drafts if it should be faster. The distribution of the text is always the same.
        logits_processor: a function of the ids (1, length) and of log pi (1, vocab), as Transformers' logits processors
            are, or a list of them. They act before the sampling options. Drafts go through them, too, and may be taken
            back: one that keeps a state needs `num_draft_tokens=0`.
        json_schema: the answer is JSON of this schema, without white space between its parts; needs llguidance. An
            answer that `max_new_tokens` ends is the beginning of such a text.
        grammar: the answer is a text of this grammar, written in Lark, whose rule `start` is the whole answer.
    """

    sampling: Sampling | None
    num_draft_tokens: int | str | None
    logits_processor: Callable[..., Any] | Sequence[Callable[..., Any]] | None
    json_schema: dict[str, Any] | None
    grammar: str | None


class Keywords(Answered, total=False):
    """The keywords of `kad.generate` and `kad.stream`: those of `Asked`, `Drawn` and `Answered`, and two more.

    Attributes:
        origins: whether the pieces say which model each token came from. Product rules and vLLM never say so.
        compile: capture the forward passes, see `kad.speculative`.
    """

    origins: bool
    compile: bool | str


def check(function: str, given: Mapping[str, Any], kind: Any) -> None:
    """Refuse a keyword that a function does not have.

    Raises:
        OptionError: there is one; with the nearest name.
    """
    known = kind.__optional_keys__
    for name in given:
        if name not in known:
            close = get_close_matches(name, known, n=1, cutoff=0.5)
            meant = f" Did you mean `{close[0]}`?" if close else ""
            raise OptionError(f"{function} has no keyword `{name}`.{meant} It takes: {', '.join(sorted(known))}.")


def asking(prompt: Prompt, given: Mapping[str, Any]) -> Asking:
    """What the keywords say of the prompt."""
    names = {field.name for field in fields(Asking)}
    return Asking(prompt, **{name: value for name, value in given.items() if name in names})


def sampling_of(given: Mapping[str, Any]) -> Sampling:
    """What the keywords say of the drawing of tokens.

    Raises:
        UsageError: a value out of its range, or values that contradict each other.
    """
    drawn: dict[str, Any] = {name: value for name, value in given.items() if name in Drawn.__optional_keys__}
    return replace(given.get("sampling") or Sampling(), **drawn)


def masks_of(pair: Pair, given: Mapping[str, Any]) -> Callable[[Context], list[Mask]] | None:
    """What the keywords put on log pi, for the context of an answer. None: nothing.

    Raises:
        UsageError: a grammar that cannot be used, two of them, a function with a state, or an engine without logits.
        MissingExtraError: llguidance, which reads grammars, is not installed.
    """
    schema, lark, processors = given.get("json_schema"), given.get("grammar"), given.get("logits_processor")
    if schema is None and lark is None and processors is None:
        return None
    pair.needs_logits("`logits_processor`, `json_schema` or `grammar`")
    if schema is not None and lark is not None:
        raise OptionError("Give `json_schema` or `grammar`, not both: an answer follows one of them.")
    own = [] if processors is None else [processors] if callable(processors) else list(processors)
    grammars = grammars_of(pair.tokenizer, tuple(end_tokens(pair.generation_config)))
    if schema is not None:
        read = partial(grammars.of_schema, schema)
    elif lark is not None:
        read = partial(grammars.of_lark, lark)
    else:
        read = None

    def made(context: Context) -> list[Mask]:
        if given.get("num_draft_tokens") != 0:
            check_processors(own, torch.tensor([context.ids], device=pair.device), int(pair.config.vocab_size or 0))
        # A grammar of its own for each answer, after the functions of the caller: nothing gets past it.
        return own if read is None else [*own, partial(read().mask, len(context.ids))]

    return made
