"""The table of docs/tiny-family.md: made from its records, measured on the weights in the package."""

import json
from pathlib import Path

import pytest
import torch
from recipes.tiny.measurements import mean_acceptance
from recipes.tiny.table import accuracy_table, model_table

from kad import tiny
from kad.method.composition import acceptance
from kad.rules import registry
from kad.tiny.measure import attempt

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def records():
    return json.loads((DOCS / "tiny-family.json").read_text())


def test_records_are_of_the_weights_in_the_package(records):
    assert records["weights"] == json.loads((tiny.path().parent / "checksums.json").read_text())
    assert {name for name in records["rows"] if name in tiny.MODELS} == set(tiny.MODELS)
    assert {f"rule:{name}" for name in registry()} <= set(records["rows"])


def test_the_page_shows_the_records_and_the_training_figures(records):
    page = (DOCS / "tiny-family.md").read_text()
    assert accuracy_table(records["rows"]) in page
    assert model_table() in page


def test_the_gaps_of_the_test_bed_on_the_held_out_problems(records):
    greedy = {name: records["rows"][name]["greedy"] for name in tiny.MODELS}
    share = {name: counts["right"] / counts["asked"] for name, counts in greedy.items()}
    assert all(counts["asked"] == 500 for counts in greedy.values())
    assert share["big-base"] < 0.2
    assert share["big-aligned"] > 0.95
    assert share["small-aligned"] < share["big-aligned"] - 0.4
    assert records["rows"]["big-aligned"]["sampled"]["right"] / 500 > 0.85


def test_a_table_row_counts_both_halves():
    counts = {"asked": 500, "right": 300, "asked_unseen": 250, "right_unseen": 100}
    row = accuracy_table({"big-base": {"greedy": counts, "sampled": counts}}).splitlines()[-1]
    assert row == ("| big base p alone | 60.0 (55.6 to 64.2) | 80.0 / 40.0 | 60.0 (55.6 to 64.2) | 80.0 / 40.0 |  |")


def test_mean_acceptance_in_a_padded_batch_is_that_of_each_answer_alone():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny.path("pair"))
    pair = tiny.pair().float()
    answers = attempt(pair, tokenizer, tiny.problems("development", 4))
    total, positions = 0.0, 0
    for written in answers:
        ids = torch.tensor([written.prompt_ids + written.token_ids])
        with torch.inference_mode():
            rates = acceptance(pair.rule, pair.base(ids).logits, pair.aligned(ids).logits)
        rates = rates[0, len(written.prompt_ids) - 1 :]
        total, positions = total + float(rates.sum()), positions + len(rates)
    assert mean_acceptance(pair, answers) == pytest.approx(total / positions, abs=1e-5)
