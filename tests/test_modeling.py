"""The composed model equals the composition of its models, in every way that Transformers runs it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MaxTimeCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
    TextStreamer,
)

import kad
from conftest import VOCAB, make_model, make_tokenizer
from kad.errors import RuleError, UsageError
from kad.rules import Rule, registry

pytestmark = pytest.mark.core

EXACT = {"atol": 2e-5, "rtol": 1e-5}
Prompt = Callable[..., torch.Tensor]


def separate(model: kad.KadForCausalLM, ids: torch.Tensor, rule: Rule | None = None, **kwargs: Any) -> torch.Tensor:
    """The definition: both models on the full sequence, without a cache, then composed."""
    with torch.no_grad():
        logits = [part(ids, use_cache=False, **kwargs).logits for part in (model.base, model.aligned, model.reference)]
    return kad.compose(rule or model.rule, *logits)


@pytest.mark.parametrize("name", registry())
def test_log_pi_is_the_composition_of_the_models(name: str, model: kad.KadForCausalLM, prompt: Prompt) -> None:
    model.rule = registry()[name]()
    ids = prompt(11, batch=2)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, separate(model, ids), **EXACT)
        torch.testing.assert_close(model(ids, logits_to_keep=3).logits, separate(model, ids)[:, -3:], **EXACT)


def test_step_by_step_with_a_cache_is_the_full_sequence(model: kad.KadForCausalLM, prompt: Prompt) -> None:
    ids = prompt(12, batch=3)
    expected, cache = separate(model, ids), None
    with torch.no_grad():
        for position, length in ((0, 5), (5, 1), (6, 1), (7, 4), (11, 1)):
            output = model(ids[:, position : position + length], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            torch.testing.assert_close(output.logits, expected[:, position : position + length], **EXACT)
    assert cache.get_seq_length() == 12
    assert {role: part.get_seq_length() for role, part in cache.parts.items()} == {"base": 12, "aligned": 12}


@pytest.mark.parametrize("removed", [0, 1, 3, 7])
def test_after_cropping_the_cache_the_tokens_are_gone(removed: int, model: kad.KadForCausalLM, prompt: Prompt) -> None:
    first, second = prompt(8, seed=1), prompt(5, seed=2)
    with torch.no_grad():
        cache = model(first, use_cache=True).past_key_values
        cache.crop(-removed)
        ours = model(second, past_key_values=cache).logits
    expected = separate(model, torch.cat([first[:, : 8 - removed], second], dim=1))[:, 8 - removed :]
    torch.testing.assert_close(ours, expected, **EXACT)


def test_after_reordering_beams_every_row_follows_its_own_past(model: kad.KadForCausalLM, prompt: Prompt) -> None:
    first, second, order = prompt(6, batch=3), prompt(2, seed=3, batch=3), torch.tensor([2, 0, 2])
    with torch.no_grad():
        cache = model(first, use_cache=True).past_key_values
        cache.reorder_cache(order)
        ours = model(second, past_key_values=cache).logits
    torch.testing.assert_close(ours, separate(model, torch.cat([first[order], second], dim=1))[:, 6:], **EXACT)


@pytest.mark.parametrize("rule", ["dual:threshold=0.2", "implicit_reward", "primal:budget=0.7", "mixture:weight=0.3"])
def test_left_padded_batches_generate_what_each_row_generates_alone(
    rule: str, model: kad.KadForCausalLM, prompt: Prompt
) -> None:
    rows = [prompt(n, seed=n)[0] for n in (3, 9, 6)]
    padded = make_tokenizer().pad({"input_ids": rows}, padding_side="left", return_tensors="pt")
    together = model.generate(**padded, max_new_tokens=12, do_sample=False, rule=rule, eos_token_id=None)
    for i, row in enumerate(rows):
        alone = model.generate(row[None], max_new_tokens=12, do_sample=False, rule=rule, eos_token_id=None)
        assert together[i, 9:].tolist() == alone[0, len(row) :].tolist()


def test_greedy_is_argmax_pi(model: kad.KadForCausalLM, prompt: Prompt) -> None:
    ids = prompt(5)
    text = model.generate(ids, max_new_tokens=20, do_sample=False, eos_token_id=None)
    assert text[0, 5:].tolist() == separate(model, text)[0, 4:-1].argmax(-1).tolist()
    uncached = model.generate(ids, max_new_tokens=20, do_sample=False, eos_token_id=None, use_cache=False)
    assert torch.equal(text, uncached)


@pytest.mark.supports("Transformers", "logits processors", rules=())
def test_scores_are_log_pi_and_processors_act_on_it(model: kad.KadForCausalLM, prompt: Prompt) -> None:
    class Ban(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return scores.index_fill(-1, torch.arange(40), -torch.inf)

    ids = prompt(5)
    output = model.generate(
        ids,
        max_new_tokens=8,
        do_sample=False,
        eos_token_id=None,
        logits_processor=LogitsProcessorList([Ban()]),
        output_logits=True,
        output_scores=True,
        return_dict_in_generate=True,
    )
    log_pi = separate(model, output.sequences)[0, 4:-1]
    torch.testing.assert_close(torch.cat(output.logits), log_pi, **EXACT)
    assert bool((torch.cat(output.scores)[:, :40] == -torch.inf).all())
    assert bool((output.sequences[0, 5:] >= 40).all())


def test_temperature_and_warpers_act_on_log_pi(model: kad.KadForCausalLM, prompt: Prompt) -> None:
    output = model.generate(
        prompt(5),
        max_new_tokens=6,
        do_sample=True,
        temperature=0.7,
        top_k=5,
        eos_token_id=None,
        output_scores=True,
        return_dict_in_generate=True,
    )
    log_pi = separate(model, output.sequences)[0, 4:-1] / 0.7
    scores = torch.cat(output.scores)
    assert bool(((scores > -torch.inf).sum(-1) == 5).all())
    finite = scores > -torch.inf
    torch.testing.assert_close(scores[finite], log_pi[finite], **EXACT)


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True, "top_p": 0.8},
        {"do_sample": True, "min_p": 0.05, "num_return_sequences": 3},
        {"num_beams": 3},
        {"num_beams": 2, "num_return_sequences": 2, "do_sample": True},
        {"repetition_penalty": 1.3},
        {"cache_implementation": "static"},
        {"cache_implementation": "offloaded"} if torch.cuda.is_available() else {"use_cache": False},
        {"prefill_chunk_size": 3},
    ],
)
def test_transformers_ways_to_generate_run(options: dict[str, Any], model: kad.KadForCausalLM, prompt: Prompt) -> None:
    torch.manual_seed(0)
    ids = prompt(7, batch=2)
    text = model.generate(ids, max_new_tokens=6, **options)
    assert text.shape[0] == 2 * options.get("num_return_sequences", 1)
    assert torch.equal(text[:, :7], ids.repeat_interleave(text.shape[0] // 2, 0))


def test_beam_search_finds_what_scoring_every_continuation_finds(model: kad.KadForCausalLM, prompt: Prompt) -> None:
    """With as many beams as tokens, two steps of beam search are exhaustive."""
    ids = prompt(4)
    text = model.generate(ids, num_beams=VOCAB, max_new_tokens=2, eos_token_id=None, do_sample=False)
    first = separate(model, ids)[0, -1]
    continued = torch.cat([ids.expand(VOCAB, -1), torch.arange(VOCAB)[:, None]], dim=1)
    both = first[:, None] + separate(model, continued)[:, -1]
    best = int(both.argmax())
    assert text[0, 4:].tolist() == [best // VOCAB, best % VOCAB]


@pytest.mark.supports("Transformers", "static caches", rules=())
def test_static_and_dynamic_caches_give_the_same(model: kad.KadForCausalLM, prompt: Prompt) -> None:
    runs = [
        model.generate(prompt(5, batch=2), max_new_tokens=9, do_sample=False, cache_implementation=kind)
        for kind in (None, "static")
    ]
    assert torch.equal(*runs)


@pytest.mark.supports("Transformers", "a cache kept between turns", rules=())
def test_a_conversation_continues_from_its_cache(model: kad.KadForCausalLM, prompt: Prompt) -> None:
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "return_dict_in_generate": True}
    first = model.generate(prompt(6), **options)
    longer = torch.cat([first.sequences, prompt(4, seed=5)], dim=1)
    warm = model.generate(longer, past_key_values=first.past_key_values, **options)
    assert torch.equal(warm.sequences, model.generate(longer, **options).sequences)


@pytest.mark.supports("Transformers", "stop strings", rules=())
def test_streamers_stop_strings_and_stopping_criteria(model: kad.KadForCausalLM, prompt: Prompt) -> None:
    class Count(TextStreamer):
        def __init__(self) -> None:
            super().__init__(make_tokenizer(), skip_prompt=True)
            self.puts = 0

        def put(self, value: torch.Tensor) -> None:
            self.puts += 1

        def end(self) -> None:
            pass

    class AtTwelve(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
            return torch.full((input_ids.shape[0],), input_ids.shape[1] >= 12)

    streamer = Count()
    criteria = StoppingCriteriaList([AtTwelve(), MaxTimeCriteria(60)])
    text = model.generate(
        prompt(5), max_new_tokens=50, do_sample=False, eos_token_id=None, streamer=streamer, stopping_criteria=criteria
    )
    assert text.shape[1] == 12
    assert streamer.puts == 1 + 7
    tokenizer = make_tokenizer()
    stop = tokenizer.decode(text[0, 7:8])
    stopped = model.generate(
        prompt(5), max_new_tokens=50, do_sample=False, eos_token_id=None, stop_strings=[stop], tokenizer=tokenizer
    )
    first = text[0, 5:].tolist().index(int(text[0, 7]))
    assert stopped.shape[1] == 5 + first + 1


@pytest.mark.parametrize("rule", ["dual:threshold=0.2", "implicit_reward"])
def test_transformers_assisted_generation_gives_the_same_text(
    rule: str, model: kad.KadForCausalLM, prompt: Prompt
) -> None:
    options = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None, "rule": rule}
    plain = model.generate(prompt(5), **options)
    assert torch.equal(plain, model.generate(prompt(5), assistant_model=model.aligned, **options))


def test_the_rule_changes_for_one_call_and_only_there(model: kad.KadForCausalLM, prompt: Prompt) -> None:
    ids, options = prompt(5), {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None}
    base = model.base.generate(ids, **options)
    aligned = model.aligned.generate(ids, **options)
    assert torch.equal(model.generate(ids, rule="base_only", **options), base)
    assert torch.equal(model.generate(ids, rule="aligned_only", **options), aligned)
    assert str(model.rule) == "dual:threshold=0.2"
    seen = {}

    def other_thread() -> None:
        seen["rule"] = str(model.rule)

    with model.using("base_only", deferral_temperature=0.5):
        assert model.composition.deferral_temperature == 0.5
        thread = threading.Thread(target=other_thread)
        thread.start()
        thread.join()
    assert seen["rule"] == "dual:threshold=0.2"
    with pytest.raises(RuleError, match="Unknown rule 'nvr'"):
        model.generate(ids, rule="nvr", **options)


def test_never_and_always_give_the_models_own_logits(model: kad.KadForCausalLM, prompt: Prompt) -> None:
    ids = prompt(9, batch=2)
    with torch.no_grad():
        for rule, part in (("base_only", model.base), ("aligned_only", model.aligned)):
            model.rule = rule
            bits = 8 * torch.finfo(torch.float32).eps * 10
            torch.testing.assert_close(model(ids).logits, part(ids).logits.log_softmax(-1), atol=bits, rtol=0)


@pytest.mark.supports("Transformers", "padded vocabularies", rules=())
def test_padded_vocabularies_are_trimmed_to_the_common_rows(prompt: Prompt) -> None:
    base, aligned = make_model(0), make_model(1, vocab=VOCAB + 8)
    model = kad.KadForCausalLM.from_models(base, aligned, rule="dual:threshold=0.2")
    assert model.config.vocab_size == VOCAB
    ids = prompt(6)
    with torch.no_grad():
        expected = kad.compose(model.rule, base(ids).logits, aligned(ids).logits[..., :VOCAB])
        torch.testing.assert_close(model(ids).logits, expected, **EXACT)


def test_generation_settings_are_the_aligned_models() -> None:
    base, aligned = make_model(0), make_model(1)
    aligned.generation_config = GenerationConfig(eos_token_id=[1, 7], pad_token_id=2)
    model = kad.KadForCausalLM.from_models(base, aligned)
    assert model.generation_config.eos_token_id == [1, 7]


def test_nothing_v_sized_stays_between_steps(model: kad.KadForCausalLM, prompt: Prompt) -> None:
    output = model.generate(prompt(5), max_new_tokens=4, return_dict_in_generate=True)
    kept = [x for layer in output.past_key_values.layers for x in (layer.keys, layer.values)]
    assert all(VOCAB not in x.shape for x in kept)
    assert not any(torch.is_tensor(value) for value in vars(model).values())


def test_what_a_composition_cannot_do_is_said(
    model: kad.KadForCausalLM, models_: dict[str, Any], prompt: Prompt
) -> None:
    with pytest.raises(UsageError, match="A composed model's cache is a KadCache .* but got DynamicCache"):
        model(prompt(3), past_key_values=DynamicCache())
    with pytest.raises(UsageError, match="takes input_ids"):
        model()
    with pytest.raises(UsageError, match="no attentions or hidden states of its own"):
        model(prompt(3), output_hidden_states=True)
    with pytest.raises(ValueError, match="not used by the model: .'typo'"):
        model.generate(prompt(3), typo=3)
    with pytest.raises(RuleError, match="Rule implicit_reward needs the reference model; the pair has none"):
        kad.KadForCausalLM.from_models(models_["base"], models_["aligned"], rule="implicit_reward")
    cache = model.make_cache()
    with pytest.raises(UsageError, match="this cache was made without it; start anew"):
        model.generate(prompt(3), rule="implicit_reward", past_key_values=cache)
