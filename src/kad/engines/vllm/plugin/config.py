"""A pair's configuration as vLLM wants to see it, and the configurations of its parts."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from transformers import PretrainedConfig
from vllm.config import ModelConfig
from vllm.config.model import _get_and_verify_dtype
from vllm.transformers_utils.config import get_config, get_hf_text_config
from vllm.transformers_utils.model_arch_config_convertor import ModelArchConfigConvertorBase

from kad.errors import PairError
from kad.pair.config import KadConfig
from kad.pair.sources import Source

_UNUSABLE_OPTIONS = frozenset({"gguf_file", "subfolder"})


class PairView(KadConfig):
    """`KadConfig` as vLLM reads it: its own text configuration. The numbers vLLM asks for are in `PairArchitecture`."""

    def get_text_config(self, *args: Any, **kwargs: Any) -> PretrainedConfig:
        """The pair itself: no one part speaks for all."""
        return self

    def part_configs(self) -> dict[str, PretrainedConfig]:
        """The parts' configurations by role: base, aligned and, if there is one, reference."""
        return {role: _config_of(part.model, part.revision) for role, part in self.model_sources().items()}

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
        return

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
        tokenizer=pair.tokenizer,
        tokenizer_revision=pair.tokenizer_revision,
        tokenizer_mode=pair.tokenizer_mode,
        skip_tokenizer_init=pair.skip_tokenizer_init,
        trust_remote_code=pair.trust_remote_code,
        dtype=pair.dtype,
        seed=pair.seed,
        max_model_len=pair.max_model_len,
        quantization=pair.quantization,
        enforce_eager=pair.enforce_eager,
        max_logprobs=pair.max_logprobs,
        hf_token=pair.hf_token,
        hf_overrides={"quantization_config": quantization} if quantization else {},
    )


def resolve_dtype(pair: ModelConfig) -> torch.dtype:
    """The engine's one dtype: `--dtype` if it was given, else what the pair says of its parts, else what they are in.

    vLLM builds attention metadata for one dtype per engine, so parts in different dtypes cannot run side by side
    (quantized weights can: their activations are in the engine's dtype).

    Raises:
        PairError: the parts are in different dtypes and no `--dtype` decides.
    """
    view: PairView = pair.hf_config
    asked: torch.dtype = pair.dtype
    if asked != _auto_dtype(pair, view):
        return asked
    dtypes = {role: _part_dtype(pair, view, role) for role in view.model_sources()}
    if len(set(dtypes.values())) > 1:
        listed = ", ".join(f"{role} {str(dtype).removeprefix('torch.')}" for role, dtype in dtypes.items())
        raise PairError(f"vLLM runs all parts in one dtype, but this pair's are: {listed}. Choose one with --dtype.")
    return dtypes["base"]


def _part_dtype(pair: ModelConfig, view: PairView, role: str) -> torch.dtype:
    said = view.model_sources()[role].kwargs.get("dtype", "auto")
    if said != "auto":
        dtype: torch.dtype = getattr(torch, said)
        return dtype
    return _auto_dtype(pair, view.part_configs()[role])


def _auto_dtype(pair: ModelConfig, config: PretrainedConfig) -> torch.dtype:
    """What vLLM takes for `--dtype auto` with this configuration on this machine."""
    dtype: torch.dtype = _get_and_verify_dtype(
        pair.model, config, "auto", is_pooling_model=False, revision=pair.revision
    )
    return dtype


@lru_cache
def _config_of(model: str, revision: str | None) -> PretrainedConfig:
    return get_config(model, trust_remote_code=False, revision=revision)
