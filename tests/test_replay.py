"""Models that cannot drop tokens (recurrent states) draft all the same: snapshots, exact, and counted in passes."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    FalconH1Config,
    FalconH1ForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    PreTrainedModel,
    Qwen3_5ForCausalLM,
    Qwen3_5TextConfig,
)

import kad
from conftest import VOCAB, make_tokenizer
from kad.engines.transformers.model import CachedModel, TransformersModel
from kad.errors import UsageError
from kad.method import replay
from kad.method.composition import Composition
from kad.method.replay import Replay
from kad.method.speculation.loop import SpeculativeLoop
from kad.method.speculation.policies import choose_policy
from kad.method.speculation.randomness import TorchRandomness
from kad.method.speculation.statistics import SpeculationStatistics
from kad.method.speculation.windows import FixedWindow
from kad.method.verification import verify_block
from kad.rules import parse_rule
from speculative_tables import OnlyForward, TableScorer, exact_distribution, total_variation, true_distribution

# ---------------------------------------------------------------- any model, as a table


def replayed(role: str, vocab: int) -> Replay:
    return Replay(OnlyForward(role, vocab))


def discrepancy(rule: str, scorer: Callable[[str, int], Any] = replayed, **settings: Any) -> float:
    parsed, world = parse_rule(rule), {"vocab": 2, "new_tokens": 4}
    settings = {"window": 2, "verifier": verify_block} | settings
    return total_variation(
        exact_distribution(parsed, scorer=scorer, **world, **settings), true_distribution(parsed, **world)
    )


@pytest.mark.parametrize("together", [0, replay.TOGETHER])
@pytest.mark.parametrize("window", [0, 1, 3])
@pytest.mark.parametrize("rule", ["dual:threshold=0.4", "mixture:weight=0.4"])
def test_the_loop_is_exact_over_models_that_only_go_forward(
    rule: str, window: int, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every random outcome is enumerated; what is read again is read in the same pass, or in one of its own."""
    monkeypatch.setattr(replay, "TOGETHER", together)
    assert discrepancy(rule, window=window) < 1e-9


def test_drafts_from_the_reference_are_exact_too() -> None:
    assert discrepancy("implicit_reward", drafter="reference") < 1e-9


class Shared(OnlyForward):
    """Its snapshots are no copies: what it reads later changes them."""

    def save(self) -> Any:
        return self.processed, self.seen

    def restore(self, saved: Any) -> None:
        self.processed, self.seen = saved


class Newest(Replay):
    """Goes back to the newest snapshot, and says that it went back as far as asked."""

    processed = 0

    def advance(self, ids: torch.Tensor, keep: int) -> Any:
        self.processed += len(ids)
        return super().advance(ids, keep)

    def rollback(self, length: int) -> None:
        if length < self.processed:
            self._model.restore(self._saved[max(self._saved)])
            self.processed = length


@pytest.mark.parametrize("broken", [lambda *which: Replay(Shared(*which)), lambda *which: Newest(OnlyForward(*which))])
def test_a_state_that_keeps_rejected_drafts_is_seen(broken: Callable[[str, int], Any]) -> None:
    assert discrepancy("dual:threshold=0.3", broken, window=4) > 1e-3


def test_rows_after_any_walk_are_those_of_a_model_that_drops_tokens() -> None:
    choose, model, other = random.Random(0), OnlyForward("base", 7), TableScorer("base", 7)
    scorer, text = Replay(model), []
    for _ in range(400):
        new = [choose.randrange(7) for _ in range(choose.choice([1, 1, 1, 2, 5, 30]))]
        text += new
        rows = scorer.advance(torch.tensor(text[scorer.processed :]), len(new))
        assert torch.equal(rows, other.advance(torch.tensor(new), len(new)))
        del text[max(0, len(text) - choose.choice([0, 0, 1, 2, len(new), 80])) :]
        for each in (scorer, other):
            each.rollback(len(text))
        assert scorer.processed <= other.processed == len(text)


@pytest.mark.parametrize("step", [1, 5])
def test_few_snapshots_stay_and_going_back_costs_no_more_than_going_back_twice_as_far_again(step: int) -> None:
    scorer = Replay(OnlyForward("base", 2))
    for length in range(0, 3000, step):
        assert len(scorer._saved) < 20
        scorer.advance(torch.zeros(step, dtype=torch.long), 1)
        if length % 250 == 0:
            for back in range(step, length, 7):
                kept = max(at for at in scorer._saved if at <= length + step - back)
                assert length + step - kept <= 3 * back
    scorer.rollback(0)
    assert scorer.processed == 0


