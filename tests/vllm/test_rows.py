"""Each row meets the rule of its request, whatever vLLM picks from the hidden states."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from kad.engines.vllm.plugin.step_rules import StepRules, bad_tokens
from kad.method.composition import Composition, compose, composed
from kad.rules import Rule, parse_rule, registry

DEFAULT = parse_rule("dual")


def step_rules(dtype: torch.dtype = torch.float32, tokens: int = 4096) -> StepRules:
    return StepRules(DEFAULT, tokens, dtype, "cpu")


TOKENS = 11


def rows_of(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(count, TOKENS, generator=generator) * 3 for _ in range(3)]


def composed_together(rules: StepRules, columns: torch.Tensor, logits: list[torch.Tensor]) -> torch.Tensor:
    return rules.log_pi(columns, lambda rule, _: composed(Composition(rule), *logits).log_pi_and_alpha())


def one_by_one(wanted: list[Rule], logits: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack([compose(rule, *(part[i] for part in logits)) for i, rule in enumerate(wanted)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_row_finds_its_rule_among_more_rules_than_one_column_can_number(dtype: torch.dtype) -> None:
    rules = step_rules(dtype)
    wanted = [parse_rule(f"dual:threshold={i / 1000}") for i in range(700)]
    wanted[::90] = [parse_rule(f"product:base=1,aligned={1 + i}") for i in range(len(wanted[::90]))]
    counts = [1 + i % 4 for i in range(700)]
    rules.assign(wanted, counts)
    per_token = [rule for rule, count in zip(wanted, counts, strict=True) for _ in range(count)]
    picked = torch.randperm(len(per_token), generator=torch.Generator().manual_seed(0))[:900]
    logits = rows_of(900)
    expected = one_by_one([per_token[i] for i in picked.tolist()], logits)
    got = composed_together(rules, rules.columns(len(per_token))[picked], logits)
    torch.testing.assert_close(got.exp(), expected.exp(), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(got.exp(), one_by_one([DEFAULT] * 900, logits).exp(), atol=1e-2)


@pytest.mark.parametrize("names", [["aligned_only", "base_only"], ["implicit_reward", "contrastive"], list(registry())])
def test_threshold_rules_and_others_in_one_step(names: list[str]) -> None:
    rules, wanted = step_rules(), [parse_rule(name) for name in names]
    rules.assign(wanted, [1] * len(wanted))
    logits = rows_of(len(wanted))
    got = composed_together(rules, rules.columns(len(wanted)), logits)
    torch.testing.assert_close(got.exp(), one_by_one(wanted, logits).exp(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("names", [["dual"], ["dual:threshold=0.1", "mixture", "base_only", "implicit_reward"]])
def test_a_foreign_token_is_deferred_under_every_rule(names: list[str]) -> None:
    """In the model, by a definition of its own: what p gives to these tokens at the deferral temperature goes to q*."""
    from kad.engines.vllm.plugin.model import PairModel

    foreign, temperature, wanted = [4, 7], 1.7, [parse_rule(name) for name in names]
    model = PairModel.__new__(PairModel)
    torch.nn.Module.__init__(model)
    model.config = SimpleNamespace(foreign_ids=foreign, deferral_temperature=temperature)  # type: ignore[assignment]
    model.common_size, model.vocab_size, model.step_rules = TOKENS, TOKENS + 2, step_rules()
    model.step_rules.assign(wanted, [1] * len(wanted))
    logits = rows_of(len(wanted))
    logits[0][:, 7] += 5.0  # p wants it
    pi = model._compose(logits, model.step_rules.columns(len(wanted))).exp()
    assert not bool(pi[:, TOKENS:].any())
    for row, rule in enumerate(wanted):
        p, q = ((part[row] / temperature).softmax(-1) for part in logits[:2])
        if rule.name == "implicit_reward":
            assert not bool(pi[row, foreign].any())
            continue
        known = p.index_fill(0, torch.tensor(foreign), 0.0)
        kept = known * {"dual": (known >= rule.to_dict().get("threshold", 0)).float(), "mixture": 0.5}.get(rule.name, 1)
        torch.testing.assert_close(pi[row, :TOKENS], kept + (1 - kept.sum()) * q, atol=1e-6, rtol=1e-4)


def test_a_bad_row_is_nan_and_its_neighbours_are_not() -> None:
    rules = step_rules()
    wanted = [parse_rule(name) for name in ("dual", "primal", "implicit_reward", "mixture", "base_only")]
    rules.assign(wanted, [1] * 5)
    logits = rows_of(5)
    expected = one_by_one(wanted, logits)
    logits[0][1, 3], logits[1][2, 0], logits[0][4] = torch.nan, torch.inf, -torch.inf
    got = composed_together(rules, rules.columns(5), logits)
    assert got.isnan().any(dim=-1).tolist() == [False, True, True, False, True]
    torch.testing.assert_close(got[[0, 3]].exp(), expected[[0, 3]].exp())


def test_nothing_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at a value would make the host wait for the device in every step; fake tensors have no values."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    monkeypatch.setattr("kad.method.distribution.may_look", lambda rows: False)  # they stand for those of a device
    rules, wanted = step_rules(), [parse_rule(name) for name in registry()]
    rules.assign(wanted, [1] * len(wanted))
    with FakeTensorMode(allow_non_fake_inputs=True):
        logits = [torch.empty(8, TOKENS) for _ in range(3)]
        assert composed_together(rules, torch.empty(8, 2), logits).shape == (8, TOKENS)


def test_one_rule_for_all_needs_no_columns() -> None:
    """Dummy runs hand in random hidden states; nothing may be read from them."""
    rules, logits = step_rules(), rows_of(7)
    torch.testing.assert_close(
        composed_together(rules, torch.full((7, 2), torch.nan), logits), one_by_one([DEFAULT] * 7, logits)
    )
    alone = parse_rule("aligned_only")
    rules.assign([alone, alone], [2, 5])
    torch.testing.assert_close(composed_together(rules, torch.rand(7, 2), logits), one_by_one([alone] * 7, logits))


def test_a_step_forgets_the_one_before() -> None:
    rules, logits = step_rules(), rows_of(2)
    rules.assign([parse_rule("aligned_only"), parse_rule("base_only")], [1, 1])
    rules.assign([DEFAULT], [2])
    torch.testing.assert_close(composed_together(rules, rules.columns(2), logits), one_by_one([DEFAULT] * 2, logits))


def test_padding_rows_get_some_rule() -> None:
    """vLLM pads steps and fills dummy hidden states with anything."""
    rules = step_rules()
    rules.assign([parse_rule("aligned_only"), parse_rule("base_only")], [1, 1])
    assert not composed_together(rules, torch.tensor([[255.0, 255.0], [-3.0, 0.0]]), rows_of(2)).isnan().any()


def test_bad_tokens_are_those_drawn_from_a_bad_row_and_after() -> None:
    """Three requests with 2, 0 and 2 drafts, and how many tokens each got."""
    bad = torch.tensor([False, True, False, True, False, False, True])
    assert bad_tokens(bad, [3, 1, 3], torch.tensor([1, 1, 3])).tolist() == [0, 1, 1]
    assert bad_tokens(bad, [3, 1, 3], torch.tensor([3, 1, 2])).tolist() == [2, 1, 0]
    assert bad_tokens(bad[:2], [1, 1], torch.tensor([1, 1])).tolist() == [0, 1]
    assert bad_tokens(bad[:2], [1, 1], torch.tensor([1, 0])).tolist() == [0, 0]


def test_the_deferred_mass_of_each_rule_is_counted() -> None:
    """By rule, of real steps only, without products and rows of NaN; rules beyond the last label share one."""
    from prometheus_client import REGISTRY

    from kad.engines.vllm.plugin.metrics import MOST_RULES, OTHERS, DeferredMass
    from kad.method.composition import deferred_mass

    rules, logits = StepRules(DEFAULT, 4096, torch.float32, "cpu", DeferredMass("cpu")), rows_of(200)
    wanted = [parse_rule(name) for name in ("dual:threshold=0.2", "implicit_reward", "mixture", "dual:threshold=0.2")]
    few = [part[:4].clone() for part in logits]
    rules.assign([DEFAULT], [4], dummy=True)
    composed_together(rules, rules.columns(4), few)
    few[0][3] = torch.nan
    rules.assign(wanted, [1] * 4)
    composed_together(rules, rules.columns(4), few)

    def counted(what: str, rule: str) -> float | None:
        return REGISTRY.get_sample_value(f"kad:{what}_total", {"rule": rule})

    first, mixed = (float(deferred_mass(wanted[i], few[0][i], few[1][i])) for i in (0, 2))
    assert counted("composed_rows", "dual:threshold=0.2") == counted("composed_rows", str(wanted[2])) == 1
    assert counted("deferred_mass", "dual:threshold=0.2") == pytest.approx(first, abs=1e-5)
    assert counted("deferred_mass", str(wanted[2])) == pytest.approx(mixed, abs=1e-5)
    assert counted("composed_rows", str(wanted[1])) is counted("composed_rows", str(DEFAULT)) is None

    many = [parse_rule(f"dual:threshold={i / 1000}") for i in range(1, 151)]
    rules.assign(many, [1] * 150)
    composed_together(rules, rules.columns(150), [part[:150] for part in logits])
    assert counted("composed_rows", OTHERS) == 150 - (MOST_RULES - 3)
