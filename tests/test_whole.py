"""An engine that runs whole generations: it has no scorers, and the room for text works with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import pytest

import kad
from kad.engines.pair import Pair
from kad.engines.protocols import Ask, DraftCounts, Emission
from kad.engines.vllm.model import VllmModel, VllmPair
from kad.errors import OptionError, UsageError
from kad.text.batch import generate_all
from kad.text.streaming import Stream
from test_text import GREEDY, PROMPT, TableEngine


class WholeEngine(Pair):
    """It answers by a table engine inside, three tokens at a time and all requests in turns, as vLLM would."""

    def __init__(self, rule: str = "dual:threshold=0.4", context: int | None = None) -> None:
        self.inner = TableEngine(rule, vocab=5, eos=2)
        super().__init__(self.inner.config, self.inner.models)
        self.generation_config = self.inner.generation_config
        self.whole = self  # type: ignore[assignment]
        self.draft_tokens, self.limit = 0, context
        self.counted, self.ended = DraftCounts(), 0

    followed = VllmModel.followed
    context_length = property(lambda self: self.limit)  # type: ignore[assignment]
    needs_logits = VllmPair.needs_logits

    def batch(self, asks: Sequence[Ask], draft_tokens: int = 0, drafter: str = "aligned") -> Iterator[Emission]:
        self.draft_tokens = draft_tokens
        streams = {index: self._stream(ask, draft_tokens) for index, ask in enumerate(asks)}
        try:
            while streams:
                for index, stream in list(streams.items()):
                    tokens = [piece.token for piece in islice(stream, 3)]
                    ended = stream.answer.finish_reason != "interrupted"
                    if ended:
                        del streams[index]
                        self._count(stream)
                    yield Emission(index, tokens, stream.answer.finish_reason if ended else None)
        finally:
            self.ended += len(streams)

    def draft_counts(self) -> DraftCounts:
        return self.counted

    def _stream(self, ask: Ask, draft_tokens: int) -> Stream:
        assert ask.composition is not None
        sampled = {"temperature": ask.config.temperature, "seed": ask.seed, "top_k": 0} if ask.config.do_sample else {}
        how = kad.Sampling(max_new_tokens=ask.config.max_new_tokens, **(sampled or {"temperature": 0.0}))
        return Stream(self.inner, ask.prompt_ids, ask.composition, how, draft_tokens)

    def _count(self, stream: Stream) -> None:
        lengths = Counter(self.counted.lengths) + stream.statistics.lengths
        self.counted = DraftCounts(self.counted.drafted + stream.statistics.drafted, lengths)


SAMPLED = kad.Sampling(max_new_tokens=20, temperature=1.0, top_k=0, seed=5)


@pytest.mark.parametrize("how", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_an_answer_is_that_of_the_engine(how: kad.Sampling) -> None:
    model = WholeEngine()
    assert model.whole is not None
    assert model.inner.whole is None
    expected = kad.generate(model.inner, PROMPT, sampling=how, num_draft_tokens=0)
    answer = kad.generate(model, PROMPT, sampling=how)
    assert (answer.token_ids, answer.text) == (expected.token_ids, expected.text)
    assert (answer.finish_reason, answer.seed) == (expected.finish_reason, expected.seed)
    assert (answer.temperature, answer.statistics) == (expected.temperature, None)
    assert "".join(piece.text for piece in answer.pieces) == answer.text
    assert answer.base_share is None


def test_the_rule_in_force_reaches_the_engine() -> None:
    model, texts = WholeEngine("base_only"), []
    for rule in ("base_only", "aligned_only"):
        expected = kad.generate(model.inner, PROMPT, sampling=GREEDY, rule=rule).token_ids
        assert kad.generate(model, PROMPT, sampling=GREEDY, rule=rule).token_ids == expected
        with model.using(rule):
            assert generate_all(model, model.tokenizer, [PROMPT], sampling=GREEDY)[0].token_ids == expected
        texts.append(expected)
    assert texts[0] != texts[1]


@pytest.mark.parametrize("drafts", [0, 3])
def test_many_at_once_are_those_alone(drafts: int) -> None:
    prompts, seeds, done = [[0, 1], [3], [4, 4, 0], [1]], [7, 8, 9, 7], []
    model = WholeEngine()
    together = generate_all(
        model, model.tokenizer, prompts, sampling=SAMPLED, seeds=seeds, num_draft_tokens=drafts, progress=done.append
    )
    alone = generate_all(model.inner, model.tokenizer, prompts, sampling=SAMPLED, seeds=seeds, num_draft_tokens=drafts)
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]
    assert [answer.finish_reason for answer in together] == [answer.finish_reason for answer in alone]
    assert [answer.seed for answer in together] == seeds
    assert sum(done) == len(prompts)
    first, *others = [answer.statistics for answer in together]
    assert all(statistics is None for statistics in others)
    if drafts == 0:
        assert first is None
    else:
        counted = [answer.statistics for answer in alone if answer.statistics is not None]
        assert first is not None
        for name in ("windows", "drafted", "accepted"):
            assert getattr(first, name) == sum(getattr(one, name) for one in counted) > 0


def test_stop_ends_the_generation_in_the_engine() -> None:
    model = WholeEngine()
    model.generation_config.eos_token_id = None
    stream = kad.stream(model, PROMPT, sampling=kad.Sampling(temperature=1.0, max_new_tokens=500, seed=1))
    next(stream)
    stream.stop()
    assert list(stream) == []
    assert model.ended == 1
    assert (stream.stopped, stream.answer.finish_reason, len(stream.answer.token_ids)) == (True, "interrupted", 1)


def test_the_context_ends_an_answer() -> None:
    model = WholeEngine("base_only", context=len(PROMPT) + 2)
    answer = kad.generate(model, PROMPT, sampling=kad.Sampling(temperature=0, max_new_tokens=2))
    assert len(answer.token_ids) <= 2
    assert answer.finish_reason in ("context", "stop")
    with pytest.raises(UsageError, match="the models' context holds"):
        kad.generate(model, [0] * 9, sampling=GREEDY)


def test_what_needs_scorers_says_so() -> None:
    model = WholeEngine()
    with pytest.raises(OptionError, match="give `num_draft_tokens` a number, not auto"):
        kad.generate(model, PROMPT, sampling=GREEDY, num_draft_tokens="auto")
    asks: dict[str, Any] = {
        "kad.score": lambda: kad.score(model, PROMPT, [1, 2]),
        "kad.trace": lambda: kad.trace(model, PROMPT, [1, 2]),
        "kad.Conversation": lambda: kad.Conversation(model),
    }
    for what, ask in asks.items():
        with pytest.raises(UsageError, match=f"{what} needs the models' logits, and vLLM runs whole generations"):
            ask()
