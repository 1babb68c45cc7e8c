"""Do two models fit: what a pair defers, and where its models disagree, over a few answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from kad.engines.pair import pair_of
from kad.method.composition import acceptance, deferred_mass, in_order
from kad.method.distribution import joined
from kad.method.rules import CascadeRule
from kad.text.answering import generate
from kad.text.contexts import Context
from kad.text.prompts import decode
from kad.text.sampling import Sampling
from kad.text.scoring import logits_of

if TYPE_CHECKING:
    from kad.engines.load import Loaded
    from kad.text.prompts import Prompt

SURE = 0.9
"""The base model is sure of a token that it gives this probability or more."""
PROMPTS = (
    "What is the capital of Australia, and why is it not Sydney?",
    "A train leaves at 14:35 and arrives at 17:10. How long does it travel?",
    "Write a short email that moves a meeting from Monday to Wednesday.",
    "Give me three reasons to learn a second language.",
    "Explain to a child why the sky is blue.",
    "Write a Python function that says whether a number is prime.",
    "Translate into French: The library is closed on Sunday.",
    "Mia has 24 apples. She buys 13 more. Then she loses 9. How many are left?",
)
_MOST_LISTED = 8
_MUCH, _LITTLE, _OVERRULED = 0.2, 0.02, 0.05


@dataclass(frozen=True)
class Disagreement:
    """The base model's favorite, the aligned model's, and at how many positions.

    A base model that is read through other tokens may give most of its mass to none: its favorite is "(no token)".
    """

    base: str
    aligned: str
    positions: int


@dataclass(frozen=True)
class Probe:
    """Means over all positions of a pair's greedy answers.

    Attributes:
        answers: how many.
        positions: their tokens.
        deferred_mass: alpha: the share of the tokens that the aligned model gives. None for product rules.
        acceptance: of a draft from the aligned model.
        agreement: the share of positions at which both models prefer the same token.
        sure: the share of positions at which the base model gives its favorite `SURE` or more.
        sure_deferred: the deferred mass there. None where there is no such position, and for product rules.
        sure_apart: the share of positions at which the base model is sure and the aligned one prefers another token.
        disagreements: the most frequent ones.
    """

    answers: int
    positions: int
    deferred_mass: float | None
    acceptance: float
    agreement: float
    sure: float
    sure_deferred: float | None
    sure_apart: float
    disagreements: tuple[Disagreement, ...]

    def advice(self) -> list[str]:
        """What to try, in sentences."""
        lines = []
        if self.deferred_mass is not None and self.deferred_mass > _MUCH:
            lines.append(
                f"The aligned model gives {self.deferred_mass:.0%} of the tokens. See whether the pair is better than "
                'the aligned model alone: kad eval --methods "aligned;pair". If not, lower the threshold, or take a '
                "smaller or another aligned model."
            )
        if self.deferred_mass is not None and self.deferred_mass < _LITTLE:
            lines.append(
                f"Only {self.deferred_mass:.1%} of the tokens come from the aligned model. If the answers have the "
                "faults of the base model, raise the threshold."
            )
        if self.sure_apart > _OVERRULED:
            lines.append(
                f"At {self.sure_apart:.0%} of the positions the base model is sure and the aligned model prefers "
                "another token. If these are tokens of form (line ends, markup, end of the answer), ask the base model "
                "in a form that it knows (--base-prompt) or raise the threshold. If they are content, that is the gain."
            )
        return lines or ["Nothing stands out."]


def probe(
    model: Loaded, prompts: Sequence[Prompt] = PROMPTS, *, thinking: bool | None = None, max_new_tokens: int = 64
) -> Probe:
    """Let a pair answer greedily, and look at both models along the answers.

    Args:
        model: a pair, as `kad.load` gives it.
        prompts: what is asked: texts, or the messages of conversations.
        thinking: for chat templates with a thinking switch. None leaves it to the template.
        max_new_tokens: of each answer.

    Raises:
        UsageError: an engine that gives no logits.
    """
    pair_of(model).needs_logits("kad info --probe")
    alphas, betas, favorites, sure = [], [], [], []
    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=0.0)
    for prompt in prompts:
        answer = generate(model, prompt, thinking=thinking, sampling=sampling, origins=False)
        context = Context.of(answer.prompt, model)
        for chunk in logits_of(model, context, answer.token_ids):
            base, aligned, reference = in_order(chunk.logits)
            betas.append(acceptance(model.composition, base, aligned, reference))
            if isinstance(model.composition.rule, CascadeRule):
                alphas.append(deferred_mass(model.composition, base, aligned))
            vocab = aligned.shape[-1]
            whole = joined(base)  # p's favorite may be no token
            favorites.append(torch.stack([whole.argmax(-1), aligned.argmax(-1)]))
            sure.append(whole.softmax(-1)[:, :vocab].amax(-1) >= SURE)
    alpha = torch.cat(alphas) if alphas else None
    both, is_sure = torch.cat(favorites, dim=-1), torch.cat(sure)
    apart = both[0] != both[1]
    common = Counter((base, aligned) for base, aligned in both[:, apart].T.tolist()).most_common(_MOST_LISTED)
    return Probe(
        answers=len(prompts),
        positions=len(is_sure),
        deferred_mass=None if alpha is None else float(alpha.mean()),
        acceptance=float(torch.cat(betas).mean()),
        agreement=1 - float(apart.float().mean()),
        sure=float(is_sure.float().mean()),
        sure_deferred=float(alpha[is_sure].mean()) if alpha is not None and is_sure.any() else None,
        sure_apart=float((is_sure & apart).float().mean()),
        disagreements=tuple(
            Disagreement(
                base=decode(model.tokenizer, [base], special=True) if base < vocab else "(no token)",
                aligned=decode(model.tokenizer, [aligned], special=True),
                positions=count,
            )
            for (base, aligned), count in common
        ),
    )
