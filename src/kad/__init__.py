"""Kad: align a big language model at test time with a small aligned one.

The composed distribution pi is a language model; this package builds it (`compose`, `KadForCausalLM`), keeps it as a
folder (a *pair*), and decodes it speculatively (`speculative`). Names are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kad import rules, tiny
    from kad.composition import Composition, acceptance, compose, deferred_mass, origin_shares
    from kad.config import KadConfig
    from kad.errors import KadError
    from kad.modeling import KadForCausalLM
    from kad.rules import parse_rule, register
    from kad.speculation import speculative

__version__ = "0.2.0.dev0"

# Public name -> module that holds it; an empty attribute means the module itself.
_PUBLIC = {
    "Composition": "kad.composition",
    "KadConfig": "kad.config",
    "KadError": "kad.errors",
    "KadForCausalLM": "kad.modeling",
    "acceptance": "kad.composition",
    "compose": "kad.composition",
    "deferred_mass": "kad.composition",
    "origin_shares": "kad.composition",
    "parse_rule": "kad.rules",
    "register": "kad.rules",
    "speculative": "kad.speculation",
}
_MODULES = ("rules", "tiny")

__all__ = [
    "Composition",
    "KadConfig",
    "KadError",
    "KadForCausalLM",
    "acceptance",
    "compose",
    "deferred_mass",
    "origin_shares",
    "parse_rule",
    "register",
    "rules",
    "speculative",
    "tiny",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"kad.{name}")
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'kad' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
