"""The engine of MLX: folders that mlx-lm loads, on Apple silicon or on the CPU of Linux."""

from __future__ import annotations

from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig

from kad.engines.mlx.host import OTHERWISE, library
from kad.engines.protocols import Facts, OneAtATime
from kad.errors import PairError, first_line
from kad.method.replay import Replay
from kad.method.scorer import Scorer
from kad.pair.model_files import load_config, load_generation_config, load_tokenizer, rope_turns, soft_cap_of
from kad.pair.sources import Source
from kad.tokens.vocabulary import trim


class MlxModel(OneAtATime):
    """One model that MLX runs; see `kad.engines.protocols.Model`.

    Args:
        source: its folder, or its hub id.
        device: "cpu" keeps it away from the GPU.

    Raises:
        PairError: mlx-lm cannot load the folder; the message has its reason.
        MissingExtraError: mlx-lm is not installed.
    """

    def __init__(self, source: Source, device: str | None = None) -> None:
        self.source = source
        self._lib = library()
        import mlx.core as mx

        if device == "cpu":
            mx.set_default_device(mx.cpu)
        folder = Path(source.model) if source.is_local else _snapshot(source)
        place = folder / source.kwargs.get("subfolder", "")
        try:
            self.model, self._config = self._lib.utils.load_model(
                place, model_config=_read(place), trust_remote_code=source.trusted
            )
            self.vocab_size = int(self.logits(torch.zeros(1, dtype=torch.long), self.new_cache(), 1).shape[-1])
        except (Exception, SystemExit) as error:  # its classes raise whatever; some end the process
            raise PairError(f"MLX cannot load {source.model}: {first_line(error)}") from error
        self._limit = self._exact_length()

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.source)

    @cached_property
    def facts(self) -> Facts:
        from mlx.utils import tree_flatten

        text = self._config.get("text_config", self._config)
        quantization = text.get("quantization") or self._config.get("quantization")
        weights = [array for _, array in tree_flatten(self.model.parameters())]
        return Facts(
            parameters=_parameters(self.model),
            context_length=min(filter(None, (text.get("max_position_embeddings"), self._limit)), default=None),
            engine="mlx",
            weight_bytes=sum(array.nbytes for array in weights),
            weights=f"{quantization['bits']} bits" if quantization else str(weights[0].dtype).removeprefix("mlx.core."),
            soft_cap=soft_cap_of(text),
        )

    @cached_property
    def generation_config(self) -> GenerationConfig:
        return load_generation_config(self.source) or GenerationConfig.from_model_config(load_config(self.source))

    def _exact_length(self) -> int | None:
        """Up to which length MLX gives what the model's configuration says. None: every length.

        Raises:
            PairError: at no length.
        """
        name = self._config["model_type"]
        if name in OTHERWISE:
            raise PairError(f"MLX does not run {self.source.model} as it was trained: {OTHERWISE[name]}.")
        try:
            text = load_config(self.source).get_text_config()
        except PairError:
            return None  # Transformers does not know it
        rope, window = getattr(text, "rope_parameters", None) or {}, getattr(text, "sliding_window", None)
        usual, args = type(text)(), getattr(self.model, "args", None)
        unread = [
            f"{name} {getattr(text, name)}"
            for name in ("hidden_act", "hidden_activation")
            if getattr(text, name, None) != getattr(usual, name, None) and not hasattr(args, name)
        ]
        unread += ["attention_factor"] if rope.get("attention_factor") and rope["rope_type"] == "yarn" else []
        limits = [rope_turns(text, "longrope")]
        kinds = getattr(text, "layer_types", None) or ["sliding_attention"] * text.num_hidden_layers
        ours = [_window(layer) for layer in self.new_cache()]
        theirs = [window if kind == "sliding_attention" else None for kind in kinds]
        if any(theirs) and not any(ours):
            limits.append(window)
        elif theirs != ours if len(theirs) == len(ours) else {*theirs} != {*ours}:
            unread.append("which layers have sliding windows")
        if unread:
            raise PairError(
                f"MLX does not run {self.source.model} as its config.json says, which has {', '.join(unread)}. Use the "
                "Transformers engine."
            )
        return min(filter(None, limits), default=None)

    def scorer(self, vocab_size: int, device: torch.device) -> Scorer:
        scorer = MlxScorer(self, vocab_size, device)
        return scorer if scorer.goes_back else Replay(scorer)

    def new_cache(self) -> list[Any]:
        """An empty cache."""
        cache: list[Any] = self._lib.models.cache.make_prompt_cache(self.model)
        return cache

    def logits(self, ids: Tensor, cache: list[Any], keep: int) -> Tensor:
        """Read ids (n,). Returns logits (keep, rows) in float32."""
        import mlx.core as mx

        rows = self.model(mx.array(ids.tolist())[None], cache=cache)[0, -keep:].astype(mx.float32)
        return torch.from_numpy(np.array(rows))


