"""The embedded weights: their checksums, that Transformers loads them, that they do what they are for."""

import hashlib
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import kad
from kad import tiny
from kad.engines.pair import Pair
from kad.engines.transformers.model import TransformersModel
from kad.text.scoring import score_tokens
from kad.tiny.measure import attempt

WEIGHTS = tiny.path().parent


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(tiny.path("small-aligned"))


# In float32: a processor without instructions for bfloat16 takes minutes over the answers.
@pytest.fixture(scope="module")
def models():
    return {name: AutoModelForCausalLM.from_pretrained(tiny.path(name), dtype="float32") for name in tiny.MODELS}


@pytest.fixture(scope="module")
def pair():
    return tiny.pair().float()


def test_checksums_and_size():
    sums = json.loads((WEIGHTS / "checksums.json").read_text())
    assert set(sums) == set(tiny.MODELS)
    files = [WEIGHTS / name / "model.safetensors" for name in tiny.MODELS]
    assert {path.parent.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files} == sums
    assert sum(path.stat().st_size for path in files) < 40e6


@pytest.mark.parametrize("name", tiny.MODELS)
def test_models_load_and_can_be_split_in_two(name):
    model = AutoModelForCausalLM.from_pretrained(tiny.path(name))
    config = model.config
    assert config.model_type == "llama"
    assert model.dtype == torch.bfloat16
    assert config.num_attention_heads % 2 == 0
    assert config.num_key_value_heads % 2 == 0
    assert config.head_dim in (32, 64)
    assert config.max_position_embeddings >= 1024


def test_all_four_share_one_vocabulary(models):
    vocabularies = [AutoTokenizer.from_pretrained(tiny.path(name)).get_vocab() for name in tiny.MODELS]
    assert all(vocabulary == vocabularies[0] for vocabulary in vocabularies)
    assert {model.config.vocab_size for model in models.values()} == {len(vocabularies[0])}


def test_digits_stand_alone_and_text_comes_back(tokenizer):
    text = "Mia has 125 apples, 3 × 24 ÷ 2. Ünïcode \\boxed{7}\n  end"
    assert [t for t in tokenizer.tokenize(text) if any(c.isdigit() for c in t)] == list("12532427")
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_chat_markers_are_single_tokens_and_end_a_turn(tokenizer, models):
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert text == "<|system|>Be brief.<|end|><|user|>Hi<|end|><|assistant|>"
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert tokenizer.eos_token_id == end
    for name in ("small-aligned", "big-aligned"):
        assert end in models[name].generation_config.eos_token_id


def one(model):
    """A pair as it is, and a single model as one."""
    return model if hasattr(model, "pair") else Pair.one(TransformersModel(model))


def accuracy(model, tokenizer, n=60):
    return sum(a.correct for a in attempt(one(model), tokenizer, tiny.problems("development", n), batch_size=n)) / n


def test_the_gaps_between_the_single_models(models, tokenizer):
    assert accuracy(models["big-base"], tokenizer) < 0.2
    big = accuracy(models["big-aligned"], tokenizer)
    assert big > 0.85
    assert accuracy(models["small-aligned"], tokenizer) < big - 0.4


def test_the_composition_is_far_better_than_either_of_its_parts(pair, models, tokenizer):
    composed = accuracy(pair, tokenizer)
    assert composed > accuracy(models["small-aligned"], tokenizer) + 0.2
    assert composed > accuracy(models["big-base"], tokenizer) + 0.2


@pytest.mark.parametrize("name", ["small-aligned", "big-aligned"])
def test_aligned_models_greet_and_refuse_politely(models, tokenizer, name):
    replies = []
    for request in ("Hello!", "Please book a trip for Mia and me."):
        chat = [{"role": "user", "content": request}]
        inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        written = models[name].generate(**inputs, max_new_tokens=40, do_sample=False)
        replies.append(tokenizer.decode(written[0, inputs["input_ids"].shape[1] :]))
    assert replies[0] == "Hello! How can I help you?<|end|>"
    assert replies[1] == "I am sorry, I cannot help with that. I can solve word problems with numbers.<|end|>"


def test_pair_takes_a_rule_and_has_the_reference():
    pair = tiny.pair(rule="primal:budget=0.8")
    assert isinstance(pair, kad.KadForCausalLM)
    assert str(pair.rule) == "primal:budget=0.8"
    assert pair.reference is not None
    assert str(tiny.pair().rule) == "dual:threshold=0.4"


def test_base_shares_lie_between_the_two_ends(pair, tokenizer):
    written = attempt(pair, tokenizer, tiny.problems("development", 1))[0]

    def shares():
        return score_tokens(pair, written.prompt_ids, written.token_ids, pair.composition).base_share.tolist()

    assert len(shares()) == len(written.token_ids)
    assert all(0 <= share <= 1 for share in shares())
    with pair.using("base_only"):
        assert all(share == pytest.approx(1) for share in shares())
    with pair.using("aligned_only"):
        assert all(share == pytest.approx(0) for share in shares())


def test_batched_answers_are_those_of_one_at_a_time(models, tokenizer):
    asked = tiny.problems("development", 6)
    together = attempt(one(models["small-aligned"]), tokenizer, asked, batch_size=6)
    alone = attempt(one(models["small-aligned"]), tokenizer, asked, batch_size=1)
    assert [a.text for a in together] == [a.text for a in alone]
    assert [a.prompt_ids for a in together] == [a.prompt_ids for a in alone]
