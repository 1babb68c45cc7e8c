"""The options that say how to draw tokens from the composed model, and the generation settings they make."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kad.errors import UsageError

if TYPE_CHECKING:
    from transformers import GenerationConfig

_SAMPLING = "Sampling"
# Where neither the user nor the aligned model's settings say how long an answer may get.
MAX_NEW_TOKENS = 512

MaxNewTokens = Annotated[
    int | None,
    typer.Option(
        "--max-new-tokens",
        "-n",
        metavar="N",
        min=1,
        help="The most tokens to generate.",
        show_default=f"the aligned model's, else {MAX_NEW_TOKENS}",
        rich_help_panel=_SAMPLING,
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        "--temperature",
        "-t",
        metavar="T",
        help="Temperature on the composed distribution; 0 takes the most probable token.",
        show_default="the aligned model's",
        rich_help_panel=_SAMPLING,
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(
        "--top-k", metavar="K", min=0, help="Draw from the K most probable tokens; 0: all.", rich_help_panel=_SAMPLING
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        "--top-p", metavar="P", help="Draw from the smallest head of mass P, in (0, 1].", rich_help_panel=_SAMPLING
    ),
]
MinP = Annotated[
    float | None,
    typer.Option(
        "--min-p", metavar="P", help="Draw from tokens of at least P times the top one.", rich_help_panel=_SAMPLING
    ),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(
        "--repetition-penalty",
        metavar="X",
        help="Make tokens that occurred less probable; 1: off.",
        rich_help_panel=_SAMPLING,
    ),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        "--stop",
        metavar="TEXT",
        help="Stop after this text; may be given several times.",
        rich_help_panel=_SAMPLING,
    ),
]
Thinking = Annotated[
    bool | None,
    typer.Option(
        "--thinking/--no-thinking",
        help="For chat templates with a thinking switch (Qwen3).",
        show_default="the template's",
    ),
]


@dataclass(frozen=True)
class Sampling:
    """How to draw tokens; None leaves a setting to the aligned model's generation_config.

    Raises:
        UsageError: a value out of its range, or sampling options beside temperature 0.
    """

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        _check("--temperature", self.temperature, ">= 0", lambda x: x >= 0)
        _check("--top-p", self.top_p, "in (0, 1]", lambda x: 0 < x <= 1)
        _check("--min-p", self.min_p, "in [0, 1]", lambda x: 0 <= x <= 1)
        _check("--repetition-penalty", self.repetition_penalty, "> 0", lambda x: x > 0)
        if "" in self.stop:
            raise UsageError("--stop needs some text to stop at.")
        warpers = {"--top-k": self.top_k, "--top-p": self.top_p, "--min-p": self.min_p}
        given = [option for option, value in warpers.items() if value is not None]
        if self.temperature == 0 and given:
            raise UsageError(f"--temperature 0 takes the most probable token; {', '.join(given)} would do nothing.")

    def seeded(self) -> Sampling:
        """With a seed in any case, so that every run can be repeated."""
        return self if self.seed is not None else replace(self, seed=secrets.randbelow(2**32))

    def draws(self, config: GenerationConfig) -> bool:
        """Whether tokens are drawn at random, given the aligned model's settings, and not the most probable taken."""
        return bool(self._drawing(config)["do_sample"])

    def apply(self, config: GenerationConfig, room: int | None) -> GenerationConfig:
        """A copy of the aligned model's settings with these on top, at most `room` tokens long."""
        from transformers import GenerationConfig

        made = GenerationConfig.from_dict(config.to_dict())
        made.max_new_tokens = self.max_new_tokens or config.max_new_tokens or MAX_NEW_TOKENS
        if room is not None:
            made.max_new_tokens = min(made.max_new_tokens, room)
        made.max_length = None
        for name, value in self._drawing(config).items():
            setattr(made, name, value)
        if self.repetition_penalty is not None:
            made.repetition_penalty = self.repetition_penalty
        if self.stop:
            made.stop_strings = list(self.stop)
        if made.pad_token_id is None:
            made.pad_token_id = end_tokens(config)[0] if end_tokens(config) else 0
        made.return_dict_in_generate = False
        return made

    def _drawing(self, config: GenerationConfig) -> dict[str, Any]:
        given = {
            key: getattr(self, key)
            for key in ("temperature", "top_k", "top_p", "min_p")
            if getattr(self, key) is not None
        }
        if self.temperature == 0 or not (given or config.do_sample):
            off = ("temperature", "top_k", "top_p", "min_p")
            return {"do_sample": False, **dict.fromkeys(off)}
        if not config.do_sample:
            # The aligned model's settings are greedy; what the user did not name is then plain sampling, and not
            # the values that Transformers would fill in.
            given = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, **given}
        return {"do_sample": True, **given}


def end_tokens(config: GenerationConfig) -> list[int]:
    """The end-of-sequence tokens of some generation settings."""
    tokens = config.eos_token_id
    if tokens is None:
        return []
    return list(tokens) if isinstance(tokens, list | tuple) else [int(tokens)]


def _check(option: str, value: float | None, allowed: str, holds: Any) -> None:
    if value is not None and not holds(value):
        raise UsageError(f"{option} must be {allowed}, but is {value:g}.")
