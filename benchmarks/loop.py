"""The speculative loop without the forward passes: processor time for each token, by window and vocabulary.

    python -m benchmarks.loop                       # this checkout
    python -m benchmarks.loop --against 4b5291b     # in turn with another revision, and the ratio

The models are the rows of `benchmarks.rows`, which repeat. Of q* they are read as seldom as the loop asks for them.
A floor is one softmax over each row that a window reads: its drafts', and p's at one position more.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.rows import Repeated, rows

ROOT = Path(__file__).parent.parent
VOCABULARIES = {768: 120, 49_152: 48, 151_936: 24}  # and the tokens of a run
WINDOWS = (0, 1, 4, 8)


def run(rule: str, greedy: bool, window: int, models: dict[str, torch.Tensor], tokens: int) -> tuple[float, int]:
    """Seconds of processor time for `tokens` tokens, and the number of windows."""
    from kad.rules import parse_rule

    room = "kad.method" if find_spec("kad.method") else "kad"  # revisions up to 0b9999e have no room for the method
    policies, loops, randomness, windows, verification = (
        import_module(f"{room}.{name}")
        for name in ("speculation.policies", "speculation.loop", "speculation.randomness", "speculation.windows",
                     "verification")
    )  # fmt: skip
    given: dict[str, Any] = {"drafter": "aligned", "greedy": greedy, "warp": None, "records": None}
    if "rule" in inspect.signature(policies.choose_policy).parameters:  # revisions up to ad55f7a
        given |= {"rule": parse_rule(rule), "deferral_temperature": 1.0}
    else:
        given["composition"] = policies.Composition.of(rule)
    policy = policies.choose_policy(
        verifier=verification.verify_block, randomness=randomness.TorchRandomness(), **given
    )
    loop = loops.SpeculativeLoop(
        ids=torch.zeros(8 + tokens, dtype=torch.long), length=8, drafter="aligned", policy=policy,
        scorers={role: Repeated(logits) for role, logits in models.items()}, window=windows.FixedWindow(window),
        stop=lambda ids, new: (new if isinstance(new, int) else len(new), False),
    )  # fmt: skip
    torch.manual_seed(0)
    start = time.process_time()
    for _ in loop.run():
        pass
    return time.process_time() - start, loop.statistics.windows


def measure(rule: str, repeats: int) -> dict[str, dict[str, float]]:
    """By vocabulary, way and window: microseconds for each token, and floors for each window, the least of all runs."""
    torch.set_num_threads(1)
    found = {}
    for vocab, tokens in VOCABULARIES.items():
        models = {"base": rows(vocab, 1), "aligned": rows(vocab, 2)}
        for greedy in (True, False):
            for window in WINDOWS:
                run(rule, greedy, window, models, tokens // 4)
                runs = [run(rule, greedy, window, models, tokens) for _ in range(repeats)]
                floors = []
                for _ in range(repeats * 4):
                    start = time.process_time()
                    for role, count in (("base", window + 1), ("aligned", max(window, 1))):
                        models[role][:count].softmax(dim=-1)
                    floors.append(time.process_time() - start)
                seconds, windows = min(runs)
                found[f"{vocab} {'greedy' if greedy else 'sampled'} {window}"] = {
                    "microseconds": 1e6 * seconds / tokens, "floors": seconds / windows / min(floors),
                }  # fmt: skip
    return found


def child(source: Path, rule: str, repeats: int) -> dict[str, dict[str, float]]:
    """`measure` in a process of its own that imports kad from `source`."""
    command = [sys.executable, "-m", "benchmarks.loop", "--child", "--rule", rule, "--repeats", str(repeats)]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(source)}
    )
    found: dict[str, dict[str, float]] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--against", metavar="REVISION", help="a revision of this repository")
    parser.add_argument("--rule", default="dual:threshold=0.4")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=4, help="processes of each revision, in turn")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    with torch.inference_mode():
        if asked.child:
            print(json.dumps(measure(asked.rule, asked.repeats)))
            return
    from benchmarks.harness import save

    with tempfile.TemporaryDirectory() as folder:
        sources = {"here": ROOT / "src"}
        if asked.against:
            archive = subprocess.run(
                ["git", "archive", asked.against, "src"], check=True, capture_output=True, cwd=ROOT
            )
            subprocess.run(["tar", "-x", "-C", folder], check=True, input=archive.stdout)
            sources["against"] = Path(folder, "src")
        best: dict[str, dict[str, dict[str, float]]] = {name: {} for name in sources}
        for number in range(asked.rounds):
            for name in list(sources) if number % 2 == 0 else list(sources)[::-1]:
                for what, found in child(sources[name], asked.rule, asked.repeats).items():
                    seen = best[name].get(what, found)
                    best[name][what] = {key: min(value, seen[key]) for key, value in found.items()}
    for what, found in best["here"].items():
        before = best.get("against", {}).get(what, {}).get("microseconds")
        ratio = "" if before is None else f"{before:9.0f} {found['microseconds'] / before:7.2f}"
        print(f"{what:20} {found['microseconds']:9.0f} µs a token {found['floors']:7.2f} floors a window", ratio)
    print("written to", save("loop", {"rule": asked.rule, "revision_before": asked.against, **best}))


if __name__ == "__main__":
    main()
