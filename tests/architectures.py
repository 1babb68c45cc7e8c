"""Every causal language model that the installed Transformers lists, small and random, and what kad does with it.

A configuration is the default one of its class with its sizes made small by the names of its fields. So the
architectures of the next release show up by themselves.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import kad
from kad.errors import one_line
from kad.method.composition import compose
from kad.text.batch import generate_all

VOCABULARY = 96
PAD = 2
NEW, PROMPT, SHORT = 8, 14, 9
WINDOW = 6
ARCHITECTURES = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
_LARGEST = 3_000_000
_FIXED = ("transformers_version", "model_type", "architectures", "dtype", "_name_or_path")

# The first pattern that is in a field's name decides.
_SIZES: tuple[tuple[str, int], ...] = (
    (r"vocab", VOCABULARY),
    (r"_token_id$|_token_index$|^eod", 2),
    (r"(max|n)_position|n_ctx|context_length|max_seq|model_max_length|_positions$", 256),
    (r"attention_head_dim", 16),
    (r"attention_hidden_size", 64),
    (r"attention_head_size|head_dim|d_kv|dim_head|mamba_d_head|headdim|d_head|kv_channels", 8),
    (r"mamba\w*heads|^num_heads$", 8),
    (r"heads|n_head$|query_groups", 4),
    (r"layers$|n_layer$|num_blocks|layer_period$", 2),
    (r"layer_offset$", 1),
    (r"topk_group$", 1),
    (r"n_group$|experts_per_tok|moe_k|moe_topk", 2),
    (r"index_topk", 64),  # fewer have ties, which rounding breaks
    (r"expert", 4),
    (r"window(?!_layers)|local_attention$|attention_chunk_size", WINDOW),
    (r"rank|d_state|state_size|rotary_dim", 4),
    (r"d_ssm", 64),
    (r"intermediate_size|ffn|d_ff|feed_forward|n_inner|dff|inner", 48),
    (r"hidden_size|d_model|n_embd|embed_dim|embedding|emb_dim|lru_width|dim$|width", 32),
)


# What a default configuration leaves out, or what does not become small field by field.
_MORE: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"num_expert_group": 1, "n_group": 1},
    "bamba": {"attn_layer_indices": [1]},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "attention_layers": ["global", "local"]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "hrm_text": {"num_layers_per_stack": None},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "xmod": {"default_language": "en_XX"},
    "zamba2": {"hybrid_layer_ids": [2, 3]},
}


def small_config(name: str) -> PreTrainedConfig:
    """The default configuration of an architecture with small sizes."""
    return _small(CONFIG_MAPPING[name], _MORE.get(name, {}))


def _small(kind: type[PreTrainedConfig], more: dict[str, Any] | None = None) -> PreTrainedConfig:
    default = kind()
    given = {field: value for field, value in default.to_dict().items() if field not in _FIXED}
    depth = len(given.get("layer_types") or given.get("layers_block_type") or ())
    layers = _one_of_each_kind([v for v in given.values() if isinstance(v, list) and len(v) == depth])
    values: dict[str, Any] = {}
    for field, value in given.items():
        if isinstance(value, dict) and "model_type" in value:
            values[field] = _small(type(getattr(default, field)))
        elif isinstance(value, dict) and field == "per_layer_config":
            kept = {index: value[layer] for index, layer in enumerate(layers) if layer in value}
            values[field] = {i: {k: _smaller(k, v) for k, v in one.items()} for i, one in kept.items()}
        elif isinstance(value, list) and layers and len(value) == depth:
            values[field] = [_smaller(field, value[index]) for index in layers]
        elif layers and value == depth and re.search("layers$", field):
            values[field] = len(layers)
        else:
            values[field] = _smaller(field, value)
    heads = [field for field in values if re.fullmatch("(num_attention|n|num)_heads", field)]
    if "num_key_value_heads" in values and heads and given["num_key_value_heads"] not in (None, given[heads[0]]):
        values["num_key_value_heads"] = values[heads[0]] // 2
    return kind(**(values | (more or {})))


def _one_of_each_kind(lists: list[list[Any]]) -> list[int]:
    """The first two layers of each kind, given what the configuration says of each layer."""
    kinds = list(zip(*(map(str, one) for one in lists), strict=True))
    return [index for index, one in enumerate(kinds) if kinds[:index].count(one) < 2]


def _smaller(field: str, value: Any) -> Any:
    small = next((size for pattern, size in _SIZES if re.search(pattern, field)), None)
    if small is None or isinstance(value, bool | float | str | dict):
        return True if field == "is_decoder" else value
    if isinstance(value, list):
        return [_smaller(field, one) for one in value]
    if value is None:
        return small if field in ("head_dim", "num_key_value_heads") else None
    return small if field.endswith("_id") else min(value, small)


def small_model(name: str, seed: int) -> PreTrainedModel:
    """A model of an architecture with random weights, so large that every token of the text before matters.

    Raises:
        ValueError: it stays large.
    """
    config = small_config(name)
    with torch.device("meta"):
        size = AutoModelForCausalLM.from_config(config).num_parameters()
    if size > _LARGEST:
        raise ValueError(f"it has {size:,} parameters even so")
    torch.manual_seed(seed)
    return sharpened(AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval())


def sharpened(model: PreTrainedModel) -> PreTrainedModel:
    """The model with larger weights. No token may come twice in its texts: so every step says something new."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim >= 2:
                weight.normal_(std=weight.shape[-1] ** -0.5)
        model.get_output_embeddings().weight.mul_(2.0)
    model.generation_config = GenerationConfig(pad_token_id=PAD, no_repeat_ngram_size=1, suppress_tokens=[PAD])
    return model


