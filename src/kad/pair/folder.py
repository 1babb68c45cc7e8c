"""A pair by name or by its models, and its folder: read, checked, written."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from kad.disk import scratch
from kad.errors import MissingTokenizerError, PairError, RuleError
from kad.method.rules import Rule, parse_rule
from kad.pair.base_prompt import BasePrompt
from kad.pair.card import remove_card
from kad.pair.config import KadConfig
from kad.pair.model_files import load_config as load_model_config
from kad.pair.model_files import load_generation_config, load_tokenizer, rows_of, shared_tokenizer
from kad.pair.parts import places_of, read_config
from kad.pair.sources import EMBEDDED, MODEL_KWARGS, PAIR_FILES, Source, check_sources, check_target
from kad.tokens.vocabulary import Common, agree

# How to find the pair itself, not its models.
_PAIR_OPTIONS = frozenset({"cache_dir", "force_download", "local_files_only", "revision", "token"})
# What the Auto classes pass along, and a pair does not use.
_AUTO_OPTIONS = frozenset({"_commit_hash", "_from_auto", "adapter_kwargs", "code_revision", "low_cpu_mem_usage"})
# What a folder says beside its models.
_OWN = ("rule", "deferral_temperature", "base_prompt", "vocab_size", "foreign_ids", "base_tokenizer")


def load_config(pair: Any, kwargs: dict[str, Any]) -> tuple[KadConfig, dict[str, Any]]:
    """The pair's configuration with the overrides in `kwargs` applied, and the options left for its models.

    Raises:
        PairError: no such pair, or an unknown option.
    """
    options = {key: value for key, value in kwargs.items() if key not in _AUTO_OPTIONS}
    config, rule = options.pop("config", None), options.pop("rule", None)
    temperature, prompt = options.pop("deferral_temperature", None), options.pop("base_prompt", None)
    trusted = options.pop("trust_remote_code", None) is True
    place = {key: options.pop(key) for key in _PAIR_OPTIONS if key in options}
    if "torch_dtype" in options:
        options.setdefault("dtype", options.pop("torch_dtype"))
    unknown = sorted(set(options) - MODEL_KWARGS)
    if unknown:
        known = sorted(MODEL_KWARGS | _PAIR_OPTIONS | {"base_prompt", "deferral_temperature", "rule"})
        raise PairError(f"Unknown option {', '.join(map(repr, unknown))} for a pair. Allowed: {', '.join(known)}.")
    if config is None:
        config = read_config(pair, **place)
    config.replace(None if rule is None else parse_rule(rule), temperature, prompt, trusted)
    return config, options


def vocabulary_in_files(sources: Mapping[str, Source], sizes: Mapping[str, int] | None = None) -> Common:
    """The vocabulary that all models share, from their configurations and tokenizers. No weights are read.

    Args:
        sources: where the models are, by role. The ids of a folder without a tokenizer are taken to agree.
        sizes: the output rows of each model, by role, where they are known already.

    Raises:
        VocabularyError: the token maps differ.
    """
    rows, tokenizers = dict(sizes or {}), {}
    for role, source in sources.items():
        if role not in rows:
            rows[role] = _rows_of(source)
        with suppress(MissingTokenizerError):
            tokenizers[role] = shared_tokenizer(source)
    return agree(rows, tokenizers)


def _rows_of(source: Source) -> int:
    if source.url is not None:
        return rows_of(source)
    config = load_model_config(source)
    size = config.get_text_config().vocab_size
    # A pair that does not say how many tokens its models share.
    return vocabulary_in_files(config.model_sources()).vocab_size if size is None else int(size)


def generation_config(config: KadConfig, aligned: GenerationConfig) -> GenerationConfig:
    """The generation settings of the pair, else a copy of the aligned model's. Their end tokens end the text."""
    own = None if config.own_source is None else load_generation_config(config.own_source)
    return own or GenerationConfig.from_dict(aligned.to_dict())


