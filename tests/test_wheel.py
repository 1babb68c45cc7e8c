"""The wheel and the sdist: built, installed where there is nothing else, and run.

The environment holds the wheel and what the wheel asks for, so a dependency that only an extra brings is missed here.
Its versions are those of constraints.txt.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


def run(*command: object, folder: Path = ROOT, code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command that sees no PYTHONPATH but the one in `env`; its exit code must be `code`."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST", "COV"))
    }
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=environment | env, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and with the wheel that was built from the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder)
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (file,) = dist.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def unpacked(dist: Path) -> Path:
    """The sdist, unpacked."""
    (file,) = dist.glob("*.tar.gz")
    with tarfile.open(file) as archive:
        archive.extractall(dist, filter="data")
    return dist / file.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `python` and `kad` in a new environment that holds the wheel and what it asks for."""
    environment = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", environment)
    folder = environment / ("Scripts" if os.name == "nt" else "bin")
    run(folder / "python", "-m", "pip", "install", "--quiet", "--no-compile", "-c", ROOT / "constraints.txt", wheel)
    return folder


def tracked(folder: str = ".") -> set[str]:
    names = run("git", "-c", "safe.directory=*", "ls-files", "-z", folder).stdout
    return {name for name in names.split("\0") if name and (ROOT / name).exists()}


in_a_checkout = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no git checkout: git clone")


@in_a_checkout
def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == {name.removeprefix("src/") for name in tracked("src")}
    assert wheel.stat().st_size < 12_000_000


def test_importing_kad_imports_nothing_but_the_standard_library(programs: Path, tmp_path: Path) -> None:
    code = """
import sys
before = set(sys.modules)
import kad
print(kad.__file__)
print(*{name.split(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names))
"""
    file, others = run(programs / "python", "-c", code, folder=tmp_path).stdout.splitlines()
    assert Path(file).is_relative_to(programs.parent)
    assert others == "kad"


def test_the_demo_runs(programs: Path, tmp_path: Path) -> None:
    result = json.loads(run(programs / "kad", "demo", "--problems", "5", "--json", folder=tmp_path).stdout)
    assert result["asked"] == 5
    assert result["accuracy"]["composed"] >= 0.6


def test_generate_answers_in_an_empty_folder(programs: Path, tmp_path: Path) -> None:
    question = "Mia has 24 apples. She buys 13 more. Then she loses 9. How many are left?"
    said = run(programs / "kad", "generate", question, "--pair", "tiny", "--temperature", "0", folder=tmp_path).stdout
    assert "28" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "needed"),
    [
        (("eval", "--tasks", "kad_tiny", "--out", "run"), "kad-align[eval]"),
        (("figures", "--pair", "tiny", "-o", "drawn"), "kad-align[report]"),
    ],
)
def test_what_an_extra_brings_is_named_where_it_is_missing(
    programs: Path, tmp_path: Path, command: tuple[str, ...], needed: str
) -> None:
    said = run(programs / "kad", *command, folder=tmp_path, code=2).stderr
    assert needed in said
    assert "Traceback" not in said


@in_a_checkout
def test_the_sdist_holds_every_file_of_the_project(unpacked: Path) -> None:
    held = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    assert tracked() - held == set()


def test_the_sdist_runs_its_own_tests(unpacked: Path) -> None:
    own = {"PYTHONPATH": str(unpacked / "src")}
    said = run(sys.executable, "-m", "pytest", "--collect-only", "-q", folder=unpacked, **own).stdout
    assert "test_rules.py" in said
    file = "tests/test_evaluation_prompts.py"
    run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file, folder=unpacked, **own)
