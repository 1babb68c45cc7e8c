"""A conversation, and the scorers of finished answers, so that a turn reads only new tokens."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Unpack

import torch

from kad.engines.pair import pair_of
from kad.engines.scorers import Endless, OwnPrompt, Restricted, Translated
from kad.errors import UsageError
from kad.text.contexts import AnyBasePrompt, Asking, Context
from kad.text.keywords import Drawn, check, sampling_of
from kad.text.prompts import Message, messages
from kad.text.sampling import Sampling
from kad.text.streaming import Stream
from kad.words import counted

if TYPE_CHECKING:
    from kad.engines.load import Loaded
    from kad.method.scorer import Scorer
    from kad.method.speculation.loop import SpeculativeLoop


class Conversation:
    """A conversation of several turns with a composed model. Each turn reads only new tokens.

    Args:
        model: a pair, as `kad.load` gives it. Its composition may change between turns.
        system: a system message.
        thinking: for chat templates with a thinking switch; None leaves it to the template.
        base_prompt: how the base model is asked, see `kad.generate`. It is rendered anew for every turn.
        sampling: how to draw tokens. The fields of `kad.Sampling` are keywords, too: `temperature=0`.
        num_draft_tokens: see `kad.generate`.
        origins: whether the pieces say which model they came from.

    Attributes:
        messages: the conversation so far, the system message first. Assign messages to go on from them.
        turns: the same without the system message.
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
        **drawn: Unpack[Drawn],
    ) -> None:
        self.model, self.pair = model, pair_of(model)
        self.pair.needs_logits("kad.Conversation")
        self.system = system
        self.thinking = thinking
        self.base_prompt = base_prompt
        check("kad.Conversation", drawn, Drawn)
        self.sampling = sampling_of({"sampling": sampling, **drawn})
        self.num_draft_tokens = num_draft_tokens
        self.origins = origins
        self.turns: list[dict[str, str]] = []
        self.kept = WarmScorers()

    def __repr__(self) -> str:
        return f"Conversation({self.pair!r}, {counted(len(self.turns), 'message')})"

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation so far: messages {"role": ..., "content": ...}, the system message first."""
        return messages(self.turns, self.system)

    @messages.setter
    def messages(self, said: Sequence[Message]) -> None:
        self.turns = [dict(message) for message in said]
        first = self.turns[0] if self.turns else {}
        self.system = self.turns.pop(0)["content"] if first.get("role") == "system" else None

    def say(self, text: str) -> Stream:
        """The answer to a message, piece by piece.

        The turn joins the conversation when all of its pieces are taken. After `stop`, ask for one more piece.

        Raises:
            UsageError: the message is empty, or the conversation is longer than the context. It then stays as it was.
        """
        if not text.strip():
            raise UsageError("The message is empty.")
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
        """Store a turn that has ended, and its scorers if they can go back."""
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


@dataclass(frozen=True)
class _Read:
    """A scorer of an engine, and the tokens that its model has read."""

    scorer: Scorer
    ids: list[int]


class WarmScorers:
    """Scorers that have read a text, with the tokens of that text.

    Args:
        most: how many answers' scorers to keep. Each holds the caches of all models of its pair.
    """

    def __init__(self, most: int = 1) -> None:
        self._most = most
        self._kept: list[dict[str, _Read]] = []

    def take(self, prompt: Context | Sequence[int], roles: Collection[str]) -> dict[str, Scorer]:
        """The scorers of these roles that know most of a prompt, cut back to the tokens that it begins with.

        The caller owns them until it calls `keep`: after a failed generation, nobody knows what they have read. Empty
        if no token can be reused. The oldest ones then make room, before new caches grow.
        """
        context = Context.of(prompt)
        fitting = [entry for entry in self._kept if set(entry) == set(roles)]
        best = max(fitting, key=lambda entry: sum(_shared(entry, context).values()), default=None)
        shared = {} if best is None else _shared(best, context)
        if best is None or not any(shared.values()):
            del self._kept[: max(0, len(self._kept) + 1 - self._most)]
            return {}
        self._kept = [entry for entry in self._kept if entry is not best]
        for role, read in best.items():
            read.scorer.rollback(shared[role])
        return {role: read.scorer for role, read in best.items()}

    def keep(self, loop: SpeculativeLoop) -> None:
        """Keep the scorers of a loop that has ended, if they can go back to any length."""
        if all(scorer.reversible for scorer in loop.scorers.values()):
            with torch.no_grad():
                loop.bring_level()
            ids = loop.ids[: loop.length].tolist()
            self._kept = [*self._kept, {role: _read(scorer, ids) for role, scorer in loop.scorers.items()}][
                -self._most :
            ]

    def forget(self) -> None:
        """Drop all of them."""
        self._kept = []


def _read(scorer: Scorer, ids: list[int]) -> _Read:
    if isinstance(scorer, Restricted | Endless):
        scorer = scorer.scorer
    if isinstance(scorer, OwnPrompt | Translated):
        return _Read(scorer.scorer, scorer.has_read(ids))
    return _Read(scorer, ids)


def _shared(reads: Mapping[str, _Read], context: Context) -> dict[str, int]:
    """How many first tokens agree, for each model.

    The last one of the prompt does not count: its logits are needed, so it is read.
    """
    counts = {}
    for role, read in reads.items():
        prompt = context.base_ids if role == "base" and context.base_ids is not None else context.ids
        pairs = zip(read.ids, prompt[:-1], strict=False)
        counts[role] = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return counts
