"""The models of a run. Each is loaded once, when it is first needed, and released when no later method needs it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from kad.engines.files import engines_of
from kad.engines.load import load_one
from kad.engines.pair import Pair, vocabulary_of
from kad.engines.protocols import Model
from kad.engines.transformers.loading import LoadedPart, load_model, shared_vocabulary
from kad.engines.transformers.modeling import KadForCausalLM
from kad.errors import OptionError, UsageError
from kad.evaluation.methods import Method
from kad.pair.base_prompt import BUILT_IN, BasePrompt
from kad.pair.config import KadConfig
from kad.pair.folder import check_vocabularies
from kad.pair.model_files import load_config, load_generation_config, load_tokenizer, shared_tokenizer
from kad.pair.sources import Source
from kad.text.sampling import end_tokens
from kad.tokens.vocabulary import OWN

_ROLES = ("base", "aligned", "reference")


def speaker(method: Method, sources: Collection[str], base_prompt: BasePrompt | None = None) -> str:
    """The role whose tokenizer, chat template and ends of a text the method uses.

    An oracle uses its own, and so does a base model alone that is asked in a way of its own. Other methods use the
    pair's, if there is a pair, else the aligned model's.
    """
    if method.role == "oracle":
        return method.name
    if method.role == "base" and base_prompt is not None:
        return "base"
    return "pair" if "pair" in sources else "aligned"


def settings_of(
    method: Method,
    sources: Mapping[str, Source],
    tokenizer: Any,
    base_prompt: BasePrompt | None = None,
    stored: Callable[[str], GenerationConfig | None] | None = None,
) -> GenerationConfig:
    """Ends of a text, and nothing else: top-p, penalties and the like of a model's file would not be the method's.

    A base model alone also ends where the aligned model would: it sees the aligned model's chat. `stored` gives the
    settings of a role; by default they are read from its files.
    """
    stored = stored or (lambda role: load_generation_config(sources[role]))
    roles = {speaker(method, sources, base_prompt), *(method.needs if method.rule is None else ())}
    ends = {tokenizer.eos_token_id}
    for config in map(stored, roles):
        ends.update(end_tokens(config) if config is not None else ())
    eos = sorted(token for token in ends if token is not None)
    return GenerationConfig(eos_token_id=eos, pad_token_id=tokenizer.pad_token_id)


class Models:
    """The models by role: base, aligned, reference, any oracle by its method's name, and "pair", where the pair lies.

    Args:
        sources: where the models are, by role.
        deferral_temperature: of the compositions.
        options: how to load every model (dtype, device_map, ...), see `kad.pair.sources.MODEL_KWARGS`.
        device: where to put models that were loaded without a device map.
        base_prompt: how the base model is asked. None: as the aligned model, or by `qa` if it has a tokenizer of
            its own.
        engine: what runs them, see `kad.engines.files.engine_for`.
        engine_options: see `kad.load`.

    Attributes:
        in_transformers: whether Transformers runs all models. Then compositions are a `KadForCausalLM`.

    Raises:
        OptionError: an engine that does not run one of the models, or options that none of them takes.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        *,
        deferral_temperature: float = 1.0,
        options: Mapping[str, Any] | None = None,
        device: str | torch.device = "cpu",
        base_prompt: BasePrompt | None = None,
        engine: str = "auto",
        engine_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.base_prompt = base_prompt
        self.sources = dict(sources)
        self._engines = engines_of(sources, engine)
        self.in_transformers = set(self._engines.values()) <= {"transformers"}
        if engine_options and "llama_cpp" not in self._engines.values():
            raise OptionError("`engine_options` are for models that llama.cpp or vLLM runs, and this run has none.")
        self._engine_options = dict(engine_options or {})
        self._deferral_temperature = deferral_temperature
        self._options = dict(options or {})
        self._device = torch.device(device)
        self._loaded: dict[str, Any] = {}
        self._tokenizers: dict[str, Any] = {}
        self._composed: tuple[tuple[str, frozenset[str]], KadForCausalLM | Pair] | None = None

    def asked_alone(self, method: Method) -> BasePrompt | None:
        """How a base model alone is asked. None: as the aligned model, or the method is another one."""
        if method.role != "base":
            return None
        return self.base_prompt or (BUILT_IN["qa"] if self._own_tokenizer else None)

    def tokenizer(self, method: Method) -> Any:
        """The tokenizer of the method's prompts, padded on the left; see `speaker`."""
        role = speaker(method, self.sources, self.asked_alone(method))
        if role == "pair" and self._engines.get("aligned", "transformers") != "transformers":
            role = "aligned"  # a GGUF file has its own
        if role not in self._tokenizers:
            if self._engines.get(role, "transformers") == "transformers":
                self._tokenizers[role] = _padded_left(load_tokenizer(self.source(role)))
            else:
                return self.part(role).tokenizer
        return self._tokenizers[role]

    def model(self, method: Method) -> PreTrainedModel | Pair | Model:
        """The model that the method decodes with, its generation settings cleared of all but the ends of a
        text."""
        model = self._compose(method) if method.rule is not None else self.part(method.name)
        tokenizer = self.tokenizer(method)
        model.generation_config = settings_of(
            method, self.sources, tokenizer, self.asked_alone(method), self._stored_settings
        )
        if method.rule is not None:
            model.tokenizer = tokenizer
        return model

    def part(self, role: str) -> Any:
        """One model, loaded if it is not yet: of Transformers itself, or a `Model` of `kad.engines.protocols`."""
        if role not in self._loaded:
            source = self.source(role)
            if self.in_transformers:
                model: Any = load_model(source, **self._options)
                self._loaded[role] = model if hasattr(model, "hf_device_map") else model.to(self._device)
            else:
                self._loaded[role] = load_one(
                    source,
                    self._engines[role],
                    device=self._device.type,
                    engine_options=self._engine_options,
                    **self._options,
                )
        return self._loaded[role]

    def source(self, role: str) -> Source:
        """Where the model of a role is.

        Raises:
            UsageError: the pair has none.
        """
        if role not in self.sources:
            raise UsageError(f"A method needs the {role} model, and none is given. Give one with --{role} MODEL.")
        return self.sources[role]

    def release(self, keep: Collection[str]) -> None:
        """Let go of every model whose role is not in `keep`."""
        self._composed = None
        for role in set(self._loaded) - set(keep):
            del self._loaded[role]
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @cached_property
    def _own_tokenizer(self) -> bool:
        """Whether the base model has another tokenizer than the aligned model."""
        roles = ("base", "aligned")
        if not self.sources.keys() >= set(roles):
            return False
        if not self.in_transformers:
            return vocabulary_of({role: self.part(role) for role in roles}).base_tokenizer == OWN
        sources = {role: self.source(role) for role in roles}
        sizes = {role: int(load_config(source).get_text_config().vocab_size) for role, source in sources.items()}
        return check_vocabularies(sizes, sources).base_tokenizer == OWN

    def _stored_settings(self, role: str) -> GenerationConfig | None:
        """The generation settings that come with a model."""
        if self._engines.get(role, "transformers") == "transformers":
            return load_generation_config(self.source(role))
        found: GenerationConfig = self.part(role).generation_config
        return found

    def _compose(self, method: Method) -> KadForCausalLM | Pair:
        key = (str(method.rule), method.needs)
        if self._composed is None or self._composed[0] != key:
            parts: dict[str, Any] = {role: self.part(role) for role in _ROLES if role in method.needs}
            config = KadConfig(rule=str(method.rule), deferral_temperature=self._deferral_temperature)
            made = self._in_transformers(config, parts) if self.in_transformers else Pair(config, parts)
            self._composed = (key, made)
        return self._composed[1]

    def _in_transformers(self, config: KadConfig, parts: Mapping[str, PreTrainedModel]) -> KadForCausalLM:
        config.set_vocabulary(
            shared_vocabulary({role: LoadedPart(part, self.source(role)) for role, part in parts.items()})
        )
        model = KadForCausalLM(config, **parts)
        if config.base_tokenizer == OWN:
            model.base_tokenizer = shared_tokenizer(self.source("base"))
        return model


def _padded_left(tokenizer: Any) -> Any:
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
