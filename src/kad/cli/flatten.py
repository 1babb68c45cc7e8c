"""Turns a command with groups of options into the function that Typer reads: every field becomes an option.

A command has a parameter `models: ModelOptions` or, with some of the options only,
`models: Annotated[ModelOptions, Without("rule")]`. The default of the parameter has the defaults of the options.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, is_dataclass, replace
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer

from kad.errors import UsageError
from kad.options import Option, option_in, options_of


class Only:
    """The fields of a group that a command offers; the others keep their defaults."""

    def __init__(self, *fields: str) -> None:
        self.fields = fields

    def offers(self, field: str) -> bool:
        """Whether the command offers this field."""
        return field in self.fields


class Without(Only):
    """The fields of a group that a command does not offer; they keep their defaults."""

    def offers(self, field: str) -> bool:
        """Whether the command offers this field."""
        return field not in self.fields


@dataclass(frozen=True)
class Prefix:
    """For a group that a command offers several times: `--base-dtype`, `--aligned-dtype`."""

    word: str
    panel: str


@dataclass(frozen=True)
class _Field:
    """One option of the command line: how Typer declares it and how its value is read and checked."""

    name: str
    hint: Any
    option: Option
    default: Any
    panel: str | None
    prefix: str = ""

    @property
    def key(self) -> str:
        """The name among all parameters of the command."""
        return self.prefix + self.name

    @property
    def flag(self) -> str:
        own = (self.option.name or self.name).removeprefix("--")
        return f"--{self.prefix}{own}".replace("_", "-")

    @property
    def kind(self) -> Any:
        """The type of the value, without its annotation and without None."""
        kind: Any = get_args(self.hint)[0]
        if get_origin(kind) in (Union, UnionType):
            kind = next(arm for arm in get_args(kind) if arm is not NoneType)
        return kind

    @property
    def many(self) -> bool:
        """Whether the option may be repeated."""
        return self.option.parse is None and (get_origin(self.kind) or self.kind) in (tuple, list, dict)

    def parameter(self) -> inspect.Parameter:
        """The option as Typer declares it."""
        option, default = self.option, self.default
        kind: Any = str if option.parse else list[str] if self.many else self.kind
        default_text: Any = option.shown if default is None and option.shown else True
        if option.parse or self.many:
            default_text = ",".join(map(str, default)) if default else option.shown or False
            default = None if default is not inspect.Parameter.empty else default
        declared = typer.Option(
            *self._names(),
            help=option.help,
            metavar=self._metavar(),
            show_default=default_text,
            rich_help_panel=self.panel,
        )
        if default is None:
            kind = kind | None
        return inspect.Parameter(
            self.key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, declared]
        )

    def read(self, typed: Any) -> Any:
        """The value of the field from what Typer read. Raises UsageError if it is not allowed."""
        value = typed
        if typed is None and (self.option.parse or self.many):
            value = self.default
        elif self.option.parse:
            value = self.option.parse(typed)
        elif self.many:
            kind = get_origin(self.kind) or self.kind
            value = dict(_key_and_value(self.flag, text) for text in typed) if kind is dict else kind(typed)
        self.option.check(self.flag, value)
        return value

    def _names(self) -> list[str]:
        both = self.kind is bool and self.default is not False
        names = [f"{self.flag}/--no-{self.flag.removeprefix('--')}" if both else self.flag]
        return names + ([self.option.short] if self.option.short else [])

    def _metavar(self) -> str | None:
        option = self.option
        if self.kind is bool:
            return ""  # Typer would write <bool>
        if isinstance(option.allowed, tuple):
            return option.metavar or "|".join(option.allowed)
        if option.allowed is None:
            return option.metavar
        return f"{option.metavar} {option.bounds}"


def flatten(command: Callable[..., None]) -> Callable[..., None]:
    """The command for Typer, with an option for each field of its groups.

    Args:
        command: a function whose parameters are groups of options, `Annotated[type, Option(...)]`, or Typer's own.
    """
    parameters: dict[str, inspect.Parameter] = {}
    singles: dict[str, _Field] = {}
    groups: dict[str, tuple[Any, list[_Field]]] = {}
    hints = get_type_hints(command, include_extras=True)
    for name, parameter in inspect.signature(command).parameters.items():
        hint, plain = hints[name], parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
        group = _group(hint)
        if group is not None:
            default: Any = group() if parameter.default is inspect.Parameter.empty else parameter.default
            groups[name] = default, _fields(group, default, getattr(hint, "__metadata__", ()))
            parameters |= {field.key: field.parameter() for field in groups[name][1]}
        elif (option := option_in(hint)) is not None:
            singles[name] = _Field(name, hint, option, parameter.default, option.panel)
            parameters[name] = singles[name].parameter()
        else:
            parameters[name] = plain

    def call(**typed: Any) -> None:
        values = {name: singles[name].read(value) if name in singles else value for name, value in typed.items()}
        for name, (default, fields) in groups.items():
            values[name] = replace(default, **{field.name: field.read(values.pop(field.key)) for field in fields})
        command(**values)

    call.__doc__, call.__module__, call.__name__ = command.__doc__, command.__module__, command.__name__
    call.__annotations__ = {name: parameter.annotation for name, parameter in parameters.items()}
    call.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
    return call


def _key_and_value(option: str, text: str) -> tuple[str, Any]:
    """The two sides of KEY=VALUE. The value is read as JSON, or as text if it is no JSON."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f"{option} takes KEY=VALUE, but got {text!r}.")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _group(hint: Any) -> type[Any] | None:
    """The group of options in a parameter's annotation, if there is one."""
    kind: type[Any] = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    return kind if is_dataclass(kind) else None


def _fields(group: type[Any], default: Any, extras: Sequence[Any]) -> list[_Field]:
    """The options of a group that the command offers, from the extras of the parameter's annotation."""
    hints = get_type_hints(group, include_extras=True)
    prefix = next((extra for extra in extras if isinstance(extra, Prefix)), None)
    before, panel = (f"{prefix.word}_", prefix.panel) if prefix else ("", getattr(group, "PANEL", None))
    return [
        _Field(name, hints[name], option, getattr(default, name), option.panel or panel, before)
        for name, option in options_of(group).items()
        if all(extra.offers(name) for extra in extras if isinstance(extra, Only))
    ]
