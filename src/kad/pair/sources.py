"""Where a model or a pair lives: hub ids (with a revision), paths, and the names of the embedded family."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import quote
from typing import Any

from kad.errors import OptionError, PairError
from kad.method.rules import Rule, parse_rule

_GGUF = ".gguf"
_TINY = Path(__file__).parents[1] / "tiny" / "weights"
TINY_MODELS = ("big-base", "small-base", "small-aligned", "big-aligned")
EMBEDDED = "tiny"
"""The pair where nobody names one."""
ROLES = ("base", "aligned", "reference")
TUNING = "tuning.json"
"""Where `kad tune` keeps in a pair what it tried."""
TUNING_SCHEMA = "kad-tuning/1"
# What lies in a pair folder: the configurations, and whatever the tokenizer saves.
PAIR_FILES = frozenset({
    "added_tokens.json", "chat_template.jinja", "chat_template.json", "config.json", "generation_config.json",
    "merges.txt", "special_tokens_map.json", "spiece.model", "tokenizer.json", "tokenizer.model",
    "tokenizer_config.json", TUNING, "vocab.json", "vocab.txt",
})  # fmt: skip
CARD_FILES = ("README.md", "custom_generate/generate.py", "custom_generate/requirements.txt")
"""What `kad pack --card` adds. A pair may have files of these names that are its owner's."""
CARD_MARK = "Written by kad pack --card"
"""It stands in those that kad wrote."""

# What may be said about the loading of one model, kept in the pair as plain JSON values.
MODEL_KWARGS = frozenset({
    "attn_implementation", "cache_dir", "device_map", "dtype", "gguf_file", "local_files_only", "max_memory",
    "offload_folder", "quantization_config", "subfolder", "token", "trust_remote_code",
})  # fmt: skip
# Permissions, secrets and places of the person who loads a model. A pair never carries them: it may come from somebody
# else, and says less than its user.
_PERSONAL = frozenset({"cache_dir", "local_files_only", "offload_folder", "token", "trust_remote_code"})
# What computes attention without code of the hub.
_ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
_DTYPES = ("auto", "float64", "float32", "bfloat16", "float16")


BASE_URL = "KAD_BASE_URL"
"""The environment variable with the address of the server that the user allows pairs to ask."""
SERVER = re.compile(r"https?://[^/\s?#@]+[^\s?#@]*")
"""The address of a server that runs a model: without a name and a password in it, which would be shown."""


