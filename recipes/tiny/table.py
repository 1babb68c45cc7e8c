"""Regenerates the tables of docs/tiny-family.md: `python -m recipes.tiny.table`.

Every row is one record in docs/tiny-family.json. Rows that are there already, for the weights in the package, are kept:
a stopped run goes on, and `--again` measures anew. The rows of other training seeds need their models in build/.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

from kad import tiny
from kad.evaluation.results.intervals import wilson
from kad.rules import parse_rule, registry
from recipes.tiny.measurements import PROBLEMS, Record, load_pair, load_single, measure_model, measure_rule
from recipes.tiny.settings import BUILD, RECIPES, SEEDS, WINDOW

_DOCS = Path(__file__).parents[2] / "docs"
_RECORDS = _DOCS / "tiny-family.json"
_PAGE = _DOCS / "tiny-family.md"
_NAMES = {
    "big-base": "big base p alone",
    "small-base": "small base q alone",
    "small-aligned": "small aligned q* alone",
    "big-aligned": "big aligned p* (upper bound)",
}


class Records:
    """The measured rows on disk, bound to the checksums of the weights they were measured on."""

    def __init__(self, path: Path, only: str, again: bool) -> None:
        self._path, self._only = path, only
        self._weights = json.loads((tiny.path().parent / "checksums.json").read_text())
        self._head = {"command": "python -m recipes.tiny.table", "problems": PROBLEMS, "weights": self._weights}
        if again:
            path.unlink(missing_ok=True)

    @property
    def rows(self) -> dict[str, Record]:
        """The rows measured so far on these weights, by this process or another."""
        saved = json.loads(self._path.read_text()) if self._path.exists() else {}
        return saved["rows"] if saved.get("weights") == self._weights else {}

    def measure(self, name: str, make: Callable[[], Record]) -> None:
        if not name.startswith(self._only) or name in self.rows:
            return
        row = make()
        self._path.write_text(json.dumps(self._head | _versions() | {"rows": self.rows | {name: row}}, indent=1) + "\n")
        print(name, row, flush=True)


def _versions() -> dict[str, str]:
    return {"torch": torch.__version__, "transformers": transformers.__version__, "machine": platform.machine()}


def measure_all(records: Records) -> None:
    for name in tiny.MODELS:
        records.measure(name, lambda name=name: measure_model(load_single(tiny.path(name))))
    pair = load_pair(*(tiny.path(name) for name in ("big-base", "small-aligned", "small-base")))
    for name, rule in registry().items():
        records.measure(f"rule:{name}", lambda rule=rule: measure_rule(pair, rule()))
    for text in ("confidence_bet:margin=0.0", "confidence_bet:margin=0.1"):
        records.measure(f"rule:{text}", lambda text=text: measure_rule(pair, parse_rule(text)))
    for seed in SEEDS["small"][1:]:
        _measure_small(records, seed)
    for seed in SEEDS["big"][1:]:
        _measure_big(records, seed)


def _measure_small(records: Records, seed: int) -> None:
    """The small aligned model of another training seed, alone and with the package's big base."""
    aligned, base = BUILD / f"small-aligned-{seed}", BUILD / f"small-base-{seed}"
    if not _is_trained(aligned):
        return
    records.measure(f"small:{seed}:small-aligned", lambda: measure_model(load_single(aligned)))
    pair = load_pair(tiny.path("big-base"), aligned, base)
    for name in ("dual", "implicit_reward"):
        records.measure(f"small:{seed}:{name}", lambda name=name: measure_rule(pair, registry()[name]()))


def _measure_big(records: Records, seed: int) -> None:
    """The big models of another training seed, alone and with the package's small aligned model."""
    if not _is_trained(BUILD / f"big-aligned-{seed}"):
        return
    for name in ("big-base", "big-aligned"):
        folder = BUILD / f"{name}-{seed}"
        records.measure(f"big:{seed}:{name}", lambda folder=folder: measure_model(load_single(folder)))
    pair = load_pair(BUILD / f"big-base-{seed}", tiny.path("small-aligned"), tiny.path("small-base"))
    for name in ("dual", "confidence_bet", "implicit_reward"):
        records.measure(f"big:{seed}:{name}", lambda name=name: measure_rule(pair, registry()[name]()))