def run(scorers: dict[str, Any], prompt: int, new: int, rule: str) -> tuple[list[int], SpeculationStatistics]:
    """A sampled text in windows of four drafts."""
    ids = torch.zeros(prompt + new, dtype=torch.long)
    policy = choose_policy(
        composition=Composition(rule), drafter="aligned", greedy=False, verifier=verify_block,
        randomness=TorchRandomness(0), warp=None, records=None,
    )  # fmt: skip
    loop = SpeculativeLoop(
        ids=ids, length=prompt, drafter="aligned", scorers=scorers, policy=policy, window=FixedWindow(4),
        stop=lambda ids, new: (len(new), False),
    )  # fmt: skip
    return [item.token for items in loop.run() for item in items], loop.statistics


class Counted(TableScorer):
    """A table model that drops tokens, and counts its passes."""

    def __init__(self, role: str, vocab: int) -> None:
        super().__init__(role, vocab)
        self.passes: list[int] = []

    def advance(self, ids: torch.Tensor, keep: int) -> torch.Tensor:
        self.passes.append(len(ids))
        return super().advance(ids, keep)


@pytest.mark.parametrize("rule", ["dual:threshold=0.4", "mixture:weight=0.4"])
def test_no_further_forward_pass_until_many_tokens_are_read_again(rule: str) -> None:
    """The same text in the same passes; only a prompt, or 16 tokens that no window confirmed as a whole, take one."""
    for new in (14, 200):
        theirs, ours = ({role: kind(role, 5) for role in ("base", "aligned")} for kind in (Counted, OnlyForward))
        text, statistics = run(theirs, 40, new, rule)
        found, _ = run({role: Replay(model) for role, model in ours.items()}, 40, new, rule)
        assert found == text
        assert statistics.accepted < statistics.drafted
        for role, model in ours.items():
            further = len(model.passes) - len(theirs[role].passes)
            assert 0 < further <= 1 + (0 if new < replay.TOGETHER else new // replay.TOGETHER)
            assert max(model.passes[2:]) <= replay.TOGETHER + 5
        assert len(ours["aligned"].passes) == len(theirs["aligned"].passes) + 1  # that of the prompt


def test_a_cache_that_holds_too_much_already_is_refused() -> None:
    model = OnlyForward("base", 3)
    model.advance(torch.tensor([0, 1, 2]), 1)
    scorer = Replay(model)
    scorer.rollback(3)
    scorer.advance(torch.tensor([1]), 1)
    scorer.rollback(3)
    assert scorer.processed == 3
    with pytest.raises(UsageError, match=r"holds 3 tokens, .* cannot go back to 2\. Give a cache that has read less"):
        scorer.rollback(2)


# ---------------------------------------------------------------- models of Transformers

_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "pad_token_id": 2,
    "eos_token_id": None, "max_position_embeddings": 512,
}  # fmt: skip
LINEAR, FULL, CONV = "linear_attention", "full_attention", "conv"


def hybrid(kind: str, width: int) -> PreTrainedModel:
    """A small random model: recurrent layers between others, beside attention in one layer, or convolutions."""
    torch.manual_seed(width)
    sizes = _SIZES | {"hidden_size": width, "intermediate_size": 2 * width}
    made: Any = {
        "qwen3.5": lambda: Qwen3_5ForCausalLM(
            Qwen3_5TextConfig(
                **sizes, layer_types=[LINEAR, FULL], head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4,
                linear_key_head_dim=8, linear_value_head_dim=8,
            )
        ),
        "falcon-h1": lambda: FalconH1ForCausalLM(
            FalconH1Config(
                **sizes, head_dim=8, mamba_d_ssm=2 * width, mamba_n_heads=4, mamba_d_head=width // 2, mamba_d_state=8,
                mamba_chunk_size=8,
            )
        ),
        "lfm2": lambda: Lfm2ForCausalLM(Lfm2Config(**sizes, layer_types=[CONV, FULL], block_auto_adjust_ff_dim=False)),
    }[kind]()  # fmt: skip
    with torch.no_grad():
        for weight in made.parameters():
            if weight.ndim == 2:
                weight.mul_(8)
    return made.eval()


HYBRIDS = ("qwen3.5", "falcon-h1", "lfm2")


@pytest.fixture(scope="module", params=HYBRIDS)
def pair(request: pytest.FixtureRequest) -> kad.KadForCausalLM:
    return make_pair(request.param)


@pytest.fixture(scope="module")
def one_pair() -> kad.KadForCausalLM:
    return make_pair("qwen3.5")


def make_pair(kind: str) -> kad.KadForCausalLM:
    model = kad.KadForCausalLM.from_models(hybrid(kind, 32), hybrid(kind, 16), rule="dual:threshold=0.05")
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 2
    model.tokenizer = make_tokenizer()
    return model


def greedy(pair: kad.KadForCausalLM, ids: torch.Tensor, **options: Any) -> Any:
    mask = torch.ones_like(ids)
    return pair.generate(ids, **({"attention_mask": mask, "max_new_tokens": 18, "do_sample": False} | options))


