"""Answers of engines that run whole generations themselves, one as a stream or many at once."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kad.engines.pair import Pair
from kad.engines.protocols import Ask, DraftCounts, WholeModel
from kad.errors import OptionError
from kad.method.speculation.statistics import SpeculationStatistics
from kad.method.speculation.windows import AUTO
from kad.text import drafting
from kad.text.answer import Answer, LiveAnswer, Piece, answers_at_once
from kad.text.contexts import Context
from kad.text.drafting import Drafting
from kad.text.prompts import Detokenizer
from kad.text.sampling import Sampling, end_tokens, refuse_others

if TYPE_CHECKING:
    from transformers import GenerationConfig

    from kad.method.composition import Composition


class WholeStream(LiveAnswer):
    """The pieces of an answer. They say neither which model a token came from nor what speculation did.

    Arguments and errors are those of `kad.text.streaming.Stream`.
    """

    def __init__(
        self,
        pair: Pair,
        prompt: Context | Sequence[int],
        composition: Composition,
        sampling: Sampling,
        num_draft_tokens: int | str | None = None,
    ) -> None:
        super().__init__(pair, _one_prompt(Context.of(prompt)), sampling)
        config = self._config
        self.drafting = choose_drafts(pair, num_draft_tokens)
        self._reason = "interrupted"
        refuse_others(config, _whole(pair).followed, "vLLM")
        ask = Ask(self.prompt_ids, config, end_tokens(config), self.seed, composition)
        self._run = self._pieces_of(_whole(pair), ask)

    def _finish_reason(self) -> str:
        return self._reason

    def _pieces_of(self, model: WholeModel, ask: Ask) -> Iterator[Piece]:
        text, draft_tokens = Detokenizer(self._tokenizer), int(self.drafting.draft_tokens)
        before, started = model.draft_counts(), time.perf_counter()
        with closing(model.batch([ask], draft_tokens)) as emissions:  # type: ignore[type-var]
            for emission in emissions:
                self._seconds = time.perf_counter() - started
                if self._first_token is None:
                    self._first_token = self._seconds
                pieces = [Piece(token, text.push(token)) for token in emission.token_ids]
                if emission.finish_reason is not None and pieces:
                    pieces[-1] = replace(pieces[-1], text=pieces[-1].text + text.finish())
                for index, piece in enumerate(pieces, start=1):
                    if index == len(pieces) and emission.finish_reason is not None:
                        self._reason = _reason(emission.finish_reason, self._full)
                    yield piece
                    if self.stopped:
                        return
        self.statistics = _statistics(before, model.draft_counts(), len(self._pieces), self._seconds)


def answer_all(
    pair: Pair,
    tokenizer: Any,
    prompts: Sequence[Context | Sequence[int]],
    config: GenerationConfig,
    seeds: Sequence[int] | None,
    *,
    sampling: Sampling,
    drafts: Drafting,
    drafter: str,
    progress: Callable[[int], object],
) -> list[Answer]:
    """The answers to many prompts. The engine decides how many of them run at once.

    The first answer has the counts of speculation of all.
    """
    model = _whole(pair)
    composition = None if pair.is_one else pair.composition
    contexts = [_one_prompt(Context.of(prompt)) for prompt in prompts]
    refuse_others(config, model.followed, "vLLM")
    asks, fulls = [], []
    for index, context in enumerate(contexts):
        room = pair.room(context.longest)
        own = sampling.apply(pair.generation_config, room, len(context.ids))
        asks.append(Ask(context.ids, own, end_tokens(config), None if seeds is None else seeds[index], composition))
        fulls.append("context" if own.max_new_tokens == room else "length")
    before, started = model.draft_counts(), time.perf_counter()
    tokens: list[list[int]] = [[] for _ in prompts]
    reasons = ["interrupted"] * len(prompts)
    for emission in model.batch(asks, int(drafts.draft_tokens), drafter):
        tokens[emission.index] += emission.token_ids
        if emission.finish_reason is not None:
            reasons[emission.index] = _reason(emission.finish_reason, fulls[emission.index])
            progress(1)
    seconds = time.perf_counter() - started
    counted = _statistics(before, model.draft_counts(), sum(map(len, tokens)), seconds)
    answers = answers_at_once(tokenizer, contexts, tokens, reasons, seconds, drafts, config, seeds)
    if drafts.speculates and answers:
        answers[0] = replace(answers[0], statistics=counted)
    return answers


def choose_drafts(pair: Pair, num_draft_tokens: int | str | None) -> Drafting:
    """As many drafts as the caller asks for, else as many as the engine has now.

    Raises:
        UsageError: "auto".
    """
    number = drafting.check(num_draft_tokens)
    if number == AUTO:
        raise OptionError("vLLM drafts a fixed number of tokens: give `num_draft_tokens` a number, not auto.")
    if number is None:
        return Drafting(_whole(pair).draft_tokens, "as the engine was started")
    return Drafting(number, "as asked")


def _whole(pair: Pair) -> WholeModel:
    assert pair.whole is not None
    return pair.whole


def _one_prompt(context: Context) -> Context:
    if context.base_ids is not None:
        raise OptionError(
            "vLLM gives all models of a pair one prompt, but the base model is asked by a prompt of its own. Use "
            'another engine, or `base_prompt="same"`.'
        )
    return context


def _statistics(before: DraftCounts, after: DraftCounts, tokens: int, seconds: float) -> SpeculationStatistics:
    """What speculation did between two looks at the engine."""
    lengths = Counter(after.lengths) - Counter(before.lengths)
    drafted = after.drafted - before.drafted
    statistics = SpeculationStatistics(tokens=tokens, drafted=drafted, lengths=lengths, seconds_total=seconds)
    statistics.windows = statistics.lengths.total()
    statistics.accepted = sum(length * windows for length, windows in statistics.lengths.items())
    return statistics


def _reason(reason: str, full: str) -> str:
    return full if reason == "length" else reason
