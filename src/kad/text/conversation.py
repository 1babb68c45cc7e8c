"""A conversation that keeps the caches of the models, so that a turn reads only new tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kad.engines.pair import pair_of
from kad.text.contexts import AnyBasePrompt, Asking, Context
from kad.text.prompts import messages
from kad.text.sampling import Sampling
from kad.text.streaming import Stream
from kad.text.warm import WarmScorers

if TYPE_CHECKING:
    from kad.engines.load import Loaded


class Conversation:
    """A conversation of several turns with a composed model. Each turn reads only new tokens.

    Args:
        model: a pair, as `kad.load` gives it. Its composition may change between turns.
        system: a system message.
        thinking: for chat templates with a thinking switch; None leaves it to the template.
        base_prompt: how the base model is asked, see `kad.generate`. It is rendered anew for every turn.
        sampling: how to draw tokens.
        num_draft_tokens: see `kad.generate`.
        origins: whether the pieces say which model they came from.

    Attributes:
        turns: the messages so far, the system message left out.
        kept: the models' caches of the last turn.

    Example:
        >>> talk = kad.Conversation(model, system="You answer in one sentence.")
        >>> for piece in talk.say("Why is the sky blue?"):
        ...     print(piece.text, end="")
    """

    def __init__(
        self,
        model: Loaded,
        *,
        system: str | None = None,
        thinking: bool | None = None,
        base_prompt: AnyBasePrompt | None = None,
        sampling: Sampling | None = None,
        num_draft_tokens: int | str | None = None,
        origins: bool = True,
    ) -> None:
        self.model, self.pair = model, pair_of(model)
        self.pair.needs_logits("kad.Conversation")
        self.system = system
        self.thinking = thinking
        self.base_prompt = base_prompt
        self.sampling = sampling or Sampling()
        self.num_draft_tokens = num_draft_tokens
        self.origins = origins
        self.turns: list[dict[str, str]] = []
        self.kept = WarmScorers()

    def say(self, text: str) -> Stream:
        """The answer to a message, piece by piece.

        The turn joins the conversation when all of its pieces are taken. After `stop`, ask for one more piece.

        Raises:
            UsageError: the conversation is longer than the context. It then stays as it was.
        """
        turns = [*self.turns, {"role": "user", "content": text}]
        said = messages(turns, self.system)
        asking = Asking(said, thinking=self.thinking, base_prompt=self.base_prompt)
        return _Turn(self, turns, asking.context(self.pair))

    def clear(self) -> None:
        """Start a new conversation. The caches stay, and are used where the next prompt begins with the same tokens."""
        self.turns = []

    def forget(self) -> None:
        """Drop the caches. The next turn reads everything again."""
        self.kept.forget()

    def keep(self, turn: Stream, turns: list[dict[str, str]]) -> None:
        """Store a turn that has ended, and its scorers if they can roll back."""
        self.turns = [*turns, {"role": "assistant", "content": turn.answer.text}]
        self.kept.keep(turn.loop)


class _Turn(Stream):
    """The stream of one turn. It tells the conversation when it has ended."""

    def __init__(self, conversation: Conversation, turns: list[dict[str, str]], context: Context) -> None:
        self._conversation, self._turns = conversation, turns
        pair = conversation.pair
        composition = pair.composition
        super().__init__(
            pair,
            context,
            composition,
            conversation.sampling,
            conversation.num_draft_tokens,
            take_scorers=lambda context: conversation.kept.take(context, pair.roles_of(composition)),
            origins=conversation.origins,
        )

    def ended(self) -> None:
        self._conversation.keep(self, self._turns)
