"""The room for text: answers against Transformers and against the definition, on any engine; nothing leaks."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections import defaultdict
from dataclasses import fields, replace
from typing import Any, get_type_hints

import pytest
import torch
from transformers import GenerationConfig, SuppressTokensLogitsProcessor

import kad
import oracle
from conftest import make_tokenizer
from kad.engines.pair import Pair
from kad.engines.protocols import Facts, OneAtATime
from kad.errors import LogitsError, OptionError, RuleError, UsageError
from kad.method.composition import Composition
from kad.method.replay import Replay
from kad.pair.config import KadConfig
from kad.rules import parse_rule
from kad.text import sampling
from kad.text.batch import Noise, generate_all, seeds_from
from kad.text.contexts import Asking
from kad.text.keywords import Asked, Drawn
from kad.text.sampling import processors
from kad.text.scoring import score_tokens
from speculative_tables import PROMPT, OnlyForward, Script, TableScorer, total_variation, true_distribution

GREEDY = kad.Sampling(temperature=0, max_new_tokens=24)


@pytest.fixture
def pair(model: kad.KadForCausalLM) -> kad.KadForCausalLM:
    """The random pair with a tokenizer."""
    model.tokenizer = make_tokenizer()
    return model


# ---------------------------------------------------------------------- an engine that gives scorers and nothing else


class Scorer(TableScorer):
    """A table model as an engine gives it."""

    reversible = True

    def release(self) -> None:
        self.released = True


class TableModel(OneAtATime):
    """One table model, as an engine gives it."""

    def __init__(self, role: str, vocab: int, facts: Facts, eos: int | None) -> None:
        self.role, self.vocab_size, self.facts, self.tokenizer = role, vocab, facts, make_tokenizer()
        self.generation_config = GenerationConfig(eos_token_id=eos)

    def scorer(self, vocab_size: int, device: torch.device) -> Any:
        return Scorer(self.role, vocab_size)


class RecurrentTable(TableModel):
    """One that cannot drop tokens."""

    def scorer(self, vocab_size: int, device: torch.device) -> Any:
        return Replay(OnlyForward(self.role, vocab_size))


class TableEngine(Pair):
    """A pair of table models: no Transformers model anywhere."""

    def __init__(self, rule: str, vocab: int, eos: int | None = None, kind: type[TableModel] = TableModel) -> None:
        facts = {"base": Facts(100, None), "aligned": Facts(10, 512)}
        models = {role: kind(role, vocab, fact, eos) for role, fact in facts.items()}
        super().__init__(KadConfig(rule=rule, vocab_size=vocab), models)


@pytest.mark.parametrize("kind", [TableModel, RecurrentTable])
@pytest.mark.parametrize("drafts", [0, 2])
@pytest.mark.parametrize("sampling", [{}, {"top_k": 2}, {"temperature": 0.7}], ids=str)
@pytest.mark.parametrize("rule", ["dual:threshold=0.4", "confidence_bet:margin=0.0", "mixture:weight=0.4"])
def test_the_distribution_is_pi_on_any_engine(
    rule: str, sampling: dict[str, Any], drafts: int, kind: type[TableModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every random outcome of `kad.stream` is enumerated, with the bookkeeping of origins on."""
    model, script = TableEngine(rule, vocab=3, eos=2, kind=kind), Script()
    monkeypatch.setattr("kad.text.streaming.TorchRandomness", lambda seed: script)
    how = kad.Sampling(max_new_tokens=3, **({"temperature": 1.0} | sampling))
    found: dict[tuple[int, ...], float] = defaultdict(float)
    for _ in script.runs():
        answer = kad.generate(model, PROMPT, sampling=how, num_draft_tokens=drafts)
        found[tuple(answer.token_ids)] += script.probability
    made = processors(how.apply(model.generation_config, None), len(PROMPT))
    truth = true_distribution(parse_rule(rule), vocab=3, new_tokens=3, eos=2, processors=made)
    assert total_variation(dict(found), truth) < 1e-6


