"""A pair that vLLM runs: the rule goes with each request."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from kad.engines.pair import Pair
from kad.engines.vllm.model import VllmModel
from kad.errors import OptionError, UsageError
from kad.method.composition import Composition, RuleLike
from kad.pair.config import KadConfig
from kad.pair.folder import pack, read_config
from kad.pair.model_files import load_config, load_generation_config, tokenizer_of
from kad.pair.sources import Source


class VllmOne(Pair):
    """A single model that vLLM runs.

    Args:
        place: its folder or hub id.
        options: more arguments of `vllm.LLM`.
    """

    def __init__(self, place: str, options: Mapping[str, Any] | None = None) -> None:
        self.config, self.models = KadConfig(rule="base_only"), {}
        self.generation_config, self.whole = GenerationConfig(), VllmModel(place, options)
        self.own_composition = Composition.of(self.config.parsed_rule)

    @property
    def roles(self) -> Collection[str]:
        """See `Pair`."""
        return ("aligned",)

    @property
    def context_length(self) -> int | None:
        """See `Pair`. The option `max_model_len`."""
        return None if self.whole is None else self.whole.context_length

    def composed_by(self, rule: RuleLike | None = None, deferral_temperature: float | None = None) -> Composition:
        """See `Pair.one`."""
        return self._own


class VllmPair(Pair):
    """A pair that vLLM runs as a whole, ready for `kad.generate` and `kad.stream`; see `kad.load`.

    Args:
        config: the pair.
        options: more arguments of `vllm.LLM`.

    Raises:
        RuleError: a bad rule.
        MissingExtraError: vLLM is not installed in this environment.
    """

    base_tokenizer: Any = None
    """vLLM refuses a pair with two tokenizers when it starts."""

    def __init__(self, config: KadConfig, options: Mapping[str, Any] | None = None) -> None:
        rule, sources = config.parsed_rule, config.model_sources()
        stored = read_config(config.name_or_path) if config.folder or config.name_or_path else None
        if stored is None or stored.deferral_temperature != config.deferral_temperature:
            # vLLM reads a pair from a folder, and the deferral temperature stands there.
            self._folder = tempfile.TemporaryDirectory(prefix="kad-vllm-")
            place = str(Path(self._folder.name) / "pair")
            pack(sources, place, rule=rule, deferral_temperature=config.deferral_temperature)
            config = read_config(place)
        self.config, self.models = config, {}
        self.generation_config = load_generation_config(Source(config.name_or_path)) or GenerationConfig()
        self.whole = VllmModel(config.name_or_path, options, drafters=sources)
        self.own_composition = Composition.of(rule, config.deferral_temperature)

    @cached_property
    def tokenizer(self) -> Any:
        """See `Pair`."""
        return tokenizer_of(self.config)

    @property
    def roles(self) -> Collection[str]:
        """See `Pair`."""
        return self.config.model_sources().keys()

    @property
    def context_length(self) -> int | None:
        """The number of positions that all models support, and at most the option `max_model_len`."""
        configs = [load_config(source).get_text_config() for source in self.config.model_sources().values()]
        limits = [getattr(config, "max_position_embeddings", None) for config in configs]
        limits.append(None if self.whole is None else self.whole.context_length)
        return min((int(limit) for limit in limits if limit), default=None)

    def composed_by(self, rule: RuleLike | None = None, deferral_temperature: float | None = None) -> Composition:
        """See `Pair`. The rule comes with the request, the temperature with the pair.

        Raises:
            RuleError: a bad rule, or a rule that needs the reference model without it.
            UsageError: another deferral temperature.
        """
        wanted = super().composed_by(rule, deferral_temperature)
        if wanted.deferral_temperature != self.config.deferral_temperature:
            raise OptionError(
                f"vLLM runs this pair with `deferral_temperature` {self.config.deferral_temperature}, and "
                f"{wanted.deferral_temperature} is asked for. Give it to kad.load."
            )
        return wanted

    def needs_logits(self, what: str) -> None:
        """See `Pair`."""
        raise UsageError(
            f"{what} needs the models' logits, and vLLM runs whole generations. Load the pair with another engine."
        )