def _is_trained(folder: Path) -> bool:
    return (folder / "figures.json").exists()


def accuracy_table(rows: dict[str, Record]) -> str:
    """Markdown: greedy and sampled accuracy with 95 % intervals, both halves, acceptance rates."""
    lines = [
        "| | greedy | seen / unseen | sampled, T = 1 | seen / unseen | acceptance, greedy / sampled |",
        "|---|---|---|---|---|---|",
    ]
    for name, label in _labels(rows).items():
        greedy, sampled = rows[name]["greedy"], rows[name]["sampled"]
        rates = f"{greedy['acceptance']:.2f} / {sampled['acceptance']:.2f}" if "acceptance" in greedy else ""
        cells = (_interval(greedy), _halves(greedy), _interval(sampled), _halves(sampled), rates)
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def model_table() -> str:
    """Markdown: shape, size, training and losses of the four models."""
    training = json.loads((tiny.path().parent / "training.json").read_text())
    lines = [
        "| | hidden, layers, heads, MLP | parameters | steps | tokens | training loss | validation loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in tiny.MODELS:
        recipe, figures = RECIPES[name.split("-")[0]], training[name]
        size, base = recipe.size, name.endswith("base")
        schedule = recipe.pretraining if base else recipe.alignment
        shape = f"{size.hidden}, {size.layers}, {size.heads} × {size.head_dim}, {size.mlp}"
        tokens = f"{schedule.steps * schedule.rows * WINDOW / 1e6:.1f} M" if base else "2,000 conversations"
        validation = f"{figures['validation_loss']:.3f}" if base else ""
        cells = (_NAMES[name], shape, f"{figures['parameters'] / 1e6:.2f} M", str(schedule.steps), tokens)
        lines.append(f"| {' | '.join(cells)} | {figures['loss']:.3f} | {validation} |")
    return "\n".join(lines)


def _labels(rows: dict[str, Record]) -> dict[str, str]:
    """Rows in the order of the table: single models, rules by greedy accuracy, the upper bound."""
    rules = sorted((n for n in rows if n.startswith("rule:")), key=lambda n: -rows[n]["greedy"]["right"])
    labels = {name: _NAMES[name] for name in ("big-base", "small-base", "small-aligned") if name in rows}
    labels |= {name: f"`{rows[name]['rule']}`" for name in rules}
    labels |= {"big-aligned": _NAMES["big-aligned"]} if "big-aligned" in rows else {}
    for size in ("small", "big"):
        for name in (n for n in rows if n.startswith(f"{size}:")):
            _, seed, what = name.split(":", 2)
            shown = _NAMES.get(what) or f"`{rows[name]['rule']}`"
            labels[name] = f"{shown}, {size} models of seed {seed}"
    return labels


def _interval(record: Record) -> str:
    interval = wilson(record["right"] / record["asked"], record["asked"])
    return f"{100 * interval.estimate:.1f} ({100 * interval.low:.1f} to {100 * interval.high:.1f})"


def _halves(record: Record) -> str:
    seen = (record["right"] - record["right_unseen"]) / (record["asked"] - record["asked_unseen"])
    return f"{100 * seen:.1f} / {100 * record['right_unseen'] / record['asked_unseen']:.1f}"


def write_page(records: Records) -> None:
    """Put the tables between their marks in docs/tiny-family.md."""
    page = _PAGE.read_text()
    for name, table in (("accuracy", accuracy_table(records.rows)), ("models", model_table())):
        before, rest = page.split(f"<!-- table: {name} -->")
        _, after = rest.split("<!-- end of table -->", 1)
        page = f"{before}<!-- table: {name} -->\n{table}\n<!-- end of table -->{after}"
    _PAGE.write_text(page)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.tiny.table", description=__doc__)
    parser.add_argument("--again", action="store_true", help="measure every row anew")
    parser.add_argument("--only", default="", metavar="PREFIX", help="only rows whose name begins so, e.g. small:")
    parser.add_argument("--threads", type=int, default=1, help="these models are too small to share a row")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    records = Records(_RECORDS, options.only, options.again)
    measure_all(records)
    write_page(records)


if __name__ == "__main__":
    main()