def test_one_model_is_a_pair_of_its_own_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every random outcome is enumerated; a rule that is asked for changes nothing; a score is that of the model."""
    pair = TableEngine("dual:threshold=0.4", vocab=3, eos=2)
    one, script, rule = Pair.one(pair.models["base"]), Script(), "aligned_only"
    monkeypatch.setattr("kad.text.streaming.TorchRandomness", lambda seed: script)
    how = kad.Sampling(max_new_tokens=3, temperature=1.0)
    found: dict[tuple[int, ...], float] = defaultdict(float)
    for _ in script.runs():
        answer = kad.generate(one, PROMPT, sampling=how, rule=rule)
        found[tuple(answer.token_ids)] += script.probability
    assert total_variation(dict(found), true_distribution(parse_rule("base_only"), vocab=3, new_tokens=3, eos=2)) < 1e-6
    text = [0, 1, 2]
    theirs = kad.score(pair, PROMPT, text, rule="base_only").log_p
    torch.testing.assert_close(kad.score(one, PROMPT, text, rule=rule).log_pi, theirs)


@pytest.mark.parametrize("drafts", [0, 1, 3])
@pytest.mark.parametrize("rule", ["dual:threshold=0.4", "confidence_bet:margin=0.0", "mixture:weight=0.4"])
def test_each_piece_says_where_it_came_from(rule: str, drafts: int) -> None:
    """Shares and deferred mass at every token, for every kind of token, are those of the definition."""
    model = TableEngine(rule, vocab=5)
    events = set()
    for seed in range(12):
        how = kad.Sampling(max_new_tokens=9, temperature=1.0, seed=seed)
        answer = kad.generate(model, PROMPT, sampling=how, num_draft_tokens=drafts)
        found = score_tokens(model, answer.prompt_ids, answer.token_ids, model.composition)
        assert found.base_share is not None
        assert found.deferred_mass is not None
        assert [piece.base_share for piece in answer.pieces] == pytest.approx(found.base_share.tolist(), abs=1e-5)
        assert [piece.deferred_mass for piece in answer.pieces] == pytest.approx(found.deferred_mass.tolist(), abs=1e-5)
        events |= {piece.event for piece in answer.pieces}
    expected = {None} if drafts == 0 else {None, "accepted", "corrected", "bonus"}
    assert expected <= events
    assert ("deferred" in events) == (drafts > 0 and rule.startswith("dual"))


def test_origins_change_no_sampled_text() -> None:
    model = TableEngine("dual:threshold=0.4", vocab=5)
    how = kad.Sampling(max_new_tokens=12, temperature=1.0, seed=3)
    with_, without = (kad.generate(model, PROMPT, sampling=how, num_draft_tokens=3, origins=o) for o in (True, False))
    assert with_.token_ids == without.token_ids
    assert with_.seed == 3
    assert all(piece.base_share is None for piece in without.pieces)


def test_the_random_numbers_are_the_answers_own(pair: kad.KadForCausalLM) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    how = kad.Sampling(max_new_tokens=12, temperature=1.0, seed=3)
    first = kad.generate(pair, "Hi", sampling=how, num_draft_tokens=2)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    assert kad.generate(pair, "Hi", sampling=how, num_draft_tokens=2).token_ids == first.token_ids


# ---------------------------------------------------------------------- answers


@pytest.mark.parametrize("drafts", [0, 3, "auto"])
def test_a_greedy_answer_is_what_transformers_generates(pair: kad.KadForCausalLM, drafts: int | str) -> None:
    answer = kad.generate(pair, "Hi", system="Be kind", sampling=GREEDY, num_draft_tokens=drafts)
    ids = torch.tensor([answer.prompt_ids])
    expected = pair.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24)
    assert answer.token_ids == expected[0, ids.shape[1] :].tolist()
    assert pair.tokenizer.decode(answer.prompt_ids) == "[system]Be kind\n[user]Hi\n[assistant]"
    assert "".join(piece.text for piece in answer.pieces) == answer.text


def test_settings_of_the_aligned_model_act_on_log_pi_as_in_transformers(pair: kad.KadForCausalLM) -> None:
    """Greedy with penalties: the same tokens. Sampling: the same processors in the same order."""
    pair.generation_config = GenerationConfig(
        repetition_penalty=1.4, no_repeat_ngram_size=2, bad_words_ids=[[40]], suppress_tokens=[50, 51],
        begin_suppress_tokens=[60], min_new_tokens=6, eos_token_id=1, exponential_decay_length_penalty=(8, 1.2),
        sequence_bias={(33,): -2.0}, forced_eos_token_id=1,
    )  # fmt: skip
    answer = kad.generate(pair, "Hi", sampling=GREEDY, num_draft_tokens=3)
    ids = torch.tensor([answer.prompt_ids])
    expected = pair.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24)
    assert answer.token_ids == expected[0, ids.shape[1] :].tolist()
    sampled = GenerationConfig(
        do_sample=True, temperature=0.7, top_k=20, top_p=0.9, min_p=0.05, typical_p=0.9, epsilon_cutoff=0.01,
        eta_cutoff=0.01, top_h=0.5, repetition_penalty=1.2, eos_token_id=1, max_new_tokens=5,
    )  # fmt: skip
    ours = [type(made).__name__ for made in processors(sampled, 4)]
    theirs = [type(made).__name__ for made in pair._get_logits_processor(sampled, 4)]
    assert ours == theirs


def test_settings_that_name_no_top_k_take_that_of_transformers(pair: kad.KadForCausalLM) -> None:
    pair.generation_config = GenerationConfig(do_sample=True, eos_token_id=1)
    theirs, _ = pair._prepare_generation_config(None)
    ours = kad.Sampling().apply(pair.generation_config, None)
    assert (ours.top_k, ours.do_sample) == (theirs.top_k, True) == (50, True)
    assert kad.Sampling(temperature=1.0).apply(GenerationConfig(eos_token_id=1), None).top_k == 0  # theirs was greedy


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 4}, "a search with 4 beams"),
        ({"guidance_scale": 1.5}, "ask for guidance_scale"),
        ({"encoder_repetition_penalty": 3.0}, "ask for encoder_repetition_penalty, which kad does not follow"),
        ({"forced_bos_token_id": 4, "token_healing": True}, "ask for forced_bos_token_id, token_healing"),
        ({"max_length": 5}, "tokens, and the aligned model's settings end a text at max_length 5"),
    ],
)
def test_settings_that_cannot_be_followed_are_named(
    pair: kad.KadForCausalLM, settings: dict[str, Any], message: str
) -> None:
    pair.generation_config = GenerationConfig(eos_token_id=1, **settings)
    with pytest.raises(UsageError, match=message):
        kad.generate(pair, "Hi")
    with pytest.raises(UsageError, match=message):
        generate_all(pair, pair.tokenizer, [[5] * 18])


def test_every_setting_that_transformers_knows_is_followed_refused_or_without_effect(pair: kad.KadForCausalLM) -> None:
    """A new one of the next release is refused, and this list says so."""
    unsure = GenerationConfig().to_dict().keys() - sampling.FOLLOWED - sampling._WITHOUT_EFFECT
    refused = {name: 7 for name in unsure if not name.startswith("_")}
    config = GenerationConfig(eos_token_id=1)
    for name, value in refused.items():
        setattr(config, name, value)
    with pytest.raises(UsageError, match=f"ask for {', '.join(sorted(refused))}, which kad does not"):
        sampling.refuse_others(config)
    sampling.refuse_others(GenerationConfig.from_model_config(pair.aligned.config))
    sampling.refuse_others(GenerationConfig(guidance_scale=1.0, token_healing=False, num_return_sequences=1))


def test_max_length_counts_the_prompt_and_gives_way_to_max_new_tokens(pair: kad.KadForCausalLM) -> None:
    pair.generation_config = GenerationConfig(max_length=24, eos_token_id=None, pad_token_id=2)
    ids = torch.tensor([[5] * 18])
    expected = pair.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False)[0, 18:].tolist()
    assert kad.generate(pair, [5] * 18).token_ids == expected
    assert len(expected) == 6
    answers = generate_all(pair, pair.tokenizer, [[5] * 18, [5] * 10])
    assert [len(answer.token_ids) for answer in answers] == [6, 14]
    assert len(kad.generate(pair, [5] * 18, sampling=kad.Sampling(max_new_tokens=9)).token_ids) == 9


@pytest.mark.parametrize("temperature", [1e-3, 1e-38, 5e-324])
def test_a_temperature_that_float32_cannot_divide_by_is_refused(pair: kad.KadForCausalLM, temperature: float) -> None:
    with pytest.raises(OptionError, match=r"`temperature` must be 0 or in \[0.01, 1000\], but is"):
        kad.Sampling(temperature=temperature)
    pair.generation_config = GenerationConfig(do_sample=True, temperature=temperature, eos_token_id=1, pad_token_id=2)
    with pytest.raises(UsageError, match="settings have the temperature .*, which must be from 0.01 to 1000"):
        kad.generate(pair, "Hi", sampling=kad.Sampling(max_new_tokens=12))


@pytest.mark.parametrize("settings", [{"do_sample": False}, {"do_sample": True, "temperature": 1.0}])
@pytest.mark.parametrize("drafts", [0, 3])
def test_processors_that_leave_no_token_are_an_error_on_every_way(
    pair: kad.KadForCausalLM, settings: dict[str, Any], drafts: int
) -> None:
    pair.generation_config = GenerationConfig(suppress_tokens=list(range(96)), pad_token_id=2, **settings)
    with pytest.raises(LogitsError, match="the processed scores of .* no finite entry"):
        kad.generate(pair, "Hi", num_draft_tokens=drafts)
    with pytest.raises(LogitsError, match="the processed scores of .* no finite entry"):
        generate_all(pair, pair.tokenizer, [[5] * 9], seeds=[1], num_draft_tokens=drafts)
    options = {"custom_generate": kad.speculative, "num_draft_tokens": drafts, "max_new_tokens": 4}
    with pytest.raises(LogitsError, match="the processed scores of .* no finite entry"):
        pair.generate(torch.tensor([[5] * 9]), **options)


def test_the_context_is_as_long_on_every_way() -> None:
    """OPT has learned positions, and no others: past them, a lookup would fail in the middle of a text."""
    from transformers import OPTConfig, OPTForCausalLM

    sizes = {"vocab_size": 96, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    torch.manual_seed(0)
    models = [
        OPTForCausalLM(OPTConfig(**sizes, word_embed_proj_dim=32, max_position_embeddings=24)).eval() for _ in "pq"
    ]
    opt = kad.KadForCausalLM.from_models(*models, rule="dual:threshold=0.2")
    opt.generation_config, opt.tokenizer = GenerationConfig(pad_token_id=2), make_tokenizer()
    most, prompts = kad.Sampling(max_new_tokens=50, temperature=0), [[5] * 20, [6] * 7]
    whole = [kad.generate(opt, prompt, sampling=most, num_draft_tokens=2) for prompt in prompts]
    assert [(len(answer.token_ids), answer.finish_reason) for answer in whole] == [(4, "context"), (17, "context")]
    at_once = generate_all(opt, opt.tokenizer, prompts, sampling=most)
    assert [(one.token_ids, one.finish_reason) for one in at_once] == [(one.token_ids, "context") for one in whole]
    by_transformers = opt.generate(torch.tensor([prompts[0]]), max_new_tokens=50, custom_generate=kad.speculative)
    assert by_transformers[0, 20:].tolist() == whole[0].token_ids
    assert len(kad.score(opt, [5] * 20, [6] * 5).token_ids) == 5  # the last one is not read
    too_long = {
        "generate": lambda: kad.generate(opt, [5] * 24),
        "batch": lambda: generate_all(opt, opt.tokenizer, [[5] * 24, [5]]),
        "score": lambda: kad.score(opt, [5] * 20, [6] * 6),
        "trace": lambda: kad.trace(opt, [5] * 20, [6] * 6),
        "speculative": lambda: opt.generate(
            torch.tensor([[5] * 24]), custom_generate=kad.speculative, max_new_tokens=2
        ),
    }
    for run in too_long.values():
        with pytest.raises(
            UsageError, match=r"The prompt has 2\d tokens.*; the models' context holds 24, answer included"
        ):
            run()


def test_a_stop_string_ends_the_answer_where_it_is_complete(pair: kad.KadForCausalLM) -> None:
    whole = kad.generate(pair, "Hi", sampling=GREEDY)
    stop = whole.text[5:8]
    cut = kad.generate(pair, "Hi", sampling=kad.Sampling(temperature=0, max_new_tokens=24, stop=(stop, "never so")))
    assert cut.text == whole.text[: whole.text.index(stop) + len(stop)]
    assert cut.finish_reason == "stop_string"
    assert cut.finished


def test_a_stream_can_be_stopped(pair: kad.KadForCausalLM) -> None:
    whole = kad.generate(pair, "Hi", sampling=GREEDY, num_draft_tokens=4)
    answering = kad.stream(pair, "Hi", sampling=GREEDY, num_draft_tokens=4)
    for _ in range(3):
        next(answering)
    answering.stop()
    assert list(answering) == []
    assert answering.answer.token_ids == whole.token_ids[:3]
    assert answering.answer.finish_reason == "interrupted"


def test_messages_ids_and_raw_text(pair: kad.KadForCausalLM) -> None:
    talk = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "A"},
    ]
    answer = kad.generate(pair, talk, sampling=GREEDY)
    assert pair.tokenizer.decode(answer.prompt_ids) == "[user]Hi\n[assistant]Yes?\n[user]A\n[assistant]"
    assert kad.generate(pair, answer.prompt_ids, sampling=GREEDY).token_ids == answer.token_ids
    assert kad.generate(pair, "Hi", raw=True, sampling=GREEDY).prompt_ids == pair.tokenizer("Hi").input_ids
    with pytest.raises(UsageError, match="`raw` uses no chat template"):
        kad.generate(pair, "Hi", raw=True, system="Be kind")
    with pytest.raises(UsageError, match="The prompt is empty"):
        kad.generate(pair, [])


# ---------------------------------------------------------------------- scores


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_a_score_is_the_definition(pair: kad.KadForCausalLM, temperature: float, monkeypatch: Any) -> None:
    monkeypatch.setattr("kad.text.scoring.LOGITS_AT_ONCE", 500)  # several chunks
    found = kad.score(pair, "Hi", "one two three", rule="dual:threshold=0.2", deferral_temperature=temperature)
    prompt = pair.tokenizer("[user]Hi\n[assistant]", add_special_tokens=False).input_ids
    ids = torch.tensor([[*prompt, *found.token_ids]])
    with torch.no_grad():
        p, q = (part(ids).logits[0, len(prompt) - 1 : -1].double() / temperature for part in (pair.base, pair.aligned))
    for row, token in enumerate(found.token_ids):
        base, aligned = (oracle.softmax(x[row].tolist()) for x in (p, q))
        keep = oracle.keep_dual(base, aligned, 0.2)
        alpha = sum((1 - k) * x for k, x in zip(keep, base, strict=True))
        pi = [k * x + alpha * y for k, x, y in zip(keep, base, aligned, strict=True)]
        assert found.log_pi[row].exp().item() == pytest.approx(pi[token], rel=1e-4)
        assert found.log_p[row].exp().item() == pytest.approx(base[token], rel=1e-4)
        assert found.log_aligned[row].exp().item() == pytest.approx(aligned[token], rel=1e-4)
        assert found.deferred_mass is not None
        assert found.base_share is not None
        assert found.tau is not None
        assert found.deferred_mass[row].item() == pytest.approx(alpha, abs=1e-5)
        assert found.base_share[row].item() == pytest.approx(keep[token] * base[token] / pi[token], abs=1e-4)
        assert found.acceptance[row].item() == pytest.approx(sum(map(min, pi, aligned)), abs=1e-5)
        assert found.tau[row].item() == pytest.approx(0.2, rel=1e-5)


def test_a_product_has_no_origins(pair: kad.KadForCausalLM) -> None:
    found = kad.score(pair, "Hi", "one", rule="implicit_reward")
    assert (found.base_share, found.deferred_mass, found.tau) == (None, None, None)
    answer = kad.generate(pair, "Hi", rule="implicit_reward", sampling=GREEDY)
    assert answer.base_share is None


# ---------------------------------------------------------------------- one composition a model


def test_one_models_rule_does_not_reach_another(models_: dict[str, Any], prompt: Any) -> None:
    one = kad.KadForCausalLM.from_models(**models_, rule="base_only")
    other = kad.KadForCausalLM.from_models(models_["base"], models_["aligned"], rule="dual:threshold=0.2")
    ids = prompt(8)
    expected = other(ids).logits
    with one.using("implicit_reward", 2.0):
        assert str(one.rule) == "implicit_reward"
        assert str(other.rule) == "dual:threshold=0.2"
        assert other.composition.deferral_temperature == 1.0
        assert torch.equal(other(ids).logits, expected)
        with other.using("aligned_only"):
            assert (str(one.rule), str(other.rule)) == ("implicit_reward", "aligned_only")
    assert str(one.rule) == "base_only"


def test_a_rule_of_a_call_stays_in_its_thread_and_its_task(pair: kad.KadForCausalLM) -> None:
    seen: list[str] = []

    async def look() -> None:
        await asyncio.sleep(0)
        seen.append(str(pair.rule))

    async def use() -> None:
        with pair.using("aligned_only"):
            await asyncio.sleep(0)
            seen.append(str(pair.rule))

    async def both() -> None:
        await asyncio.gather(use(), look())

    with pair.using("base_only"):
        thread = threading.Thread(target=lambda: seen.append(str(pair.rule)))
        thread.start()
        thread.join()
    asyncio.run(both())
    assert sorted(seen) == ["aligned_only", "dual:threshold=0.2", "dual:threshold=0.2"]


def test_a_stream_leaves_the_callers_rule_alone(pair: kad.KadForCausalLM) -> None:
    answering = kad.stream(pair, "Hi", rule="aligned_only", sampling=GREEDY)
    next(answering)
    assert str(pair.rule) == "dual:threshold=0.2"
    with pair.using("base_only"):
        answer = answering.finish()
    assert answer.base_share == 0.0


def test_the_composition_is_held_parsed_and_written_as_a_string(pair: kad.KadForCausalLM) -> None:
    assert pair.composition is pair.composition
    pair.rule = "primal:budget=0.5"
    assert (pair.config.rule, pair.composition.rule) == ("primal:budget=0.5", parse_rule("primal:budget=0.5"))
    pair.pair.own_composition = Composition.of("dual", 2.0)
    assert (pair.config.rule, pair.config.deferral_temperature) == ("dual:threshold=0.4", 2.0)
    with pytest.raises(kad.KadError, match="needs the reference model"):
        kad.KadForCausalLM.from_models(pair.base, pair.aligned).rule = "implicit_reward"


# ---------------------------------------------------------------------- batches


def test_answers_in_batches_are_those_of_transformers(pair: kad.KadForCausalLM, prompt: Any) -> None:
    prompts = [prompt(n, seed=n)[0].tolist() for n in (3, 9, 6, 4, 7)]
    together = generate_all(pair, pair.tokenizer, prompts, sampling=GREEDY, batch_size=2)
    for ids, answer in zip(prompts, together, strict=True):
        row = torch.tensor([ids])
        expected = pair.generate(row, attention_mask=torch.ones_like(row), do_sample=False, max_new_tokens=24)
        assert answer.token_ids == expected[0, len(ids) :].tolist()
        assert answer.finish_reason == ("stop" if answer.token_ids[-1] == 1 else "length")


def test_a_sampled_answer_does_not_depend_on_its_company(pair: kad.KadForCausalLM, prompt: Any) -> None:
    prompts, how = [prompt(n, seed=n)[0].tolist() for n in (3, 9, 6)], kad.Sampling(temperature=1.0, max_new_tokens=12)
    seeds = seeds_from(7, 3)
    assert seeds == seeds_from(7, 5)[:3]
    assert len(set(seeds)) == 3
    together = generate_all(pair, pair.tokenizer, prompts, sampling=how, seeds=seeds)
    alone = [
        generate_all(pair, pair.tokenizer, [p], sampling=how, seeds=[s])[0] for p, s in zip(prompts, seeds, strict=True)
    ]
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]


def test_noise_draws_from_the_softmax_by_the_rows_own_seed() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -torch.inf]]).log_softmax(-1)
    draws, noise = 20_000, Noise([7], torch.device("cpu"))
    counts = torch.zeros(4)
    for _ in range(draws):
        counts[noise.add(logits).argmax()] += 1
    expected = logits[0].exp() * draws
    kept = expected > 0
    assert counts[3] == 0
    # 99.9 % of chi square with two degrees of freedom
    assert float(((counts - expected)[kept] ** 2 / expected[kept]).sum()) < 13.8
    both = Noise([1, 2], torch.device("cpu")).add(torch.cat([logits, logits]))
    assert torch.equal(both[1], Noise([2], torch.device("cpu")).add(logits)[0])
    assert not torch.equal(both[0], both[1])


# ---------------------------------------------------------------------- measures respect the temperature, prompts agree


def test_figures_and_analysis_respect_the_deferral_temperature(models_: dict[str, Any]) -> None:
    """They say of an answer what its trace says."""
    from kad.figures.analysis import CheckedPrompt, approximation_on
    from kad.figures.data import FigureOptions, measure

    model = kad.KadForCausalLM.from_models(**models_, rule="dual:threshold=0.2", deferral_temperature=3.0)
    model.tokenizer = make_tokenizer()
    questions, settings = [CheckedPrompt("one and two"), CheckedPrompt("three?")], FigureOptions(max_new_tokens=8)
    found = measure(model, model.tokenizer, questions, parse_rule("dual:threshold=0.2"), settings)
    for answer, alpha, beta in zip(found.answers.answers, found.alpha, found.beta, strict=True):
        positions = kad.trace(model, answer.prompt_ids, answer.token_ids).positions
        assert alpha.tolist() == pytest.approx([position.deferred_mass for position in positions], abs=1e-5)
        assert beta.tolist() == pytest.approx([position.acceptance for position in positions], abs=1e-5)
        rows = approximation_on(model, [answer], budget=0.9, threshold=0.2)
        ids = torch.tensor([[*answer.prompt_ids, *answer.token_ids]])
        p = (model.base(ids).logits[0, len(answer.prompt_ids) - 1 : -1].double() / 3.0).softmax(-1)
        torch.testing.assert_close(rows.max_p, p.amax(-1), atol=1e-5, rtol=0)


THINKING = (
    "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    "{% if enable_thinking is defined and not enable_thinking %}[no thinking]{% endif %}"
)


def test_whatever_is_measured_is_asked_without_thinking(tmp_path: Any) -> None:
    from kad.cli.questions import Questions
    from kad.evaluation.tasks.task import chat_renderer

    tokenizer = make_tokenizer()
    tokenizer.chat_template = THINKING
    (tmp_path / "prompts.txt").write_text("Hi\n")
    asked = [
        *Questions(prompts=tmp_path / "prompts.txt").load(tokenizer),
        *Questions(task="tiny", limit=1).load(tokenizer),
    ]
    assert [question.prompt.endswith("[no thinking]") for question in asked] == [True, True]
    assert chat_renderer(tokenizer)([{"role": "user", "content": "Hi"}]) == "Hi[no thinking]"


def test_the_one_default_for_drafting(pair: kad.KadForCausalLM) -> None:
    """Greedy: learned by the clock. Sampled: fixed, so that a seed repeats. A large aligned model: none."""
    from kad.text.drafting import choose

    small = TableEngine("dual", vocab=3)
    assert choose(small, None, sampled=False).draft_tokens == "auto"
    assert choose(small, None, sampled=True).draft_tokens == 4
    assert choose(small, 0, sampled=True).draft_tokens == 0
    small.facts["aligned"] = Facts(60, None)
    chosen = choose(small, None, sampled=False)
    assert (chosen.draft_tokens, chosen.speculates) == (0, False)
    assert "too large to draft: 60%" in chosen.reason
    for wrong in (-1, 65, "many", True, 2.5):
        with pytest.raises(UsageError, match="`num_draft_tokens` must be a number from 0 to 64 or auto"):
            choose(small, wrong, sampled=False)


# ---------------------------------------------------------------------- the natural call


QUESTION = "Ann has 5 pens. She buys 8 more. How many pens does she have now?"


def test_the_fields_of_sampling_are_keywords(tiny: kad.KadForCausalLM) -> None:
    answer = kad.generate(tiny, QUESTION, max_new_tokens=5, temperature=0)
    assert answer.token_ids == kad.generate(tiny, QUESTION, sampling=kad.Sampling(5, temperature=0)).token_ids
    assert len(answer.token_ids) == 5
    how = kad.Sampling(max_new_tokens=9, temperature=1.0, seed=2)
    drawn = kad.generate(tiny, QUESTION, sampling=how, max_new_tokens=4)
    assert (len(drawn.token_ids), drawn.temperature, drawn.seed) == (4, 1.0, 2)
    assert len(kad.trace(tiny, QUESTION, max_new_tokens=3).positions) == 3
    assert len(kad.Conversation(tiny, max_new_tokens=2).say(QUESTION).finish().token_ids) == 2
    assert kad.generate(tiny, QUESTION, stop="=", temperature=0).text == "First, 5 + 8 ="


def test_every_field_of_sampling_is_a_keyword_and_every_keyword_of_the_prompt_is_asked() -> None:
    assert Drawn.__optional_keys__ == {field.name for field in fields(kad.Sampling)}
    own = get_type_hints(kad.Sampling)
    assert get_type_hints(Drawn) == {name: own[name] for name in Drawn.__optional_keys__}
    assert Asked.__optional_keys__ - {"rule", "deferral_temperature"} == {
        field.name for field in fields(Asking) if field.name != "prompt"
    }


@pytest.mark.parametrize(
    ("function", "given", "keywords", "message"),
    [
        (kad.generate, ["Hi"], {"max_tokens": 5}, "has no keyword `max_tokens`. Did you mean `max_new_tokens`?"),
        (kad.generate, [["Hi"]], {"temprature": 0}, "has no keyword `temprature`. Did you mean `temperature`?"),
        (kad.score, ["Hi", "you"], {"seed": 1}, "kad.score has no keyword `seed`. .*It takes: base_prompt, def"),
        (kad.trace, ["Hi"], {"compile": True}, "kad.trace has no keyword `compile`"),
        (kad.Conversation, [], {"rule": "dual"}, "kad.Conversation has no keyword `rule`"),
        (kad.stream, [["Hi"]], {}, "kad.stream answers one prompt, but got a list of them. Use kad.generate"),
        (kad.generate, [["Hi", "Ho"]], {"compile": True}, "`compile` captures the forward passes of one answer"),
        (kad.generate, ["Hi"], {"json_schema": {}, "grammar": "start: /a/"}, "`json_schema` or `grammar`, not both"),
        (kad.generate, [" \n"], {}, "The prompt is empty"),
        (kad.generate, [[]], {}, "The prompt is empty"),
        (kad.generate, [["Hi", ""]], {}, "The prompt is empty"),
    ],
)
def test_a_call_that_means_nothing_says_why(
    function: Any, given: list[Any], keywords: dict[str, Any], message: str, pair: kad.KadForCausalLM
) -> None:
    with pytest.raises(UsageError, match=message):
        function(pair, *given, **keywords)


def test_an_empty_message_is_none(pair: kad.KadForCausalLM) -> None:
    with pytest.raises(UsageError, match="The message is empty"):
        kad.Conversation(pair).say(" ")


@pytest.mark.parametrize(
    "options", [{"temperature": 0}, {"temperature": 1.0, "seed": 3}, {"num_draft_tokens": 2}], ids=str
)
def test_a_list_of_prompts_is_answered_by_a_list(options: dict[str, Any], pair: kad.KadForCausalLM) -> None:
    prompts = ["Hi", "What?", "Go on with it"]
    how = {"max_new_tokens": 12, "rule": "primal:0.6", **options}
    answers = kad.generate(pair, prompts, **how)
    assert [answer.prompt_ids for answer in answers] == [
        kad.generate(pair, prompt, **how).prompt_ids for prompt in prompts
    ]
    assert all(isinstance(answer, kad.Answer) for answer in answers)
    if options.get("seed") is None:  # else other random numbers: as many as there are rows
        assert [answer.token_ids for answer in answers] == [kad.generate(pair, one, **how).token_ids for one in prompts]
    else:
        assert len({answer.seed for answer in answers}) == 3
        assert [answer.token_ids for answer in kad.generate(pair, prompts, **how)] == [a.token_ids for a in answers]
    talks = [[{"role": "user", "content": prompt}] for prompt in prompts]
    for same in (talks, [answer.prompt_ids for answer in answers]):
        assert [answer.token_ids for answer in kad.generate(pair, same, **how)] == [a.token_ids for a in answers]
    with pytest.raises(RuleError, match="Unknown rule 'nope'"):
        kad.generate(pair, prompts, rule="nope")


@pytest.mark.parametrize("drafts", [0, 3])
def test_functions_of_the_caller_change_what_is_drawn(drafts: int, tiny: kad.KadForCausalLM) -> None:
    """They see the ids and log pi, drafts go through them, and those of Transformers are such functions."""
    first = kad.generate(tiny, QUESTION, temperature=0, num_draft_tokens=drafts)
    forbidden = SuppressTokensLogitsProcessor(first.token_ids[3:4])
    seen = []

    def looks(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        seen.append((ids.shape[1], float(scores.exp().sum())))
        return scores

    for given in (forbidden, [looks, forbidden]):
        answer = kad.generate(tiny, QUESTION, temperature=0, num_draft_tokens=drafts, logits_processor=given)
        assert answer.token_ids[:3] == first.token_ids[:3]
        assert first.token_ids[3] not in answer.token_ids
        assert kad.generate(tiny, [QUESTION], temperature=0, logits_processor=given)[0].token_ids == answer.token_ids
    assert min(length for length, _ in seen) == len(first.prompt_ids)
    later: list[torch.Tensor] = []

    def remembers(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        later.append(ids)
        return scores - len(later) * scores.new_tensor([1.0] + [0.0] * (scores.shape[1] - 1))

    kad.generate(tiny, QUESTION, max_new_tokens=3, num_draft_tokens=0, logits_processor=remembers)
    with pytest.raises(UsageError, match="depend on the text alone, but function keeps a state.*Decode without drafts"):
        kad.generate(tiny, QUESTION, max_new_tokens=3, num_draft_tokens=2, logits_processor=remembers)
    assert all(abs(mass - 1) < 1e-3 for _, mass in seen)


SCHEMA = {
    "type": "object",
    "properties": {"left": {"enum": [5, 13, 21]}},
    "required": ["left"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("drafts", [0, 3])
def test_a_schema_and_a_grammar_hold_the_answer(drafts: int, tiny: kad.KadForCausalLM) -> None:
    pytest.importorskip("llguidance")
    how = {"temperature": 0, "max_new_tokens": 40, "num_draft_tokens": drafts}
    answer = kad.generate(tiny, QUESTION, json_schema=SCHEMA, **how)
    assert set(json.loads(answer.text)) == {"left"}
    assert answer.finish_reason == "stop"
    lark = 'start: "The answer is " /[0-9]+/ "."'
    both = kad.generate(tiny, [QUESTION, "Bob has 3 maps. He loses 2. How many are left?"], grammar=lark, **how)
    assert all(re.fullmatch(r"The answer is [0-9]+\.", answer.text) for answer in both)
    with pytest.raises(UsageError, match="The grammar cannot be used: "):
        kad.generate(tiny, QUESTION, grammar="start: (", **how)
    with pytest.raises(UsageError, match="The schema cannot be used: "):
        kad.generate(tiny, QUESTION, json_schema={"type": "nonsense"}, **how)


def test_an_answer_as_json_in_a_notebook_and_in_a_line(tiny: kad.KadForCausalLM) -> None:
    answer = kad.generate(tiny, QUESTION, temperature=0, num_draft_tokens=2)
    told = json.loads(json.dumps(answer.to_dict()))
    assert told["text"] == answer.text
    assert len(told["base_share"]) == len(told["token_ids"]) == len(answer.token_ids)
    assert told["speculation"]["used"]
    assert repr(answer).startswith(f"Answer({answer.text!r}, {len(answer.token_ids)} tokens, stop, ")
    page = answer._repr_html_()
    words = re.sub("<[^>]+>", "", page)
    assert words.startswith(answer.text)
    assert page.count("text-decoration: underline") == 1 + sum(p.base_share < 0.5 for p in answer.pieces)
    plain = replace(answer, pieces=(), text="<b>&</b>")
    assert "&lt;b&gt;&amp;" in plain._repr_html_()
    assert plain.to_dict()["base_share"] is None
    assert len(repr(tiny)) < 200
    assert "tiny:big-base" in repr(tiny)
    assert "dual:threshold=0.4" in repr(tiny.pair)
    for thing in (kad.trace(tiny, QUESTION), kad.score(tiny, QUESTION, "Hi"), kad.Conversation(tiny)):
        assert len(repr(thing)) < 300


def test_the_messages_of_a_conversation_go_out_and_in(pair: kad.KadForCausalLM) -> None:
    talk = kad.Conversation(pair, system="Be kind", max_new_tokens=3)
    said = talk.say("Hi").finish().text
    assert [tuple(message.values()) for message in talk.messages] == [
        ("system", "Be kind"),
        ("user", "Hi"),
        ("assistant", said),
    ]
    other = kad.Conversation(pair, max_new_tokens=3)
    other.messages = talk.messages
    assert (other.system, other.turns) == ("Be kind", talk.turns)
    assert other.say("And?").finish().text == talk.say("And?").finish().text
    other.messages = []
    assert (other.system, other.turns) == (None, [])
