"""`KadConfig`: what a pair folder's config.json holds. Plain values; unknown keys are errors."""

from __future__ import annotations

import difflib
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig

from kad.errors import PairError
from kad.rules import Rule, parse_rule
from kad.sources import Source, resolve_pair

# Keys that Transformers or vLLM themselves put into any configuration.
_HOST_KEYS = frozenset(
    {
        "_attn_implementation_internal",
        "_commit_hash",
        "_experts_implementation_internal",
        "_name_or_path",
        "attn_implementation",
        "experts_implementation",
        "model_type",
        "name_or_path",
        "num_labels",
        "output_attentions",
        "per_layer_config",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)


class KadConfig(PreTrainedConfig):
    """A pair: which models, which rule.

    Attributes:
        base, aligned, reference: {"model": id or path, "revision": ..., "kwargs": {...}}, the reference may be None.
        rule: the rule's string, see `kad.rules.parse_rule`.
        deferral_temperature: the models' logits are divided by it before composing.
        vocab_size: number of tokens that all models share; set when the models are known.

    Raises:
        PairError: an unknown key or a malformed model reference. RuleError: a bad rule.
    """

    model_type: ClassVar[str] = "kad"

    base: dict[str, Any] | None = None
    aligned: dict[str, Any] | None = None
    reference: dict[str, Any] | None = None
    rule: str = "dual:threshold=0.4"
    deferral_temperature: float = 1.0
    vocab_size: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        known = {field.name for field in fields(self)}
        unknown = sorted(set(kwargs) - _HOST_KEYS)
        if unknown:
            hints = difflib.get_close_matches(unknown[0], known, n=1)
            hint = f" Did you mean {hints[0]!r}?" if hints else ""
            raise PairError(f"Unknown key {', '.join(map(repr, unknown))} in a pair's configuration.{hint}")
        for role in ("base", "aligned", "reference"):
            value = getattr(self, role)
            if value is not None:
                setattr(self, role, Source.parse(value).to_dict())
        rule = self.rule
        self.rule = str(parse_rule(rule))
        super().__post_init__(**kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """As in Transformers; also takes the embedded pair's name, "tiny"."""
        place = resolve_pair(pretrained_model_name_or_path)
        # AutoConfig passes the name along, this class's own from_pretrained would not; relative paths need it.
        return super().from_pretrained(place, **{"name_or_path": place, **kwargs})

    @property
    def folder(self) -> Path | None:
        """The folder that the configuration was read from, if it was one: relative paths are relative to it."""
        path = Path(self.name_or_path) if self.name_or_path else None
        return path if path is not None and path.is_dir() else None

    @property
    def parsed_rule(self) -> Rule:
        """The rule as an object."""
        return parse_rule(self.rule)

    def model_references(self) -> dict[str, Source]:
        """The references by role, "base" and "aligned" always, "reference" if there is one, paths made absolute.

        Raises:
            PairError: base or aligned is missing.
        """
        references = {}
        for role in ("base", "aligned", "reference"):
            value = getattr(self, role)
            if value is not None:
                references[role] = Source.parse(value).located(self.folder)
            elif role != "reference":
                raise PairError(f"The pair's configuration names no {role} model (key {role!r}).")
        return references


AutoConfig.register("kad", KadConfig, exist_ok=True)