def pair_of(base: PreTrainedModel, aligned: PreTrainedModel) -> kad.KadForCausalLM:
    """A pair that reads characters, under a rule to which both models matter."""
    from conftest import make_tokenizer  # the other environments have a conftest of their own

    pair = kad.KadForCausalLM.from_models(base, aligned, rule="mixture:weight=0.5")
    pair.tokenizer = make_tokenizer()
    return pair


@torch.no_grad()
def truth(pair: kad.KadForCausalLM, prompt: list[int], new: int = NEW) -> tuple[list[int], Tensor]:
    """The greedy text and its log pi (new,): composed token by token, from whole sequences without a cache."""
    ids, scores = torch.tensor([prompt]), []
    for _ in range(new):
        rows = (model(ids, use_cache=False).logits[0, -1, :VOCABULARY] for model in (pair.base, pair.aligned))
        log_pi = compose(pair.composition, *rows)
        seen = torch.cat((ids[0], torch.tensor([PAD])))
        token = log_pi.index_fill(0, seen, -torch.inf).argmax()
        scores.append(log_pi[token])
        ids = torch.cat((ids, token.view(1, 1)), dim=-1)
    return ids[0, len(prompt) :].tolist(), torch.stack(scores)


def ways(pair: kad.KadForCausalLM, prompts: list[list[int]]) -> dict[str, Callable[[], bool]]:
    """What is tried, and whether it gives the truth: all of the ways in which kad reads and writes."""
    greedy, (prompt, _) = kad.Sampling(max_new_tokens=NEW, temperature=0), prompts
    texts = [truth(pair, each) for each in prompts]

    def generated(*drafts: int | str) -> bool:
        answers = [kad.generate(pair, prompt, sampling=greedy, num_draft_tokens=number) for number in drafts]
        return all(answer.token_ids == texts[0][0] for answer in answers)

    def batch() -> bool:
        answers = generate_all(pair, pair.tokenizer, prompts, sampling=greedy)
        return [answer.token_ids for answer in answers] == [text for text, _ in texts]

    def chat() -> bool:
        talk = kad.Conversation(pair, sampling=greedy, num_draft_tokens=0)
        talk.say("abc").finish()
        answer = talk.say("de").finish()
        return answer.token_ids == truth(pair, answer.prompt_ids)[0]

    def by_transformers(**options: Any) -> bool:
        ids = pair.generate(torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False, **options)
        return bool(ids[0, len(prompt) :].tolist() == texts[0][0])

    def score() -> bool:
        found = kad.score(pair, prompt, texts[0][0]).log_pi
        return torch.allclose(found, texts[0][1], atol=5e-3)

    return {
        "plain decoding": lambda: generated(0),
        "drafts": lambda: generated(1, 4, 8, "auto"),
        "batches": batch,
        "chats": chat,
        "scores": score,
        "generate": by_transformers,
        "static caches": lambda: by_transformers(cache_implementation="static"),
    }


@torch.no_grad()
def look(name: str) -> dict[str, str]:
    """What is refused of an architecture, as base and as aligned model, and why. Empty if it is exact in every way.

    A reason that begins with "WRONG" or "RAW" is a fault of kad.
    """
    try:
        model, other = small_model(name, 0), small_model("llama", 1)
        prompt = torch.randint(3, VOCABULARY, (PROMPT,), generator=torch.Generator().manual_seed(5))
        model(prompt.unsqueeze(0), use_cache=False)
    except Exception as error:  # noqa: BLE001  (whatever Transformers says)
        return {"it is not tried": one_line(error)}
    refused: dict[str, str] = {}
    for models in ((model, other), (other, model)):
        try:
            pair = pair_of(*models)
            tried = ways(pair, [prompt.tolist(), prompt.tolist()[:SHORT]])
        except kad.KadError as error:
            return {"it is refused": _reason(error, model)}
        for way, is_true in tried.items():
            try:
                outcome = "" if is_true() else "WRONG: another text"
            except kad.KadError as error:
                outcome = _reason(error, model)
            except Exception as error:  # noqa: BLE001  (the fault that is looked for)
                outcome = f"RAW {one_line(error)}"
            if outcome:
                refused[way] = outcome
    return refused


def _reason(error: kad.KadError, model: PreTrainedModel) -> str:
    return str(error).replace(f"{type(model).__name__} cannot be composed: ", "")
