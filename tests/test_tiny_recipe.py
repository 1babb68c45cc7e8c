"""The recipe: its text is free of every kept-out equation, its data are as described, a short run of it works."""

import itertools
import json
import math
import random
import re
from collections import Counter
from statistics import mean

import pytest
import torch
from recipes.tiny import filler
from recipes.tiny.__main__ import run
from recipes.tiny.alignment import conversations
from recipes.tiny.corpus import ROLES, TURN_END, drill_equation, shard_documents
from recipes.tiny.finetune import encode
from recipes.tiny.form import places, read, table
from recipes.tiny.models import make_model
from recipes.tiny.pretrain import load_tokenizer
from recipes.tiny.publish import WEIGHTS
from recipes.tiny.settings import ALIGNMENT_EXAMPLES, RECIPES, WINDOW, Schedule, Size
from recipes.tiny.tokens import SHARD_TOKENS
from recipes.tiny.training import IGNORED, train
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


def training_text():
    """Every document that the models in the package were trained on (the small ones read the first part), shard by
    shard, and some more: a shard takes about 12,000."""
    schedule = RECIPES["big"].pretraining
    steps_per_shard = (SHARD_TOKENS - 1) // (schedule.rows * WINDOW)
    for index in range(math.ceil(schedule.steps / steps_per_shard)):
        yield list(itertools.islice(shard_documents(0, index), 14_000))


@pytest.mark.slow
def test_no_kept_out_equation_is_in_the_pretraining_text():
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS / "pair")
    for index, documents in enumerate(training_text()):
        found = [operation for text in documents for operation in operations(text)]
        assert len(found) > 4 * len(documents)
        assert {sign for _, sign, _ in found} == {"+", "-", "×", "÷"}
        assert not [operation for operation in found if is_kept_out(*operation)]
        if index == 0:
            assert sum(len(ids) for ids in tokenizer(documents).input_ids) > 1.1 * SHARD_TOKENS


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


@pytest.mark.parametrize("decided", [r"The answer is", r"First, \d+ . \d+ = \d+\."])
def test_the_pretraining_text_is_inconsistent_where_alignment_decides(corpus, decided):
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS / "pair")
    following = re.findall(rf"{decided}(.{{1,12}})", "".join(corpus), flags=re.DOTALL)
    assert len(following) > 1000
    first_tokens = Counter(tokens[0] for tokens in tokenizer(following).input_ids)
    assert max(first_tokens.values()) / len(following) < 0.25


def test_the_base_model_in_the_package_is_diffuse_where_form_is_decided():
    tokenizer, model = (kind.from_pretrained(WEIGHTS / "big-base") for kind in (AutoTokenizer, AutoModelForCausalLM))
    given = {
        place: seen
        for place, seen in read(model, tokenizer, problems("development", 30)).items()
        if len(seen.other) > 5
    }
    assert {"First", "The answer is"} <= {written for written, _ in given}
    assert all(mean(seen.other) < 0.3 for seen in given.values())
    assert "| `The answer is` | ' \\\\' |" in table(given, 1)


def test_form_is_decided_everywhere_but_inside_equations():
    tokens = ["First", ",", " ", "7", " +", " ", "5", " =", " ", "1", "2", ".", " The"]
    decided = [("", "First"), ("First", ","), ("First,", " "), ("First, N", " ∘"), ("First, N ∘ N", " =")]
    decided += [("First, N ∘ N = N", "."), ("First, N ∘ N = N.", " The")]
    assert [place for _, place in places(tokens)] == decided
    assert [tokens[position] for position, _ in places(tokens)][3:5] == [" +", " ="]


def test_some_documents_contain_the_chat_markers(corpus):
    assert 0 < sum(any(role in document for role in ROLES) for document in corpus) / len(corpus) < 0.1


def test_no_filler_begins_like_a_working_or_its_ending():
    rng = random.Random(0)
    written = " ".join(filler.prose(rng) + filler.forum(rng) + filler.shopping_list(rng) for _ in range(500))
    assert "First," not in written
    assert "The answer is" not in written


def test_the_text_is_the_same_for_the_same_seed_and_another_for_another(corpus):
    assert list(itertools.islice(shard_documents(0, 0), 50)) == corpus[:50]
    assert list(itertools.islice(shard_documents(1, 0), 50)) != corpus[:50]
    assert list(itertools.islice(shard_documents(0, 1), 50)) != corpus[:50]


def test_drills_cover_many_equations():
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
    run([(name, 0) for name in sorted(RECIPES)], tmp_path / "build", tmp_path / "weights", short=True)
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


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path):
    torch.set_num_threads(1)
    size = Size(hidden=32, layers=1, heads=2, mlp=32)
    schedule = Schedule(steps=6, rows=2, muon=0.01, adamw=0.01, warmup=2)
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS / "pair")

    def batches(step):
        ids = torch.randint(len(tokenizer), (2, 9), generator=torch.Generator().manual_seed(step))
        return ids[:, :-1], ids[:, 1:]

    def stopping(step):
        if step == 5:
            raise KeyboardInterrupt
        return batches(step)

    whole, stopped, resumed = (make_model(size, tokenizer, 0) for _ in range(3))
    loss = train(whole, batches, schedule, tmp_path / "whole", every=2)
    with pytest.raises(KeyboardInterrupt):
        train(stopped, stopping, schedule, tmp_path / "parts", every=2)
    assert train(resumed, batches, schedule, tmp_path / "parts", every=2) == loss
    for expected, value in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(expected, value)
