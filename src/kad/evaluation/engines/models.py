"""The models of a run. Each is loaded once, when it is first needed, and released when no later method needs it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from kad.base_prompt import BasePrompt
from kad.config import KadConfig
from kad.errors import UsageError
from kad.evaluation.methods import Method
from kad.loading import load_generation_config, load_model, load_tokenizer, shared_tokenizer
from kad.modeling import KadForCausalLM
from kad.pairs import Part, shared_vocabulary
from kad.sources import Source
from kad.text.sampling import end_tokens
from kad.vocabulary import OWN


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
    method: Method, sources: Mapping[str, Source], tokenizer: Any, base_prompt: BasePrompt | None = None
) -> GenerationConfig:
    """Ends of a text, and nothing else: top-p, penalties and the like of a model's file would not be the method's.

    A base model alone also ends where the aligned model would: it sees the aligned model's chat.
    """
    roles = {speaker(method, sources, base_prompt), *(method.needs if method.rule is None else ())}
    ends = {tokenizer.eos_token_id}
    for config in (load_generation_config(sources[role]) for role in roles):
        ends.update(end_tokens(config) if config is not None else ())
    eos = sorted(token for token in ends if token is not None)
    return GenerationConfig(eos_token_id=eos, pad_token_id=tokenizer.pad_token_id)


class Models:
    """The models by role: base, aligned, reference, any oracle by its method's name, and "pair", where the pair lies.

    Args:
        sources: where the models are, by role.
        deferral_temperature: of the compositions.
        options: how to load every model (dtype, device_map, ...), see `kad.sources.MODEL_KWARGS`.
        device: where to put models that were loaded without a device map.
        base_prompt: how the base model is asked. None: as the aligned model.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        *,
        deferral_temperature: float = 1.0,
        options: Mapping[str, Any] | None = None,
        device: str | torch.device = "cpu",
        base_prompt: BasePrompt | None = None,
    ) -> None:
        self.base_prompt = base_prompt
        self.sources = dict(sources)
        self._deferral_temperature = deferral_temperature
        self._options = dict(options or {})
        self._device = torch.device(device)
        self._loaded: dict[str, PreTrainedModel] = {}
        self._tokenizers: dict[str, Any] = {}
        self._composed: tuple[tuple[str, frozenset[str]], KadForCausalLM] | None = None

    def tokenizer(self, method: Method) -> Any:
        """The tokenizer of the method's prompts, padded on the left; see `speaker`."""
        role = speaker(method, self.sources, self.base_prompt)
        if role not in self._tokenizers:
            tokenizer = load_tokenizer(self.source(role))
            tokenizer.padding_side = "left"
            if tokenizer.pad_token_id is None:
                tokenizer.pad_token = tokenizer.eos_token
            self._tokenizers[role] = tokenizer
        return self._tokenizers[role]

    def model(self, method: Method) -> PreTrainedModel:
        """The model that the method decodes with, its generation settings cleared of all but the ends of a
        text."""
        model = self._compose(method) if method.rule is not None else self.part(method.name)
        model.generation_config = settings_of(method, self.sources, self.tokenizer(method), self.base_prompt)
        return model

    def part(self, role: str) -> PreTrainedModel:
        """One model, loaded if it is not yet."""
        if role not in self._loaded:
            model = load_model(self.source(role), **self._options)
            self._loaded[role] = model if hasattr(model, "hf_device_map") else model.to(self._device)
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

    def _compose(self, method: Method) -> KadForCausalLM:
        key = (str(method.rule), method.needs)
        if self._composed is None or self._composed[0] != key:
            roles = [role for role in ("base", "aligned", "reference") if role in method.needs]
            parts: dict[str, Part] = {role: Part(self.part(role), self.source(role)) for role in roles}
            config = KadConfig(
                rule=str(method.rule),
                deferral_temperature=self._deferral_temperature,
                **asdict(shared_vocabulary(parts)),
            )
            model = KadForCausalLM(config, **{role: part.model for role, part in parts.items()})
            if config.base_tokenizer == OWN:
                model.base_tokenizer = shared_tokenizer(self.source("base"))
            self._composed = (key, model)
        return self._composed[1]
