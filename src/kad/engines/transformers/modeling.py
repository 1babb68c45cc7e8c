"""`KadForCausalLM`: the composed distribution pi as a Transformers causal language model whose logits are log pi."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import nll_loss
from transformers import AutoModelForCausalLM, Cache, GenerationConfig, GenerationMixin, PreTrainedModel

from kad.engines.nested import PairAsModel, without_excluded
from kad.engines.pair import Pair
from kad.engines.protocols import Facts
from kad.engines.transformers.forward import Trial, attempt, run_part
from kad.engines.transformers.host import (
    CACHE,
    CausalLMOutputWithPast,
    ComposedGeneration,
    is_static,
    length_of,
    one_cache_name,
)
from kad.engines.transformers.late_check import LateCheck
from kad.engines.transformers.loading import load_models
from kad.engines.transformers.model import TransformersModel, new_cache, scorer_of
from kad.errors import PairError, UsageError
from kad.method import defaults
from kad.method.composition import Composition, RuleLike, compose, in_order, raise_if_bad
from kad.method.distribution import Rows, move_to_rest
from kad.method.rules import Rule
from kad.method.scorer import Scorer
from kad.pair.base_prompt import BasePrompt
from kad.pair.config import KadConfig
from kad.pair.folder import load_config, write
from kad.pair.model_files import load_tokenizer
from kad.tokens.never_kept import foreign_tokens
from kad.tokens.vocabulary import trim


class KadCache(Cache):
    """One cache for each model. Its `layers` are the layers of all models, base first.

    Transformers' `Cache` works on `layers`. So cropping, beam reordering, resetting and recording for a rollback act on
    all models. The sequence length is that of the aligned model: the base model may have read a prompt of its own.

    Attributes:
        given: whether a user gave it to `generate`, and may use it afterwards.
        read: how many tokens passed through it, for an aligned model whose layers do not count (recurrent ones).
    """

    given = False
    read = 0
    offloading = False

    def __init__(self, base: Cache, aligned: Cache, reference: Cache | None = None) -> None:
        self.base, self.aligned, self.reference = base, aligned, reference

    @property
    def parts(self) -> dict[str, Cache]:
        """The caches by role."""
        parts = {"base": self.base, "aligned": self.aligned, "reference": self.reference}
        return {role: part for role, part in parts.items() if part is not None}

    @property
    def layers(self) -> list[Any]:
        """All layers of all models."""
        return [layer for part in self.parts.values() for layer in part.layers]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many tokens the aligned model has read."""
        return length_of(self.aligned, unknown=self.read) or 0

    @property
    def is_compileable(self) -> bool:
        """Always false, because each model makes its own masks for its own cache."""
        return False

    def update(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        raise TypeError("A KadCache is updated by its models, part by part; pass it to a KadForCausalLM.")


class KadForCausalLM(ComposedGeneration, PreTrainedModel, GenerationMixin):
    """The Transformers face of a `kad.engines.pair.Pair`: a base and a small aligned model, composed token by token.

    Its logits are log pi (float32, normalized). So temperature, warpers, penalties and beam search act on the composed
    model as on any other model. Build it with `from_models` or `from_pretrained`.

    Attributes:
        pair: the models, the composition in force, the tokenizer.
        base: the base model.
        aligned: the aligned model.
        reference: the reference model, or None if the pair has none.
    """

    config_class = KadConfig
    main_input_name = "input_ids"

    def __init__(
        self,
        config: KadConfig,
        base: PreTrainedModel,
        aligned: PreTrainedModel,
        reference: PreTrainedModel | None = None,
        *,
        pair: Pair | None = None,
    ) -> None:
        models = {"base": base, "aligned": aligned, "reference": reference}
        self.pair = pair or Pair(config, {r: _model_of(m) for r, m in models.items() if m is not None})
        super().__init__(config)
        self.base, self.aligned, self.reference = base, aligned, reference
        self._late_check = LateCheck()
        self.eval()

    @classmethod
    def of(cls, pair: Pair) -> KadForCausalLM:
        """The Transformers face of a pair whose models Transformers runs."""
        return cls(pair.config, **{role: cls._face_of(model) for role, model in pair.models.items()}, pair=pair)

    @classmethod
    def _face_of(cls, model: Any) -> PreTrainedModel:
        if isinstance(model, PairAsModel):
            return cls.of(model.pair)
        model.check()
        return cast("PreTrainedModel", model.model)

    # ------------------------------------------------------------------ construction

    @classmethod
    def from_models(
        cls,
        base: str | PreTrainedModel,
        aligned: str | PreTrainedModel,
        *,
        reference: str | PreTrainedModel | None = None,
        tokenizer: Any = None,
        rule: str | Mapping[str, Any] | Rule = defaults.RULE,
        deferral_temperature: float = 1.0,
        base_prompt: Any = None,
        base_kwargs: Mapping[str, Any] | None = None,
        aligned_kwargs: Mapping[str, Any] | None = None,
        reference_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> KadForCausalLM:
        """Compose models given as paths, hub ids ("id" or "id@revision"), "tiny:<name>", or loaded models.

        Each of them may be a pair, too: a model whose distribution is its pi.

        Args:
            base: the big base model p.
            aligned: the small aligned model q*. Tokenizer, chat template and end-of-sequence tokens come from it.
            reference: the small reference model q, for product rules.
            tokenizer: that of the aligned model. By default it is found where the model was loaded from.
            rule: a rule, its string or its dict.
            deferral_temperature: the models' logits are divided by it before composing.
            base_prompt: how the base model is asked, see `kad.generate`. None: as the aligned model.
            base_kwargs: how to load the base model (`kad.pair.sources.MODEL_KWARGS`). The pair keeps these options,
                except what is its user's: `token`, `trust_remote_code`, `cache_dir`, `offload_folder`,
                `local_files_only`.
            aligned_kwargs: the same for the aligned model.
            reference_kwargs: the same for the reference model.
            **kwargs: the same for all models.

        Raises:
            PairError: a model cannot be found or loaded.
            VocabularyError: the models' tokens differ.
            RuleError: a bad rule, or a rule that needs the reference model without it.
        """
        models = load_models(
            {"base": base, "aligned": aligned, "reference": reference},
            {"base": base_kwargs, "aligned": aligned_kwargs, "reference": reference_kwargs},
            kwargs,
        )
        if tokenizer is not None:
            models["aligned"].tokenizer = tokenizer
        config = KadConfig(
            **{role: model.source for role, model in models.items() if model.source is not None},
            rule=rule,
            deferral_temperature=deferral_temperature,
            base_prompt=BasePrompt.parse(base_prompt),
        )
        return cls.of(Pair(config, models))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a pair: a folder, a hub id, or "tiny".

        Args:
            pretrained_model_name_or_path: where the pair is.
            **kwargs: `rule`, `deferral_temperature` and `base_prompt` replace the pair's. `revision`, `token`,
                `cache_dir` and similar options say how to find the pair. The loading options of
                `kad.pair.sources.MODEL_KWARGS` go to every model.

        Raises:
            PairError: no such pair, an unknown option, or a model that cannot be loaded.
        """
        config, options = load_config(pretrained_model_name_or_path, kwargs)
        return cls.of(Pair(config, load_models(config.model_sources(), {}, options)))

    def save_pretrained(self, save_directory: Any, *, tokenizer: Any = None, **kwargs: Any) -> None:
        """Write the pair as a folder of a few KB: configuration, the aligned model's tokenizer, no weights.

        Args:
            save_directory: the folder, made if needed.
            tokenizer: the tokenizer to store with it. The default is the aligned model's.

        Raises:
            PairError: a model was given as an object without a path, or an option is not known.
        """
        unknown = sorted(set(kwargs) - {"safe_serialization", "is_main_process", "push_to_hub"})
        if unknown or kwargs.get("push_to_hub"):
            raise PairError(f"save_pretrained of a pair takes a folder and a tokenizer, not {', '.join(kwargs)}.")
        unnamed = [role for role in self.parts if getattr(self.config, role) is None]
        if unnamed:
            raise PairError(
                f"The {' and '.join(unnamed)} model was given as an object without a path. A pair names its models: "
                "save them first and give their folders or hub ids to from_models."
            )
        if tokenizer is None:
            tokenizer = load_tokenizer(self.config.model_sources()["aligned"])
        write(save_directory, self.config, tokenizer, self.generation_config)

    # ------------------------------------------------------------------ the pair

    def __repr__(self) -> str:
        return type(self).__name__ + repr(self.pair).removeprefix(type(self.pair).__name__)

    @property
    def generation_config(self) -> GenerationConfig:
        """The pair's sampling settings, and the tokens that end a text."""
        return self.pair.generation_config

    @generation_config.setter
    def generation_config(self, settings: GenerationConfig) -> None:
        if hasattr(self, "base"):  # Transformers makes settings of its own before there are models
            self.pair.generation_config = settings

    @property
    def tokenizer(self) -> Any:
        """See `Pair.tokenizer`."""
        return self.pair.tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        self.pair.tokenizer = tokenizer

    @property
    def base_tokenizer(self) -> Any:
        """See `Pair.base_tokenizer`."""
        return self.pair.base_tokenizer

    @property
    def facts(self) -> dict[str, Facts]:
        """See `Pair.facts`."""
        return self.pair.facts

    @property
    def composition(self) -> Composition:
        """The rule and deferral temperature in force. `generate(..., rule=...)` replaces them for one call."""
        return self.pair.composition

    @property
    def rule(self) -> Rule:
        """The rule in force. Assign another one to change the pair's own."""
        return self.pair.rule

    @rule.setter
    def rule(self, rule: RuleLike) -> None:
        self.pair.rule = rule

    @property
    def base_prompt(self) -> BasePrompt | None:
        """See `Pair.base_prompt`."""
        return self.pair.base_prompt

    @base_prompt.setter
    def base_prompt(self, prompt: Any) -> None:
        self.pair.base_prompt = prompt

    def using(
        self, rule: RuleLike | None = None, deferral_temperature: float | None = None
    ) -> AbstractContextManager[None]:
        """See `Pair.using`."""
        return self.pair.using(rule, deferral_temperature)

    # ------------------------------------------------------------------ running

    @property
    def parts(self) -> dict[str, PreTrainedModel]:
        """The models by role."""
        parts = {"base": self.base, "aligned": self.aligned}
        return parts if self.reference is None else parts | {"reference": self.reference}

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: KadCache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        *,
        past_key_values: KadCache | None = None,
        base_input_ids: Tensor | None = None,
        base_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Run the models and compose their logits.

        Args:
            input_ids: (batch, positions).
            attention_mask: (batch, past + positions), 0 for padding.
            position_ids: (batch, positions).
            cache: a `KadCache`, or None; the name of Transformers from 5.24 on.
            past_key_values: the same under its earlier name.
            use_cache: whether to return (and fill) a cache.
            logits_to_keep: compose only the last n positions, or those of an index tensor; 0 means all.
            return_dict: False asks for a tuple.
            output_attentions: must be false. A composition has none of its own.
            output_hidden_states: must be false, likewise.
            base_input_ids: (batch, base positions), all that the base model reads in the place of all of the other
                models' tokens: its own prompt and the same answer. Then `logits_to_keep` is needed.
            base_attention_mask: (batch, base positions), 0 for padding. None: there is no padding.
            labels: (batch, positions), mostly `input_ids`, to be predicted from the positions before; -100 is left out.

        Returns:
            `logits`: (batch, kept positions, vocab), log pi in float32; `loss`, with `labels`: their mean -log pi; and
            the cache, as Transformers names it.

        Raises:
            UsageError: arguments that have no meaning for a composition.
            LogitsError: a row that is no distribution. On a GPU it comes with the next pass, or as `generate` ends.
        """
        check_one_tokenizer(self.pair.base_tokenizer)
        if input_ids is None:
            raise UsageError("A composed model takes input_ids; the models' embeddings differ, so no inputs_embeds.")
        if output_attentions or output_hidden_states:
            raise UsageError("A composition has no attentions or hidden states of its own; ask model.base or .aligned.")
        now = self.composition
        own = one_cache_name({"cache": cache, "past_key_values": past_key_values}).get(CACHE)
        cache = self._cache_for(own, now.rule) if own is not None or use_cache else None
        logits: dict[str, Rows] = {}
        for role in self._roles(now.rule, cache):
            part = cache.parts[role] if cache is not None else None
            ids, mask, positions = input_ids, attention_mask, position_ids
            if role == "base" and base_input_ids is not None:
                new = input_ids.shape[1]
                ids, mask, positions = own_inputs(base_input_ids, base_attention_mask, part, logits_to_keep, new)
            row = self._run(role, ids, part, mask, positions, logits_to_keep)
            logits[role] = trim(row, self.config.vocab_size).to(self.base.device)
        if cache is not None:
            cache.read += input_ids.shape[1]
        if self.config.foreign_ids:
            foreign = foreign_tokens(self.config.foreign_ids, self.config.vocab_size, self.base.device)
            logits["base"] = move_to_rest(logits["base"], foreign, now.deferral_temperature)
        log_pi = compose(now, *in_order(logits))
        self._late_check.send(log_pi, partial(raise_if_bad, log_pi, now, *in_order(logits)))
        loss = None if labels is None else loss_of(log_pi, labels)
        output = CausalLMOutputWithPast(loss=loss, logits=log_pi, **{CACHE: cache})
        return output if return_dict is None or return_dict else output.to_tuple()

    def make_cache(self, rule: Rule | None = None) -> KadCache:
        """Empty dynamic caches for the models that `rule` needs. The default is the rule in force."""
        return KadCache(**{role: self.new_cache_of(role) for role in self._roles(rule or self.rule, None)})

    def new_cache_of(self, role: str) -> Cache:
        """An empty cache of one of its models."""
        part = self.parts[role]
        return part.make_cache() if isinstance(part, KadForCausalLM) else new_cache(part)

    def scorers_on(self, cache: KadCache) -> dict[str, Scorer]:
        """Scorers of the models that work on a cache, by role."""
        return {role: self._scorer_on(role, part) for role, part in cache.parts.items()}

    def _scorer_on(self, role: str, cache: Any) -> Scorer:
        part, rows, device = self.parts[role], int(self.config.vocab_size), self.pair.device
        if isinstance(part, KadForCausalLM):
            return PairAsModel(part.pair).composed(part.scorers_on(cache), rows, device)
        return scorer_of(part, cache, rows, device)

    def generate(
        self,
        *args: Any,
        rule: str | Mapping[str, Any] | Rule | None = None,
        deferral_temperature: float | None = None,
        **kwargs: Any,
    ) -> Any:
        """As in Transformers. `rule` and `deferral_temperature` replace the pair's for this call.

        With `base_input_ids` (batch, positions) the base model reads a prompt of its own, and the same answer after it.
        Batches are padded on the left, with `base_attention_mask`.
        """
        check_one_tokenizer(self.pair.base_tokenizer)
        if kwargs.get("base_input_ids") is not None:
            kwargs["prompt_length"] = prompt_length(args, kwargs)
        with self.using(rule, deferral_temperature):
            self._late_check.drop()
            output = super().generate(*args, **one_cache_name(kwargs))
        self._late_check.raise_if_bad(wait=True)
        return output

    def prepare_inputs_for_generation(self, input_ids: Tensor, prompt_length: int = 0, **kwargs: Any) -> dict[str, Any]:
        """As in Transformers, without what generation passes along for itself (the tokenizer of stop strings).

        `prompt_length` is where the answer begins, beside a prompt of the base model's own.
        """
        inputs = super().prepare_inputs_for_generation(input_ids, **kwargs)
        inputs |= own_step(input_ids[:, prompt_length:], kwargs)
        return {name: value for name, value in inputs.items() if name in _FORWARD}

    def _roles(self, rule: Rule, cache: KadCache | None) -> list[str]:
        """The models to run. The reference runs only if the rule needs it, or if its cache must stay in step."""
        follow = cache is not None and cache.reference is not None
        return [role for role in self.parts if role != "reference" or rule.needs_reference or follow]

    def _cache_for(self, cache: KadCache | None, rule: Rule) -> KadCache:
        if cache is None:
            return self.make_cache(rule)
        if not isinstance(cache, KadCache):
            raise UsageError(
                f"A composed model's cache is a KadCache (one cache a model), but got {type(cache).__name__}. "
                "Make one with model.make_cache(), or give none."
            )
        if rule.needs_reference and cache.reference is None:
            raise UsageError(f"Rule {rule} needs the reference model, but this cache was made without it; start anew.")
        return cache

    def _run(
        self, role: str, ids: Tensor, cache: Any, mask: Tensor | None, positions: Tensor | None, keep: int | Tensor
    ) -> Tensor:
        """The logits of one of its models (batch, kept positions, vocab)."""
        part = self.parts[role]
        if isinstance(part, KadForCausalLM):
            read = part(ids, mask, positions, cache, use_cache=cache is not None, logits_to_keep=keep)
            return without_excluded(read.logits)
        self._check_padding(role, cache, mask)
        return run_part(part, ids, cache, mask, positions, keep)

    def _check_padding(self, role: str, cache: Any, mask: Tensor | None) -> None:
        """Refuse padding on the left where a model would see it."""
        starts = mask is not None and cache is not None and length_of(cache) == 0
        if starts and not bool(mask.all()) and not Trial.of(self.parts[role]).padding:  # type: ignore[union-attr]
            raise UsageError(
                f"{type(self.parts[role]).__name__}, the {role} model, gives other logits with padding on the left. "
                "Generate for one prompt at a time, or with kad.generate."
            )

    def take_cache(self, cache: Any) -> Any:
        """It is marked as given."""
        cache = self._cache_for(cache, self.rule)
        cache.given = True
        return cache

    def join_caches(self, make: Callable[[PreTrainedModel], Any]) -> KadCache:
        parts = {role: self.parts[role] for role in self._roles(self.rule, None)}
        caches = {role: attempt(part, "cache of this kind", partial(make, part)) for role, part in parts.items()}
        for role, cache in caches.items():
            if not isinstance(cache, KadCache):  # the models of a pair have been tried
                Trial.of(parts[role], is_static(cache)).check()
        return KadCache(**caches)

    def get_input_embeddings(self) -> Any:
        return self.base.get_input_embeddings()

    def get_output_embeddings(self) -> None:
        """None: log pi is not a linear function of one hidden state."""


def _model_of(module: PreTrainedModel) -> TransformersModel | PairAsModel:
    return PairAsModel(module.pair) if isinstance(module, KadForCausalLM) else TransformersModel(module)


def own_inputs(
    ids: Tensor, mask: Tensor | None, cache: Any, logits_to_keep: int | Tensor, new: int
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """What the base model still has to read of its own tokens, `new` of them after the first pass: ids, attention mask
    and positions."""
    if not isinstance(logits_to_keep, int) or logits_to_keep < 1:
        raise UsageError(
            "With base_input_ids, say with logits_to_keep=n how many of the last positions are composed: before the "
            "answer the models have read different texts."
        )
    read = 0 if cache is None else length_of(cache, unknown=ids.shape[1] - new)
    positions = None if mask is None else (mask.long().cumsum(dim=-1) - 1).clamp(min=0)[:, read:]
    return ids[:, read:], mask, positions


def own_step(answer: Tensor, kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
    """The base model's own tokens and attention mask with the answer so far (batch, new). Empty without a prompt of its
    own."""
    ids, mask = kwargs.get("base_input_ids"), kwargs.get("base_attention_mask")
    if ids is None:
        return {}
    inputs = {"base_input_ids": torch.cat((ids, answer), dim=-1)}
    if mask is not None:
        inputs["base_attention_mask"] = torch.cat((mask, mask.new_ones(answer.shape)), dim=-1)
    return inputs


def check_one_tokenizer(base_tokenizer: Any) -> None:
    """Refuse a base model with a tokenizer of its own."""
    if base_tokenizer is not None:
        raise UsageError(
            "The base model has a tokenizer of its own, so the models' positions differ, and Transformers' generate "
            "cannot run the pair. Use kad.generate, kad.stream or kad.Conversation."
        )


def prompt_length(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """How many tokens of `input_ids` are the prompt, beside a prompt of the base model's own."""
    ids = args[0] if args else kwargs.get("input_ids", kwargs.get("inputs"))
    if ids is None or ids.shape[0] != kwargs["base_input_ids"].shape[0]:
        raise UsageError("base_input_ids stands beside input_ids, with the same number of rows.")
    if kwargs.get("assistant_model") is not None or kwargs.get("prompt_lookup_num_tokens") is not None:
        raise UsageError(
            "Transformers' assisted decoding cuts all caches to one length, which base_input_ids does not allow. Use "
            "custom_generate=kad.speculative."
        )
    return int(ids.shape[1])


def loss_of(log_pi: Tensor, labels: Tensor) -> Tensor:
    """The mean of -log pi (batch, positions, vocab) of labels (batch, positions), each predicted from before it."""
    if labels.shape != log_pi.shape[:-1]:
        raise UsageError(
            f"labels must have the shape of the kept positions, {tuple(log_pi.shape[:-1])}, but have "
            f"{tuple(labels.shape)}. Leave logits_to_keep at 0."
        )
    return nll_loss(log_pi[:, :-1].flatten(0, 1), labels[:, 1:].flatten().to(log_pi.device))


_FORWARD = frozenset(inspect.signature(KadForCausalLM.forward).parameters) - {"self"}

AutoModelForCausalLM.register(KadConfig, KadForCausalLM, exist_ok=True)
