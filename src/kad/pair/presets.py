"""The published experiments by name: pairs, settings with the source of each, and the accuracies that were reported.

Sources: the configuration and code that the Kad paper's authors published ("code"); and what was read second-hand, in
notes of a reader, about the Rejection paper, which follows the same setup. Neither paper's own text was at hand.
Parameter counts are those of the stored weights; sizes follow from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from kad.errors import UsageError
from kad.method.defaults import PUBLISHED_DRAFT_TOKENS


@dataclass(frozen=True)
class PublishedModel:
    """A hub model and its number of parameters."""

    model: str
    parameters: float

    def gigabytes(self) -> float:
        """The size of its weights in bfloat16."""
        return self.parameters * 2 / 1e9


class Setting(NamedTuple):
    """One line of a plan. Its source is "code", "second-hand" or "ours"."""

    name: str
    value: str
    source: str


# The tasks of the papers' tables, with the number of questions.
TASKS = {
    "kad_gsm8k": 1319, "kad_math500": 500, "kad_svamp": 300, "kad_arc_challenge": 1172, "kad_commonsense_qa": 1221,
}  # fmt: skip


@dataclass(frozen=True)
class Preset:
    """One published experiment: a pair, its reference model and upper bound, how they were decoded, what was reported.

    `temperature` divides the logits of every model, before composing. `reported` holds accuracies in per cent on the
    `TASKS`, in their order, by method (its role, or its rule), read second-hand.
    """

    name: str
    base: PublishedModel
    aligned: PublishedModel
    reference: PublishedModel
    oracle: PublishedModel
    reported: Mapping[str, tuple[float, ...]] = field(hash=False)
    dtype: str = "bfloat16"
    temperature: float = 0.7
    max_new_tokens: int = 1024
    num_draft_tokens: int = PUBLISHED_DRAFT_TOKENS

    @property
    def methods(self) -> tuple[str, ...]:
        """Every method of the papers' tables; the rules are decoded speculatively, as published."""
        window = f"@speculative:num_draft_tokens={self.num_draft_tokens}"
        rules = ("nudging:threshold=0.4", "dual:threshold=0.4", "primal:budget=0.9", "confidence_bet:margin=0.2")
        products = (f"implicit_reward{window},draft={role}" for role in ("reference", "aligned"))
        big = self.oracle.model
        alone = (f"base={big}", "aligned", f"oracle={big}")
        return *alone, *(f"{rule}{window}" for rule in rules), "implicit_reward", *products

    @property
    def settings(self) -> tuple[Setting, ...]:
        """What is run, but for the temperature, and where each setting is from."""
        return (
            Setting("drafts", f"windows of {self.num_draft_tokens}", "code"),
            Setting("new tokens", f"at most {self.max_new_tokens}; their code may pass it by 7", "code"),
            Setting("numbers", f"weights in {self.dtype}, softmax in float32", "code"),
            Setting("prompts", "zero-shot chain of thought, one system prompt, thinking off", "code"),
            Setting("p alone", "the chat template of the big aligned model, its own end tokens alone", "code"),
            Setting("metric", "paper (strict beside it is ours)", "code"),
            Setting("nudging, dual, primal", "0.4, 0.4, 0.9", "code"),
            Setting("confidence bet", "margin 0.2, the best of their 0, 0.1 and 0.2", "second-hand"),
            Setting(
                "tasks",
                "the five of their tables; TruthfulQA (kad_truthful_qa) only if --tasks names it",
                "second-hand",
            ),
            Setting("primal with drafts", "a budget at each position; their code spends one on a window", "ours"),
            Setting("verification", "a window as a block, then a bonus token; their code has no bonus", "ours"),
            Setting("answers", "one to each question", "ours"),
        )

    @property
    def models(self) -> tuple[PublishedModel, ...]:
        """All that is downloaded, the largest first."""
        return self.oracle, self.base, self.aligned, self.reference

    @property
    def memory(self) -> float:
        """The most gigabytes of weights at one time: the pair with its reference, or the oracle before them."""
        together = sum(model.gigabytes() for model in (self.base, self.aligned, self.reference))
        return max(together, self.oracle.gigabytes())


_OLMO2 = Preset(
    name="olmo2",
    base=PublishedModel("allenai/OLMo-2-1124-13B", 13.7e9),
    aligned=PublishedModel("allenai/OLMo-2-0425-1B-Instruct", 1.48e9),
    reference=PublishedModel("allenai/OLMo-2-0425-1B", 1.48e9),
    oracle=PublishedModel("allenai/OLMo-2-1124-13B-Instruct", 13.7e9),
    reported={
        "base": (54.5, 9.4, 57.6, 29.6, 19.4),
        "aligned": (62.5, 16.4, 70.3, 43.8, 48.4),
        "implicit_reward": (58.4, 18.2, 73.0, 63.3, 55.8),
        "dual:threshold=0.4": (72.3, 23.4, 75.3, 61.9, 55.6),
        "confidence_bet:margin=0.2": (71.7, 26.4, 79.0, 62.6, 54.9),
        "oracle": (84.3, 39.6, 87.6, 82.5, 76.9),
    },
)
_QWEN3 = Preset(
    name="qwen3",
    base=PublishedModel("Qwen/Qwen3-14B-Base", 14.8e9),
    aligned=PublishedModel("Qwen/Qwen3-1.7B", 2.03e9),
    reference=PublishedModel("Qwen/Qwen3-1.7B-Base", 2.03e9),
    oracle=PublishedModel("Qwen/Qwen3-14B", 14.8e9),
    reported={
        "base": (75.5, 51.8, 80.0, 86.6, 76.9),
        "aligned": (75.3, 53.0, 86.6, 82.9, 68.7),
        "implicit_reward": (80.7, 60.6, 89.0, 88.9, 78.1),
        "dual:threshold=0.4": (81.7, 60.6, 87.3, 91.5, 80.7),
        "confidence_bet:margin=0.2": (82.1, 61.6, 89.3, 90.5, 79.3),
        "oracle": (82.4, 64.0, 88.3, 93.8, 83.1),
    },
)
PRESETS = {preset.name: preset for preset in (_OLMO2, _QWEN3)}


def preset(name: str) -> Preset:
    """A published experiment by its name."""
    if name not in PRESETS:
        raise UsageError(f"Unknown preset {name!r}. Choose from: {', '.join(PRESETS)}.")
    return PRESETS[name]


def reported(models: Mapping[str, str | None], task: str, method: str) -> float | None:
    """The accuracy that was reported for a method of a run in [0, 1]. None: for other models, tasks or methods.

    Args:
        models: the models of the run by role.
        task: the name of the task.
        method: the name of the method. How it decodes does not count.
    """
    pair = (models.get("base"), models.get("aligned"))
    known = next((one for one in PRESETS.values() if (one.base.model, one.aligned.model) == pair), None)
    if known is None or task not in TASKS:
        return None
    role, _, model = method.partition("=")
    if (role == "oracle" and model == known.oracle.model) or (role == "base" and model):
        method = role
    values = known.reported.get(method.partition("@")[0])
    return None if values is None else values[list(TASKS).index(task)] / 100
