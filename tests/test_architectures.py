"""Every causal language model that the installed Transformers lists is exact in every way, or refused in a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import kad
from architectures import ARCHITECTURES, look, pair_of, sharpened, small_model, truth
from conftest import make_tokenizer
from kad.engines.transformers.forward import Trial
from kad.errors import UsageError
from kad.text.batch import generate_all

STORED = Path(__file__).parents[1] / "docs" / "support" / "architectures.json"


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_is_exact_in_every_way_or_refused_in_a_sentence(name: str) -> None:
    refused = look(name)
    assert not [reason for reason in refused.values() if reason.startswith(("WRONG", "RAW"))], refused
    stored = json.loads(STORED.read_text("utf-8"))
    if stored["transformers"] == transformers.__version__:
        assert refused == stored["refused"].get(name), "write the page anew: make support"


def test_the_page_shows_every_architecture_and_most_are_exact() -> None:
    stored = json.loads(STORED.read_text("utf-8"))
    if stored["transformers"] == transformers.__version__:
        assert tuple(stored["refused"]) == ARCHITECTURES
    reasons = [reason for refused in stored["refused"].values() for reason in refused.values()]
    assert not [reason for reason in reasons if reason.startswith(("WRONG", "RAW"))]
    assert sum(not refused for refused in stored["refused"].values()) >= 60


# ---------------------------------------------------------------------- the kinds of faults, one by one

IDS = torch.randint(3, 96, (14,), generator=torch.Generator().manual_seed(5)).tolist()
GREEDY = kad.Sampling(max_new_tokens=8, temperature=0)
SMALL = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
BART = {"vocab_size": 96, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4}
BART |= {
    "decoder_attention_heads": 4,
    "pad_token_id": 2,
    "decoder_start_token_id": 0,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
}
STRANGERS = [
    (
        "T5ForConditionalGeneration",
        {"vocab_size": 96, "d_model": 32, "num_layers": 1, "d_kv": 8, "d_ff": 32, "num_heads": 4},
    ),
    ("BartForConditionalGeneration", BART),
    ("LlamaModel", SMALL),
    ("LlamaForSequenceClassification", SMALL),
    ("BertLMHeadModel", SMALL),  # whose configuration does not say is_decoder=True
    ("RwkvForCausalLM", {"vocab_size": 96, "hidden_size": 64, "attention_hidden_size": 64, "num_hidden_layers": 2}),
]
REASONS = {
    "T5ForConditionalGeneration": ("it is an encoder-decoder", "its type is none of Transformers' causal"),
    "BartForConditionalGeneration": ("it is an encoder-decoder", "it is an encoder-decoder"),
    "LlamaModel": ("it has no output layer", "lm_head.weight"),
    "LlamaForSequenceClassification": ("it has no output layer", "lm_head.weight"),
    "BertLMHeadModel": (
        "what it says of a text that it reads in parts",
        "what it says of a text that it reads in parts",
    ),
    "RwkvForCausalLM": ("it takes no cache of Transformers", "it takes no cache of Transformers"),
}


@pytest.fixture(scope="module")
def other() -> Any:
    return small_model("llama", 1)


@pytest.mark.parametrize(("kind", "sizes"), STRANGERS)
def test_what_is_no_causal_language_model_with_a_cache_is_refused_when_it_is_loaded(
    kind: str, sizes: dict[str, Any], other: Any, tmp_path: Path
) -> None:
    """As an object in each role, and as a folder."""
    of_objects, of_folders = REASONS[kind]
    class_ = getattr(transformers, kind)
    model = class_(class_.config_class(**sizes)).eval()
    for models in ((model, other), (other, model)):
        with pytest.raises(kad.KadError, match=f"{kind} cannot be composed: {of_objects}"):
            kad.KadForCausalLM.from_models(*models)
    model.save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    with pytest.raises(kad.KadError, match=of_folders):
        kad.load(base=str(tmp_path / "model"), aligned=str(tmp_path / "model"), device="cpu")


class Deaf(transformers.LlamaForCausalLM):
    """Takes a cache and fills none: it vanishes on the way, as in a model with `**kwargs`."""

    def forward(self, input_ids: Any = None, past_key_values: Any = None, use_cache: Any = None, **more: Any) -> Any:
        return super().forward(input_ids=input_ids, use_cache=False, **more)


class Looking(transformers.LlamaForCausalLM):
    """Fills its cache, and looks one token ahead in whole texts."""

    def forward(self, input_ids: Any = None, **more: Any) -> Any:
        output = super().forward(input_ids=input_ids, **more)
        output.logits = output.logits + output.logits.roll(-1, dims=1)
        return output


class Wrapped(transformers.LlamaForCausalLM):
    """An ordinary model behind a `forward` that names no argument."""

    def forward(self, *args: Any, **more: Any) -> Any:
        return super().forward(*args, **more)


@pytest.mark.parametrize(("kind", "reason"), [(Deaf, "holds 0 tokens after 3 were read"), (Looking, "reads in parts")])
def test_a_cache_that_was_given_is_a_cache_that_was_used(kind: Any, reason: str, other: Any) -> None:
    model = sharpened(kind(transformers.LlamaConfig(**SMALL)).eval())
    with pytest.raises(UsageError, match=f"{kind.__name__} cannot be composed: .*{reason}"):
        pair_of(model, other)
    model = sharpened(Wrapped(transformers.LlamaConfig(**SMALL)).eval())
    pair = pair_of(model, other)
    assert kad.generate(pair, IDS, sampling=GREEDY).token_ids == truth(pair, IDS)[0]


@pytest.mark.parametrize(
    ("name", "chunks"), [("bamba", True), ("jamba", False), ("mamba", False), ("mamba2", True), ("falcon_mamba", False)]
)
def test_a_recurrent_model_writes_and_scores_as_in_whole_sequences(name: str, chunks: bool, other: Any) -> None:
    """Bamba counts its positions wrongly by itself; others forget their state where several tokens follow others."""
    model = small_model(name, 0)
    pair = pair_of(model, other)
    text, log_pi = truth(pair, IDS)
    assert Trial.of(model).chunks is chunks
    assert kad.generate(pair, IDS, sampling=GREEDY, num_draft_tokens=0).token_ids == text
    assert pair.generate(torch.tensor([IDS]), max_new_tokens=8, do_sample=False)[0, len(IDS) :].tolist() == text
    torch.testing.assert_close(kad.score(pair, IDS, text).log_pi, log_pi, atol=1e-4, rtol=0)


def test_a_model_that_sees_padding_answers_one_prompt_at_a_time(other: Any) -> None:
    model = small_model("git", 0)
    pair, prompts = pair_of(model, other), [IDS, IDS[:9]]
    assert not Trial.of(model).padding
    answers = generate_all(pair, pair.tokenizer, prompts, sampling=GREEDY)
    assert [answer.token_ids for answer in answers] == [truth(pair, prompt)[0] for prompt in prompts]
    padded = torch.tensor([IDS, [2] * 5 + IDS[:9]])
    with pytest.raises(UsageError, match="GitForCausalLM, the base model, gives other logits with padding"):
        pair.generate(padded, attention_mask=(padded != 2).long(), max_new_tokens=2, do_sample=False)


def rope_pair(**rope: Any) -> Any:
    """Two Phi-3 whose positions change their meaning."""
    given = {"rope_theta": 10000.0, "original_max_position_embeddings": 18, "partial_rotary_factor": 1.0, **rope}
    limits = {"max_position_embeddings": 64, "original_max_position_embeddings": 18, "pad_token_id": 2}
    config = transformers.Phi3Config(**SMALL, **limits, rope_parameters=given)
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        models.append(sharpened(transformers.Phi3ForCausalLM(config).eval()))
    return pair_of(*models)


@pytest.fixture(scope="module")
def long_rope() -> Any:
    return rope_pair(rope_type="longrope", short_factor=[1.0] * 4, long_factor=[4.0, 8.0, 16.0, 32.0])


@pytest.mark.parametrize("drafts", [0, 1, 4, 8])
def test_a_text_is_read_anew_where_the_rotary_frequencies_change(drafts: int, long_rope: Any) -> None:
    text, log_pi = truth(long_rope, IDS)
    assert kad.generate(long_rope, IDS, sampling=GREEDY, num_draft_tokens=drafts).token_ids == text
    torch.testing.assert_close(kad.score(long_rope, IDS, text).log_pi, log_pi, atol=1e-4, rtol=0)
    answers = generate_all(long_rope, long_rope.tokenizer, [IDS, IDS[:9]], sampling=GREEDY)
    assert [answer.token_ids for answer in answers] == [text, truth(long_rope, IDS[:9])[0]]


def test_a_conversation_crosses_the_change_and_comes_back(long_rope: Any) -> None:
    talk = kad.Conversation(long_rope, sampling=GREEDY, num_draft_tokens=4)
    for said in ("ab", "cd"):
        answer = talk.say(said).finish()
        assert answer.token_ids == truth(long_rope, answer.prompt_ids)[0]
        talk.clear()


@pytest.mark.parametrize("options", [{}, {"custom_generate": kad.speculative}])
def test_the_loops_of_transformers_do_not_cross_it(options: dict[str, Any], long_rope: Any) -> None:
    with pytest.raises(UsageError, match="Phi3ForCausalLM changes its rotary frequencies at a length of 18 tokens"):
        long_rope.generate(torch.tensor([IDS]), max_new_tokens=8, do_sample=False, **options)
    within = long_rope.generate(torch.tensor([IDS]), max_new_tokens=4, do_sample=False, **options)
    assert within[0, len(IDS) :].tolist() == truth(long_rope, IDS, 4)[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_trial_sees_through_rounding(dtype: torch.dtype) -> None:
    """In half precision the models that are right need less than half of what is allowed, the others more."""
    right = {"llama": True, "gpt2": True, "qwen3_moe": True, "gemma3_text": True, "jamba": False, "mamba": False}
    assert {name: Trial(small_model(name, 0).to(dtype), static=False).chunks for name in right} == right
    assert not Trial(small_model("git", 0).to(dtype), static=False).padding