@dataclass(frozen=True)
class Source:
    """One model of a pair: a hub id or path, a revision for hub ids, and keyword arguments for loading it.

    A base model may run on a server. `model` is then where its tokenizer is.

    Attributes:
        model: a hub id or a path.
        revision: of a hub id.
        kwargs: keyword arguments for loading it.
        url: the address of the server, which ends in /v1.
        served: the model's name there. None: the server has one model.
        allowed: whether the user has named the server, as the base model or in KAD_BASE_URL. It would read the
            prompts, so a pair alone may not say where they go.

    Raises:
        PairError: an empty name, an unknown keyword argument, or no address of a server.
    """

    model: str
    revision: str | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    url: str | None = None
    served: str | None = None
    allowed: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model:
            raise PairError(f"A model is named by a hub id or a path, but got {self.model!r}.")
        if not isinstance(self.revision, str | None) or not isinstance(self.kwargs, dict):
            raise PairError(f"The model {self.model} has a revision, which is a text, and kwargs, which are an object.")
        unknown = sorted(set(self.kwargs) - MODEL_KWARGS)
        if unknown:
            raise PairError(
                f"Unknown loading option {', '.join(map(repr, unknown))} for {self.model}. "
                f"Allowed: {', '.join(sorted(MODEL_KWARGS))}."
            )
        if self.url is not None and not (isinstance(self.url, str) and SERVER.fullmatch(self.url)):
            raise PairError(
                f"A server has an address like http://HOST:8000/v1, without a password, but got {str(self.url)[:80]!r}."
            )
        if not isinstance(self.served, str | None):
            raise PairError(f"A model on a server has a name, which is a text, but got {str(self.served)[:80]!r}.")

    @classmethod
    def on_server(cls, url: str, tokenizer: str | os.PathLike[str] | None) -> Source:
        """A base model on a server, whose tokenizer is here or on the hub. "#NAME" after the address names the model.

        Raises:
            OptionError: no tokenizer.
            PairError: a bad address, or no such tokenizer.
        """
        if tokenizer is None:
            raise OptionError(
                f"The base model is on a server, {url}. Say where its tokenizer is, a folder or a hub id, with "
                "`base_tokenizer`."
            )
        address, _, served = url.partition("#")
        return replace(cls.parse(os.fspath(tokenizer)), url=address.rstrip("/"), served=served or None, allowed=True)

    @classmethod
    def parse(cls, source: str | Mapping[str, Any] | Source) -> Source:
        """From "id", "id@revision", a path, a GGUF file, "tiny:<name>", or the dict that `to_dict` writes."""
        if isinstance(source, Source):
            return source
        if isinstance(source, Mapping) and "url" in source:
            if unknown := sorted(set(source) - {"url", "model", "tokenizer"}):
                raise PairError(f"A model on a server has unknown keys {unknown}. It takes: url, model, tokenizer.")
            if not isinstance(source["url"], str) or not isinstance(source.get("tokenizer"), str):
                raise PairError("A model on a server lacks its address, 'url', or the place of its 'tokenizer'.")
            name, _, revision = source["tokenizer"].partition("@")
            url = source["url"].rstrip("/")
            allowed = url == os.environ.get(BASE_URL, "").rstrip("/")
            return cls(name, revision or None, url=url, served=source.get("model"), allowed=allowed)
        if isinstance(source, Mapping):
            unknown = sorted(set(source) - {"model", "revision", "kwargs"})
            if unknown or "model" not in source:
                problem = f"has unknown keys {unknown}" if unknown else "lacks the key 'model'"
                raise PairError(f"A model source {problem}. It takes: model, revision, kwargs.")
            carried = cls(source["model"], source.get("revision"), source.get("kwargs") or {})
            if personal := sorted(_PERSONAL & set(carried.kwargs)):
                raise PairError(
                    f"The pair carries {', '.join(personal)} for {carried.model}, which a pair may not. Remove it "
                    "from the pair's config.json. If you trust this model, give it when you load the pair."
                )
            _check_carried(carried)
            return carried
        if not isinstance(source, str | os.PathLike):
            raise PairError(f"A model is named by a hub id or a path, but got {str(source)[:80]}.")
        if SERVER.match(os.fspath(source)):
            return cls.on_server(os.fspath(source), None)  # a sentence: it lacks its tokenizer
        if os.fspath(source).endswith(_GGUF):
            return cls(os.fspath(source)).located(None)
        name, at, revision = os.fspath(source).partition("@")
        if not at or os.path.exists(source):
            return cls(resolve_model(source))
        if os.path.isdir(name):
            raise PairError(
                f"{name} is a folder, which has no revision; got {os.fspath(source)!r}. Leave out @{revision}."
            )
        return cls(resolve_model(name), revision)

    def check_here(self, engine: str) -> None:
        """Raise PairError if the model is on a server, where `engine` cannot run it."""
        if self.url is not None:
            raise PairError(
                f"The base model is on a server, {self.url}, so {engine} cannot run the pair. Use kad.load, or a "
                "command of kad with another engine."
            )

    @property
    def trusted(self) -> bool:
        """Whether code that comes with the model may run: the person who loads it has said so, never a pair."""
        return self.kwargs.get("trust_remote_code") is True

    def trusted_by(self, user: bool) -> Source:
        """The same source with the user's permission to run its code, if the user gives it."""
        return replace(self, kwargs={**self.kwargs, "trust_remote_code": True}) if user else self

    @property
    def is_local(self) -> bool:
        """Whether the model is a folder on this machine."""
        return os.path.isdir(self.model)

    @property
    def gguf_path(self) -> Path | None:
        """The GGUF file of the weights, if it is a file on this machine."""
        name = self.kwargs.get("gguf_file")
        path = None if name is None else Path(self.model) / self.kwargs.get("subfolder", "") / name
        return path if path is not None and os.path.isfile(path) else None

    def to_dict(self, relative_to: Path | None = None) -> dict[str, Any]:
        """Plain JSON. The embedded family keeps its names; a path beside or below `relative_to` becomes relative.

        A GGUF file on this machine is named by its own path. A token and the permission to run remote code are left
        out.
        """
        if self.url is not None:
            here = replace(self, url=None, served=None).to_dict(relative_to)
            at = f"@{self.revision}" if self.revision else ""
            return {"url": self.url, "model": self.served, "tokenizer": here["model"] + at}
        plain = {name: getattr(self, name) for name in ("model", "revision")}
        plain["kwargs"] = {key: value for key, value in self.kwargs.items() if key not in _PERSONAL}
        if Path(self.model).parent == _TINY:
            name = Path(self.model).name
            return plain | {"model": EMBEDDED if name == "pair" else f"tiny:{name}"}
        if self.gguf_path is not None:
            plain["model"] = str(self.gguf_path)
            del plain["kwargs"]["gguf_file"]
        if relative_to is not None and self.is_local:
            path, pair = Path(plain["model"]).resolve(), relative_to.resolve()
            if path.is_relative_to(pair.parent):
                plain["model"] = os.path.relpath(path, pair)
        return plain

    def located(self, pair: Path | None) -> Source:
        """The source with a path relative to the folder `pair` made absolute; hub ids stay.

        Raises:
            PairError: no such GGUF file.
        """
        if self.model == EMBEDDED or self.model.startswith("tiny:"):
            return replace(self, model=resolve_model(self.model))
        if self.model.endswith(_GGUF):
            file = Path(self.model) if pair is None else pair / self.model
            if not os.path.isfile(file):
                raise PairError(f"No GGUF file at {file}. Give the path of a file, or a folder, or a hub id.")
            return replace(self, model=str(file.parent.resolve()), kwargs={**self.kwargs, "gguf_file": file.name})
        if pair is None or not os.path.isdir(pair / self.model):
            if _is_path(self.model) and not os.path.isdir(self.model):
                looked = self.model if pair is None else os.path.normpath(pair / self.model)
                raise PairError(
                    f"The pair {pair or ''} names the model {self.model}, but there is no folder {looked}. Move the "
                    "model there, or write the pair anew with kad pack."
                )
            return self
        return replace(self, model=str((pair / self.model).resolve()))


