"""What a composed greedy text costs without drafts, beside p alone: q* reads only where p leaves a token open.

    python -m benchmarks.plain --pairs tiny
    python -m benchmarks.plain --pairs tiny smollm2 real --questions 50      the others need llama.cpp and their weights

Every way answers every question, in another order each time, and is timed by the processor's clock of one thread, so it
means something on a machine that is not idle. The first pass of each model, which reads its prompt, is left out.
`each token` is plain decoding that runs q* at every token. Beside the times stand the forward passes of each model for
a token, which no noise changes. The texts of all ways are compared.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import defaultdict
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

import kad
from benchmarks.harness import save
from kad.engines.pair import Pair, pair_of
from kad.text.contexts import Asking, Context
from kad.text.streaming import Stream

if TYPE_CHECKING:
    from kad.method.scorer import Scorer

NAMES, THINGS = ("Mia", "Zoe", "Tom", "Ann", "Ben"), ("apples", "pens", "coins", "cups", "books")
SUMS = [
    f"{name} has {12 + 3 * i} {thing}. {name} buys {5 + 2 * j} more. How many {thing} does {name} have?"
    for i, name in enumerate(NAMES)
    for j, thing in enumerate(THINGS)
] + [
    f"There are {4 + i} boxes. In each box are {3 + j} {thing}. How many {thing} are there?"
    for i in range(len(NAMES))
    for j, thing in enumerate(THINGS)
]
COUNTRIES = (
    "Australia", "Canada", "Chile", "Egypt", "Finland", "Ghana", "Iceland", "Kenya", "Norway", "Peru", "Austria",
    "Bolivia", "Cuba", "Ethiopia", "France", "Greece", "Hungary", "Iraq", "Japan", "Laos", "Malta", "Nepal", "Oman",
    "Poland", "Spain",
)  # fmt: skip
FACTS = [f"What is the {what} of {country}?" for country in COUNTRIES for what in ("capital", "currency")]
WAYS: dict[str, Any] = {
    "p alone": None, "each token": 0, "plain": 0, "plain, origins": 0, "2 drafts": 2, "4 drafts": 4, "auto": "auto",
}  # fmt: skip


def load(name: str) -> tuple[Pair, list[str]]:
    """A pair, and what it is asked."""
    if name == "tiny":
        return pair_of(kad.load("tiny", dtype="float32")), SUMS
    if name == "smollm2":
        from benchmarks import engines, smollm2

        aligned = smollm2.gguf().gguf_path
        base = engines._base(aligned)
        return pair_of(kad.load(base=str(base), aligned=str(aligned), engine="llama_cpp", device="cpu")), FACTS
    from kad.tiny import real_pair

    files = {role: str(file) for role, file in real_pair.files().items()}
    longer = replace(real_pair.WITH_EXAMPLES, ends="aligned")  # q* ends the answers
    how: dict[str, Any] = {"base_prompt": longer, "engine": "llama_cpp", "device": "cpu"}
    return pair_of(kad.load(**files, **how)), FACTS


class Counted:
    """A scorer that counts its forward passes, and takes the time of the first."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer, self.passes, self.first = scorer, 0, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.scorer, name)

    def advance(self, ids: torch.Tensor, keep: int) -> Any:
        start = time.process_time()
        rows = self.scorer.advance(ids, keep)
        self.first, self.passes = self.first or time.process_time() - start, self.passes + 1
        return rows


def answer(pair: Pair, context: Context, way: str, tokens: int) -> tuple[list[int], float, dict[str, Counted]]:
    """The tokens, the seconds without those of the prompts, and the scorers."""
    kept: dict[str, Counted] = {}

    def take(context: Context) -> dict[str, Any]:
        kept.update({role: Counted(each) for role, each in pair.scorers(pair.roles_of(pair.composition)).items()})
        return dict(kept)

    stream = Stream(
        pair, context, pair.composition, kad.Sampling(temperature=0, max_new_tokens=tokens), WAYS[way] or 0,
        take_scorers=take, origins=way == "plain, origins",
    )  # fmt: skip
    if way == "each token":
        stream.loop.policy.p_first = False
    start = time.process_time()
    found = stream.finish()
    took = time.process_time() - start - sum(each.first for each in kept.values())
    return found.token_ids, took, kept


def measure(name: str, questions: int, tokens: int, ways: list[str]) -> dict[str, Any]:
    """By way: milliseconds and forward passes of a token, and the ratio to p alone."""
    pair, asked = load(name)
    alone = pair.base_model()
    alone.generation_config.eos_token_id = None
    seconds: dict[str, list[float]] = defaultdict(list)
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    differ, shuffle = 0, random.Random(0).shuffle
    order = list(ways)
    for number, question in enumerate([asked[0], *asked[:questions]]):
        context = Asking(question).context(pair)
        texts: dict[str, list[int]] = {}
        shuffle(order)
        for way in order:
            if way == "p alone":
                own = Context(context.base_ids if context.base_ids is not None else context.ids)
                ids, took, kept = answer(alone, own, way, len(texts.get("plain", range(tokens // 2))))
            else:
                ids, took, kept = answer(pair, context, way, tokens)
                texts[way] = ids
            if number == 0:  # it warms up
                continue
            seconds[way].append(took)
            roles = [kept.get("base"), kept.get("aligned")]
            for index, value in enumerate((len(ids), *(0 if each is None else each.passes for each in roles))):
                counts[way][index] += value
        differ += len({tuple(ids) for ids in texts.values()}) > 1
    found: dict[str, Any] = {"questions": questions, "texts_that_differ": differ, "ways": {}}
    for way in ways:
        made, p, q = counts[way]
        found["ways"][way] = {
            "milliseconds": 1000 * sum(seconds[way]) / made,
            "tokens": made,
            "passes_of_p": (q if way == "p alone" else p) / made,  # alone, a model is in the place of both
            "passes_of_q": 0.0 if way == "p alone" else q / made,
        }
    by_question = zip(seconds["plain"], seconds["each token"], strict=True)
    found["plain_over_each_token"] = median(plain / each for plain, each in by_question)
    for way in ways:
        found["ways"][way]["over_p_alone"] = (
            found["ways"][way]["milliseconds"] / found["ways"]["p alone"]["milliseconds"]
        )
    return found


def main() -> None:
    """Measure, print, and save to results/plain.json."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--pairs", nargs="+", default=["tiny"], choices=("tiny", "smollm2", "real"))
    options.add_argument("--questions", type=int, default=50)
    options.add_argument("--tokens", type=int, default=32)
    options.add_argument("--ways", default=";".join(WAYS), help="separated by semicolons")
    options.add_argument("--name", default="plain", help="write results/NAME.json")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {}
    for name in chosen.pairs:
        result[name] = measure(name, chosen.questions, chosen.tokens, chosen.ways.split(";"))
        for way, row in result[name]["ways"].items():
            print(
                f"{name:8} {way:15} {row['milliseconds']:7.2f} ms a token, {row['over_p_alone']:.2f} of p alone, "
                f"passes {row['passes_of_p']:.2f} p {row['passes_of_q']:.2f} q*", flush=True,
            )  # fmt: skip
        print(f"{name}: {result[name]['texts_that_differ']} texts differ", flush=True)
    print("written to", save(chosen.name, {"clock": "processor", "threads": 1, "pairs": result}))


if __name__ == "__main__":
    main()
