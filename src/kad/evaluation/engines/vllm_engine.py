"""The vLLM engine: whole batches, a seed for each request, and speculation in vLLM's own loop.

All rules of a run share one engine, because kad's plugin takes the rule with the request. A model alone needs its own
engine, and so does each number of drafts. One engine exists at a time.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kad.errors import UsageError, missing_extra
from kad.evaluation.engines.engine import Completion, Request
from kad.evaluation.engines.models import speaker
from kad.evaluation.methods import Method
from kad.evaluation.tasks.task import Continuation, Renderer, chat_renderer
from kad.loading import load_generation_config, load_tokenizer
from kad.pairs import pack
from kad.sources import Source


class VllmEngine:
    """See `Engine`. Diagnostics need both models' logits at every position, which vLLM does not give out.

    Args:
        sources: the models by role, oracles by their method's name.
        deferral_temperature: of the compositions.
        dtype: of all models, "auto" as stored.
        arguments: more arguments of `vllm.LLM`.

    Raises:
        MissingExtraError: vLLM is not installed in this environment.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        deferral_temperature: float = 1.0,
        dtype: str = "auto",
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self._llm_class, self._params_class, defaults = _vllm()
        self._sources = dict(sources)
        self._deferral_temperature = deferral_temperature
        self._arguments = {"dtype": dtype, **defaults, **(arguments or {})}
        self._folder = tempfile.TemporaryDirectory(prefix="kad-eval-")
        self._engine: tuple[str, Any] | None = None
        self._tokenizers: dict[str, Any] = {}

    def renderer(self, method: Method) -> Renderer:
        """See `Engine`."""
        return chat_renderer(self._tokenizer(method))

    def release(self, keep: Collection[str]) -> None:
        """See `Engine`. The engine is closed when another one is needed, or when none is needed any more."""
        if not keep:
            self._shut_down()

    def batch_size(self, method: Method, wanted: int) -> int:
        """See `Engine`."""
        return wanted

    def generate(self, method: Method, requests: Sequence[Request]) -> list[Completion]:
        """See `Engine`. The first completion has the speculation counts of the whole batch."""
        llm, tokenizer = self._llm(method), self._tokenizer(method)
        prompts = [
            {"prompt_token_ids": tokenizer(request.prompt, add_special_tokens=False)["input_ids"]}
            for request in requests
        ]
        params = [self._params(method, request) for request in requests]
        before, start = _Counters.of(llm), time.perf_counter()
        answers = llm.generate(prompts, params, use_tqdm=False)
        share = (time.perf_counter() - start) / len(requests)
        completions = [_completion(answer, tokenizer, share) for answer in answers]
        if method.speculation is not None:
            completions[0] = replace(completions[0], **(_Counters.of(llm) - before).fields())
        return completions

    def log_likelihoods(self, method: Method, continuations: Sequence[Continuation]) -> list[tuple[float, bool]]:
        """See `Engine`."""
        raise UsageError("tasks that score options by their log-likelihood need --engine transformers")

    def _tokenizer(self, method: Method) -> Any:
        role = speaker(method, self._sources)
        if role not in self._tokenizers:
            self._tokenizers[role] = load_tokenizer(self._sources[role])
        return self._tokenizers[role]

    def _params(self, method: Method, request: Request) -> Any:
        role = speaker(method, self._sources)
        return self._params_class(
            temperature=request.temperature,
            max_tokens=request.max_new_tokens,
            seed=request.seed,
            stop=list(request.until),
            stop_token_ids=_ends(self._sources[role], self._tokenizer(method)),
            extra_args=None if method.rule is None else {"rule": str(method.rule)},
        )

    def _llm(self, method: Method) -> Any:
        """The engine that the method needs, started if it is not the one that runs."""
        arguments = self._engine_arguments(method)
        key = repr(sorted(arguments.items(), key=lambda item: item[0]))
        if self._engine is None or self._engine[0] != key:
            self._shut_down()
            self._engine = (key, self._start(method, arguments))
        return self._engine[1]

    def _start(self, method: Method, arguments: Mapping[str, Any]) -> Any:
        try:
            return self._llm_class(**arguments)
        except (TypeError, ValueError, RuntimeError, OSError) as error:
            raise UsageError(
                f"vLLM starts no engine for {method.name}: {error}\nWhere it lacks memory on a CPU, "
                "VLLM_CPU_KVCACHE_SPACE=2 in the environment gives its KV cache 2 GiB and asks for no more."
            ) from error

    def _engine_arguments(self, method: Method) -> dict[str, Any]:
        if method.rule is None:
            source = self._sources[method.name]
            tokenizer = self._sources[speaker(method, self._sources)]
            place = {"model": source.model, "revision": source.revision, "tokenizer": tokenizer.model}
            return {**self._arguments, **place}
        arguments = {**self._arguments, "model": str(self._pair())}
        if method.speculation is None:
            return arguments
        if not isinstance(method.speculation.num_draft_tokens, int):
            raise UsageError("vLLM drafts a fixed number of tokens: give num_draft_tokens a number, not auto")
        draft = self._sources[method.speculation.draft]
        return {
            **arguments,
            "speculative_config": {
                "method": "draft_model",
                "model": draft.model,
                "num_speculative_tokens": method.speculation.num_draft_tokens,
                # Without it vLLM drafts greedily and accepts less.
                "draft_sample_method": "probabilistic",
            },
        }

    def _pair(self) -> Path:
        """The pair as a folder for vLLM to load; its own rule is never used, every request brings one."""
        folder = Path(self._folder.name) / "pair"
        if not folder.exists():
            parts = {role: ref for role, ref in self._sources.items() if role in ("base", "aligned", "reference")}
            pack(parts, folder, rule="base_only", deferral_temperature=self._deferral_temperature)
        return folder

    def _shut_down(self) -> None:
        if self._engine is not None:
            self._engine[1].llm_engine.engine_core.shutdown()
            self._engine = None


