"""An answer under way: its pieces as they come, and what is known of it so far."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from kad.method.speculation.statistics import SpeculationStatistics
from kad.text.answer import Answer, Piece
from kad.text.contexts import Context
from kad.text.drafting import Drafting
from kad.text.prompts import decode, room
from kad.text.sampling import Sampling, temperature_of

if TYPE_CHECKING:
    from kad.engines.pair import Pair


class LiveAnswer(Iterator[Piece]):
    """An iterator over the pieces of an answer. `answer` is the answer so far, and `stop` ends it early.

    Args:
        pair: the pair.
        context: what each model reads before the answer.
        sampling: how tokens are drawn.
        begun: the first tokens of the answer, if it goes on from there.
        ends: the tokens that end the answer. They replace those of the pair's settings.

    Attributes:
        prompt_ids: the prompt's tokens.
        context: what each model read before the answer.
        drafting: whether the aligned model drafts, and why or why not.
        temperature: the temperature of a sampled answer. None for a greedy one.
        seed: the seed of a sampled answer. None for a greedy one.
        statistics: the counts of speculation.
        stopped: whether `stop` was called.
    """

    drafting: Drafting
    _run: Iterator[Piece]

    def __init__(
        self,
        pair: Pair,
        context: Context,
        sampling: Sampling,
        begun: Sequence[int] = (),
        ends: Sequence[int] | None = None,
    ) -> None:
        space = room(pair, context.longest + len(begun))
        self._config = sampling.apply(pair.generation_config, space)
        if ends is not None:
            self._config.eos_token_id = list(ends)
        self.context, self.prompt_ids = context, context.ids
        self.seed = sampling.seeded().seed if self._config.do_sample else None
        self.temperature = temperature_of(self._config)
        self.statistics = SpeculationStatistics()
        self.stopped = False
        self._tokenizer = pair.tokenizer
        self._full = "context" if self._config.max_new_tokens == space else "length"
        self._pieces: list[Piece] = []
        self._first_token: float | None = None
        self._seconds = 0.0

    def __next__(self) -> Piece:
        piece = next(self._run)
        self._pieces.append(piece)
        return piece

    def finish(self) -> Answer:
        """Take all remaining pieces and return the whole answer."""
        for _ in self:
            pass
        return self.answer

    def stop(self) -> None:
        """End the answer after the current piece."""
        self.stopped = True

    @property
    def answer(self) -> Answer:
        """The answer so far: the pieces that have been taken."""
        token_ids = [piece.token for piece in self._pieces]
        return Answer(
            prompt_ids=self.prompt_ids,
            context=self.context,
            token_ids=token_ids,
            text=decode(self._tokenizer, token_ids),
            finish_reason=self._finish_reason(),
            seconds=self._seconds,
            first_token=self._seconds if self._first_token is None else self._first_token,
            drafting=self.drafting,
            pieces=tuple(self._pieces),
            statistics=self.statistics if self.drafting.speculates else None,
            temperature=self.temperature,
            seed=self.seed,
        )

    @abstractmethod
    def _finish_reason(self) -> str:
        """Why the answer ended, or "interrupted"."""