def _check_carried(source: Source) -> None:
    """Refuse loading options of a pair that reach outside its models: other folders, the disk, code of the hub."""

    def refuse(key: str, allowed: str) -> None:
        value = source.kwargs[key]
        raise PairError(f"The pair says {key}={str(value)[:80]!r} for {source.model}. A pair may say {allowed} there.")

    for key, value in source.kwargs.items():
        if key in ("gguf_file", "subfolder"):
            parts = Path(value).parts if isinstance(value, str) else ("..",)
            if ".." in parts or Path(value).is_absolute():
                refuse(key, "a name inside the model's folder")
        elif key == "attn_implementation" and value not in _ATTENTION:
            refuse(key, ", ".join(_ATTENTION))
        elif key == "dtype" and value not in _DTYPES:
            refuse(key, ", ".join(_DTYPES))
        elif key in ("device_map", "max_memory"):
            places = value if isinstance(value, dict) else {"": value}
            if "disk" in map(str, (*places, *places.values())):
                refuse(key, "processors and GPUs, not the disk")
        elif key == "quantization_config" and not isinstance(dict(value or {}).get("quant_method"), str):
            refuse(key, "an object with a quant_method")


def resolve_model(source: str | os.PathLike[str]) -> str:
    """A path or hub id of a model, or of a pair in its place: names of the embedded family become folders.

    Raises:
        PairError: an unknown name of the embedded family, a file, or what looks like a path and is no folder.
    """
    name = os.fspath(source)
    if name == EMBEDDED:
        return resolve_pair(name)
    if name.startswith("tiny:"):
        return str(_tiny_folder(name))
    if os.path.isdir(name):
        return str(Path(name).resolve())
    if os.path.isfile(name):
        raise PairError(f"{name} is a file, and no GGUF file. Give a folder, or a hub id like organization/name.")
    if _is_path(name):
        raise PairError(f"No model folder at {name}. Give a folder, or a hub id like organization/name.")
    return name


def _is_path(name: str) -> bool:
    """Whether a name looks like a path and not like a hub id."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def resolve_pair(source: str | os.PathLike[str]) -> str:
    """A pair: "tiny" becomes the folder of the embedded pair; folders and hub ids stay.

    Raises:
        PairError: a single model of the embedded family, or a name that is neither a hub id nor a folder with a
            config.json.
    """
    name = os.fspath(source)
    if name == EMBEDDED:
        return str(_TINY / "pair")
    if name.startswith("tiny:"):
        _tiny_folder(name)
        raise PairError(f"{name} is one model, not a pair. Give tiny, or both models by their names.")
    if os.path.isdir(name) and not (Path(name) / "config.json").is_file():
        raise PairError(f"{name} is no pair: it has no config.json. Write one with: kad pack -o {quote(name)} ...")
    if os.path.isfile(name):
        raise PairError(f"{name} is a file; a pair is a folder. Write one with: kad pack -o NAME ...")
    if not os.path.isdir(name) and _is_path(name):
        raise PairError(f"No pair at {name}. Give a folder written by `kad pack`, a hub id, or tiny.")
    if not os.path.isdir(name) and "/" not in name:
        raise PairError(
            f"No such folder: {name}. Give a folder written by `kad pack`, a hub id like organization/name, or tiny."
        )
    return name


def _tiny_folder(name: str) -> Path:
    model = name.removeprefix("tiny:")
    if model not in TINY_MODELS:
        raise PairError(f"Unknown model {name!r}. Choose from: {', '.join(f'tiny:{m}' for m in TINY_MODELS)}.")
    return _TINY / model


def is_pair(folder: Path) -> bool:
    """Whether a folder holds a pair's config.json."""
    return (_config_of(folder) or {}).get("model_type") == "kad"


