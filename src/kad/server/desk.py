"""The desk: one model answers one request at a time, in their order. An answer ends early when its client is gone.

All work on the models is done by one thread, in the order in which it was asked for. The event loop never waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from kad.engines.pair import Pair, pair_of
from kad.method.composition import Composition
from kad.method.scorer import Scorer
from kad.server.refusals import Busy, Refusal
from kad.text.answer import Answer, Piece
from kad.text.contexts import Context
from kad.text.conversation import WarmScorers
from kad.text.masks import Mask
from kad.text.sampling import Sampling, end_tokens
from kad.text.streaming import Note, Stream

if TYPE_CHECKING:
    from kad.engines.load import Loaded

Result = TypeVar("Result")

KEPT_ANSWERS = 2
"""How many answers keep their caches: a conversation, and a request beside it (a title, another rule)."""


@dataclass(frozen=True)
class AnswerJob:
    """One answer to generate.

    Attributes:
        context: what the models read before the answer.
        num_draft_tokens: see `kad.generate`.
        masks, note: see `kad.text.streaming.Stream`.
        begun: the first tokens of the answer, if it continues them. The last one comes as a piece, for its `note`.
        alone: whether `Desk.base_model` answers. The context is in its tokens.
    """

    context: Context
    composition: Composition
    sampling: Sampling = field(default_factory=Sampling)
    num_draft_tokens: int | str | None = None
    masks: Sequence[Mask] = ()
    note: Note | None = None
    begun: Sequence[int] = ()
    alone: bool = False


_STOPPED = Refusal(503, "The server is being stopped.", code="stopped")


class Run:
    """An answer in progress: an asynchronous iterator over its pieces.

    Attributes:
        stream: makes the pieces. It is set before the first piece.
        reused_tokens: how many tokens of the prompt were in a cache already.
    """

    stream: Stream
    reused_tokens = 0

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._items: asyncio.Queue[Piece | BaseException | None] = asyncio.Queue()
        self.given_up = False

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self

    async def __anext__(self) -> Piece:
        item = await self._items.get()
        if item is None:
            raise StopAsyncIteration
        if isinstance(item, BaseException):
            raise item
        return item

    @property
    def answer(self) -> Answer:
        """The whole answer, after the last piece."""
        return self.stream.answer

    def put(self, item: Piece | BaseException | None) -> None:
        """Pass on a piece, an error, or the end (None), from the thread of the models."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._items.put_nowait, item)


class Desk:
    """Takes jobs, and answers them with the pair `model`.

    Args:
        most_requests: how many requests may be in the line, with the one that is answered.
        draft_tokens: the number of drafts if a job does not say it; see `kad.generate`.
    """

    def __init__(self, model: Loaded, most_requests: int = 64, draft_tokens: int | str | None = None) -> None:
        self.model, self.most_requests, self._draft_tokens = pair_of(model), most_requests, draft_tokens
        self.requests = 0
        self._warm = WarmScorers(KEPT_ANSWERS)
        self._models = ThreadPoolExecutor(1, "kad-models")
        self._texts = ThreadPoolExecutor(1, "kad-texts")
        self._runs: set[Run] = set()
        self._closed = False

    @cached_property
    def base_model(self) -> Pair | None:
        """The base model in its own tokens. None where the models share them: then the pair answers as `base_only`."""
        return None if self.model.base_tokenizer is None else self.model.base_model()

    def model_of(self, job: AnswerJob) -> Pair:
        """What answers a job."""
        alone = self.base_model if job.alone else None
        return self.model if alone is None else alone

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """A place in the line for one request with all its answers. Raises Busy if there is none left."""
        self._check_open()
        if self.requests >= self.most_requests:
            raise Busy
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1

    @asynccontextmanager
    async def answering(self, job: AnswerJob) -> AsyncIterator[Run]:
        """An answer, as its pieces come. When the block is left, the answer ends: at once, or after its next piece."""
        self._check_open()
        run = Run()
        self._runs.add(run)
        future = self._models.submit(self._answer, job, run)
        try:
            yield run
        finally:
            self._runs.discard(run)
            run.given_up = True
            future.cancel()

    async def with_texts(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """The result of slow work that needs no model: the tokens of a long prompt, a grammar."""
        self._check_open()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._texts, partial(work, *arguments))
        except asyncio.CancelledError:
            self._check_open()
            raise

    def close(self) -> None:
        """Refuse the requests that are here, the answer under way included, and take no more."""
        for run in self._runs:
            run.put(_STOPPED)
        self._closed = True
        for threads in (self._models, self._texts):
            threads.shutdown(wait=False, cancel_futures=True)

    def _check_open(self) -> None:
        if self._closed:
            raise _STOPPED

    def _answer(self, job: AnswerJob, run: Run) -> None:
        """Runs in the thread of the models."""
        try:
            if job.num_draft_tokens is None:
                job = replace(job, num_draft_tokens=self._draft_tokens)
            warm = WarmScorers() if job.alone else self._warm
            run.stream = stream = _WarmStream(self.model_of(job), job, warm)
            run.reused_tokens = stream.reused_tokens
            if stream.last_begun is not None:
                run.put(stream.last_begun)
            for piece in stream:
                run.put(piece)
                if run.given_up or self._closed:
                    stream.stop()
            run.put(None)
        except BaseException as error:  # noqa: BLE001  (any error is an answer to the request)
            run.put(error)


class _WarmStream(Stream):
    """A stream that takes warm scorers, and gives its own back.

    Attributes:
        reused_tokens: how many tokens the models had read before.
        last_begun: the last of the tokens that the answer begins with, as a piece.
    """

    reused_tokens = 0
    last_begun: Piece | None = None

    def __init__(self, model: Pair, job: AnswerJob, warm: WarmScorers) -> None:
        self._model, self._job, self._warm = model, job, warm
        super().__init__(
            model, job.context, job.composition, job.sampling, job.num_draft_tokens, origins=False,
            masks=job.masks, begun=job.begun, note=job.note, take_scorers=self._take,
        )  # fmt: skip
        if job.begun and job.begun[-1] in end_tokens(model.generation_config):
            self.stop()

    def ended(self) -> None:
        self._warm.keep(self.loop)

    def _take(self, context: Context) -> dict[str, Scorer]:
        roles = self._model.roles_of(self._job.composition)
        # A base model with its own prompt reads the begun tokens again: the tokens it never keeps depend on them.
        scorers = self._warm.take(replace(context, ids=[*context.ids, *self.begun]), roles)
        self.reused_tokens = min((scorer.processed for scorer in scorers.values()), default=0)
        if self.begun and self._job.note is not None:
            scorers = scorers or self._model.scorers(roles)
            self.last_begun = self._read_begun(scorers, self._job.note)
        return scorers

    def _read_begun(self, scorers: dict[str, Scorer], note: Note) -> Piece:
        """The last token that the answer begins with, as a piece: the models read up to the token before it."""
        ids = torch.tensor([*self.prompt_ids, *self.begun], device=self._model.device)
        end, rows = len(ids) - 1, {}
        counting = self.context.scorers(self._model, self._composition, tuple(scorers), kept=scorers)
        with torch.no_grad():
            for role, scorer in counting.items():
                scorer.rollback(end - 1)
                rows[role] = scorer.advance(ids[scorer.processed : end], 1).to(torch.float32)
        if self.context.base_ids is not None:
            scorers["base"].rollback(len(self.context.base_ids) - 1)
        return Piece(self.begun[-1], "", note=note(self.begun[-1:], rows)[0])
