"""docs/support.md, made from the tests: which rule works with which engine and feature, and with which versions.

A test says what it shows: `@pytest.mark.supports(engine, feature, rules=...)`. Without `rules` it is the parameter
`rule` or `name` of the test; `rules=()` is for what does not depend on the rule. This script collects the marks and
writes the page. It runs no test: the gate does. Only the architectures of Transformers are tried here, and a slow test
compares.

    python make/support.py             # from tests/ to docs/support/tests.json, and the page
    python make/support.py laptop      # from tests/laptop, in the environment of llama.cpp and MLX
    python make/support.py vllm        # from tests/vllm, in vLLM's environment
    python make/support.py architectures    # runs tests/architectures.py (minutes), and writes what it found
    python make/support.py --check     # write nothing, fail where a file would change; tests do this

The versions are those of kad.hosts and of docs/support/hosts.json, which `make matrix` writes.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from kad.hosts import HOSTS
from kad.rules import package_of, parse_rule, registry

ROOT = Path(__file__).resolve().parents[1]
FOLDER, PAGE = ROOT / "docs" / "support", ROOT / "docs" / "support.md"
# Each has an environment of its own. The page shows them in this order.
PARTS = {"tests": ROOT / "tests", "laptop": ROOT / "tests" / "laptop", "vllm": ROOT / "tests" / "vllm"}
MARK = "pytest.mark.supports("
# A test collects within its own run of pytest, which keeps its cache and its fault handler.
_QUIET = ("-p", "no:cacheprovider", "-p", "no:faulthandler")
Claims = dict[str, dict[str, list[str]]]  # engine -> feature -> rules

HEAD = """# What works with what

<!-- Made by make/support.py from the tests. Do not edit: run `make support`. -->

A ✓ is a test that every change must pass. It compares the rule, run by this engine in this way, with the definition of
the composed distribution. An empty cell is not tested; nothing is known to fail there. [The rules](rules.md) says what
each rule does.
"""


class Collector:
    """A pytest plugin that keeps the marks of the collected tests."""

    def __init__(self) -> None:
        self.claims: dict[str, dict[str, set[str]]] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            for mark in item.iter_markers("supports"):
                self._add(item, *mark.args, **mark.kwargs)

    def _add(self, item: Any, engine: str, feature: str, rules: Iterable[str] | None = None) -> None:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        shown = [parameters.get("rule") or parameters["name"]] if rules is None else rules
        self.claims.setdefault(engine, {}).setdefault(feature, set()).update(
            parse_rule(rule).name for rule in shown if rule
        )


def collect(folder: Path) -> Claims:
    """The claims of the test files of a folder that have marks in them: to collect only those takes seconds."""
    marked = [str(file) for file in sorted(folder.glob("test_*.py")) if MARK in file.read_text(encoding="utf-8")]
    own = folder / "pytest.ini"
    arguments = [*marked, *([f"--config-file={own}"] if own.exists() else [])]
    collector, output = Collector(), io.StringIO()
    with contextlib.redirect_stdout(output):
        code = pytest.main(["--collect-only", "-q", "-s", *_QUIET, *arguments], plugins=[collector])
    if code != pytest.ExitCode.OK:
        sys.exit(f"The tests cannot be collected:\n{output.getvalue()}")
    return {
        engine: {feature: sorted(rules) for feature, rules in features.items()}
        for engine, features in collector.claims.items()
    }


def page(claims: Claims, hosts: Any) -> str:
    """The page as text."""
    own = [name for name, rule in registry().items() if package_of(rule) == "kad"]
    parts = [HEAD]
    for engine, features in claims.items():
        parts.append(f"## {engine}\n")
        by_rule = {feature: rules for feature, rules in features.items() if rules}
        if by_rule:
            rows = [[f"`{rule}`", *("✓" if rule in rules else "" for rules in by_rule.values())] for rule in own]
            parts.append(_table(["rule", *by_rule], rows))
        others = sorted(features.keys() - by_rule.keys(), key=str.lower)
        if others:
            parts.append(f"{'Also tested' if by_rule else 'Tested'}, with some rule: {', '.join(others)}.\n")
    parts += _architectures(_read("architectures.json"))
    parts += ["## Versions\n", "Tested versions. Others within the requirements may work.\n"]
    parts.append(_table(["package", "tested"], [[host.name, host.tested] for host in HOSTS]))
    if hosts:
        parts += ["## The last run of `make matrix`\n", _table(list(hosts[0]), [list(row.values()) for row in hosts])]
    return "\n".join(parts)


def _architectures(found: Any) -> list[str]:
    """The section on the architectures of Transformers, from what `tests/architectures.py` found."""
    if not found:
        return []
    refused: dict[str, dict[str, str]] = found["refused"]
    exact = [name for name, reasons in refused.items() if not reasons]
    by_reason: dict[tuple[str, str], list[str]] = {}
    for name, reasons in refused.items():
        for way, reason in reasons.items():
            by_reason.setdefault((way, reason.replace("|", "/")), []).append(name)
    rows = [[way, ", ".join(names), reason] for (way, reason), names in sorted(by_reason.items())]
    return [
        "## Architectures\n",
        f"Every causal language model that Transformers {found['transformers']} lists, with random weights and small "
        "sizes, as base and as\naligned model. Truth is composed token by token from whole sequences, without a cache. "
        "Plain decoding, drafts (1, 4, 8,\nauto), batches with padding, chats, scores, Transformers' own `generate` "
        "and static caches must give it, with prompts\nlonger than a sliding window.\n",
        f"Exact in every way ({len(exact)}): {', '.join(exact)}.\n",
        "The others are exact but for this:\n",
        _table(["refused", "architectures", "why"], rows),
    ]


def try_architectures() -> str:
    """The text of `architectures.json`: what is refused of each architecture, and why."""
    sys.path.insert(0, str(PARTS["tests"]))
    import transformers

    from architectures import ARCHITECTURES, look

    transformers.logging.set_verbosity(50)
    refused = {name: look(name) for name in ARCHITECTURES}
    return json.dumps({"transformers": transformers.__version__, "refused": refused}, indent=1) + "\n"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *[":-:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def _read(name: str) -> Any:
    path = FOLDER / name
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def files(part: str) -> dict[Path, str]:
    """The text of the files that this part's tests decide."""
    found = collect(PARTS[part])
    claims: Claims = {}
    for name in PARTS:
        claims |= found if name == part else _read(f"{name}.json")
    return {
        FOLDER / f"{part}.json": json.dumps(found, indent=1) + "\n",
        PAGE: page(claims, _read("hosts.json")),
    }


def check(part: str) -> None:
    """End with a message where a file is not what the tests say."""
    for path, text in files(part).items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            sys.exit(f"{path.relative_to(ROOT)} is not what the tests say. Run: make support")


def main() -> None:
    """Write the files, or check them."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("part", nargs="?", choices=[*PARTS, "architectures"], default="tests")
    options.add_argument("--check", action="store_true")
    chosen = options.parse_args()
    if chosen.check:
        check(chosen.part)
        return
    if chosen.part == "architectures":
        (FOLDER / "architectures.json").write_text(try_architectures(), encoding="utf-8", newline="\n")
        chosen.part = "tests"
    for path, text in files(chosen.part).items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
