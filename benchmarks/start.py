"""Processor time of `kad` where it has little to do: its help, its lists, and its word about a mistake.

python -m benchmarks.start --save

Every case is a new process, with the bytecode kept. User and system time are added up; other work on the machine
disturbs them little.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.harness import save

# In such a process, importing one of these packages fails as if it were not installed.
_WITHOUT = "import sys; sys.modules.update(dict.fromkeys({missing!r})); from kad.cli.main import main; main()"
_GRID = ("--grid", "0.1,0.2")

# command -> what it needs beside models, and the option for its output
WITH_MODELS = {
    "generate": ("Hi",),
    "chat": (),
    "playground": ("--no-browser",),
    "serve": ("--engine", "transformers"),
    "score": ("text.txt",),
    "trace": ("Hi",),
    "analyze": (),
    "eval": ("-o", "out"),
    "sweep": (*_GRID, "-o", "out"),
    "figures": ("-o", "out"),
}
OTHERS = {
    "demo": (),
    "pack": ("--base", "tiny:big-base", "--aligned", "tiny:small-aligned", "-o", "out"),
    "info": ("tiny",),
    "rules": (),
    "tune": (*_GRID, "--pair", "pair", "-o", "out"),
    "reproduce": ("qwen3",),
    "report": ("run",),
}
COMMANDS = {**WITH_MODELS, **OTHERS}
_NOT_THERE = ("--base", "./gone", "--aligned", "tiny:small-aligned")

CASES = {
    "no mistake": {
        "kad": (),
        "--version": ("--version",),
        "--help": ("--help",),
        "generate --help": ("generate", "--help"),
        "rules": ("rules",),
        "rules primal": ("rules", "primal"),
        "report": ("report", "run"),
        "reproduce --dry-run": ("reproduce", "qwen3", "--dry-run"),
        "pack": ("pack", *OTHERS["pack"]),
        "info FOLDER": ("info", "pair"),
        "info --environment": ("info", "--environment"),
    },
    "option": {name: (name, *needed, "--nope") for name, needed in COMMANDS.items()},
    "pair": {name: (name, *needed, "--pair", "./gone") for name, needed in WITH_MODELS.items()}
    | {"tune": ("tune", *_GRID, "-o", "out", "--pair", "./gone"), "info": ("info", "./gone")},
    "model": {name: (name, *needed, *_NOT_THERE) for name, needed in WITH_MODELS.items()}
    | {"info": ("info", *_NOT_THERE), "pack": ("pack", *_NOT_THERE, "-o", "out")},
    "rule": {
        name: (name, *COMMANDS[name], "--rule", "dul")
        for name in ("generate", "chat", "playground", "serve", "score", "trace", "eval", "sweep", "tune", "pack")
    }
    | {
        "rules": ("rules", "dul"),
        "eval --methods": ("eval", "-o", "out", "--methods", "base;dul"),
        "analyze --compare": ("analyze", "--accuracy", "--compare", "dul"),
    },
    "output": {
        "trace": ("trace", "Hi", "-o", "gone/out.html"),
        "analyze": ("analyze", "-o", "gone/out.json"),
        "reproduce": ("reproduce", "qwen3", "-o", "text.txt/out"),
        "report": ("report", "run", "-o", "text.txt/out"),
    }
    | {
        name: (name, *(part.replace("out", "text.txt/out") for part in COMMANDS[name]))
        for name in ("eval", "sweep", "figures", "tune", "pack")
    },
    "missing extra": {
        "figures, matplotlib": ("figures", "-o", "out"),
        "playground, fastapi": ("playground", "--no-browser"),
        "serve, uvicorn": ("serve", "tiny", "--engine", "transformers"),
        "serve, vllm": ("serve", "tiny", "--engine", "vllm"),
        "generate, llama_cpp": ("generate", "Hi", "--engine", "llama_cpp"),
        "generate, mlx_lm": ("generate", "Hi", "--engine", "mlx"),
        "eval, lm_eval": ("eval", "-o", "out"),
        "eval, vllm": ("eval", "-o", "out", "--engine", "vllm"),
        "analyze, lm_eval": ("analyze", "--task", "kad_gsm8k"),
    },
}


def seconds(arguments: tuple[str, ...], missing: list[str], code: int, folder: str) -> float:
    """Processor time of one command. It must end with this exit code."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", _WITHOUT.format(missing=missing), *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=folder, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == code, (arguments, done.stderr)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def prepare(folder: str) -> None:
    """What the commands find in their folder: a pair, a text, and a run of one question."""
    Path(folder, "text.txt").write_text("Ann has 5 pens.\n")
    for arguments in (
        ("pack", *OTHERS["pack"][:-1], "pair"),
        ("eval", "--limit", "1", "-n", "1", "--methods", "aligned", "-o", "run"),
    ):
        seconds(arguments, [], 0, folder)


def main() -> None:
    """Every case some times, and the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--kinds", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--save", action="store_true", help="write results/start.json")
    options = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    with TemporaryDirectory() as folder:
        prepare(folder)
        for kind in options.kinds:
            found[kind] = {}
            for name, arguments in CASES[kind].items():
                missing = [name.partition(", ")[2]] if kind == "missing extra" else []
                code = 0 if kind == "no mistake" else 2
                took = [seconds(arguments, missing, code, folder) for _ in range(options.repeats)]
                found[kind][name] = round(median(took), 3)
                print(f"{kind:14} {name:22} {found[kind][name]:.2f} s ({min(took):.2f} to {max(took):.2f})", flush=True)
    if options.save:
        print(save("start", {"unit": "seconds of processor time", "repeats": options.repeats, "medians": found}))


if __name__ == "__main__":
    main()
