"""A pair that vLLM runs: the rule goes with each request."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from kad.engines.vllm.model import VllmModel
from kad.errors import OptionError
from kad.method import defaults
from kad.method.composition import Composition, RuleLike
from kad.pair.folder import pack, read_config
from kad.pair.in_force import InForce
from kad.pair.model_files import load_config, load_generation_config, tokenizer_of
from kad.pair.sources import Source, resolve_pair


class VllmPair(InForce, VllmModel):
    """A pair that vLLM runs, ready for `kad.generate` and `kad.stream`; see `kad.load`.

    Args:
        pair: a pair, or "tiny". Else `sources` name the models by role.
        sources: see `pair`.
        rule: replaces the pair's own rule.
        deferral_temperature: replaces the pair's own deferral temperature.
        options: more arguments of `vllm.LLM`.

    Raises:
        PairError: no such pair.
        RuleError: a bad rule.
        MissingExtraError: vLLM is not installed in this environment.
    """

    base_tokenizer: Any = None
    """vLLM refuses a pair with two tokenizers when it starts."""

    def __init__(
        self,
        pair: str | None = None,
        sources: Mapping[str, Source] | None = None,
        *,
        rule: RuleLike | None = None,
        deferral_temperature: float | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        place = None if pair is None else resolve_pair(pair)
        self.config = read_config(place) if place is not None else None
        sources = sources if self.config is None else self.config.model_sources()
        own = None if self.config is None else self.config.deferral_temperature
        if place is None or deferral_temperature not in (None, own):
            # vLLM reads a pair from a folder, and the deferral temperature stands there.
            self._folder = tempfile.TemporaryDirectory(prefix="kad-vllm-")
            place = str(Path(self._folder.name) / "pair")
            pack(
                sources or {},
                place,
                rule=self.config.rule if self.config is not None else defaults.RULE,
                deferral_temperature=deferral_temperature or 1.0,
            )
            self.config = read_config(place)
        self.sources = self.config.model_sources()
        self.reference = self.sources.get("reference")
        settings = load_generation_config(Source(place)) or GenerationConfig()
        super().__init__(place, tokenizer_of(self.config), settings, options, self.sources)
        self._own = Composition.of(self.config.rule, self.config.deferral_temperature)
        self._own = self.composed_by(rule)

    def composed_by(self, rule: RuleLike | None = None, deferral_temperature: float | None = None) -> Composition:
        """See `kad.engines.protocols.ComposedModel`. The rule comes with the request, the temperature with the pair.

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

    @property
    def context_length(self) -> int | None:
        """The number of positions that all models support, and at most the option `max_model_len`."""
        configs = [load_config(source).get_text_config() for source in self.sources.values()]
        limits = [getattr(config, "max_position_embeddings", None) for config in configs]
        limits.append(super().context_length)
        return min((int(limit) for limit in limits if limit), default=None)
