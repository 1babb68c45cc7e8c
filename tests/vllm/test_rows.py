"""Each row meets the rule of its request, whatever vLLM picks from the hidden states."""

from __future__ import annotations

import pytest
import torch

from kad.rules import Rule, parse_rule
from kad.vllm.rows import StepRules, bad_tokens

DEFAULT = parse_rule("dual")


def step_rules(dtype: torch.dtype = torch.float32, tokens: int = 4096) -> StepRules:
    return StepRules(DEFAULT, tokens, dtype, "cpu")


def composed_by(rules: StepRules, columns: torch.Tensor) -> list[Rule | None]:
    found: list[Rule | None] = [None] * len(columns)
    for rule, rows in rules.groups(columns):
        for row in torch.arange(len(columns))[rows].tolist():
            assert found[row] is None
            found[row] = rule
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_row_finds_its_rule_among_more_rules_than_one_column_can_number(dtype: torch.dtype) -> None:
    rules = step_rules(dtype)
    wanted = [parse_rule(f"dual:threshold={i / 1000}") for i in range(700)]
    counts = [1 + i % 4 for i in range(700)]
    rules.assign(wanted, counts)
    per_token = [rule for rule, count in zip(wanted, counts, strict=True) for _ in range(count)]
    picked = torch.randperm(len(per_token), generator=torch.Generator().manual_seed(0))[:900]
    assert composed_by(rules, rules.columns(len(per_token))[picked]) == [per_token[i] for i in picked.tolist()]


def test_one_rule_for_all_needs_no_columns() -> None:
    """Dummy runs hand in random hidden states; nothing may be read from them."""
    rules = step_rules()
    assert composed_by(rules, torch.full((3, 2), float("nan"))) == [DEFAULT] * 3
    aligned_only = parse_rule("aligned_only")
    rules.assign([aligned_only, aligned_only], [2, 5])
    assert composed_by(rules, torch.rand(7, 2)) == [aligned_only] * 7


def test_a_step_forgets_the_one_before() -> None:
    rules = step_rules()
    rules.assign([parse_rule("aligned_only"), parse_rule("base_only")], [1, 1])
    rules.assign([DEFAULT], [2])
    assert composed_by(rules, rules.columns(2)) == [DEFAULT] * 2


def test_padding_rows_get_some_rule() -> None:
    """vLLM pads steps and fills dummy hidden states with anything."""
    rules = step_rules()
    rules.assign([parse_rule("aligned_only"), parse_rule("base_only")], [1, 1])
    assert None not in composed_by(rules, torch.tensor([[255.0, 255.0], [-3.0, 0.0]]))


def test_bad_tokens_are_those_drawn_from_a_bad_row_and_after() -> None:
    """Three requests with 2, 0 and 2 drafts, and how many tokens each got."""
    bad = torch.tensor([False, True, False, True, False, False, True])
    assert bad_tokens(bad, [3, 1, 3], torch.tensor([1, 1, 3])).tolist() == [0, 1, 1]
    assert bad_tokens(bad, [3, 1, 3], torch.tensor([3, 1, 2])).tolist() == [2, 1, 0]
    assert bad_tokens(bad[:2], [1, 1], torch.tensor([1, 1])).tolist() == [0, 1]
    assert bad_tokens(bad[:2], [1, 1], torch.tensor([1, 0])).tolist() == [0, 0]
