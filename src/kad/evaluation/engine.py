"""Who answers in an evaluation: prompts in, completions out, with any engine of `kad.engines`.

Models are loaded when a method first needs them, and released when no later method does. A method is a pair: the pair
of the run under a rule, or one of its models (or an oracle) by itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig

from kad.engines.load import engines_of, load_one
from kad.engines.pair import Pair, vocabulary_of
from kad.errors import OptionError, UsageError
from kad.evaluation.methods import Method
from kad.evaluation.tasks.task import Continuation, Renderer, chat_renderer
from kad.method.composition import compose, in_order
from kad.pair.base_prompt import BUILT_IN, BasePrompt
from kad.pair.config import KadConfig
from kad.pair.folder import vocabulary_in_files
from kad.pair.model_files import load_config, load_generation_config, load_tokenizer
from kad.pair.sources import ROLES, Source
from kad.text.batch import generate_all
from kad.text.contexts import Context, default_base_prompt, own_context
from kad.text.ends import before_stop
from kad.text.prompts import encode_plain, pieces, start_token, tokenized
from kad.text.sampling import Sampling, end_tokens
from kad.text.scoring import logits_of, score_tokens
from kad.tokens.vocabulary import OWN, TokenMap, foreign_ids

if TYPE_CHECKING:
    from kad.engines.protocols import Model
    from kad.text.answer import Answer


@dataclass(frozen=True)
class SampleRequest:
    """One sample to draw. Each sample has its own seed, so its text does not depend on the batch."""

    prompt: str
    seed: int
    max_new_tokens: int
    temperature: float
    until: tuple[str, ...] = ()
    conversation: tuple[dict[str, str], ...] = ()

    @property
    def sampling(self) -> Sampling:
        """Nothing but the temperature acts on log pi."""
        head: dict[str, Any] = {"top_k": 0, "top_p": 1.0} if self.temperature > 0 else {}
        return Sampling(
            max_new_tokens=self.max_new_tokens, temperature=self.temperature, seed=self.seed, stop=self.until, **head
        )


@dataclass(frozen=True)
class Completion:
    """One sample drawn.

    `seconds` is its share of the wall time, so that summed tokens over summed seconds is the throughput;
    `finished` says that the model ended it, not the limit. `drafted`, `accepted` and `acceptance_lengths`
    (accepted drafts -> windows) come from speculation, `deferred_mass` and `acceptance` are means
    over the generated positions. `origins` are stretches of `text`, [characters, share of the base model], which may
    reach beyond its end; None where it is not known.
    """

    text: str
    prompt_tokens: int
    tokens: int
    finished: bool
    seconds: float
    drafted: int | None = None
    accepted: int | None = None
    acceptance_lengths: dict[str, int] = field(default_factory=dict)
    deferred_mass: float | None = None
    acceptance: float | None = None
    origins: list[tuple[int, float]] | None = None


class Engine:
    """Runs methods.

    Args:
        sources: where the models are, by role: base, aligned, reference, what a method names by the method's name, and
            "pair", where the pair lies.
        deferral_temperature: divides the logits of every model, in compositions and alone.
        options: how to load every model (dtype, device_map, ...), see `kad.pair.sources.MODEL_KWARGS`.
        device: where to put models that were loaded without a device map.
        base_prompt: how the base model is asked. None: as the aligned model, or by `qa` if it has a tokenizer of
            its own.
        engine: what runs the models, see `kad.load`.
        engine_options: see `kad.load`.
        diagnostics: whether to measure deferred mass and acceptance, in one forward pass more for each sample.

    Raises:
        OptionError: an engine that does not run one of the models, or options that none of them takes.
        MissingExtraError: an engine that is not installed.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        *,
        deferral_temperature: float = 1.0,
        options: Mapping[str, Any] | None = None,
        device: str = "cpu",
        base_prompt: BasePrompt | None = None,
        engine: str = "auto",
        engine_options: Mapping[str, Any] | None = None,
        diagnostics: bool = True,
    ) -> None:
        self.sources, self.base_prompt, self.diagnostics = dict(sources), base_prompt, diagnostics
        self._deferral_temperature, self._device = deferral_temperature, device
        self._options, self._engine_options = dict(options or {}), dict(engine_options or {})
        self._asked, self._whole = engine, engine == "vllm"
        self._engines = {} if self._whole else engines_of(sources, engine)
        if self._whole:
            from kad.engines.vllm.host import check_installed

            if base_prompt is not None:
                raise UsageError("vLLM gives all models one prompt: a base prompt needs another engine.")
            check_installed()
        elif engine_options and "llama_cpp" not in self._engines.values():
            raise OptionError("`engine_options` are for models that llama.cpp or vLLM runs, and this run has none.")
        self._models: dict[str, Model] = {}
        self._tokenizers: dict[str, Any] = {}
        self._pair: tuple[object, Pair] | None = None

    def renderer(self, method: Method) -> Renderer:
        """The chat template of the method's prompts. A base model alone may be asked in a way of its own."""
        own = self._own_prompt(method)
        if method.by_template:
            self._check_template(method)
        if own is not None:
            return lambda conversation: own.render(conversation).rstrip(" ")
        return chat_renderer(self.tokenizer(method))

    def batch_size(self, method: Method, limit: int) -> int:
        """How many requests the method takes at once, at most `limit`.

        Texts that accept different numbers of drafts cannot share a cache, and llama.cpp and MLX take one at a time. A
        server is asked for many at the same time.
        """
        if self._engines.get("base") == "remote" and "base" in method.needs:
            return limit
        many = method.speculation is None and set(self._engines.values()) <= {"transformers"}
        return limit if self._whole or many else 1

    def generate(self, method: Method, requests: Sequence[SampleRequest]) -> list[Completion]:
        """One completion for each request, in their order. All share `max_new_tokens` and `temperature`.

        In vLLM the first one has the counts of speculation of all.
        """
        pair, tokenizer, own = self.pair(method), self.tokenizer(method), self._own_prompt(method)
        if own is not None:
            prompts = [Context(encode_plain(tokenizer, request.prompt)) for request in requests]
            requests = [replace(request, until=(*request.until, *own.stops)) for request in requests]
        else:
            prompts = [self._context(pair, tokenizer, request) for request in requests]
        speculation, sampling = method.speculation, requests[0].sampling
        if method.rule is None and sampling.temperature:
            # One model: to divide by one temperature, then by the other, is to divide by both.
            sampling = replace(sampling, temperature=sampling.temperature * self._deferral_temperature)
        with pair.using(method.rule):
            answers = generate_all(
                pair,
                tokenizer,
                prompts,
                sampling=sampling,
                seeds=[request.seed for request in requests],
                batch_size=len(requests),
                num_draft_tokens=0 if speculation is None else speculation.num_draft_tokens,
                drafter="aligned" if speculation is None else speculation.draft,
            )
            return [self._completion(pair, answer, () if own is None else own.stops) for answer in answers]

    def log_likelihoods(self, method: Method, continuations: Sequence[Continuation]) -> list[tuple[float, bool]]:
        """For each continuation its log-probability after its context, and whether greedy decoding says just it."""
        if self._whole:
            raise UsageError("vLLM cannot score options by their log-likelihood. Use another engine.")
        pair, tokenizer = self.pair(method), self.tokenizer(method)
        with pair.using(method.rule, self._deferral_temperature):
            return [_log_likelihood(pair, *_split(tokenizer, *continuation)) for continuation in continuations]

    def release(self, keep: Collection[str]) -> None:
        """Let go of every model whose role is not in `keep`. vLLM closes when no model is needed any more."""
        if self._whole:
            if not keep:
                self._close()
            return
        self._pair = None
        self._models = {role: model for role, model in self._models.items() if role in keep}
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def tokenizer(self, method: Method) -> Any:
        """The tokenizer of the method's prompts."""
        role = self._speaker(method)
        if role == "pair" and self._engines.get("aligned") == "llama_cpp":
            role = "aligned"  # a GGUF file has its own
        return self._tokenizer_of(role)

    def pair(self, method: Method) -> Pair:
        """The pair that the method decodes with, its generation settings cleared of all but the ends of a text."""
        key = method.needs if method.rule is not None and not self._whole else (method.rule is None and method.name)
        if self._pair is None or self._pair[0] != key:
            self._close()
            self._pair = (key, self._vllm_pair(method) if self._whole else self._pair_of(method))
        pair = self._pair[1]
        pair.tokenizer = self.tokenizer(method)
        pair.generation_config = self._ends(method, pair.tokenizer)
        return pair

    def model(self, role: str) -> Model:
        """One model, loaded if it is not yet."""
        if role not in self._models:
            source = self._source(role)
            self._models[role] = load_one(
                source, self._asked, device=self._device, engine_options=self._engine_options, **self._options
            )
        return self._models[role]

    def _pair_of(self, method: Method) -> Pair:
        if method.rule is None:
            return Pair.one(self.model(*method.needs))
        config = KadConfig(rule=str(method.rule), deferral_temperature=self._deferral_temperature)
        return Pair(config, {role: self.model(role) for role in ROLES if role in method.needs})

    def _vllm_pair(self, method: Method) -> Pair:
        from kad.engines.vllm.model import VllmOne, VllmPair

        options = {"dtype": self._options.get("dtype", "auto"), **self._engine_options}
        if method.rule is None:
            source, speaker = self.sources[next(iter(method.needs))], self.sources[self._speaker(method)]
            return VllmOne(source.model, {**options, "revision": source.revision, "tokenizer": speaker.model})
        parts = {role: self.sources[role] for role in ROLES if role in self.sources}
        # Its own rule is never used: every request brings one.
        config = KadConfig(**parts, rule="base_only", deferral_temperature=self._deferral_temperature)
        return VllmPair(config, options)

    def _close(self) -> None:
        """End the engine of vLLM, if one runs. One exists at a time."""
        if self._pair is not None and self._pair[1].whole is not None:
            self._pair[1].whole.close()
        self._pair = None

    def _source(self, role: str) -> Source:
        if role not in self.sources:
            raise UsageError(f"A method needs the {role} model, and none is given. Give one with --{role} MODEL.")
        return self.sources[role]

    def _speaker(self, method: Method) -> str:
        """The role whose tokenizer, chat template and ends of a text the method uses.

        An oracle uses its own, a base model alone may be asked by that of another model or in a way of its own. Other
        methods use the pair's, if there is a pair, else the aligned model's.
        """
        if method.model is not None or self._own_prompt(method) is not None:
            return method.name
        return "pair" if "pair" in self.sources else "aligned"

    def _tokenizer_of(self, role: str) -> Any:
        if self._engines.get(role) == "llama_cpp":
            return self.model(role).tokenizer
        if role not in self._tokenizers:
            self._tokenizers[role] = load_tokenizer(self._source(role))
        return self._tokenizers[role]

    def _check_template(self, method: Method) -> None:
        """Raise VocabularyError if the base model cannot read what another model's tokenizer writes."""
        base, template = (TokenMap.of(self._tokenizer_of(role)) for role in ("base", method.name))
        rows = int(load_config(self._source("base")).get_text_config().vocab_size)
        foreign_ids(base, template, (rows, rows), ("base", "named"))

    def _own_prompt(self, method: Method) -> BasePrompt | None:
        """How a base model alone is asked. None: as the aligned model, or the method is another one."""
        if method.role != "base" or method.by_template:
            return None
        return self.base_prompt or (BUILT_IN["qa"] if self._own_tokenizer else None)

    @cached_property
    def _own_tokenizer(self) -> bool:
        """Whether the base model has another tokenizer than the aligned model."""
        roles = ("base", "aligned")
        if self._whole or not self.sources.keys() >= set(roles):
            return False
        if "llama_cpp" in (self._engines[role] for role in roles):
            return vocabulary_of({role: self.model(role) for role in roles}).base_tokenizer == OWN
        return vocabulary_in_files({role: self.sources[role] for role in roles}).base_tokenizer == OWN

    def _ends(self, method: Method, tokenizer: Any) -> GenerationConfig:
        """Ends of a text, and nothing else: top-p, penalties and the like of a model's file would not be the method's.

        A base model alone also ends where the aligned model would: it sees the aligned model's chat. Asked by the
        template of a model that its method names, it ends by its own end tokens alone.
        """
        roles = {self._speaker(method), *(method.needs if method.rule is None else ())}
        if method.by_template:
            tokenizer, roles = self._tokenizer_of("base"), {"base"}
        ends = {tokenizer.eos_token_id}
        for role in roles:
            gguf = self._engines.get(role) == "llama_cpp"
            config = self.model(role).generation_config if gguf else load_generation_config(self._source(role))
            ends.update(end_tokens(config) if config is not None else ())
        eos = sorted(token for token in ends if token is not None)
        return GenerationConfig(eos_token_id=eos, pad_token_id=tokenizer.pad_token_id)

    def _context(self, pair: Pair, tokenizer: Any, request: SampleRequest) -> Context:
        # The template has already written all special tokens.
        ids = tokenized(tokenizer, request.prompt, add_special_tokens=False)
        if self._whole:
            return Context(ids)
        own = None if pair.is_one else self.base_prompt or default_base_prompt(pair)
        if own is not None:
            return own_context(pair, ids, own, request.conversation)
        return Context.of(ids, pair).with_parts(pair, request.conversation)

    def _completion(self, pair: Pair, answer: Answer, stops: Sequence[str]) -> Completion:
        measures: dict[str, Any] = {}
        if answer.statistics is not None:
            counts = answer.statistics
            lengths = {str(length): count for length, count in sorted(counts.lengths.items())}
            measures = {"drafted": counts.drafted, "accepted": counts.accepted, "acceptance_lengths": lengths}
        if self.diagnostics and answer.token_ids and not (pair.is_one or self._whole):
            score = score_tokens(pair, answer.prompt, answer.token_ids, pair.composition)
            measures["acceptance"] = float(score.acceptance.mean())
            if score.deferred_mass is not None:
                measures["deferred_mass"] = float(score.deferred_mass.mean())
            if score.base_share is not None:
                measures["origins"] = _stretches(pieces(pair.tokenizer, answer.token_ids), score.base_share.tolist())
        return Completion(
            text=before_stop(answer.text, stops, answer.finish_reason == "stop_string"),
            prompt_tokens=len(answer.prompt_ids),
            tokens=len(answer.token_ids),
            finished=answer.finished,
            seconds=answer.seconds,
            **measures,
        )