class MlxScorer:
    """A model with its cache; see `kad.method.scorer.Scorer`. Where the cache forgets, it saves and restores."""

    reversible = True

    def __init__(self, model: MlxModel, vocab_size: int, device: torch.device) -> None:
        self.processed = 0
        self._model, self._vocab, self._device = model, vocab_size, device
        self._cache = model.new_cache()
        self._layers = [part for layer in self._cache for part in getattr(layer, "caches", (layer,))]

    @property
    def goes_back(self) -> bool:
        """Whether all layers can drop tokens. Those with a sliding window or a recurrent state cannot."""
        return all(map(_goes_back, self._layers))

    def advance(self, ids: Tensor, keep: int) -> Tensor:
        logits = self._model.logits(ids, self._cache, keep)
        self.processed += ids.shape[0]
        return trim(logits, self._vocab).to(self._device)

    def rollback(self, length: int) -> None:
        if length < self.processed:
            self.restore((length, [None] * len(self._layers)))

    def save(self) -> Any:
        """See `kad.method.replay`. Arrays of MLX are not copied until one of the two changes."""
        return self.processed, [None if _goes_back(layer) else deepcopy(vars(layer)) for layer in self._layers]

    def restore(self, saved: Any) -> None:
        """See `kad.method.replay`."""
        length, states = saved
        for layer, state in zip(self._layers, states, strict=True):
            if state is None:
                layer.trim(self.processed - length)
            else:
                vars(layer).update(deepcopy(state))
        self.processed = length

    def release(self) -> None:
        """A cache has no state to put back."""


def _read(place: Path) -> dict[str, Any]:
    """A folder's configuration, with the rotary settings also where Transformers 4 had them, as mlx-lm reads them.

    Of two lists of factors, for short and for long texts, mlx-lm takes the long ones for all texts. It gets the short
    ones; see `MlxModel._exact_length`.
    """
    plain: dict[str, Any] = library().utils.load_config(place)
    for part in (plain, *(value for value in plain.values() if isinstance(value, dict))):
        for scaling in (part.get("rope_parameters"), part.get("rope_scaling")):
            if scaling and "short_factor" in scaling:
                scaling["long_factor"] = scaling["short_factor"]
        rope = part.get("rope_parameters") or {}
        local = rope.get("sliding_attention") or {}
        rope = rope.get("full_attention", rope)
        known = {
            **{name: rope.get("rope_theta") for name in ("rope_theta", "rotary_emb_base")},
            **{name: rope.get("partial_rotary_factor") for name in ("partial_rotary_factor", "rotary_pct")},
            "rope_local_base_freq": local.get("rope_theta"),
            "rope_scaling": rope | {"type": kind} if (kind := rope.get("rope_type", "default")) != "default" else None,
        }
        part |= {name: value for name, value in known.items() if value is not None} | part
    return plain


def _window(layer: Any) -> int | None:
    return next((part.max_size for part in getattr(layer, "caches", (layer,)) if hasattr(part, "max_size")), None)


def _goes_back(layer: Any) -> bool:
    return type(layer) is library().models.cache.KVCache


def _parameters(model: Any) -> int:
    """The number of weights. Quantized ones are packed into words of 32 bits."""
    import mlx.core as mx

    count = 0
    for _, module in model.named_modules():
        bits = getattr(module, "bits", None)
        for name, array in module.items():
            if isinstance(array, mx.array) and (not bits or name == "weight"):
                count += array.size * 32 // bits if bits else array.size
    return count


def _snapshot(source: Source) -> Path:
    from huggingface_hub import snapshot_download

    place = {key: source.kwargs[key] for key in ("cache_dir", "local_files_only", "token") if key in source.kwargs}
    try:
        return Path(snapshot_download(source.model, revision=source.revision, **place))
    except (OSError, ValueError) as error:
        raise PairError(f"Cannot get {source.model}: {first_line(error)}") from error
