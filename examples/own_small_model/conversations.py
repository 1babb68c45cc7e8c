"""The conversations of the guide: 2,000 word problems with an answer in one clean form, one JSON object on each line.

python conversations.py > conversations.jsonl
"""

from __future__ import annotations

import json

from kad import tiny


def main() -> None:
    for problem in tiny.problems("train", 2000, seed=7):
        working = " ".join(f"{'Then' if place else 'First'}, {step}." for place, step in enumerate(problem.equations))
        answer = f"{working} The answer is \\boxed{{{problem.answer}}}."
        example = {"prompt": problem.messages(), "completion": [{"role": "assistant", "content": answer}]}
        print(json.dumps(example))


if __name__ == "__main__":
    main()
