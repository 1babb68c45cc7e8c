"""Kad: align a big language model at test time with a small aligned one.

The composed distribution pi is a language model. This package builds it (`compose`, `KadForCausalLM`), keeps it as a
folder (a *pair*, which `load` loads), and works with it on text (`generate`, `stream`, `score`, `trace`). Names are
imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kad import rules, tiny
    from kad.engines.load import load
    from kad.engines.transformers.loading import loading_bars
    from kad.engines.transformers.modeling import KadForCausalLM
    from kad.engines.transformers.speculative import speculative
    from kad.errors import KadError
    from kad.method.composition import Composition, acceptance, compose, deferred_mass, origin_shares
    from kad.method.rules import parse_rule, register
    from kad.pair.config import KadConfig
    from kad.text.answer import Answer
    from kad.text.answering import generate, stream
    from kad.text.conversation import Conversation
    from kad.text.sampling import Sampling
    from kad.text.scoring import Perplexity, perplexity, score
    from kad.tracing.ask import trace

__version__ = "0.2.0.dev0"

# Public name -> module that holds it; an empty attribute means the module itself.
_PUBLIC = {
    "Answer": "kad.text.answer",
    "Composition": "kad.method.composition",
    "Conversation": "kad.text.conversation",
    "KadConfig": "kad.pair.config",
    "KadError": "kad.errors",
    "KadForCausalLM": "kad.engines.transformers.modeling",
    "Perplexity": "kad.text.scoring",
    "Sampling": "kad.text.sampling",
    "acceptance": "kad.method.composition",
    "compose": "kad.method.composition",
    "deferred_mass": "kad.method.composition",
    "generate": "kad.text.answering",
    "load": "kad.engines.load",
    "loading_bars": "kad.engines.transformers.loading",
    "origin_shares": "kad.method.composition",
    "parse_rule": "kad.rules",
    "perplexity": "kad.text.scoring",
    "register": "kad.rules",
    "score": "kad.text.scoring",
    "speculative": "kad.engines.transformers.speculative",
    "stream": "kad.text.answering",
    "trace": "kad.tracing.ask",
}
_MODULES = ("rules", "tiny")

__all__ = [
    "Answer",
    "Composition",
    "Conversation",
    "KadConfig",
    "KadError",
    "KadForCausalLM",
    "Perplexity",
    "Sampling",
    "acceptance",
    "compose",
    "deferred_mass",
    "generate",
    "load",
    "loading_bars",
    "origin_shares",
    "parse_rule",
    "perplexity",
    "register",
    "rules",
    "score",
    "speculative",
    "stream",
    "tiny",
    "trace",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"kad.{name}")
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'kad' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
