"""Through `generate(custom_generate=kad.speculative)`: the text of plain decoding, and every option of generate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    SynthIDTextWatermarkingConfig,
    TextStreamer,
    WatermarkingConfig,
    cache_utils,
)
from transformers.generation.streamers import BaseStreamer

import kad
from conftest import make_model, make_tokenizer
from kad.errors import UsageError
from kad.method.speculation.statistics import SpeculationStatistics

pytestmark = pytest.mark.core

RULES = [
    "dual:threshold=0.2", "primal", "nudging", "confidence_bet:margin=0.1", "relative", "aligned_only", "base_only",
    "mixture", "veto", "blend", "lp", "implicit_reward", "product:plausibility=0.1", "contrastive",
]  # fmt: skip
PAD, EOS = 2, 1


def aligned_like_base() -> dict[str, Any]:
    """Three models that often agree (p's weights with noise): windows are accepted whole, in part, not at all."""
    base, parts = make_model(0, sharpness=4.0), {}
    for seed, role in enumerate(("aligned", "reference"), start=10):
        parts[role] = make_model(0, sharpness=4.0)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in parts[role].parameters():
                weight += 0.1 * weight.std() * torch.randn(weight.shape, generator=generator)
    return {"base": base, **parts}


@pytest.fixture(scope="module")
def pair() -> kad.KadForCausalLM:
    model = kad.KadForCausalLM.from_models(**aligned_like_base(), rule="dual:threshold=0.2")
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model


def speculate(model: kad.KadForCausalLM, ids: torch.Tensor, **options: Any) -> Any:
    options = {"max_new_tokens": 24, "do_sample": False, "num_draft_tokens": 4} | options
    return model.generate(ids, custom_generate=kad.speculative, **options)


def plain(model: kad.KadForCausalLM, ids: torch.Tensor, **options: Any) -> Any:
    return model.generate(ids, **({"max_new_tokens": 24, "do_sample": False} | options))


# ---------------------------------------------------------------- greedy decoding is unchanged


@pytest.mark.parametrize("rule", RULES)
def test_greedy_text_does_not_change(pair: kad.KadForCausalLM, prompt: Callable[..., Any], rule: str) -> None:
    statistics = SpeculationStatistics()
    for seed in range(3):
        truth = plain(pair, prompt(7, seed), rule=rule)
        for window in (0, 1, 3, 8, "auto"):
            found = speculate(pair, prompt(7, seed), rule=rule, num_draft_tokens=window, statistics=statistics)
            assert found.tolist() == truth.tolist()
    assert len(statistics.lengths) > 3


@pytest.mark.parametrize(
    "settings",
    [
        {"guidance_scale": 2.5},
        {"watermarking_config": SynthIDTextWatermarkingConfig(ngram_len=3, keys=[1, 2, 3]), "do_sample": True},
    ],
)
@pytest.mark.parametrize("window", [0, 4])
def test_a_processor_that_keeps_a_state_is_refused(
    pair: kad.KadForCausalLM, prompt: Callable[..., Any], settings: dict[str, Any], window: int
) -> None:
    """The loop asks it about drafts too, so it would follow another text than the one that is written."""
    with pytest.raises(
        UsageError, match=r"Processor keeps a state: asked twice about one text, it answers differently"
    ):
        speculate(pair, prompt(7), num_draft_tokens=window, **settings)


class Counting(LogitsProcessor):
    """Forbids a token for each call: its answer about one text is another one each time."""

    def __init__(self, of_text: bool) -> None:
        self.of_text, self.calls = of_text, 0

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        scores[:, (int(ids.sum()) if self.of_text else self.calls) % scores.shape[-1]] = -torch.inf
        return scores


def test_a_processor_that_depends_on_the_text_alone_is_not_refused(
    pair: kad.KadForCausalLM, prompt: Callable[..., Any]
) -> None:
    green = {"watermarking_config": WatermarkingConfig(bias=2.0, seeding_scheme="lefthash", greenlist_ratio=0.3)}
    for own in (green, {"logits_processor": LogitsProcessorList([Counting(of_text=True)])}):
        assert speculate(pair, prompt(7), **own).tolist() == plain(pair, prompt(7), **own).tolist()
    with pytest.raises(UsageError, match="Counting keeps a state"):
        speculate(pair, prompt(7), logits_processor=LogitsProcessorList([Counting(of_text=False)]))


@pytest.mark.parametrize("draft_model", ["aligned", "reference"])
@pytest.mark.parametrize("rule", ["implicit_reward", "contrastive", "dual:threshold=0.2"])
def test_either_small_model_may_draft(
    pair: kad.KadForCausalLM, prompt: Callable[..., Any], rule: str, draft_model: str
) -> None:
    found = speculate(pair, prompt(5), rule=rule, draft_model=draft_model)
    assert found.tolist() == plain(pair, prompt(5), rule=rule).tolist()


def test_processors_act_on_pi_with_the_right_prefix(pair: kad.KadForCausalLM, prompt: Callable[..., Any]) -> None:
    options = {"repetition_penalty": 1.8, "no_repeat_ngram_size": 3, "min_new_tokens": 9, "eos_token_id": 5}
    for window in (1, 5):
        found = speculate(pair, prompt(9), num_draft_tokens=window, **options)
        assert found.tolist() == plain(pair, prompt(9), **options).tolist()


def test_scores_and_logits_are_those_of_plain_decoding(pair: kad.KadForCausalLM, prompt: Callable[..., Any]) -> None:
    options = {
        "return_dict_in_generate": True, "output_scores": True, "output_logits": True, "repetition_penalty": 1.3
    }  # fmt: skip
    found, truth = speculate(pair, prompt(9), **options), plain(pair, prompt(9), **options)
    for name in ("scores", "logits"):
        torch.testing.assert_close(
            torch.cat(getattr(found, name)), torch.cat(getattr(truth, name)), rtol=1e-4, atol=1e-4
        )


# ---------------------------------------------------------------- where it ends


@pytest.mark.parametrize("new_tokens", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("do_sample", [False, True])
def test_the_length_is_never_overshot(
    pair: kad.KadForCausalLM, prompt: Callable[..., Any], new_tokens: int, do_sample: bool
) -> None:
    for rule in ("aligned_only", "dual:threshold=0.2", "implicit_reward"):
        found = speculate(
            pair, prompt(6), rule=rule, max_new_tokens=new_tokens, do_sample=do_sample, num_draft_tokens=6
        )
        assert found.shape == (1, 6 + new_tokens)


def test_several_end_tokens_inside_a_window(pair: kad.KadForCausalLM, prompt: Callable[..., Any]) -> None:
    text = plain(pair, prompt(6), max_new_tokens=40)[0, 6:].tolist()
    for ends in ([text[1], text[10]], [text[7]], [text[15], text[16]]):
        truth = plain(pair, prompt(6), eos_token_id=ends, max_new_tokens=40)
        for window in (1, 4, 8):
            found = speculate(pair, prompt(6), eos_token_id=ends, max_new_tokens=40, num_draft_tokens=window)
            assert found.tolist() == truth.tolist()


def test_stop_strings(pair: kad.KadForCausalLM, prompt: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer()
    text = tokenizer.decode(plain(pair, prompt(6), max_new_tokens=30)[0, 6:])
    options = {"stop_strings": [text[8:11]], "tokenizer": tokenizer, "max_new_tokens": 30}
    found = speculate(pair, prompt(6), **options)
    assert found.tolist() == plain(pair, prompt(6), **options).tolist()
    assert found.shape[1] < 36


def test_a_criterion_is_asked_after_every_token(pair: kad.KadForCausalLM, prompt: Callable[..., Any]) -> None:
    class Twelve(StoppingCriteria):
        asked: list[int] = []

        def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
            self.asked.append(input_ids.shape[1])
            return torch.tensor([input_ids.shape[1] >= 12])

    found = speculate(pair, prompt(6), rule="aligned_only", stopping_criteria=StoppingCriteriaList([Twelve()]))
    assert found.shape[1] == 12
    assert Twelve.asked == list(range(7, 13))


class Collect(BaseStreamer):
    def __init__(self) -> None:
        self.pieces: list[list[int]] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        self.pieces.append(value.flatten().tolist())

    def end(self) -> None:
        self.ended = True


def test_a_streamer_gets_tokens_as_they_are_committed(
    pair: kad.KadForCausalLM, prompt: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    streamer = Collect()
    found = speculate(pair, prompt(6), rule="aligned_only", streamer=streamer)[0].tolist()
    assert streamer.pieces[0] == found[:6]
    assert [token for piece in streamer.pieces[1:] for token in piece] == found[6:]
    assert max(map(len, streamer.pieces[1:])) > 1
    assert streamer.ended
    tokenizer = make_tokenizer()
    speculate(pair, prompt(6), streamer=TextStreamer(tokenizer, skip_prompt=True))
    text = tokenizer.decode(plain(pair, prompt(6))[0, 6:])
    assert capsys.readouterr().out.strip() == text.strip()


# ---------------------------------------------------------------- caches


@pytest.mark.parametrize("rule", ["dual:threshold=0.2", "aligned_only", "implicit_reward"])
def test_the_returned_cache_continues(pair: kad.KadForCausalLM, prompt: Callable[..., Any], rule: str) -> None:
    whole = plain(pair, prompt(6), rule=rule, max_new_tokens=30)
    for first in (7, 8, 9, 10, 11):
        start = speculate(pair, prompt(6), rule=rule, max_new_tokens=first, return_dict_in_generate=True)
        cache = start.past_key_values
        assert {part.get_seq_length() for part in cache.parts.values()} == {6 + first - 1}
        for go_on in (speculate, plain):
            import copy

            end = go_on(
                pair, start.sequences, rule=rule, past_key_values=copy.deepcopy(cache), max_new_tokens=30 - first
            )
            assert end.tolist() == whole.tolist()


def test_left_padding_is_not_read(pair: kad.KadForCausalLM, prompt: Callable[..., Any]) -> None:
    ids = torch.cat([torch.full((1, 3), PAD), prompt(6)], dim=1)
    mask = (torch.arange(9) >= 3).long().unsqueeze(0)
    found = speculate(pair, ids, attention_mask=mask)
    assert found[:, 3:].tolist() == plain(pair, prompt(6)).tolist()
    assert found[:, :3].tolist() == [[PAD] * 3]


def _sliding_pair() -> kad.KadForCausalLM:
    from transformers import MistralConfig, MistralForCausalLM

    models = {}
    for seed, role in enumerate(("base", "aligned")):
        torch.manual_seed(seed)
        config = MistralConfig(
            vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, sliding_window=8, eos_token_id=None, pad_token_id=PAD,
        )  # fmt: skip
        models[role] = MistralForCausalLM(config).eval()
        with torch.no_grad():
            models[role].lm_head.weight.mul_(20)
    return kad.KadForCausalLM.from_models(**models, rule="confidence_bet:margin=0.3")


def test_sliding_windows_roll_back(prompt: Callable[..., Any]) -> None:
    model, statistics = _sliding_pair(), SpeculationStatistics()
    for length in (3, 20):
        for window in (1, 6):
            for cache in ({}, {"cache_implementation": "static", "disable_compile": True}):
                found = speculate(
                    model, prompt(length), max_new_tokens=30, num_draft_tokens=window, statistics=statistics, **cache
                )
                assert found.tolist() == plain(model, prompt(length), max_new_tokens=30).tolist()
    output = speculate(model, prompt(20), return_dict_in_generate=True)
    assert {part.get_seq_length() for part in output.past_key_values.parts.values()} == {43}
    assert len(statistics.lengths) > 3


def test_static_caches_roll_back(pair: kad.KadForCausalLM, prompt: Callable[..., Any]) -> None:
    found = speculate(pair, prompt(6), cache_implementation="static", disable_compile=True)
    assert found.tolist() == plain(pair, prompt(6)).tolist()


@pytest.mark.skipif(
    not hasattr(cache_utils, "Fp8QuantizedLayer"), reason="older versions of Transformers quantize by further packages"
)
def test_quantized_caches_are_refused(pair: kad.KadForCausalLM, prompt: Callable[..., Any]) -> None:
    options = {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}}
    plain(pair, prompt(6), **options)
    with pytest.raises(UsageError, match="Fp8QuantizedLayer holds depends on how many tokens .* without speculation"):
        speculate(pair, prompt(6), **options)


# ---------------------------------------------------------------- options and statistics


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_draft_tokens": -1}, "num_draft_tokens must be a whole number"),
        ({"num_draft_tokens": 2.5}, "num_draft_tokens must be a whole number"),
        ({"num_draft_tokens": "many"}, "'auto', but is 'many'"),
        ({"verification": "blocks"}, "verification must be one of block, token"),
        ({"draft_model": "base"}, "draft_model must be one of aligned, reference"),
        ({"use_cache": False}, "leave use_cache=False out"),
        ({"num_return_sequences": 2, "do_sample": True}, "one sequence at a time.*vLLM"),
        ({"return_dict_in_generate": True, "output_hidden_states": True}, "hidden states of its own"),
        ({"position_ids": torch.arange(3, 9).unsqueeze(0)}, "leave position_ids out"),
        ({"attention_mask": torch.tensor([[1, 1, 0, 1, 1, 1]])}, "before the prompt"),
    ],
)
def test_what_cannot_be_done_is_refused(
    pair: kad.KadForCausalLM, prompt: Callable[..., Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        speculate(pair, prompt(6), **options)


def test_batches_are_sent_elsewhere(pair: kad.KadForCausalLM, prompt: Callable[..., Any]) -> None:
    with pytest.raises(UsageError, match=r"got 3 .*Call generate once per prompt.*vLLM"):
        speculate(pair, prompt(6, batch=3))


def test_other_models_are_sent_elsewhere(pair: kad.KadForCausalLM, prompt: Callable[..., Any]) -> None:
    with pytest.raises(UsageError, match="LlamaForCausalLM.*assistant_model"):
        pair.base.generate(prompt(6), custom_generate=kad.speculative, max_new_tokens=3)


def test_drafting_from_a_reference_that_is_not_there(models_: dict[str, Any], prompt: Callable[..., Any]) -> None:
    model = kad.KadForCausalLM.from_models(models_["base"], models_["aligned"])
    with pytest.raises(UsageError, match="needs a pair with a reference model"):
        speculate(model, prompt(6), draft_model="reference")


def test_statistics_add_up(pair: kad.KadForCausalLM, prompt: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    for rule in ("dual:threshold=0.2", "confidence_bet:margin=0.1", "implicit_reward"):
        output = speculate(
            pair, prompt(6), rule=rule, do_sample=True, top_k=0, max_new_tokens=80, return_dict_in_generate=True
        )
        s = output.statistics
        assert s.tokens == output.sequences.shape[1] - 6 == 80
        assert s.tokens <= s.accepted + s.corrections + s.bonus_kept + s.bonus_deferred + s.bonus_composed <= 81
        assert s.windows == sum(s.lengths.values()) == sum(s.sizes.values())
        assert s.accepted == sum(length * count for length, count in s.lengths.items()) < s.drafted
        assert s.acceptance_rate == s.accepted / s.drafted
        assert (s.deferred_mass is None) == (rule == "implicit_reward")
        assert 0 <= (s.deferred_mass or 0.0) <= 1
        assert s.seconds_draft + s.seconds_verify + s.seconds_other == pytest.approx(s.seconds_total)
        assert (s.bonus_kept > 0 and s.bonus_deferred > 0) == rule.startswith("dual")
        assert s.to_dict()["tokens_per_second"] == s.tokens / s.seconds_total


def test_always_deferring_accepts_every_draft(pair: kad.KadForCausalLM, prompt: Callable[..., Any]) -> None:
    for do_sample in (False, True):
        statistics = SpeculationStatistics()
        speculate(pair, prompt(6), rule="aligned_only", do_sample=do_sample, top_k=0, statistics=statistics)
        assert statistics.acceptance_rate == 1.0
        assert statistics.corrections == 0


def test_never_deferring_is_speculative_sampling_of_p(pair: kad.KadForCausalLM, prompt: Callable[..., Any]) -> None:
    assert speculate(pair, prompt(6), rule="base_only").tolist() == plain(pair.base, prompt(6)).tolist()


def test_a_seed_fixes_the_text(pair: kad.KadForCausalLM, prompt: Callable[..., Any]) -> None:
    texts = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        texts.append(speculate(pair, prompt(6), do_sample=True).tolist())
    assert texts[0] == texts[1] != texts[2]