def _vllm() -> tuple[Any, Any, dict[str, Any]]:
    """vLLM's LLM and SamplingParams, and the arguments of every engine.

    vLLM logs a lot to standard output, where the report goes. Here it logs errors only, to standard error, unless its
    own variables say otherwise. On a CPU the engine runs eagerly in this process: a run starts several engines, and a
    process and compilation cost more time than the answers of a small model.

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


def _completion(answer: Any, tokenizer: Any, seconds: float) -> Completion:
    (output,) = answer.outputs
    return Completion(
        text=tokenizer.decode(list(output.token_ids), skip_special_tokens=True),
        prompt_tokens=len(answer.prompt_token_ids),
        tokens=len(output.token_ids),
        finished=output.finish_reason == "stop",
        seconds=seconds,
    )


@dataclass(frozen=True)
class _Counters:
    """vLLM's counts of speculation: windows, drafted tokens, accepted tokens, and for each position how many windows
    reached it."""

    windows: int
    drafted: int
    accepted: int
    reached: tuple[int, ...]

    @classmethod
    def of(cls, llm: Any) -> _Counters:
        """Since the engine started."""
        found: dict[str, Any] = {m.name: getattr(m, "value", getattr(m, "values", 0)) for m in llm.get_metrics()}
        names = ("drafts", "draft_tokens", "accepted_tokens")
        windows, drafted, accepted = (int(found.get(f"vllm:spec_decode_num_{name}", 0)) for name in names)
        reached = found.get("vllm:spec_decode_num_accepted_tokens_per_pos", ())
        return cls(windows, drafted, accepted, tuple(int(count) for count in reached))

    def __sub__(self, other: _Counters) -> _Counters:
        earlier = other.reached or (0,) * len(self.reached)
        reached = tuple(now - then for now, then in zip(self.reached, earlier, strict=True))
        return _Counters(
            self.windows - other.windows, self.drafted - other.drafted, self.accepted - other.accepted, reached
        )

    def fields(self) -> dict[str, Any]:
        """As the fields of a `Completion`: a window that reached position k and not k + 1 accepted k drafts."""
        steps = (self.windows, *self.reached, 0)
        lengths = {str(length): steps[length] - steps[length + 1] for length in range(len(steps) - 1)}
        histogram = {length: count for length, count in lengths.items() if count}
        return {"drafted": self.drafted, "accepted": self.accepted, "acceptance_lengths": histogram}


def _ends(source: Source, tokenizer: Any) -> list[int]:
    """The tokens that end a text: the tokenizer's, and those of the model's generation settings."""
    config = load_generation_config(source)
    named: Iterable[int | None] = [] if config is None else _as_list(config.eos_token_id)
    return sorted({token for token in (*named, tokenizer.eos_token_id) if token is not None})


def _as_list(value: Any) -> list[int | None]:
    return value if isinstance(value, list) else [value]
