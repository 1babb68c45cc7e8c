"""`Pair`: models by role and the composition in force. It is what everything above the engines works with."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict
from functools import cached_property
from typing import Any

import torch
from transformers import GenerationConfig

from kad.engines.protocols import Facts, Model, WholeModel
from kad.errors import MissingTokenizerError, RuleError, UsageError, VocabularyError
from kad.method.composition import Composition, RuleLike, refuse_lists
from kad.method.rules import ProductRule, Rule
from kad.method.scorer import Scorer
from kad.method.speculation.windows import AUTO, WindowSize, window_size
from kad.pair.base_prompt import BasePrompt
from kad.pair.config import KadConfig
from kad.pair.folder import generation_config, write
from kad.pair.model_files import tokenizer_of, uneven_soft_caps
from kad.tokens.vocabulary import OWN, Common, agree

_LOG = logging.getLogger(__name__)
# The compositions of the current calls in this context, by the id of the pair. Other pairs and threads see none.
_CALLS: ContextVar[Mapping[int, Composition] | None] = ContextVar("kad_compositions_of_calls", default=None)


class Pair:
    """A base model, a small aligned one, perhaps a reference model, each run by its engine, and how they are composed.

    A single model is a pair, too: see `one`.

    Args:
        config: the pair. Its vocabulary is decided here if it is not known yet.
        models: the models by role.

    Attributes:
        models: the models by role.
        whole: the engine that runs whole generations of this pair, or None: the models give scorers.
        gives_lists: whether only the most probable tokens of p are known, as of a base model on a server.
        generation_config: the sampling settings, and the tokens that end a text.

    Raises:
        VocabularyError: the models' tokens differ.
        RuleError: the rule needs the reference model, and there is none.
    """

    whole: WholeModel | None = None
    gives_lists = False
    _warned = False
    _learned: tuple[Any, WindowSize] | None = None

    def __init__(self, config: KadConfig, models: Mapping[str, Model]) -> None:
        self.config, self.models = config, dict(models)
        if config.vocab_size is None:
            for name, value in asdict(vocabulary_of(self.models)).items():
                setattr(config, name, value)
        self.gives_lists = "base" in self.models and self.models["base"].facts.gives_lists
        if config.base_tokenizer == OWN and self.gives_lists:
            raise VocabularyError(
                "The base model is on a server and has another tokenizer than the aligned model. To read it through "
                "other tokens, all of p is needed. Take an aligned model with the same tokenizer."
            )
        self.generation_config = generation_config(config, self.models["aligned"].generation_config)
        self.own_composition = Composition.of(config.parsed_rule, config.deferral_temperature)

    @classmethod
    def one(cls, model: Model) -> Pair:
        """A single model as a pair: pi is its own distribution, whatever rule is asked for.

        Raises:
            UsageError: it is on a server, which gives the most probable tokens alone.
        """
        if model.facts.gives_lists:
            raise UsageError(
                "The base model is on a server, which gives its most probable tokens alone. It cannot answer by itself "
                "here: ask the server."
            )
        return _One(KadConfig(rule="base_only"), {"aligned": model})

    def base_model(self) -> Pair:
        """The base model as a pair of its own, in its own tokens, with the sampling settings of this pair."""
        pair = Pair.one(self.models["base"])
        ends = self.models["base"].generation_config.eos_token_id
        pair.generation_config = GenerationConfig.from_dict(self.generation_config.to_dict())
        pair.generation_config.eos_token_id = pair.tokenizer.eos_token_id if ends is None else ends
        pair.generation_config.pad_token_id = pair.tokenizer.pad_token_id
        return pair

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(self._named, self.models))}, rule={self.rule})"

    def _named(self, role: str) -> str:
        model: Any = self.models[role]
        source = getattr(model, "source", None)
        kind = type(getattr(model, "model", model)).__name__
        return f"{role}={kind if source is None else source.to_dict()['model']}"

    # ------------------------------------------------------------------ what is known

    @cached_property
    def tokenizer(self) -> Any:
        """The aligned model's tokenizer, with its chat template; the pair's own where its folder has one.

        Raises:
            PairError: there is none. Assign one if the models were given as objects.
        """
        aligned = self.models["aligned"]
        own = aligned.facts.tokenizer_in_file or not self.config.name_or_path
        return aligned.tokenizer if own else tokenizer_of(self.config)

    @cached_property
    def base_tokenizer(self) -> Any:
        """The base model's tokenizer, where it is another one. Else None. Assign it if the models were objects."""
        return self.models["base"].tokenizer if self.config.base_tokenizer == OWN else None

    @cached_property
    def facts(self) -> dict[str, Facts]:
        """What is known about each model, by role."""
        return {role: model.facts for role, model in self.models.items()}

    @property
    def soft_caps(self) -> Mapping[str, float | None]:
        """The bounds that the models put on their logits, by role."""
        return {role: facts.soft_cap for role, facts in self.facts.items()}

    @property
    def context_length(self) -> int | None:
        """The number of positions that all models support. None if no model says."""
        limits = (facts.context_length for facts in self.facts.values())
        return min((limit for limit in limits if limit), default=None)

    def room(self, prompt_tokens: int, text_tokens: int = 0) -> int | None:
        """How many tokens fit after the prompt. None if no model sets a limit.

        Args:
            prompt_tokens: how long the prompt is.
            text_tokens: how long a given text after it is, whose last token need not be read. 0: it will be generated.

        Raises:
            UsageError: no token fits, or not the text.
        """
        context = self.context_length
        if context is None:
            return None
        if prompt_tokens + (text_tokens - 1 if text_tokens else 1) > context:
            grows = any(each.grows for each in self.facts.values() if each.context_length == context)
            text = f" and the text {text_tokens}" if text_tokens else ""
            raise UsageError(
                f"The prompt has {prompt_tokens} tokens{text}; the models' context holds {context}, answer included. "
                f"Shorten it, or start a new conversation"
                f"{', or raise the option `context` of its engine' if grows else ''}."
            )
        return context - prompt_tokens

    @property
    def device(self) -> torch.device:
        """The device of the logits."""
        return self.models["base" if "base" in self.models else "aligned"].device

    @property
    def roles(self) -> Collection[str]:
        """The roles for which the pair has a model."""
        return self.models.keys()

    @property
    def is_one(self) -> bool:
        """Whether it is a single model."""
        return "base" not in self.roles

    def roles_of(self, composition: Composition, drafter: str = "aligned") -> tuple[str, ...]:
        """The models that must run: all, but the reference only if the rule needs it or if it drafts."""
        needs_reference = composition.rule.needs_reference or drafter == "reference"
        return tuple(role for role in ("base", "aligned") if role in self.roles) + ("reference",) * needs_reference

    # ------------------------------------------------------------------ how it is composed

    @property
    def composition(self) -> Composition:
        """The rule and deferral temperature in force: those of the current call, else the pair's own."""
        return (_CALLS.get() or {}).get(id(self), self._own)

    @property
    def own_composition(self) -> Composition:
        """The pair's own composition, which is in force outside of calls."""
        return self._own

    @own_composition.setter
    def own_composition(self, composition: Composition) -> None:
        self._own = self._checked(composition)
        self.config.replace(composition.rule, composition.deferral_temperature)

    @property
    def rule(self) -> Rule:
        """The rule in force."""
        return self.composition.rule

    @rule.setter
    def rule(self, rule: RuleLike) -> None:
        temperature = None if isinstance(rule, Composition) else self._own.deferral_temperature
        self.own_composition = Composition.of(rule, temperature)

    @property
    def base_prompt(self) -> BasePrompt | None:
        """How the base model is asked. None: it reads the aligned model's prompt. Assign what `kad.generate` takes."""
        return BasePrompt.parse(self.config.base_prompt)

    @base_prompt.setter
    def base_prompt(self, prompt: Any) -> None:
        self.config.set_base_prompt(prompt)

    def composed_by(self, rule: RuleLike | None = None, deferral_temperature: float | None = None) -> Composition:
        """The composition in force with this rule and deferral temperature (None: leave as it is).

        Raises:
            RuleError: a bad rule or temperature, or a rule that needs the reference model without it.
        """
        now = self.composition
        if not isinstance(rule, Composition):
            rule = Composition.of(now.rule if rule is None else rule, now.deferral_temperature)
        return self._checked(Composition.of(rule, deferral_temperature))

    @contextmanager
    def using(self, rule: RuleLike | None = None, deferral_temperature: float | None = None) -> Iterator[None]:
        """Compose this pair by another rule within a block, in this thread only.

        Arguments and errors are those of `composed_by`.
        """
        token = _CALLS.set({**(_CALLS.get() or {}), id(self): self.composed_by(rule, deferral_temperature)})
        try:
            yield
        finally:
            _CALLS.reset(token)

    def _checked(self, composition: Composition) -> Composition:
        if composition.rule.needs_reference and "reference" not in self.roles:
            raise RuleError(
                f"Rule {composition.rule} needs the reference model; the pair has none. Give one: reference=..."
            )
        if self.gives_lists:
            refuse_lists(composition)
        if isinstance(composition.rule, ProductRule) and not self._warned:
            self._warned = True
            problem = uneven_soft_caps({role: self.soft_caps[role] for role in self.roles_of(composition)})
            if problem is not None:
                _LOG.warning("Rule %s: %s. A cascade is not affected.", composition.rule, problem)
        return composition

    # ------------------------------------------------------------------ running

    def scorers(self, roles: Collection[str]) -> dict[str, Scorer]:
        """New scorers, by role."""
        return {role: self.scorer_of(self.models[role]) for role in roles}

    def scorer_of(self, model: Model) -> Scorer:
        """A scorer for any model with the pair's vocabulary, or for a base model with its own."""
        return model.scorer(self.rows_of(model), self.device)

    def window(
        self, drafts: int | str, drafter: str, composition: Composition, *, sampled: bool, few: bool
    ) -> WindowSize:
        """How many tokens to draft. "auto" goes on from what it has learned in the last text of the same kind.

        Args:
            drafts: a number or "auto".
            drafter: the role of the drafting model.
            composition: how the models are composed.
            sampled: whether tokens are drawn at random.
            few: whether "auto" must do with a few sizes.

        Raises:
            UsageError: `drafts` is neither.
        """
        if drafts != AUTO:
            return window_size(drafts)
        kind = drafter, composition, sampled, few
        learned = self._learned
        if learned is None or learned[0] != kind:
            learned = self._learned = kind, window_size(drafts, few=few)
        return learned[1]

    def captured_scorers(
        self, roles: Collection[str], drafter: str, windows: Sequence[int], capacity: int, backend: Any
    ) -> dict[str, Scorer]:
        """New scorers with captured forward passes, by role.

        The drafting model reads one token at a time, and two after a window of accepted drafts. The other models read
        the drafts of a window and the token before them.

        Args:
            roles: the models.
            drafter: the role of the drafting model.
            windows: how many tokens may be drafted.
            capacity: the most tokens of the text.
            backend: True, or the name of a backend of torch.compile.

        Raises:
            UsageError: a model cannot be captured.
        """
        shapes = {role: (1, 2) if role == drafter else tuple(size + 1 for size in windows) for role in roles}
        return {
            role: self.models[role].captured(self.rows_of(self.models[role]), self.device, capacity, shape, backend)
            for role, shape in shapes.items()
        }

    def needs_logits(self, what: str) -> None:
        """Raise UsageError if `what`, which needs logits, is asked of a pair that gives none."""

    def save_pretrained(self, folder: Any) -> None:
        """Write the pair's folder; see `kad.pair.folder.write`."""
        write(folder, self.config, self.tokenizer, self.generation_config)

    def rows_of(self, model: Model) -> int:
        """How many tokens a row of one of its models has here."""
        own = self.config.base_tokenizer == OWN and model is self.models["base"]
        return model.vocab_size if own else int(self.config.vocab_size or 0)


class _One(Pair):
    """A single model as a pair, with the only rule that reads it alone."""

    def composed_by(self, rule: RuleLike | None = None, deferral_temperature: float | None = None) -> Composition:
        return Composition.of(self._own, deferral_temperature)


def pair_of(model: Any) -> Pair:
    """The pair in what `kad.load` gives: itself, or that of a `KadForCausalLM`."""
    pair: Pair = getattr(model, "pair", model)
    return pair


def vocabulary_of(models: Mapping[str, Model]) -> Common:
    """The vocabulary that all models share. The ids of a model without a tokenizer (bare weights) are taken to agree.

    Raises:
        VocabularyError: the tokens differ.
    """
    tokenizers: dict[str, Any] = {}
    for role, model in models.items():
        with suppress(MissingTokenizerError):
            tokenizers[role] = model.tokenizer
    return agree({role: model.vocab_size for role, model in models.items()}, tokenizers)
