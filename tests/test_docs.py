"""The documentation is true: its Python runs, its commands have the options it names, every public name is there.

`make site` checks the rest: links, anchors and the form of the docstrings.
"""

from __future__ import annotations

import inspect
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

import kad
import kad.rules
import needs
from kad.cli.main import COMMANDS, load_command

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = sorted([REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")])
API = "\n".join(page.read_text(encoding="utf-8") for page in (REPOSITORY / "docs" / "api").glob("*.md"))
# docs/vllm.md and docs/teacher.md need vLLM, which lives in an environment of its own; tests/vllm runs what they show.
# docs/server.md needs a server; tests/test_server_openai.py runs what it shows. docs/own-small-model.md shows trl,
# which is no dependency. docs/real-pair.md needs weights; tests/test_real_pair.py loads that pair.
ELSEWHERE = {"own-small-model.md", "real-pair.md", "server.md", "teacher.md", "vllm.md"}


def blocks(page: Path, languages: str) -> list[str]:
    """The fenced blocks of a page in one of the languages, a regular expression."""
    return re.findall(rf"^```(?:{languages})\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.M | re.S)


RUN = """
import re, sys
from pathlib import Path
for page in sys.argv[1:]:
    text = Path(page).read_text(encoding="utf-8")
    code = "\\n".join(re.findall(r"^```python\\n(.*?)^```", text, flags=re.M | re.S))
    exec(compile(code, page, "exec"), {"__name__": "__main__"})
"""


@pytest.mark.slow
def test_the_python_of_every_page_runs(tmp_path: Path) -> None:
    """In a process of its own: a page registers a rule."""
    pages = [str(page) for page in PAGES if page.name not in ELSEWHERE and blocks(page, "python")]
    assert len(pages) > 3
    done = subprocess.run(
        [sys.executable, "-c", RUN, *pages], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def commands(page: Path) -> list[list[str]]:
    """The `kad` command lines of a page, continuation lines joined, as words."""
    text = "\n".join(blocks(page, "console|bash|")).replace("\\\n", " ")
    lines = (line.removeprefix("$ ") for line in text.splitlines())
    found = (re.search(r"(?:^|[ /])kad ((?:[a-z]+ ).*)", line + " ") for line in lines)
    return [shlex.split(match[1], comments=True) for match in found if match and match[1].split()[0] in COMMANDS]


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_every_command_line_names_options_that_exist(page: Path) -> None:
    for name, *words in commands(page):
        if name == "serve":  # hands unknown options to vLLM
            continue
        known = {
            option for parameter in load_command(name).params for option in parameter.opts + parameter.secondary_opts
        }
        used = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert used <= known | {"--help", "-h"}, f"kad {name} {' '.join(words)}"


@pytest.mark.parametrize("module", [kad, kad.rules], ids=["kad", "kad.rules"])
def test_every_public_function_and_class_has_an_entry(module: ModuleType) -> None:
    rules = kad.rules.registry().values()  # they stand in the tables of docs/rules.md, see the next test
    for name in module.__all__:
        thing = getattr(module, name)
        if callable(thing) and thing not in rules:
            assert re.search(rf"^::: kad\.(?:\w+\.)*{name}$", API, flags=re.M), f"docs/api has no entry for {name}"


def test_everything_in_the_reference_has_a_docstring() -> None:
    """A method may inherit it."""
    entries = re.findall(r"^::: ([\w.]+)$", API, flags=re.M)
    assert len(entries) > 20
    for entry in entries:
        thing = pkgutil.resolve_name(entry)
        members = vars(thing).items() if isinstance(thing, type) else ()
        for name, member in [(entry, thing), *members]:
            documented = isinstance(member, type | FunctionType | property | classmethod | staticmethod)
            if documented and not name.startswith("_"):
                assert inspect.getdoc(getattr(thing, name, thing)), f"{entry}: {name} has no docstring"


def test_every_rule_stands_in_the_tables() -> None:
    text = (REPOSITORY / "docs" / "rules.md").read_text(encoding="utf-8")
    for name, rule in kad.rules.registry().items():
        if rule.__module__.startswith("kad."):
            assert re.search(rf"^\| `{name}[:`]", text, flags=re.M), f"docs/rules.md has no row for {name}"


@needs.site
def test_the_built_pages_show_every_formula_as_mathml(tmp_path: Path) -> None:
    subprocess.run(
        [needs.DOCS / "bin" / "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path],
        cwd=REPOSITORY,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        check=True,
    )
    for page in PAGES[1:]:  # docs/*.md
        text = page.read_text(encoding="utf-8")
        text, blocks_of_math = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.M | re.S), text.count("```math")
        formulas = blocks_of_math + len(re.findall(r"\$[^\s$][^$]*\$", re.sub("`[^`]*`", "", text)))
        built = (tmp_path / f"{page.stem}.html").read_text(encoding="utf-8")
        assert built.count("<math ") == formulas, page.name
        assert not re.search(r"\$[^\s$][^$<]*\$", re.sub(r"<(code|script)\b.*?</\1>", "", built, flags=re.S)), page.name
    assert 'display="block"' in (tmp_path / "method.html").read_text(encoding="utf-8")


HOUSE = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_the_page_of_the_house_lists_every_room_and_no_other() -> None:
    listing = HOUSE.split("```\nsrc/kad/\n")[1].split("tests/ ")[0]
    named = set(re.findall(r"^  ([\w.]+)/? ", listing, flags=re.M))
    source = REPOSITORY / "src" / "kad"
    rooms = {path.name for path in source.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert named == rooms


def test_the_answers_to_where_it_is_are_right() -> None:
    rows = re.findall(r"^\| (.+\?) \| (.+) \| (.+) \|$", HOUSE, flags=re.M)
    assert len(rows) == 14
    for question, files, names in rows:
        for file, name in zip(re.findall(r"`(.+?)`", files), re.findall(r"`(\w+)`", names), strict=True):
            assert name in (REPOSITORY / "src" / "kad" / file).read_text(encoding="utf-8"), question


def test_every_file_that_the_page_of_the_house_names_exists() -> None:
    named = re.findall(r"`([\w/]+\.py)`", HOUSE)
    assert len(named) > 30
    for file in named:
        assert (REPOSITORY / "src" / "kad" / file).is_file() or (REPOSITORY / file).is_file(), file


def test_what_the_first_picture_of_the_readme_shows(tiny: kad.KadForCausalLM) -> None:
    question = "There are 212 maps in the box of Cora. Later 11 of the maps get broken. How many maps are left?"
    greedy = kad.Sampling(temperature=0)
    base, aligned = (
        kad.generate(tiny, question, sampling=greedy, rule=rule).text for rule in ("base_only", "aligned_only")
    )
    assert "answer is 201." in base
    assert "\\boxed{10}" in aligned
    trace = kad.trace(tiny, question, sampling=greedy, rule="dual:threshold=0.4")
    assert "\\boxed{201}" in trace.text
    sixth = trace.positions[5]
    assert (sixth.text, trace.vocabulary[max(sixth.candidates, key=lambda one: one.p_aligned).token]) == ("2", " -")
    assert sixth.p > 0.99
