"""The vLLM engine of an evaluation: whole batches, a seed for each request, and speculation in vLLM's own loop.

All rules of a run share one engine. A model alone needs its own. One engine exists at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from transformers import GenerationConfig

from kad.engines.vllm.host import check_installed
from kad.engines.vllm.model import VllmModel
from kad.engines.vllm.pair import VllmPair
from kad.errors import UsageError
from kad.evaluation.engines.engine import Completion, SampleRequest, sampling_of
from kad.evaluation.engines.models import settings_of, speaker
from kad.evaluation.methods import Method
from kad.evaluation.tasks.task import Continuation, Renderer, chat_renderer
from kad.pair.model_files import load_tokenizer
from kad.pair.sources import Source
from kad.text.batch import generate_all
from kad.text.prompts import text_ids


class VllmEngine:
    """See `Engine`.

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
        check_installed()
        self._sources = dict(sources)
        self._deferral_temperature = deferral_temperature
        self._options = {"dtype": dtype, **(arguments or {})}
        self._running: tuple[str, VllmModel] | None = None
        self._tokenizers: dict[str, Any] = {}

    def renderer(self, method: Method) -> Renderer:
        """See `Engine`."""
        return chat_renderer(self._tokenizer(method))

    def release(self, keep: Collection[str]) -> None:
        """See `Engine`. The engine is closed when another one is needed, or when none is needed any more."""
        if not keep and self._running is not None:
            self._running[1].close()
            self._running = None

    def batch_size(self, method: Method, wanted: int) -> int:
        """See `Engine`."""
        return wanted

    def generate(self, method: Method, requests: Sequence[SampleRequest]) -> list[Completion]:
        """See `Engine`. The first completion has the speculation counts of the whole batch."""
        model, tokenizer, way = self._model(method), self._tokenizer(method), method.speculation
        model.generation_config = settings_of(method, self._sources, tokenizer)
        with model.using(method.rule) if isinstance(model, VllmPair) else nullcontext():
            answers = generate_all(
                model,
                tokenizer,
                [text_ids(tokenizer, request.prompt) for request in requests],
                sampling=sampling_of(requests[0]),
                seeds=[request.seed for request in requests],
                num_draft_tokens=0 if way is None else way.num_draft_tokens,
                drafter="aligned" if way is None else way.draft,
            )
        return [Completion.of(answer) for answer in answers]

    def log_likelihoods(self, method: Method, continuations: Sequence[Continuation]) -> list[tuple[float, bool]]:
        """See `Engine`."""
        raise UsageError("vLLM cannot score options by their log-likelihood. Use another engine.")

    def _tokenizer(self, method: Method) -> Any:
        role = speaker(method, self._sources)
        if role not in self._tokenizers:
            self._tokenizers[role] = load_tokenizer(self._sources[role])
        return self._tokenizers[role]

    def _model(self, method: Method) -> VllmModel:
        name = method.name if method.rule is None else "pair"
        if self._running is None or self._running[0] != name:
            self.release(())
            self._running = (name, self._load(method))
        return self._running[1]

    def _load(self, method: Method) -> VllmModel:
        if method.rule is None:
            place, speaks = self._sources[method.name], self._sources[speaker(method, self._sources)]
            options = {**self._options, "revision": place.revision, "tokenizer": speaks.model}
            return VllmModel(place.model, self._tokenizer(method), GenerationConfig(), options)
        parts = {role: source for role, source in self._sources.items() if role in ("base", "aligned", "reference")}
        # Its own rule is never used: every request brings one.
        return VllmPair(
            sources=parts, rule="base_only", deferral_temperature=self._deferral_temperature, options=self._options
        )
