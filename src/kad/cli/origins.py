"""Who produced each token: the shares of p and q* in pi at the tokens of a finished text, and how to show them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.text import Text

from kad.cli.prompts import Detokenizer
from kad.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from kad.modeling import KadForCausalLM

# Blue and orange differ for every kind of colour vision; these two are equally bright, and readable on black and white.
BASE_COLOR, ALIGNED_COLOR = (47, 134, 214), (201, 106, 0)
# Positions per forward: the logits of both models and a handful of copies of them exist for one chunk at a time.
_CHUNK = 32


@dataclass(frozen=True)
class Origins:
    """Where the tokens of a text come from.

    Attributes:
        base: per token, the share of pi_v that is k_v p_v; the aligned model's share is the rest.
        alpha: per token, the deferred mass at its position.
    """

    base: list[float]
    alpha: list[float]

    @property
    def base_share(self) -> float:
        """The mean share of the base model."""
        return sum(self.base) / len(self.base)

    @property
    def mean_alpha(self) -> float:
        """The mean deferred mass."""
        return sum(self.alpha) / len(self.alpha)


def has_origins(model: KadForCausalLM) -> bool:
    """Whether the rule in force is a cascade, whose tokens come from one model or the other."""
    from kad.rules import CascadeRule

    return isinstance(model.rule, CascadeRule)


def require(model: KadForCausalLM) -> None:
    """Raise UsageError unless `has_origins`."""
    if not has_origins(model):
        raise UsageError(f"Rule {model.rule} multiplies the models, so no token comes from one of them: no --color.")


def measure(model: KadForCausalLM, prompt_ids: Tensor, token_ids: list[int]) -> Origins:
    """Shares and deferred mass at every token, from one forward of both models over the finished text.

    Args:
        model: the composed model, under a cascade.
        prompt_ids: (1, positions).
        token_ids: what was generated after it, at least one token.
    """
    import torch

    from kad.composition import deferred_mass, origin_shares

    shares: list[float] = []
    alphas: list[float] = []
    temperature = model.composition.deferral_temperature
    with torch.inference_mode():
        for base, aligned in _logits(model, prompt_ids, token_ids):
            base, aligned = base.float() / temperature, aligned.float() / temperature
            from_base, _ = origin_shares(model.rule, base, aligned)
            tokens = torch.tensor(token_ids[len(shares) : len(shares) + base.shape[0]], device=base.device)
            shares += from_base.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).tolist()
            alphas += deferred_mass(model.rule, base, aligned).tolist()
    return Origins(shares, alphas)


def _logits(model: KadForCausalLM, prompt_ids: Tensor, token_ids: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Both models' logits (positions, vocab) at the positions that predict the tokens, chunk by chunk."""
    import torch

    from kad.parts import run_part
    from kad.vocabulary import trim

    caches = model.make_cache()
    # The last token predicts nothing that was generated.
    follow = torch.tensor([token_ids[:-1]], device=prompt_ids.device, dtype=prompt_ids.dtype)
    for chunk, keep in [(prompt_ids, 1), *((part, 0) for part in torch.split(follow, _CHUNK, dim=-1) if part.numel())]:
        rows = [
            trim(run_part(part, chunk, caches.parts[role], logits_to_keep=keep), model.config.vocab_size)[0]
            for role, part in (("base", model.base), ("aligned", model.aligned))
        ]
        yield rows[0], rows[1].to(rows[0].device)


def color(base_share: float) -> str:
    """A colour between the aligned model's (share 0) and the base model's (share 1), grey in the middle."""
    mixed = (round(a + (b - a) * base_share) for a, b in zip(ALIGNED_COLOR, BASE_COLOR, strict=True))
    return "#{:02x}{:02x}{:02x}".format(*mixed)


def style(base_share: float) -> str:
    """The style of a token. Underlined where more of it is the aligned model's, which shows without colours too."""
    return color(base_share) if base_share >= 0.5 else f"{color(base_share)} underline"


def render(tokenizer: Any, token_ids: list[int], origins: Origins) -> Text:
    """The text with each token in the colour of its origin."""
    text, pieces = Text(), Detokenizer(tokenizer)
    for token, share in zip(token_ids, origins.base, strict=True):
        text.append(pieces.push(token), style(share))
    text.append(pieces.finish(), style(origins.base[-1]) if origins.base else "")
    return text


def legend(origins: Origins) -> Text:
    """What the colours mean, and how much of the text is whose."""
    share = origins.base_share
    text = Text.assemble(
        ("base model", style(1.0)),
        (f" {share:.0%}  ", "dim"),
        *(("█", color(1 - step / 7)) for step in range(8)),
        "  ",
        ("aligned model", style(0.0)),
        (f" {1 - share:.0%}", "dim"),
        (f"   deferred mass {origins.mean_alpha:.2f}", "dim"),
    )
    text.no_wrap = True
    return text
