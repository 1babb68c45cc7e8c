"""The stream of an answer: the speculative loop runs over an engine's scorers, and its tokens become pieces of text.

Plain decoding is the same loop with windows of zero drafts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from transformers import LogitsProcessorList

from kad.engines.pair import Pair, pair_of
from kad.errors import OptionError
from kad.method.composition import composed, in_order
from kad.method.distribution import Rows, stacked
from kad.method.rules import CascadeRule
from kad.method.scorer import Scorer
from kad.method.speculation.loop import Emitted, SpeculativeLoop
from kad.method.speculation.policies import choose_policy, warp_of
from kad.method.speculation.randomness import TorchRandomness
from kad.method.verification import verify_block
from kad.text import drafting
from kad.text.answer import LiveAnswer, Piece
from kad.text.contexts import Context
from kad.text.ends import Ending
from kad.text.masks import Mask
from kad.text.prompts import Detokenizer
from kad.text.sampling import Sampling, processors

if TYPE_CHECKING:
    from kad.engines.load import Loaded
    from kad.method.composition import Composition


Note = Callable[[Sequence[int], dict[str, Rows]], Sequence[Any]]


class Stream(LiveAnswer):
    """The pieces of an answer, from an engine that gives scorers.

    Args:
        model: the pair.
        prompt: the prompt's tokens, or what each model reads before the answer.
        composition: how the models are composed.
        sampling: how tokens are drawn.
        num_draft_tokens: see `generate`.
        drafter: the role of the drafting model.
        take_scorers: returns scorers of the engine, by role, that have already read a part of their prompts. New ones
            by default.
        origins: see `generate`.
        compile: see `generate`.
        masks: functions that change log pi before the sampling options act; see `kad.text.masks`.
        begun: the first tokens of the answer, if it goes on from there. They are no pieces.
        ends: the tokens that end the answer. They replace those of the pair's settings.
        note: called with some new tokens and the logits (n, vocab) of each model there, by role. What it returns, one
            value a token, is in `Piece.note`.

    Raises:
        UsageError: the prompt fills the context of the models, or the settings contradict each other.
    """

    def __init__(
        self,
        model: Loaded | Pair,
        prompt: Context | Sequence[int],
        composition: Composition,
        sampling: Sampling,
        num_draft_tokens: int | str | None = None,
        *,
        drafter: str = "aligned",
        take_scorers: Callable[[Context], dict[str, Scorer]] | None = None,
        origins: bool = True,
        compile: bool | str = False,
        masks: Sequence[Mask] = (),
        begun: Sequence[int] = (),
        ends: Sequence[int] | None = None,
        note: Note | None = None,
    ) -> None:
        pair = pair_of(model)
        super().__init__(pair, Context.of(prompt, pair), sampling, begun, ends)
        config, self.begun = self._config, list(begun)
        self.drafting = drafting.choose(pair, num_draft_tokens, sampled=bool(config.do_sample))
        self.context.check_rule(composition.rule)
        self._composition, self._drafter = composition, drafter
        self._origins = origins and isinstance(composition.rule, CascadeRule) and not pair.is_one
        self._masks, self._note = masks, note
        self._ending = Ending(config, self._tokenizer, [*self.prompt_ids, *begun], self._full)
        # Take the scorers last, when nothing can fail any more. Otherwise a wrong option would lose them.
        self.loop = self._make_loop(pair, take_scorers(self.context) if take_scorers else {}, compile)
        self._started = time.perf_counter()
        self._run = self._pieces_of(self.loop)

    def _finish_reason(self) -> str:
        taken = len(self.prompt_ids) + len(self.begun) + len(self._pieces) == self.loop.length
        return self._ending.reason if taken and self._complete else "interrupted"

    @property
    def _complete(self) -> bool:
        """Whether the loop has no more tokens."""
        return self.loop.finished or self.loop.length == self.loop.ids.shape[0]

    def _make_loop(self, pair: Pair, scorers: dict[str, Scorer], compile: bool | str) -> SpeculativeLoop:
        config = self._config
        start = [*self.prompt_ids, *self.begun]
        ids = torch.zeros(len(start) + int(config.max_new_tokens), dtype=torch.long, device=pair.device)
        ids[: len(start)] = torch.tensor(start)
        roles = pair.roles_of(self._composition, self._drafter)
        drafts, sampled = self.drafting.draft_tokens, bool(config.do_sample)
        window = pair.window(drafts, self._drafter, self._composition, sampled=sampled, few=bool(compile))
        if compile:
            if self.context.translated:
                raise OptionError("A base model with a tokenizer of its own cannot be compiled. Leave `compile` out.")
            if self.context.within:
                raise OptionError("A pair in this pair asks its base model in its own way. Leave `compile` out.")
            longest = self.context.longest + len(ids) - len(self.prompt_ids)
            scorers = pair.captured_scorers(roles, self._drafter, window.sizes, longest, compile)
        return SpeculativeLoop(
            ids=ids,
            length=len(start),
            drafter=self._drafter,
            scorers=self.context.scorers(pair, self._composition, roles, kept=scorers),
            policy=choose_policy(
                composition=self._composition,
                drafter=self._drafter,
                alone=pair.is_one,
                greedy=not sampled,
                verifier=verify_block,
                randomness=TorchRandomness(self.seed),
                warp=warp_of(LogitsProcessorList([*self._masks, *processors(config, len(start), ids.device)]), ids, 0),
                records=None,
            ),
            window=window,
            stop=self._ending,
            statistics=self.statistics,
            keep_rows=self._origins or self._note is not None,
        )

    def ended(self) -> None:
        """Called after the last piece, or after `stop`."""

    def _pieces_of(self, loop: SpeculativeLoop) -> Iterator[Piece]:
        text, emitted = Detokenizer(self._tokenizer), loop.run()
        self._started = time.perf_counter()
        try:
            while not self.stopped and (items := self._next(emitted)) is not None:
                for index, piece in enumerate(self._as_pieces(items, text), start=1):
                    last = self._complete and index == len(items)
                    yield replace(piece, text=piece.text + text.finish()) if last else piece
                    if self.stopped:
                        break
            self.statistics.seconds_total = self._seconds
            self.ended()
        finally:
            for scorer in loop.scorers.values():
                scorer.release()

    def _next(self, emitted: Iterator[list[Emitted]]) -> list[Emitted] | None:
        """The next committed tokens. Gradients are off only while the loop runs, not in the caller's code."""
        with torch.no_grad():
            items = next(emitted, None)
        self._seconds = time.perf_counter() - self._started
        if self._first_token is None:
            self._first_token = self._seconds
        return items

    def _as_pieces(self, items: list[Emitted], text: Detokenizer) -> list[Piece]:
        rows = _rows(items)
        shares, masses = self._shares(items, rows)
        notes: Sequence[Any] = [None] * len(items)
        if self._note is not None:
            with torch.no_grad():
                notes = self._note([item.token for item in items], rows)
        return [
            Piece(
                item.token,
                text.push(item.token),
                item.origin.event,
                item.origin.rejected_draft,
                item.origin.dropped_drafts,
                share,
                mass,
                note,
            )
            for item, share, mass, note in zip(items, shares, masses, notes, strict=True)
        ]

    def _shares(
        self, items: list[Emitted], rows: dict[str, Rows]
    ) -> tuple[Sequence[float | None], Sequence[float | None]]:
        if not self._origins:
            return [None] * len(items), [None] * len(items)
        tokens = torch.tensor([item.token for item in items], device=rows["base"].device).unsqueeze(-1)
        with torch.no_grad():
            share, mass = composed(self._composition, *in_order(rows)).from_base(tokens)
            return share.squeeze(-1).tolist(), mass.tolist()


def _rows(items: list[Emitted]) -> dict[str, Rows]:
    """The models' logits (n, vocab) at the tokens, by role. Empty if the loop keeps none."""
    kept = [item.origin.rows for item in items if item.origin.rows is not None]
    roles = kept[0] if kept else ()
    return {role: stacked([rows[role] for rows in kept]).to(torch.float32) for role in roles}
