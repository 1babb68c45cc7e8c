"""Modules under their former names: they are found for one more release, with a warning that says the new name.

A finder at the end of `sys.meta_path` is asked only about modules that nobody else finds, so that it costs nothing.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from importlib.abc import Loader

# The former name of each public module, and today's.
MODULES = {
    "kad.engines.base": "kad.engines.protocols",
    "kad.parts": "kad.engines.forward",
    "kad.references": "kad.sources",
    "kad.report": "kad.tracing",
    "kad.report.analysis": "kad.figures.analysis",
    "kad.report.answers": "kad.figures.answers",
    "kad.report.figures": "kad.figures.data",
    "kad.report.measure": "kad.figures.approximation",
    "kad.report.page": "kad.tracing.page",
    "kad.report.plots": "kad.figures.drawing",
    "kad.report.record": "kad.tracing.tracer",
    "kad.report.scoring": "kad.text.score",
    "kad.report.terminal": "kad.tracing.terminal",
    "kad.report.trace": "kad.tracing.schema",
    "kad.rules.base": "kad.rules.rule",
    "kad.evaluation.catalog": "kad.evaluation.tasks.task",
    "kad.evaluation.documents": "kad.evaluation.tasks.documents",
    "kad.evaluation.engine": "kad.evaluation.engines.engine",
    "kad.evaluation.extract": "kad.evaluation.tasks.extract",
    "kad.evaluation.identity": "kad.evaluation.results.fingerprint",
    "kad.evaluation.models": "kad.evaluation.engines.models",
    "kad.evaluation.plots": "kad.evaluation.results.plots",
    "kad.evaluation.report": "kad.evaluation.results.report",
    "kad.evaluation.scoring": "kad.evaluation.tasks.marking",
    "kad.evaluation.settings": "kad.evaluation.results.settings",
    "kad.evaluation.statistics": "kad.evaluation.results.intervals",
    "kad.evaluation.storage": "kad.evaluation.results.storage",
    "kad.evaluation.summary": "kad.evaluation.results.summary",
    "kad.evaluation.sweep": "kad.evaluation.grid",
    "kad.evaluation.tables": "kad.evaluation.results.tables",
    "kad.evaluation.transformers_engine": "kad.evaluation.engines.text_engine",
    "kad.evaluation.tune": "kad.evaluation.choice",
    "kad.evaluation.vllm_engine": "kad.evaluation.engines.vllm_engine",
    "kad.speculation.scorers": "kad.engines.cached_model",
}
# Names that changed inside a module: former module -> former name -> today's.
NAMES = {
    "kad.references": {"ModelReference": "Source"},
    "kad.report.record": {"trace": "trace_tokens"},
    "kad.evaluation.identity": {"identity": "fingerprint"},
    "kad.evaluation.transformers_engine": {"TransformersEngine": "TextEngine"},
}


class _Former(ModuleType):
    """A module under its former name: hands out what today's module has."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        today = import_module(MODULES[self.__name__])
        return getattr(today, NAMES.get(self.__name__, {}).get(name, name))


class _Loader:
    # No base class of importlib.abc: its import would cost `kad --help` a tenth of its time.
    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Former(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        former = module.__name__
        message = f"{former} is called {MODULES[former]} now, and the former name goes with the next release."
        for name, today in NAMES.get(former, {}).items():
            message += f" {name} is {today} there."
        warnings.warn(message, DeprecationWarning, stacklevel=2)


class Finder:
    """Finds modules by their former names; see `importlib.abc.MetaPathFinder`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a former name; None of any other."""
        if fullname not in MODULES:
            return None
        package = any(name.startswith(f"{fullname}.") for name in MODULES)
        return ModuleSpec(fullname, cast("Loader", _Loader()), is_package=package)


def install() -> None:
    """Let former names be found; a second call does nothing."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.append(Finder())