def not_a_pair(pair: object) -> PairError:
    """The error for a model, or anything else with a config.json, in the place of a pair."""
    return PairError(
        f"{pair} is not a pair: its config.json names no base and aligned model. "
        "Compose two models with --base and --aligned, or write a pair with kad pack."
    )


def check_target(folder: Path, *, beside: bool = False) -> None:
    """Check that writing a pair to a folder writes over nothing but a pair.

    Args:
        folder: where the pair goes.
        beside: other files may lie there, as long as none has the name of a pair's.

    Raises:
        PairError: it would.
    """
    if folder.exists() and not folder.is_dir():
        raise PairError(f"{folder} is a file; a pair is a folder. Choose another name.")
    if not folder.is_dir() or is_pair(folder):
        return
    if not beside and any(folder.iterdir()):
        raise PairError(f"{folder} is a folder that is not a pair. Choose another one for the pair.")
    taken = sorted(name for name in PAIR_FILES if (folder / name).exists())
    if taken:
        raise PairError(
            f"{folder} is not a pair, and its {taken[0]} would be written over. Choose another folder for the pair."
        )


def has_card(folder: Path) -> bool:
    """Whether kad wrote the README.md of a folder.

    Raises:
        PairError: it did, and other files of the card are not kad's.
    """
    file = folder / CARD_FILES[0]
    own = file.is_file() and is_carded(file)
    if own:
        check_card(folder)
    return own


def check_card(folder: Path) -> None:
    """Check that writing a card into a folder writes over nothing but a card of kad.

    Raises:
        PairError: it would.
    """
    for name in CARD_FILES:
        file = folder / name
        if file.exists() and not is_carded(file):
            raise PairError(
                f"{file} is not a card that kad wrote, and would be written over. Move it, or leave --card out."
            )


def is_carded(file: Path) -> bool:
    """Whether kad wrote a file as a part of a card. Whoever takes out its line makes it their own."""
    return file.is_file() and CARD_MARK in file.read_text("utf-8", errors="replace")


def _config_of(folder: Path) -> dict[str, Any] | None:
    """What a folder's config.json holds. None if it cannot be read; whoever loads it says why."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return config if isinstance(config, dict) else None


def check_sources(
    pair: str | os.PathLike[str] | None,
    base: Any,
    aligned: Any,
    reference: Any,
    rule: str | Mapping[str, Any] | Rule | None = None,
) -> None:
    """Either a pair, or base and aligned model; what is named by a path is there, and the rule is one.

    A model may be loaded already: an object, which has no name to be checked.

    Importing torch and Transformers takes seconds. Nothing here does.

    Raises:
        OptionError: both, or one of the two models without the other, or a rule that lacks the reference model.
        PairError: no such pair, folder or file.
        RuleError: a bad rule.
    """
    parsed = None if rule is None else parse_rule(rule)
    models = {"`base`": base, "`aligned`": aligned, "`reference`": reference}
    named = [option for option, value in models.items() if value is not None]
    if pair is not None and named:
        raise OptionError(f"Give `pair` or {' '.join(named)}, not both.")
    if named and (base is None or aligned is None):
        missing = "`base`" if base is None else "`aligned`"
        raise OptionError(
            f"{' '.join(named)} needs {missing} beside it: a composition has a base and an aligned model."
        )
    for source in (base, aligned, reference):
        if source is not None and not hasattr(source, "forward"):
            Source.parse(source)
    if base is not None:
        if parsed is not None and parsed.needs_reference and reference is None:
            raise OptionError(f"Rule {parsed} needs the reference model. Give one with `reference`.")
        return
    folder = Path(resolve_pair(pair or EMBEDDED))
    config = _config_of(folder)
    if config is None:
        return
    if config.get("model_type") != "kad":
        raise not_a_pair(pair)
    for role in ROLES:
        if config.get(role) is not None:
            Source.parse(config[role]).located(folder)
    if "rule" in config:
        parse_rule(config["rule"])
