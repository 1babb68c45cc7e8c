"""The vLLM engine: it runs whole generations, many at once, in vLLM's own loop.

vLLM takes the rule with each request, so one engine serves all rules of a pair. The number of drafts belongs to the
engine: another number starts it again. What vLLM itself does with a pair stands in `kad.engines.vllm.plugin`.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from kad.engines.pair import Pair
from kad.engines.protocols import Ask, DraftCounts, Emission
from kad.errors import LogitsError, OptionError, UsageError, missing_extra
from kad.method.composition import Composition, RuleLike
from kad.pair.config import KadConfig
from kad.pair.folder import generation_config, pack
from kad.pair.model_files import load_config, soft_cap_of, tokenizer_of
from kad.pair.parts import read_config, refuse_pairs
from kad.pair.sources import Source

_REASONS = {"stop": "stop", "length": "length", "abort": "interrupted"}


class VllmModel:
    """A model that vLLM runs. Its engine starts at the first answer. See `kad.engines.protocols.WholeModel`.

    Attributes:
        followed: the settings of Transformers that vLLM has.

    Args:
        place: the folder or hub id of the model, or of a pair.
        options: more arguments of `vllm.LLM`.
        drafters: the models that can draft, by role.

    Raises:
        MissingExtraError: vLLM is not installed in this environment.
    """

    followed = frozenset({
        "max_length", "max_new_tokens", "min_new_tokens", "stop_strings", "do_sample", "num_beams", "temperature",
        "top_k", "top_p", "min_p", "repetition_penalty", "pad_token_id", "bos_token_id", "eos_token_id",
    })  # fmt: skip

    def __init__(
        self,
        place: str,
        options: Mapping[str, Any] | None = None,
        drafters: Mapping[str, Source] | None = None,
    ) -> None:
        self._llm_class, self._params_class, defaults = _vllm()
        self._arguments = {**defaults, **(options or {}), "model": place}
        self._drafters = dict(drafters or {})
        self._llm: Any = None
        self._drafts: tuple[int, str] = (0, "aligned")
        self._counted = DraftCounts()
        self._numbers = count()
        self._arrived: dict[str, deque[Any]] = {}

    @property
    def draft_tokens(self) -> int:
        return self._drafts[0]

    @property
    def context_length(self) -> int | None:
        return self._arguments.get("max_model_len")

    def batch(self, asks: Sequence[Ask], draft_tokens: int = 0, drafter: str = "aligned") -> Iterator[Emission]:
        """Other drafts, or another drafter, start the engine anew."""
        engine = self._started(draft_tokens, drafter).llm_engine
        names = {f"kad-{next(self._numbers)}": index for index in range(len(asks))}
        try:
            for name, index in names.items():
                self._arrived[name] = deque()
                self._add(engine, name, asks[index])
            while names:
                if not any(self._arrived[name] for name in names):
                    for output in engine.step():
                        if output.request_id in self._arrived:
                            self._arrived[output.request_id].append(output)
                for name, index in list(names.items()):
                    while self._arrived[name]:
                        emission = _emission(index, self._arrived[name].popleft())
                        if emission.finish_reason is not None:
                            del names[name]
                        yield emission
                    if name not in names:
                        del self._arrived[name]
        finally:
            engine.abort_request([name for name in names if self._arrived.pop(name, None) is not None])

    def draft_counts(self) -> DraftCounts:
        if self._llm is None:
            return self._counted
        values = ((m.name, getattr(m, "value", getattr(m, "values", 0))) for m in self._llm.get_metrics())
        metrics: dict[str, Any] = dict(values)
        windows = int(metrics.get("vllm:spec_decode_num_drafts", 0))
        # For each position, how many windows reached it: those that reached k and not k + 1 accepted k drafts.
        reached = [windows, *map(int, metrics.get("vllm:spec_decode_num_accepted_tokens_per_pos", ())), 0]
        lengths = Counter({k: reached[k] - reached[k + 1] for k in range(len(reached) - 1)})
        drafted = int(metrics.get("vllm:spec_decode_num_draft_tokens", 0))
        return DraftCounts(self._counted.drafted + drafted, lengths + Counter(self._counted.lengths))

    def close(self) -> None:
        if self._llm is not None:
            self._counted = self.draft_counts()
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None

    def _started(self, draft_tokens: int, drafter: str) -> Any:
        drafts = (draft_tokens, drafter if draft_tokens else "aligned")
        if self._llm is None or self._drafts != drafts:
            if self._arrived:
                raise UsageError(
                    f"vLLM drafts {self.draft_tokens} tokens in the answers under way. Finish or stop them before you "
                    f"ask for {draft_tokens}."
                )
            self.close()
            try:
                self._llm = self._llm_class(**self._arguments | self._speculation(*drafts))
            except (TypeError, ValueError, RuntimeError, OSError) as error:
                raise UsageError(
                    f"vLLM does not start: {error}\nIf it lacks memory on a CPU: VLLM_CPU_KVCACHE_SPACE=2 in the "
                    "environment gives its KV cache 2 GiB and asks for no more."
                ) from error
            self._drafts = drafts
        return self._llm

    def _speculation(self, draft_tokens: int, drafter: str) -> dict[str, Any]:
        if draft_tokens == 0:
            return {}
        source = self._drafters[drafter]
        # Without "probabilistic", vLLM drafts greedily and accepts less.
        how = {"num_speculative_tokens": draft_tokens, "method": "draft_model", "draft_sample_method": "probabilistic"}
        return {"speculative_config": {**how, "model": source.model, "revision": source.revision}}

    def _add(self, engine: Any, name: str, ask: Ask) -> None:
        from vllm.exceptions import VLLMError

        try:
            engine.add_request(name, {"prompt_token_ids": list(ask.prompt_ids)}, self._params(ask))
        except (VLLMError, ValueError) as error:
            raise UsageError(f"vLLM refuses the request: {error}") from error

    def _params(self, ask: Ask) -> Any:
        from vllm.sampling_params import RequestOutputKind

        config = ask.config
        drawing: dict[str, Any] = {"temperature": 0.0}
        if config.do_sample:
            drawing = {
                "temperature": 1.0 if config.temperature is None else config.temperature,
                "top_k": config.top_k or 0,
                "top_p": config.top_p or 1.0,
                "min_p": config.min_p or 0.0,
                "seed": ask.seed,
            }
        return self._params_class(
            **drawing,
            max_tokens=config.max_new_tokens,
            min_tokens=config.min_new_tokens or 0,
            repetition_penalty=config.repetition_penalty or 1.0,
            stop=list(config.stop_strings or ()),
            include_stop_str_in_output=True,
            stop_token_ids=list(ask.ends),
            ignore_eos=True,
            output_kind=RequestOutputKind.DELTA,
            extra_args=None if ask.composition is None else {"rule": str(ask.composition.rule)},
        )


def _emission(index: int, output: Any) -> Emission:
    (new,) = output.outputs
    if new.finish_reason is None:
        return Emission(index, list(new.token_ids))
    if new.finish_reason not in _REASONS:
        raise LogitsError("vLLM ended an answer with an error: a model's logits hold NaN, or no token is possible.")
    reason = "stop_string" if isinstance(new.stop_reason, str) else _REASONS[new.finish_reason]
    return Emission(index, list(new.token_ids), reason)


def _vllm() -> tuple[Any, Any, dict[str, Any]]:
    """vLLM's LLM and SamplingParams, and the arguments of every engine.

    vLLM logs a lot to standard output, where the answer goes. Here it logs errors only, to standard error, unless its
    own variables say otherwise. On a CPU the engine runs eagerly in this process: a process and compilation cost more
    time than the answers of a small model.

    Raises:
        MissingExtraError: vLLM is not installed.
    """
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        from vllm.platforms import current_platform

        from vllm import LLM, SamplingParams
    except ImportError:
        raise missing_extra("vllm", "vllm") from None
    defaults = {"disable_log_stats": False, "use_tqdm_on_load": False}
    if current_platform.is_cpu():
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        defaults["enforce_eager"] = True
    return LLM, SamplingParams, defaults


class VllmOne(Pair):
    """A single model that vLLM runs; see `VllmModel`."""

    def __init__(self, place: str, options: Mapping[str, Any] | None = None) -> None:
        self.config, self.models = KadConfig(rule="base_only"), {}
        self.generation_config, self.whole = GenerationConfig(), VllmModel(place, options)
        self.own_composition = Composition.of(self.config.parsed_rule)

    @property
    def roles(self) -> Collection[str]:
        return ("aligned",)

    @property
    def context_length(self) -> int | None:
        return None if self.whole is None else self.whole.context_length

    def composed_by(self, rule: RuleLike | None = None, deferral_temperature: float | None = None) -> Composition:
        return self._own


class VllmPair(Pair):
    """A pair that vLLM runs as a whole, ready for `kad.generate` and `kad.stream`; see `kad.load` and `VllmModel`."""

    base_tokenizer: Any = None
    """vLLM refuses a pair with two tokenizers when it starts."""

    def __init__(self, config: KadConfig, options: Mapping[str, Any] | None = None) -> None:
        rule, sources = config.parsed_rule, config.model_sources()
        sources["base"].check_here("vLLM")
        refuse_pairs(sources)
        stored = read_config(config.name_or_path) if config.folder or config.name_or_path else None
        if stored is None or stored.deferral_temperature != config.deferral_temperature:
            # vLLM reads a pair from a folder, and the deferral temperature stands there.
            self._folder = tempfile.TemporaryDirectory(prefix="kad-vllm-")
            place = str(Path(self._folder.name) / "pair")
            pack(sources, place, rule=rule, deferral_temperature=config.deferral_temperature)
            config = read_config(place)
            config.replace(trust_remote_code=any(source.trusted for source in sources.values()))
        self.config, self.models = config, {}
        self.generation_config = generation_config(config, GenerationConfig())
        self.whole = VllmModel(config.name_or_path, options, drafters=sources)
        self.own_composition = Composition.of(rule, config.deferral_temperature)

    @cached_property
    def tokenizer(self) -> Any:
        return tokenizer_of(self.config)

    @property
    def roles(self) -> Collection[str]:
        return self.config.model_sources().keys()

    @property
    def soft_caps(self) -> Mapping[str, float | None]:
        sources = self.config.model_sources()
        return {role: soft_cap_of(load_config(source).get_text_config().to_dict()) for role, source in sources.items()}

    @property
    def context_length(self) -> int | None:
        """The number of positions that all models support, and at most the option `max_model_len`."""
        configs = [load_config(source).get_text_config() for source in self.config.model_sources().values()]
        limits = [getattr(config, "max_position_embeddings", None) for config in configs]
        limits.append(None if self.whole is None else self.whole.context_length)
        return min((int(limit) for limit in limits if limit), default=None)

    def composed_by(self, rule: RuleLike | None = None, deferral_temperature: float | None = None) -> Composition:
        """The rule comes with the request, the temperature with the pair: another one is an OptionError."""
        composition = super().composed_by(rule, deferral_temperature)
        if composition.deferral_temperature != self.config.deferral_temperature:
            raise OptionError(
                f"vLLM runs this pair with `deferral_temperature` {self.config.deferral_temperature}, and "
                f"{composition.deferral_temperature} is asked for. Give it to kad.load."
            )
        return composition

    def needs_logits(self, what: str) -> None:
        raise UsageError(
            f"{what} needs the models' logits, and vLLM runs whole generations. Load the pair with another engine."
        )
