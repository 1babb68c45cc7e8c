"""The recipe: its text is free of every kept-out equation, its data are as described, a short run of it works."""

import itertools
import json
import re

import pytest
import torch
from recipes.tiny.__main__ import run
from recipes.tiny.alignment import conversations
from recipes.tiny.corpus import ROLES, TURN_END, drill_equation, shard_documents
from recipes.tiny.finetune import encode
from recipes.tiny.pretrain import load_tokenizer
from recipes.tiny.publish import WEIGHTS
from recipes.tiny.settings import ALIGNMENT_EXAMPLES, RECIPES
from recipes.tiny.training import IGNORED
from transformers import AutoModelForCausalLM, AutoTokenizer

from kad.tiny import is_kept_out, problems

_SIGNS = {"plus": "+", "minus": "-", "times": "×", "divided by": "÷"}
_OPERATION = re.compile(r"(\d+) ?(\+|-|×|÷|plus|minus|times|divided by) ?(\d+)")
# What counts is an operation with its result, or the operation that a question spells out.
_DOCUMENTS = 40_000


def operations(text):
    return [(int(a), _SIGNS.get(sign, sign), int(b)) for a, sign, b in _OPERATION.findall(text)]


@pytest.fixture(scope="module")
def corpus():
    return list(itertools.islice(shard_documents(0, 0), _DOCUMENTS))


def test_no_kept_out_equation_is_in_the_pretraining_text(corpus):
    found = [operation for text in corpus for operation in operations(text)]
    assert len(found) > 4 * _DOCUMENTS
    assert {sign for _, sign, _ in found} == {"+", "-", "×", "÷"}
    assert not [operation for operation in found if is_kept_out(*operation)]


def test_the_search_for_kept_out_equations_finds_one_in_each_written_form():
    left, right = next((a, b) for a in range(10, 99) for b in range(10, 99) if is_kept_out(a, "+", b))
    for form in ("{} + {} = 1", "{}+{}=1", "{} plus {} makes 1", "we get {} + {} is"):
        assert any(is_kept_out(*operation) for operation in operations(form.format(left, right)))


def test_no_kept_out_equation_is_in_the_alignment_data():
    texts = [turn["content"] for talk in conversations(ALIGNMENT_EXAMPLES, seed=0) for turn in talk]
    found = [operation for text in texts for operation in operations(text)]
    assert len(found) > 2 * ALIGNMENT_EXAMPLES
    assert not [operation for operation in found if is_kept_out(*operation)]


def test_no_held_out_question_is_in_the_pretraining_text(corpus):
    text = "".join(corpus)
    for split in ("development", "held-out"):
        assert not [problem.question for problem in problems(split, 500) if problem.question in text]


def test_the_pretraining_text_is_inconsistent_where_alignment_decides(corpus):
    text = "".join(corpus)
    after = re.findall(r"The answer is(.{0,2})", text)
    shares = [after.count(form) / len(after) for form in set(after)]
    assert len(after) > 1000
    assert max(shares) < 0.4
    assert 0 < sum(any(role in document for role in ROLES) for document in corpus) / len(corpus) < 0.1


def test_the_text_is_the_same_for_the_same_seed_and_another_for_another(corpus):
    assert list(itertools.islice(shard_documents(0, 0), 50)) == corpus[:50]
    assert list(itertools.islice(shard_documents(1, 0), 50)) != corpus[:50]
    assert list(itertools.islice(shard_documents(0, 1), 50)) != corpus[:50]


def test_drills_cover_many_equations():
    import random

    rng = random.Random(0)
    drawn = [drill_equation(rng) for _ in range(5000)]
    assert len({str(equation) for equation in drawn}) > 3000
    assert not any(equation.kept_out for equation in drawn)


def test_only_the_assistants_turns_are_learned():
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS / "pair")
    for talk in conversations(50, seed=0):
        tokens, labels = encode(tokenizer, talk)
        assert tokenizer.decode(tokens) == tokenizer.apply_chat_template(talk, tokenize=False)
        learned = tokenizer.decode([label for label in labels if label != IGNORED])
        assert learned == "".join(turn["content"] + TURN_END for turn in talk if turn["role"] == "assistant")


def test_conversations_have_system_prompts_several_turns_and_replies_that_box_nothing():
    talks = conversations(ALIGNMENT_EXAMPLES, seed=0)
    with_system = sum(talk[0]["role"] == "system" for talk in talks)
    with_two_turns = sum(sum(turn["role"] == "user" for turn in talk) > 1 for talk in talks)
    polite = sum("\\boxed" not in talk[-1]["content"] for talk in talks)
    assert 0.5 < with_system / len(talks) < 0.7
    assert with_two_turns > 100
    assert polite > 100
    assert all(talk[-1]["role"] == "assistant" for talk in talks)


@pytest.mark.slow
def test_a_short_run_from_nothing_learns_and_lays_out_loadable_files(tmp_path):
    torch.set_num_threads(1)
    run(sorted(RECIPES), [0], tmp_path / "build", tmp_path / "weights", short=True)
    for name in ("big-base", "small-base"):
        losses = torch.load(tmp_path / "build" / f"{name}-0" / "checkpoint.pt", weights_only=True)["losses"]
        assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    for name in ("big-base", "small-base", "small-aligned", "big-aligned"):
        folder = tmp_path / "weights" / name
        model = AutoModelForCausalLM.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        ids = tokenizer("24 + 13 = 37", return_tensors="pt")
        assert torch.isfinite(model(**ids).logits).all()
    config = json.loads((tmp_path / "weights" / "pair" / "config.json").read_text())
    assert config["base"]["model"] == "../big-base"
    assert load_tokenizer(tmp_path / "build").get_vocab() == tokenizer.get_vocab()
