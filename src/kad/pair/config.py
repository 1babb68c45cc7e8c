"""`KadConfig`: what a pair folder's config.json holds. Plain values; a mistyped key is an error.

Transformers and vLLM put keys of their own into any configuration, and new releases add more. So an unknown key is
refused only if it looks like a mistyped key of kad.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig

from kad.errors import PairError
from kad.method import defaults
from kad.method.composition import Composition
from kad.method.rules import Rule, parse_rule
from kad.pair.base_prompt import BasePrompt
from kad.pair.sources import ROLES, Source, resolve_pair

_MOST_TOKENS = 1 << 24
# How similar a key must be to one of ours to count as mistyped: "rul", "Rule", "temperature".
_MISTYPED = 0.7


class KadConfig(PreTrainedConfig):
    """A pair: which models, which rule.

    Attributes:
        base: where the base model is: {"model": id or path, "revision": ..., "kwargs": {...}}.
        aligned: the same for the aligned model.
        reference: the same for the reference model, or None.
        rule: the rule as a string, see `kad.rules.parse_rule`.
        deferral_temperature: the models' logits are divided by it before composing.
        base_prompt: how the base model is asked, as `BasePrompt.to_dict()`. None: both models read one prompt.
        vocab_size: the number of tokens that all models share. It is set when the models are known.
        foreign_ids: special and reserved tokens that the models do not share, see `kad.tokens.vocabulary`. It is set
            together with `vocab_size`.
        base_tokenizer: "own" if the base model has another tokenizer, and is read through the aligned model's tokens.
            It is set together with `vocab_size`, which is then that of the aligned model.

    Raises:
        PairError: a mistyped key, or a malformed entry for a model.
        RuleError: a bad rule.
        OptionError: a bad base prompt.
    """

    model_type: ClassVar[str] = "kad"

    base: dict[str, Any] | None = None
    aligned: dict[str, Any] | None = None
    reference: dict[str, Any] | None = None
    rule: str = defaults.RULE
    deferral_temperature: float = 1.0
    base_prompt: dict[str, Any] | None = None
    vocab_size: int | None = None
    foreign_ids: list[int] | None = None
    base_tokenizer: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        for key in sorted(kwargs):
            name = key.lower().replace("-", "_")
            close = difflib.get_close_matches(name, KadConfig.__annotations__, n=1, cutoff=_MISTYPED)
            if close and not hasattr(PreTrainedConfig, key):  # those are the host's
                raise PairError(f"Unknown key {key!r} in a pair's configuration. Did you mean {close[0]!r}?")
        # Parsed here and nowhere else. The fields hold what is written: plain values.
        self._sources = {role: Source.parse(place) for role in ROLES if (place := getattr(self, role)) is not None}
        for role, source in self._sources.items():
            setattr(self, role, source.to_dict())
        self._rule, self._trusted = parse_rule(self.rule), False
        self.replace(self._rule, self.deferral_temperature, BasePrompt.written(self.base_prompt))
        self._check_vocabulary()
        super().__post_init__(**kwargs)

    def replace(
        self,
        rule: Rule | None = None,
        deferral_temperature: float | None = None,
        base_prompt: Any = None,
        trust_remote_code: bool = False,
    ) -> None:
        """Put other values in the place of the pair's own. None leaves a value as it is.

        `trust_remote_code` is the user's permission to run the code of the models. It is never written down.
        """
        self._trusted = self._trusted or trust_remote_code
        if rule is not None:
            self._rule, self.rule = rule, str(rule)
        if deferral_temperature is not None:
            self.deferral_temperature = Composition(self._rule, deferral_temperature).deferral_temperature
        if base_prompt is not None:
            self.set_base_prompt(base_prompt)

    def _check_vocabulary(self) -> None:
        size, ids = self.vocab_size, self.foreign_ids
        if size is not None and (type(size) is not int or not 0 < size <= _MOST_TOKENS):
            raise PairError(f"A pair's vocab_size is a number of tokens, at most {_MOST_TOKENS:,}, but is {size!r}.")
        below = range(size or 0)
        few = ids is None or (isinstance(ids, list) and len(ids) <= len(below))
        if not few or not all(type(token) is int and token in below for token in ids or ()):
            raise PairError("A pair's foreign_ids are a list of tokens below its vocab_size. Write it with kad pack.")
        if self.base_tokenizer not in (None, "own"):
            raise PairError(f'A pair\'s base_tokenizer is "own" or missing, but is {self.base_tokenizer!r}.')

    def to_dict(self) -> dict[str, Any]:
        """As in Transformers: plain values."""
        plain: dict[str, Any] = super().to_dict()
        return {key: value for key, value in plain.items() if key not in ("_sources", "_rule", "_trusted")}

    def set_base_prompt(self, prompt: Any) -> None:
        """Ask the base model in another way, see `BasePrompt.parse`."""
        prompt = BasePrompt.parse(prompt)
        self.base_prompt = None if prompt is None else prompt.to_dict()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """As in Transformers. It also takes "tiny", the name of the embedded pair."""
        place = resolve_pair(pretrained_model_name_or_path)
        # AutoConfig passes the name along, this class's own from_pretrained would not; relative paths need it.
        return super().from_pretrained(place, **{"name_or_path": place, **kwargs})

    @property
    def folder(self) -> Path | None:
        """The folder that the configuration came from, if any. Relative paths are relative to it."""
        path = Path(self.name_or_path) if self.name_or_path else None
        return path if path is not None and path.is_dir() else None

    @property
    def parsed_rule(self) -> Rule:
        """The rule as an object."""
        return self._rule

    def model_sources(self) -> dict[str, Source]:
        """Where the models are, by role, with absolute paths. "reference" is there only if the pair has one.

        Raises:
            PairError: base or aligned is missing.
        """
        for role in ("base", "aligned"):
            if role not in self._sources:
                raise PairError(
                    f"The pair's configuration names no {role} model (key {role!r}). "
                    "Add it, or write the pair anew with kad pack."
                )
        return {role: source.located(self.folder).trusted_by(self._trusted) for role, source in self._sources.items()}

    @property
    def own_source(self) -> Source | None:
        """Where the pair itself is, with its tokenizer and its settings. None if it has no place."""
        return Source(self.name_or_path).trusted_by(self._trusted) if self.name_or_path else None


AutoConfig.register("kad", KadConfig, exist_ok=True)
