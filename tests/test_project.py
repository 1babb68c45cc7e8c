"""The files around the code agree with it: one version, a changelog, an archive with everything."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

import kad

ROOT = Path(__file__).parents[1]


def test_the_citation_names_this_version_and_both_papers() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == kad.__version__
    assert len({paper["title"] for paper in citation["references"]}) == 2
    assert citation["preferred-citation"]["title"] == citation["references"][0]["title"]


def test_the_changelog_has_a_section_for_this_version() -> None:
    sections = re.findall(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sections[0] == ("Unreleased" if ".dev" in kad.__version__ else kad.__version__)


def test_the_source_archive_holds_every_file_for_contributors() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    included = set(project["tool"]["hatch"]["build"]["targets"]["sdist"]["include"])
    assert included >= {"CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "SECURITY.md", "examples", "docs", "tests"}


def test_contributors_are_sent_to_files_that_exist() -> None:
    guides = [ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]
    named = re.findall(r"`((?:src|tests|docs|examples|make)/[^`<> ]+)`", "".join(g.read_text("utf-8") for g in guides))
    assert len(named) > 20
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_contributors_are_sent_to_names_that_exist() -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for name, path in re.findall(r"`(\w+)` (?:of|in)\s+`((?:src|tests)/[^`]+\.py)`", guide):
        assert re.search(rf"\b{name}\b", (ROOT / path).read_text(encoding="utf-8")), f"{name} in {path}"
