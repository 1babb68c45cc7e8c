"""The tiny family's world: problems that are right, splits that are disjoint, an answer check that is exact."""

import random
import re
import subprocess
import sys

import pytest

from kad.errors import PairError, UsageError
from kad.tiny import boxed, is_kept_out, path, problems
from kad.tiny.problems import LARGEST_VALUE, Equation, draw_equations, split_of

SPLITS = ("train", "development", "held-out")


@pytest.mark.parametrize("split", SPLITS)
def test_working_follows_from_the_question(split):
    for problem in problems(split, 300):
        value = problem.equations[0].left
        for equation in problem.equations:
            assert equation.left == value
            sides = str(equation).replace("×", "*").replace("÷", "/").split(" = ")
            assert eval(sides[0]) == int(sides[1])
            value = equation.result
            assert 1 <= value <= LARGEST_VALUE
        assert problem.answer == value
        told = [int(number) for number in re.findall(r"\d+", problem.question)]
        assert sorted(told) == sorted([problem.equations[0].left, *(e.right for e in problem.equations)])


def test_problems_reach_three_digits_four_steps_and_every_operation():
    drawn = problems("held-out", 500)
    assert {len(problem.equations) for problem in drawn} == {1, 2, 3, 4}
    assert {e.operator for problem in drawn for e in problem.equations} == {"+", "-", "×", "÷"}
    assert sum(problem.answer > 99 for problem in drawn) > 50


def test_splits_share_no_chain():
    chains = {split: {problem.chain for problem in problems(split, 2000)} for split in SPLITS}
    for split in SPLITS:
        assert all(problem.split == split for problem in problems(split, 200))
    assert not chains["train"] & chains["development"]
    assert not chains["train"] & chains["held-out"]
    assert not chains["development"] & chains["held-out"]


def test_a_split_is_a_rule_on_numbers_not_on_words():
    equations = (Equation(24, "+", 13), Equation(37, "-", 5))
    assert split_of(equations) == split_of(tuple(equations))
    rng = random.Random(1)
    shares = [split_of(draw_equations(rng)) for _ in range(4000)]
    assert 0.76 < shares.count("train") / 4000 < 0.84


def test_unseen_half_alternates():
    drawn = problems("held-out", 500)
    assert [problem.unseen for problem in drawn] == [place % 2 == 1 for place in range(500)]
    assert not any(problem.unseen for problem in problems("train", 1000))
    assert len({problem.chain for problem in drawn}) == 500


def test_a_tenth_of_the_equations_is_kept_out_whatever_their_order():
    pairs = [(a, b) for a in range(10, 100) for b in range(10, 100)]
    for operator in "+-×":
        share = sum(is_kept_out(a, operator, b) for a, b in pairs) / len(pairs)
        assert 0.08 < share < 0.12
    assert all(is_kept_out(a, operator, b) == is_kept_out(b, operator, a) for a, b in pairs for operator in "+×")
    assert not any(is_kept_out(a, operator, b) for a in range(1, 10) for b in range(1, 10) for operator in "+-×")


def test_a_shorter_list_is_a_prefix_of_a_longer_one():
    assert problems("held-out", 20) == problems("held-out", 50)[:20]
    assert problems("held-out", 20, seed=1) != problems("held-out", 20)


def test_problems_are_the_same_in_another_process_which_needs_no_torch():
    code = "import sys, kad.tiny; print('torch' in sys.modules, kad.tiny.problems('held-out', 30)[29].question)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == f"False {problems('held-out', 30)[29].question}"


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"The answer is \boxed{32}.", "32"),
        (r"\boxed{1} no, \boxed{ 32 }", "32"),
        (r"\boxed{32", None),
        ("The answer is 32.", None),
        (r"\boxed{}", ""),
    ],
)
def test_boxed(text, content):
    assert boxed(text) == content


def test_correct_means_the_last_box_exactly():
    problem = problems("held-out", 1)[0]
    assert problem.is_correct(rf"\boxed{{1}} \boxed{{{problem.answer}}}")
    assert not problem.is_correct(rf"\boxed{{{problem.answer}}} \boxed{{1}}")
    assert not problem.is_correct(rf"\boxed{{{problem.answer}0}}")
    assert not problem.is_correct(f"The answer is {problem.answer}.")


def test_wrong_requests_say_what_is_allowed():
    with pytest.raises(UsageError, match="Unknown split 'test'. Choose from: train, development, held-out"):
        problems("test", 1)
    with pytest.raises(UsageError, match="Got -1 as the number of problems"):
        problems("train", -1)
    with pytest.raises(PairError, match="Unknown tiny model 'huge'. The family has big-base"):
        path("huge")