def pack(
    sources: Mapping[str, Source],
    folder: Any,
    *,
    rule: str | Mapping[str, Any] | Rule,
    deferral_temperature: float = 1.0,
    base_prompt: Any = None,
) -> KadConfig:
    """Write a pair folder from the places of its models: reads configurations and tokenizers, loads no weights.

    Raises:
        PairError: a model cannot be found, or the folder is taken.
        VocabularyError: the models' tokens differ.
        RuleError: a bad rule, or one that needs the reference model without it.
    """
    parsed, target = parse_rule(rule), Path(folder)
    check_target(target)
    if parsed.needs_reference and "reference" not in sources:
        raise RuleError(f"Rule {parsed} needs the reference model. Give one: reference=... (--reference).")
    if str(target.resolve()) in places_of(sources):
        raise PairError(f"{target} would be a pair and a part of itself. Choose another folder for the pair.")
    aligned, vocabulary = sources["aligned"], asdict(vocabulary_in_files(sources))
    settings = load_generation_config(aligned) or GenerationConfig.from_model_config(load_model_config(aligned))
    own = {"rule": parsed, "deferral_temperature": deferral_temperature, "base_prompt": BasePrompt.parse(base_prompt)}
    return write(target, KadConfig(**sources, **own, **vocabulary), load_tokenizer(aligned), settings)


def write(folder: Any, config: KadConfig, tokenizer: Any, settings: GenerationConfig) -> KadConfig:
    """Write a pair folder, completely or not at all. Paths of models next to it or in it become relative.

    An existing pair is overwritten. Other files in its folder stay.

    Raises:
        PairError: something that is not a pair would be overwritten.
    """
    target = Path(folder)
    check_target(target, beside=True)
    written = KadConfig(
        **{role: source.to_dict(relative_to=target) for role, source in config.model_sources().items()},
        **{name: getattr(config, name) for name in _OWN},
        architectures=["KadForCausalLM"],
    )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with scratch(target.parent) as beside:
            made = beside / "pair"
            made.mkdir()
            for piece in (written, settings, tokenizer):
                piece.save_pretrained(made)
            _put_in_place(target, made)
    except OSError as error:
        raise PairError(f"Cannot write the pair {target}: {error.strerror or error}.") from error
    return written


def _put_in_place(target: Path, made: Path) -> None:
    """Move the whole folder into place. If the folder exists, move file by file, the configuration last."""
    if not target.exists():
        made.rename(target)
        return
    remove_card(target)
    names = sorted((file.name for file in made.iterdir()), key=lambda name: name == "config.json")
    for stale in PAIR_FILES - set(names):
        (target / stale).unlink(missing_ok=True)
    for name in names:
        (made / name).replace(target / name)


def resolve(
    pair: str | PathLike[str] | None = None,
    *,
    base: str | Source | None = None,
    aligned: str | Source | None = None,
    reference: str | Source | None = None,
    rule: str | Mapping[str, Any] | Rule | None = None,
    deferral_temperature: float | None = None,
    base_prompt: Any = None,
    trust_remote_code: bool = False,
) -> KadConfig:
    """The configuration of a pair, from its name or from the names of its models. No weights are read.

    Args:
        pair: a folder, a hub id, or "tiny", which is the default.
        base, aligned, reference: the models, if there is no pair.
        rule, deferral_temperature, base_prompt: replace the pair's own.
        trust_remote_code: the user's permission to run code that comes with the models.

    Raises:
        OptionError: both a pair and models, one model without the other, or a rule that lacks the reference model.
        PairError: no such pair.
        RuleError: a bad rule.
    """
    check_sources(pair, base, aligned, reference, rule)
    if base is None or aligned is None:
        config = read_config(pair or EMBEDDED)
    else:
        named = {"base": base, "aligned": aligned, "reference": reference}
        config = KadConfig(**{role: name for role, name in named.items() if name is not None})
    config.replace(None if rule is None else parse_rule(rule), deferral_temperature, base_prompt, trust_remote_code)
    return config