def _stretches(texts: Sequence[str], shares: Sequence[float]) -> list[tuple[int, float]]:
    """Lengths and shares of the pieces of a text; neighbors of equal share are one stretch."""
    lengths = [(len(text), round(share, 3)) for text, share in zip(texts, shares, strict=True) if text]
    return [(sum(length for length, _ in same), share) for share, same in groupby(lengths, key=itemgetter(1))]


def _split(tokenizer: Any, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """The token ids of both, where lm-eval puts the border: a space between them belongs to the continuation."""
    bare = context.rstrip()
    whole = tokenized(tokenizer, context + continuation, add_special_tokens=False)
    before = len(tokenized(tokenizer, bare, add_special_tokens=False))
    if before:
        return whole[:before], whole[before:]
    return [start_token(tokenizer)], whole


@torch.no_grad()
def _log_likelihood(pair: Pair, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """A pair is a language model whose logits are log pi."""
    if not continuation:
        raise UsageError("An option of a question has no token; each option needs some text.")
    prompt = Context.of(context, pair)
    composition = pair.composition
    chunks = logits_of(pair, prompt, continuation, composition=composition)
    log_pi = torch.cat([compose(composition, *in_order(chunk.logits)) for chunk in chunks])
    at = torch.tensor(continuation, device=log_pi.device)
    log_likelihood = log_pi.gather(-1, at.unsqueeze(-1)).double().sum()
    return float(log_likelihood), bool((log_pi.argmax(dim=-1) == at).all())
