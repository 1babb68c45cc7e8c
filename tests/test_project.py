"""The files around the code agree with it: one version, a changelog, guides that name what exists."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from make import support

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


def test_workflows_call_targets_that_exist() -> None:
    makefiles = "\n".join(
        file.read_text(encoding="utf-8") for file in [ROOT / "Makefile", *(ROOT / "make").glob("*.mk")]
    )
    targets = set(re.findall(r"^([a-z-]+):", makefiles, re.MULTILINE))
    for workflow in (ROOT / ".github" / "workflows").glob("*.yml"):
        jobs = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"]
        commands = [step.get("run", "") for job in jobs.values() for step in job["steps"]]
        called = set(re.findall(r"^make ([a-z-]+)", "\n".join(commands), re.MULTILINE))
        assert called <= targets, workflow.name


def test_contributors_are_sent_to_files_that_exist() -> None:
    guides = [ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]
    named = re.findall(r"`((?:src|tests|docs|examples|make)/[^`<> ]+)`", "".join(g.read_text("utf-8") for g in guides))
    assert len(named) > 20
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_contributors_are_sent_to_names_that_exist() -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for name, path in re.findall(r"`(\w+)` (?:of|in)\s+`((?:src|tests)/[^`]+\.py)`", guide):
        assert re.search(rf"\b{name}\b", (ROOT / path).read_text(encoding="utf-8")), f"{name} in {path}"


def test_the_support_page_is_what_the_tests_say() -> None:
    support.check("tests")


SCRIPT = '''"""What a user writes."""

import torch
from transformers import AutoModelForCausalLM

import kad

pair = kad.load("tiny", dtype=torch.bfloat16, rule="dual:0.6")
print(pair.generate(torch.tensor([[1]]), max_new_tokens=3))
answer = kad.generate(pair, "Ann has 5 pens.", max_new_tokens=5, temperature=0, stop="=")
print(answer.text.upper(), answer.to_dict())
for each in kad.generate(pair, ["Ann has 5 pens.", "Bob has 2 maps."], sampling=kad.Sampling(stop="=")):
    print(each.text)
for piece in kad.stream(pair, [{"role": "user", "content": "Hi"}], num_draft_tokens=2):
    print(piece.text)
mine = kad.load("folder", engine="transformers", device="cpu")
print(mine.generate(torch.tensor([[1]])))
model = AutoModelForCausalLM.from_pretrained("organization/name")
loaded = kad.load(base=model, aligned=model)
print(kad.score(loaded, "Hi", "you", raw=True).log_pi.sum(), loaded.num_parameters())
files = kad.load(base="big.gguf", aligned="small.gguf", engine_options={"context": 2048})
print(kad.trace(files, "Hi", temperature=0.5).text)
'''
WRONG = """
import kad

pair = kad.load("tiny")
kad.generate(pair, "Hi", temprature=0)
kad.generate(pair, ["Hi"]).text
kad.load(bse="x", aligned="y")
"""


@pytest.mark.slow
def test_a_type_checker_reads_the_script_of_a_user(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="pip install mypy")
    for name, text in {"right.py": SCRIPT, "wrong.py": WRONG}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "right.py", "wrong.py"],
        env={**os.environ, "PYTHONPATH": str(Path(kad.__file__).parents[1])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "right.py" not in done.stdout, done.stdout
    assert set(re.findall(r"^wrong.py:(\d+): error", done.stdout, re.MULTILINE)) == set("567"), done.stdout
