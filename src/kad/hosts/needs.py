"""What kad needs from a host beyond its documented interface, and the sentence for a host that has changed."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from kad.errors import HostError, missing_extra
from kad.hosts.versions import Host, installed, require


@dataclass(frozen=True)
class Need:
    """One name of a host that its documentation does not promise.

    Attributes:
        name: "package.module:Class.attribute".
        purpose: what kad does with it.
        instead: what could replace it if the host removes it.
        parameters: the parameters of this callable that kad uses by name.
    """

    name: str
    purpose: str
    instead: str
    parameters: tuple[str, ...] = ()


def is_installed(module: str) -> bool:
    """Whether a package of this name is here. Nothing is imported."""
    return find_spec(module) is not None


def check_installed(host: Host, module: str) -> None:
    """Raise MissingExtraError if a host that an extra brings, with its module, is not installed."""
    if not is_installed(module):
        raise missing_extra(host.extra or "", host.package)


def library(host: Host, module: str, needs: Iterable[Need]) -> Any:
    """The module of a host that an extra brings, with every name that kad needs.

    Raises:
        MissingExtraError: it is not installed.
        HostError: it lacks a name that kad needs.
    """
    check_installed(host, module)
    try:
        found = import_module(module)
    except ImportError as error:
        raise moved(host, error) from error
    check(host, needs)
    return found


def check(host: Host, needs: Iterable[Need]) -> None:
    """Check the version of a host and every name that kad needs of it.

    Raises:
        HostError: the host is too old, or one of the names is gone or takes other parameters. One sentence says what
            is needed, what is there and what to install.
    """
    require(host)
    for need in needs:
        lacking = missing(need)
        if lacking is not None:
            raise moved(host, lacking)


def missing(need: Need) -> str | None:
    """What a host lacks, in words. None if it has everything."""
    place, _, path = need.name.partition(":")
    try:
        found: Any = import_module(place)
        for name in path.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError):
        return need.name.replace(":", ".")
    known = inspect.signature(found).parameters if need.parameters else {}
    lost = [name for name in need.parameters if name not in known]
    return f"parameter {lost[0]!r} of {need.name.replace(':', '.')}" if lost else None


def moved(host: Host, what: str | ImportError) -> HostError:
    """The error for a host that does not have `what`: a name, or the error of an import that failed."""
    if isinstance(what, ImportError):
        if what.name is None:  # Transformers imports lazily, and says so little where something it needs itself fails
            return HostError(f"{host.name} {installed(host.package)} cannot be imported: {_first_cause(what)}")
        name = re.match(r"cannot import name '(\w+)'", str(what))
        what = f"{what.name}.{name[1]}" if name else f"the module {what.name}"
    return HostError(
        f"kad needs {what}, which {host.name} {installed(host.package)} does not have. "
        f'Install a tested version ({host.tested}): pip install "{host.tested_requirement}"'
    )


def _first_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(f"{type(error).__name__}: {error}".split())
