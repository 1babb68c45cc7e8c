"""What a run asks of an engine: prompts in, completions out. Transformers and vLLM each have one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from kad.evaluation.methods import Method
from kad.evaluation.tasks.task import Continuation, Renderer
from kad.text.sampling import Sampling

if TYPE_CHECKING:
    from kad.text.answer import Answer


@dataclass(frozen=True)
class SampleRequest:
    """One sample to draw. The seed is the sample's own, so it comes out the same in whatever company it is
    drawn."""

    prompt: str
    seed: int
    max_new_tokens: int
    temperature: float
    until: tuple[str, ...] = ()
    conversation: tuple[dict[str, str], ...] = ()


@dataclass(frozen=True)
class Completion:
    """One sample drawn.

    `seconds` is its share of the wall time, so that summed tokens over summed seconds is the throughput;
    `finished` says that the model ended it, not the limit. `drafted`, `accepted` and `acceptance_lengths`
    (accepted drafts -> windows) come from speculation, `deferred_mass` and `acceptance` are means
    over the generated positions.
    """

    text: str
    prompt_tokens: int
    tokens: int
    finished: bool
    seconds: float
    drafted: int | None = None
    accepted: int | None = None
    acceptance_lengths: dict[str, int] = field(default_factory=dict)
    deferred_mass: float | None = None
    acceptance: float | None = None

    @classmethod
    def of(cls, answer: Answer, *, deferred_mass: float | None = None, acceptance: float | None = None) -> Completion:
        """The completion that an answer is, with what was measured along it."""
        counted = answer.statistics
        return cls(
            text=answer.text,
            prompt_tokens=len(answer.prompt_ids),
            tokens=len(answer.token_ids),
            finished=answer.finished,
            seconds=answer.seconds,
            drafted=None if counted is None else counted.drafted,
            accepted=None if counted is None else counted.accepted,
            acceptance_lengths={}
            if counted is None
            else {str(length): count for length, count in sorted(counted.lengths.items())},
            deferred_mass=deferred_mass,
            acceptance=acceptance,
        )


def sampling_of(request: SampleRequest) -> Sampling:
    """Nothing but the temperature acts on log pi."""
    head: dict[str, Any] = {"top_k": 0, "top_p": 1.0} if request.temperature > 0 else {}
    return Sampling(
        max_new_tokens=request.max_new_tokens,
        temperature=request.temperature,
        seed=request.seed,
        stop=request.until,
        **head,
    )


class Engine(Protocol):
    """Runs methods. Models are loaded when first needed and kept until released."""

    def renderer(self, method: Method) -> Renderer:
        """The chat template that the method's prompts are written in."""
        ...

    def batch_size(self, method: Method, wanted: int) -> int:
        """How many requests the method takes at once, at most `wanted`."""
        ...

    def generate(self, method: Method, requests: Sequence[SampleRequest]) -> list[Completion]:
        """One completion for each request, in their order."""
        ...

    def log_likelihoods(self, method: Method, continuations: Sequence[Continuation]) -> list[tuple[float, bool]]:
        """For each continuation its log-probability after its context, and whether greedy decoding says just it."""
        ...

    def release(self, keep: Collection[str]) -> None:
        """Let go of every model whose role is not in `keep`."""
        ...
