"""Rules of other packages. The entry point group `kad.rules` names their classes. They are loaded when first needed.

A package names its rule in its pyproject.toml:

    [project.entry-points."kad.rules"]
    entropic = "own_rule:Entropic"

A plugin that fails is named in one warning and skipped, so that it does not affect other rules.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from threading import RLock
from typing import Any

from kad.errors import one_line

GROUP = "kad.rules"

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class SkippedPlugin:
    """A plugin that could not be used.

    Attributes:
        plugin: the name of the entry point.
        package: the package it comes from, with its version.
        reason: what went wrong, in one line.
    """

    plugin: str
    package: str
    reason: str


class Plugins:
    """Registers the rules of the installed packages, once.

    Args:
        rules: the registry, name -> class. A plugin that fails does not change it.
        register: adds one class to the registry, or raises an error.
    """

    def __init__(self, rules: dict[str, Any], register: Callable[[Any], Any]) -> None:
        self._rules, self._register = rules, register
        self._lock, self._loaded = RLock(), False
        self.packages: dict[str, str] = {}
        self.skipped: list[SkippedPlugin] = []

    def load(self) -> None:
        """Register the rules of all installed packages. Only the first call does anything."""
        with self._lock:
            if self._loaded:
                return
            self._loaded = True  # before the work: a plugin may ask for the registry while it is imported
            # In a fixed order, so that of two plugins with one name the same one wins on every machine.
            for point in sorted(entry_points(group=GROUP), key=lambda point: (_package(point), point.name)):
                self._add(point)

    def _add(self, point: EntryPoint) -> None:
        before = dict(self._rules)
        try:
            self._register(point.load())
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the code of others may raise anything
            self._rules.clear()
            self._rules.update(before)
            skipped = SkippedPlugin(point.name, _package(point), one_line(error))
            self.skipped.append(skipped)
            _LOG.warning("Skipped the rule plugin %r of %s: %s", skipped.plugin, skipped.package, skipped.reason)
        else:
            self.packages.update(dict.fromkeys(self._rules.keys() - before.keys(), _package(point)))


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown package"
