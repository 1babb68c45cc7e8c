"""Rules of other packages: found through the entry point group `kad.rules`, and harmless where they are broken."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kad.errors import RuleError
from kad.method.rules import rule as rule_module
from kad.method.rules.plugins import Plugins
from kad.rules import registry

RULE = """
from dataclasses import dataclass
from typing import ClassVar

import torch

from kad.rules import CascadeRule


@dataclass(frozen=True)
class Share(CascadeRule):
    name: ClassVar[str] = "{name}"
    summary: ClassVar[str] = "keep a share of everything"
    source: ClassVar[str] = "this test"
    share: float = 0.5

    def keep(self, log_p, log_aligned):
        return torch.full_like(log_p, self.share)
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the import path."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def install(site: Path, module: str, code: str, target: str = "Share") -> None:
    """Put a package into `site` as pip would: its module, its metadata, its entry point."""
    (site / f"{module}.py").write_text(code, encoding="utf-8")
    metadata = site / f"{module}-1.2.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.2\n", encoding="utf-8")
    (metadata / "entry_points.txt").write_text(f"[kad.rules]\nentry = {module}:{target}\n", encoding="utf-8")


def load() -> tuple[Plugins, dict[str, Any]]:
    """What a fresh process would find: the rules of the installed plugins beside kad's own."""
    rules = {name: rule for name, rule in registry().items() if rule.__module__.startswith("kad.")}

    def register(cls: Any) -> Any:
        known = dict(rule_module._REGISTRY)
        try:
            rule_module.register(cls)
            rules.setdefault(cls.name, cls)
        finally:
            rule_module._REGISTRY.clear()
            rule_module._REGISTRY.update(known)

    plugins = Plugins(rules, register)
    plugins.load()
    return plugins, rules


def test_a_good_plugin_is_registered_with_its_package(site: Path) -> None:
    install(site, "plugin_good", RULE.format(name="share_good"))
    plugins, rules = load()
    assert rules["share_good"](0.25).to_dict() == {"rule": "share_good", "share": 0.25}
    assert plugins.packages["share_good"] == "plugin_good 1.2"
    assert not plugins.skipped


@pytest.mark.parametrize(
    ("module", "code", "target", "reason"),
    [
        (
            "plugin_broken",
            "import nothing_of_this_name",
            "Share",
            "ModuleNotFoundError: No module named 'nothing_of",
        ),
        ("plugin_leaves", "raise SystemExit", "Share", "SystemExit"),
        ("plugin_lost", "", "Share", "AttributeError: module 'plugin_lost' has no attribute 'Share'"),
        ("plugin_clash", RULE.format(name="dual"), "Share", "RuleError: The rule name 'dual' is taken by Dual"),
        ("plugin_no_rule", "Share = 3", "Share", "RuleError: A rule is a class derived from kad.rules.Rule, but got 3"),
        (
            "plugin_half",
            RULE.format(name="half").replace("summary", "note").replace("def keep", "def kept"),
            "Share",
            "RuleError: The rule Share must define summary, keep.",
        ),
    ],
)
def test_a_plugin_that_fails_is_named_once_and_skipped(
    site: Path, caplog: pytest.LogCaptureFixture, module: str, code: str, target: str, reason: str
) -> None:
    install(site, module, code, target)
    install(site, "plugin_other", RULE.format(name="share_other"))
    with caplog.at_level(logging.WARNING):
        plugins, rules = load()
        plugins.load()
    assert [skipped.package for skipped in plugins.skipped] == [f"{module} 1.2"]
    assert plugins.skipped[0].reason.startswith(reason)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        f"Skipped the rule plugin 'entry' of {module} 1.2"
    ]
    assert rules["dual"] is registry()["dual"]
    assert "share_other" in rules, "the plugins after a broken one are loaded"


def test_what_a_failing_plugin_had_registered_is_taken_back(site: Path) -> None:
    rules: dict[str, Any] = {"dual": 1}

    def register_and_fail(cls: Any) -> Any:
        rules.update(dual=2, half_done=cls)
        raise RuleError("no")

    install(site, "plugin_half_done", RULE.format(name="half_done"))
    Plugins(rules, register_and_fail).load()
    assert rules == {"dual": 1}


def run(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )


def test_a_process_looks_for_plugins_when_a_rule_of_theirs_may_be_meant_and_kad_rules_shows_them(
    tmp_path: Path,
) -> None:
    """With their packages, and the broken one with the reason."""
    install(tmp_path, "plugin_good", RULE.format(name="share_good"))
    install(tmp_path, "plugin_broken", "1 / 0")
    code = """
import sys
import kad
from kad.cli.main import app
assert str(kad.parse_rule("dual:threshold=0.3")) == "dual:threshold=0.3"
assert "plugin_good" not in sys.modules
assert str(kad.parse_rule("share_good")) == "share_good:share=0.5"
app(["rules", "--json"], standalone_mode=False)
app(["rules"], standalone_mode=False)
"""
    done = run(tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr
    shown, end = json.JSONDecoder().raw_decode(done.stdout)
    packages = {rule["name"]: rule["package"] for rule in shown["rules"]}
    assert packages["share_good"] == "plugin_good 1.2"
    assert packages["dual"] == "kad"
    reason = "ZeroDivisionError: division by zero"
    assert shown["skipped"] == [{"plugin": "entry", "package": "plugin_broken 1.2", "reason": reason}]
    assert done.stderr == f"Skipped the rule plugin 'entry' of plugin_broken 1.2: {reason}\n"
    table = done.stdout[end:]
    assert "package plugin_good 1.2" in table
    assert "package kad" not in table
