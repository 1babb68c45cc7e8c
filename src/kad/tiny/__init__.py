"""The embedded tiny family: four real models, and the problems that they were trained on.

Importing this package is light: torch and Transformers are loaded when a model is asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kad.errors import PairError
from kad.pair.sources import TINY_MODELS as MODELS
from kad.tiny.problems import SYSTEM_PROMPT, Equation, Problem, Split, boxed, is_kept_out, problems

if TYPE_CHECKING:
    from kad.engines.transformers.modeling import KadForCausalLM
    from kad.method.rules import Rule

__all__ = [
    "MODELS", "SYSTEM_PROMPT", "Equation", "Problem", "Split", "boxed", "is_kept_out", "pair", "path", "problems",
]  # fmt: skip


def path(name: str = "pair") -> Path:
    """The folder of one of the four models (`MODELS`) or of the pair.

    Raises:
        PairError: unknown name, or an installation without the weights.
    """
    if name not in (*MODELS, "pair"):
        raise PairError(f"Unknown tiny model {name!r}. The family has {', '.join(MODELS)} and pair.")
    folder = Path(__file__).parent / "weights" / name
    if not (folder / "config.json").exists():
        raise PairError(f"The tiny model {name!r} is missing from this installation ({folder}). Reinstall kad-align.")
    return folder


def pair(*, rule: Rule | str | None = None) -> KadForCausalLM:
    """The composed model of the big base and the small aligned model, with the small base as reference.

    Args:
        rule: a rule or its text; by default the pair's own, `dual:threshold=0.4`.
    """
    from kad.engines.transformers.modeling import KadForCausalLM

    options = {} if rule is None else {"rule": rule}
    model: KadForCausalLM = KadForCausalLM.from_pretrained(path("pair"), **options)
    return model
