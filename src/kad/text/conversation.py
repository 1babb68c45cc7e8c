"""A conversation that keeps what the models have read, so that a turn reads only what is new."""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING

import torch

from kad.engines.base import ComposedModel, Scorer, roles_of
from kad.text.prompts import encode, messages
from kad.text.sampling import Sampling
from kad.text.streaming import Stream

if TYPE_CHECKING:
    from collections.abc import Sequence


class Conversation:
    """Several turns with a composed model. Each goes through the chat template as a whole.

    Args:
        model: a pair, as `kad.load` gives it. Its composition may change between turns.
        system: a system message.
        thinking: for chat templates with a thinking switch; None leaves it to the template.
        sampling: how to draw tokens.
        num_draft_tokens: see `kad.generate`.
        origins: whether the pieces say which model they came from.

    Attributes:
        turns: the messages so far, the system message left out.

    Example:
        >>> talk = kad.Conversation(model, system="You answer in one sentence.")
        >>> for piece in talk.say("Why is the sky blue?"):
        ...     print(piece.text, end="")
    """

    def __init__(
        self,
        model: ComposedModel,
        *,
        system: str | None = None,
        thinking: bool | None = None,
        sampling: Sampling | None = None,
        num_draft_tokens: int | str | None = None,
        origins: bool = True,
    ) -> None:
        self.model = model
        self.system = system
        self.thinking = thinking
        self.sampling = sampling or Sampling()
        self.num_draft_tokens = num_draft_tokens
        self.origins = origins
        self.turns: list[dict[str, str]] = []
        self._scorers: dict[str, Scorer] = {}
        self._read: list[int] = []

    def say(self, text: str) -> Stream:
        """The answer to a message, piece by piece. The turn counts once its pieces are taken, or `stop` is called and
        one more is asked for.

        Raises:
            UsageError: a conversation longer than the context; the conversation is as before.
        """
        turns = [*self.turns, {"role": "user", "content": text}]
        prompt_ids = encode(self.model.tokenizer, messages(turns, self.system), thinking=self.thinking)
        return _Turn(self, turns, prompt_ids)

    def clear(self) -> None:
        """Start a new conversation. What the models have read stays useful, as far as prompts begin alike."""
        self.turns = []

    def forget(self) -> None:
        """Let go of what the models have read; the next turn reads everything anew."""
        self._scorers, self._read = {}, []

    def take_scorers(self, prompt_ids: Sequence[int]) -> dict[str, Scorer]:
        """The scorers, cut back to the tokens that this prompt begins with; none where there is nothing to go on from.

        They are gone from here until `keep`: after a generation that fails, nobody knows what they hold.
        """
        scorers, read = self._scorers, self._read
        self.forget()
        if set(scorers) != set(roles_of(self.model.composition)):
            return {}
        # The prompt's last token is read anew in any case: what follows it is asked for.
        pairs = zip(read, prompt_ids[:-1], strict=False)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        for scorer in scorers.values():
            scorer.rollback(shared)
        return scorers if shared else {}

    def keep(self, turn: Stream, turns: list[dict[str, str]]) -> None:
        """Remember a turn that has ended, and the scorers if tokens can be taken back from them."""
        self.turns = [*turns, {"role": "assistant", "content": turn.answer.text}]
        loop = turn.loop
        if all(scorer.reversible for scorer in loop.scorers.values()):
            with torch.no_grad():
                loop.bring_level()
            self._scorers, self._read = dict(loop.scorers), loop.ids[: loop.length].tolist()


class _Turn(Stream):
    """The stream of one turn; it tells the conversation when it has ended."""

    def __init__(self, conversation: Conversation, turns: list[dict[str, str]], prompt_ids: list[int]) -> None:
        self._conversation, self._turns = conversation, turns
        super().__init__(
            conversation.model,
            prompt_ids,
            conversation.model.composition,
            conversation.sampling,
            conversation.num_draft_tokens,
            take_scorers=conversation.take_scorers,
            origins=conversation.origins,
        )

    def ended(self) -> None:
        self._conversation.keep(self, self._turns)
