"""Does kad work with the oldest, the pinned and the newest version of its hosts? `make matrix` runs this.

For each of the three versions of Transformers: a fresh environment, kad installed from a built wheel without
constraints.txt (only torch is pinned, so that every machine gets the same build), the newest of everything else, and
the tests marked `core` (not those also marked `slow`) against that wheel. The newest version is asked of the package
index at run time: so a new release that breaks kad is seen, and named. The results go to docs/support/hosts.json.

Only the standard library, and uv as a program.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))
from kad.hosts import TRANSFORMERS, release  # noqa: E402

RESULTS = ROOT / "docs" / "support" / "hosts.json"
TEST_PACKAGES = ("pytest>=8", "pytest-xdist>=3.6", "scipy>=1.15")
# What the table shows of each environment.
SHOWN = ("transformers", "torch", "lm-eval", "accelerate", "gguf", "typer", "huggingface-hub", "tokenizers")


@dataclass(frozen=True)
class Environment:
    """One row: which version of Transformers, and where it is installed."""

    name: str
    transformers: str | None  # None: the newest on the index
    folder: Path

    @property
    def python(self) -> str:
        """Its interpreter."""
        windows = self.folder / "Scripts" / "python.exe"
        return str(windows if windows.parent.exists() else self.folder / "bin" / "python")


def main() -> int:
    """Build, install, test, write the results; 1 where a version does not work."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / ".matrix", help="where the environments go")
    parser.add_argument("--uv", default="uv", help="the program uv")
    parser.add_argument(
        "--only", nargs="+", choices=("oldest", "pinned", "newest"), help="these rows, and write no results"
    )
    parser.add_argument("--step", choices=("install", "test"), help="only make the environments, or use those made")
    arguments = parser.parse_args()
    environments = [
        Environment(name, version, arguments.folder / name)
        for name, version in (("oldest", TRANSFORMERS.oldest), ("pinned", pinned("transformers")), ("newest", None))
        if arguments.only is None or name in arguments.only
    ]
    if arguments.step != "test":
        wheel = build(arguments.uv, arguments.folder)
        for environment in environments:
            install(arguments.uv, environment, wheel)
    if arguments.step == "install":
        return 0
    rows = [check(arguments.uv, environment) for environment in environments]
    print(table(rows))
    if arguments.only is None:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        shown = [
            {"Transformers": row["name"], "works": "yes" if row["works"] else "no", "python": row["python"]}
            | row["versions"]
            for row in rows
        ]
        RESULTS.write_text(json.dumps(shown, indent=1) + "\n", encoding="utf-8", newline="\n")
    for row in rows:
        print(verdict(row))
    return 0 if all(row["works"] for row in rows) else 1


def build(uv: str, folder: Path) -> Path:
    """The wheel of this checkout."""
    target = folder / "wheel"
    for old in target.glob("*.whl"):
        old.unlink()
    run([uv, "build", "--quiet", "--wheel", "--out-dir", str(target), str(ROOT)])
    [wheel] = target.glob("*.whl")
    return wheel


def install(uv: str, environment: Environment, wheel: Path) -> None:
    """Make the environment."""
    wanted = "transformers" if environment.transformers is None else f"transformers=={environment.transformers}"
    run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(environment.folder)])
    packages = [f"{wheel}[eval,gguf]", wanted, f"torch=={pinned('torch')}", *TEST_PACKAGES]
    run([uv, "pip", "install", "--quiet", "--python", environment.python, *packages])


def check(uv: str, environment: Environment) -> dict[str, Any]:
    """Run the core tests in the environment, and say what was found."""
    installed = json.loads(
        run([uv, "pip", "list", "--quiet", "--format", "json", "--python", environment.python], capture_output=True)
    )
    versions = {entry["name"]: entry["version"].split("+")[0] for entry in installed}
    print(f"\n{environment.name}: " + ", ".join(f"{name} {versions[name]}" for name in SHOWN), flush=True)
    code, output = test(environment)
    return {
        "name": environment.name,
        "python": run([environment.python, "-c", "import platform; print(platform.python_version())"], True).strip(),
        "versions": {name: versions[name] for name in SHOWN},
        "works": code == 0,
        "failed": failed_tests(output, code),
    }


def test(environment: Environment) -> tuple[int, str]:
    """Run the core tests on the installed wheel; pytest's exit code and its output."""
    settings = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    settings |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    place = run([environment.python, "-c", "import kad; print(kad.__file__)"], True, settings).strip()
    if not Path(place).is_relative_to(environment.folder.resolve()):
        raise SystemExit(f"kad would be imported from {place}, not from the wheel")
    files = [str(file) for file in sorted(ROOT.glob("tests/test_*.py")) if "mark.core" in file.read_text("utf-8")]
    command = [
        environment.python,
        "-m",
        "pytest",
        "-q",
        "-m",
        "core and not slow",
        "-n",
        "2",
        "--dist",
        "loadfile",
        *files,
    ]
    done = subprocess.run(command, cwd=ROOT, env=settings, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout[-6000:] if done.returncode else done.stdout.strip().splitlines()[-1], flush=True)
    return done.returncode, done.stdout


def failed_tests(output: str, code: int) -> list[str]:
    """The names of the tests that failed."""
    names = re.findall(r"^(?:FAILED|ERROR) (?:.*/)?(tests/\S+|test_\S+)", output, flags=re.MULTILINE)
    return names or ([] if code == 0 else [f"pytest ended with exit code {code}"])


def verdict(row: dict[str, Any]) -> str:
    """One sentence about a row."""
    version = row["versions"]["transformers"]
    if not row["works"]:
        return f"BROKEN with Transformers {version} ({row['name']}): {', '.join(row['failed'])}"
    if release(version) > release(TRANSFORMERS.newest):
        return (
            f"Transformers {version} is newer than the newest tested one ({TRANSFORMERS.newest}), and works: "
            "say so in src/kad/hosts.py."
        )
    return f"Transformers {version} ({row['name']}) works."


def table(rows: list[dict[str, Any]]) -> str:
    """The rows for a terminal."""
    lines = [["", "works", *SHOWN]]
    lines += [[row["name"], "yes" if row["works"] else "NO", *row["versions"].values()] for row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n" + "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines) + "\n"


def pinned(package: str) -> str:
    """The version that constraints.txt names."""
    text = (ROOT / "constraints.txt").read_text("utf-8")
    found = re.search(rf"^{re.escape(package)}==(\S+)$", text, flags=re.MULTILINE)
    if found is None:
        raise SystemExit(f"constraints.txt names no version of {package}")
    return found[1]


@cache
def wheel_folders() -> list[str]:
    """The folders of wheels that pip is told of: uv does not read pip's settings."""
    command = [sys.executable, "-m", "pip", "config", "get", "global.find-links"]
    told = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return os.environ.get("PIP_FIND_LINKS", told).split()


def run(command: list[str], capture_output: bool = False, env: dict[str, str] | None = None) -> str:
    """Run a program, or end with its name and exit code; its output if it is captured."""
    settings = dict(os.environ if env is None else env)
    settings.setdefault("UV_FIND_LINKS", ",".join(wheel_folders()))
    done = subprocess.run(command, env=settings, stdout=subprocess.PIPE if capture_output else None, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:4])} ... ended with exit code {done.returncode}")
    return done.stdout or ""


if __name__ == "__main__":
    sys.exit(main())