def drafted(pair: kad.KadForCausalLM, ids: torch.Tensor, drafts: int | str, **options: Any) -> Any:
    return greedy(pair, ids, custom_generate=kad.speculative, num_draft_tokens=drafts, **options)


def test_a_greedy_text_with_drafts_is_that_without(pair: kad.KadForCausalLM, prompt: Callable[..., Any]) -> None:
    plain, statistics = greedy(pair, prompt(25)), SpeculationStatistics()
    for drafts in (1, 4, "auto"):
        assert drafted(pair, prompt(25), drafts, statistics=statistics).tolist() == plain.tolist()
    assert statistics.accepted < statistics.drafted  # drafts were taken back
    static = {"cache_implementation": "static", "disable_compile": True}
    assert drafted(pair, prompt(25), 4, **static).tolist() == plain.tolist()


def test_rows_after_any_walk_are_those_of_the_whole_text(pair: kad.KadForCausalLM) -> None:
    """Also that each kind of layer is put back: a walk over random tokens, and back, against passes without a cache."""
    choose, model = random.Random(1), pair.base
    scorer, text = TransformersModel(model).scorer(VOCAB, torch.device("cpu")), torch.zeros(0, dtype=torch.long)
    assert isinstance(scorer, Replay)
    for _ in range(25):
        new = torch.tensor([choose.randrange(3, VOCAB) for _ in range(choose.choice([1, 1, 2, 5, 20]))])
        text = torch.cat((text, new))
        with torch.no_grad():
            rows = scorer.advance(text[scorer.processed :], len(new))
            whole = model(text.unsqueeze(0), use_cache=False).logits[0, -len(new) :]
        torch.testing.assert_close(rows, whole, atol=1e-4, rtol=1e-4)
        text = text[: max(0, len(text) - choose.choice([0, 0, 1, 2, len(new), 40]))]
        scorer.rollback(len(text))


@pytest.mark.parametrize("broken", ["save", "restore"])
def test_a_layer_that_is_not_put_back_is_seen(
    pair: kad.KadForCausalLM, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kad.engines.transformers import host, model

    if broken == "save":  # a reference is no copy: the model writes into it
        monkeypatch.setattr(host, "_copy", lambda value: value)
    else:

        def keys_only(cache: Any, saved: Any, count: int) -> None:
            host.restore(cache, [{}] * len(saved), count)

        monkeypatch.setattr(model, "restore", keys_only)
    with pytest.raises(AssertionError):
        test_rows_after_any_walk_are_those_of_the_whole_text(pair)


def test_the_returned_cache_has_read_all_but_the_last_token(
    one_pair: kad.KadForCausalLM, prompt: Callable[..., Any]
) -> None:
    whole = greedy(one_pair, prompt(6), max_new_tokens=20)
    for first in (7, 10):
        start = drafted(one_pair, prompt(6), 4, max_new_tokens=first, return_dict_in_generate=True)
        for go_on in (greedy, lambda *of, **options: drafted(*of, 4, **options)):
            cache = copy.deepcopy(start.past_key_values)
            end = go_on(one_pair, start.sequences, past_key_values=cache, max_new_tokens=20 - first)
            assert end.tolist() == whole.tolist()


def test_turns_and_branches_read_only_what_is_new(
    one_pair: kad.KadForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With and without drafts: the texts of new caches, and no pass over the whole conversation again."""
    read: list[int] = []
    advance = CachedModel.advance

    def counting(self: CachedModel, ids: torch.Tensor, keep: int) -> torch.Tensor:
        read.append(len(ids))
        return advance(self, ids, keep)

    monkeypatch.setattr(CachedModel, "advance", counting)
    how = kad.Sampling(temperature=0, max_new_tokens=16)
    for drafts in (0, 4, None):
        talk = kad.Conversation(one_pair, sampling=how, num_draft_tokens=drafts, system="x" * 60)
        for text, most in (("Hi", 90), ("And?", 50), ("So?", 50)):
            read.clear()
            answer = talk.say(text).finish()
            assert max(read) <= most
            anew = greedy(one_pair, torch.tensor([answer.prompt_ids]), max_new_tokens=16)
            assert answer.token_ids == anew[0, len(answer.prompt_ids) :].tolist()
        kept = talk.kept.take([*answer.prompt_ids, *answer.token_ids[:5], 7], ("base", "aligned"))  # a branch
        for scorer in kept.values():
            assert len(answer.prompt_ids) + 5 - 12 <= scorer.processed <= len(answer.prompt_ids) + 5


def test_a_cache_of_the_whole_prompt_is_refused_in_a_sentence(
    one_pair: kad.KadForCausalLM, prompt: Callable[..., Any]
) -> None:
    cache = one_pair.make_cache()
    one_pair(prompt(6), past_key_values=cache)
    with pytest.raises(UsageError, match="holds 6 tokens, and its recurrent layers cannot go back to 5"):
        drafted(one_pair, prompt(6), 2, past_key_values=cache)
