"""How tokens are drawn from log pi: sampling options, which override the aligned model's own settings."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from kad.errors import OptionError, UsageError
from kad.method.defaults import COLDEST, HOTTEST, TEMPERATURES
from kad.options import SEEDS, Option, check_fields

if TYPE_CHECKING:
    from transformers import GenerationConfig, LogitsProcessorList

MAX_NEW_TOKENS = 512
"""The longest answer where neither the caller nor the aligned model's settings say."""
_TOP_K = 50
"""What Transformers takes where settings ask to sample and name no top_k."""
Stops = tuple[str, ...] | list[str] | str
"""A text that ends an answer, or several."""
_DRAWING = ("temperature", "top_k", "top_p", "min_p")


@dataclass(frozen=True)
class Sampling:
    """How to draw tokens. None leaves a setting to the aligned model's generation_config.

    Attributes:
        max_new_tokens: the most tokens to generate.
        temperature: the temperature on log pi. 0 takes the most probable token.
        top_k: draw only from the k most probable tokens.
        top_p: draw only from the smallest set of most probable tokens with this mass.
        min_p: draw only from tokens with at least this share of the largest probability.
        repetition_penalty: makes tokens that already occurred less probable. 1 is off.
        stop: a text that ends an answer, or several. A tuple once it is made.
        seed: the seed of the random numbers. None draws one.

    Raises:
        UsageError: a value out of its range, or other sampling options together with temperature 0.
    """

    PANEL: ClassVar[str] = "Sampling"

    max_new_tokens: Annotated[
        int | None,
        Option(
            "The most tokens to generate.", "N", "-n", allowed=">= 1",
            shown=f"the aligned model's, else {MAX_NEW_TOKENS}",
        ),
    ] = None  # fmt: skip
    temperature: Annotated[
        float | None,
        Option(
            "Temperature on the composed distribution; 0 takes the most probable token.", "T", "-t",
            allowed=f"0 or {TEMPERATURES}",
            shown="the aligned model's",
        ),
    ] = None  # fmt: skip
    top_k: Annotated[int | None, Option("Draw only from the K most probable tokens. 0: all.", "K", allowed=">= 0")] = (
        None
    )
    top_p: Annotated[
        float | None, Option("Draw only from the most probable tokens with a mass of P.", "P", allowed="(0, 1]")
    ] = None
    min_p: Annotated[
        float | None,
        Option("Draw only from tokens at least P times as probable as the top one.", "P", allowed="[0, 1]"),
    ] = None
    repetition_penalty: Annotated[
        float | None, Option("Make tokens that already occurred less probable. 1: off.", "X", allowed="> 0")
    ] = None
    stop: Annotated[Stops, Option("Stop after this text; may be given several times.", "TEXT")] = ()
    seed: Annotated[int | None, Option("Seed of the random numbers.", "N", allowed=SEEDS, shown="random")] = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        check_fields(self)
        if "" in self.stop:
            raise OptionError("`stop` needs some text to stop at.")
        limits = [name for name in _DRAWING[1:] if getattr(self, name) is not None]
        if self.temperature == 0 and limits:
            names = ", ".join(f"`{name}`" for name in limits)
            raise OptionError(f"`temperature` 0 takes the most probable token; {names} would do nothing.")

    def seeded(self) -> Sampling:
        """The same with a seed, drawn if there is none, so that every run can be repeated."""
        return self if self.seed is not None else replace(self, seed=secrets.randbelow(2**32))

    def draws(self, config: GenerationConfig) -> bool:
        """Whether tokens are drawn at random, given the settings of the aligned model."""
        return bool(self._drawing(config)["do_sample"])

    def counts_the_prompt(self, config: GenerationConfig) -> bool:
        """Whether `max_length` of the aligned model's settings, which includes the prompt, is what ends an answer."""
        return bool(config.max_length) and not (self.max_new_tokens or config.max_new_tokens)

    def apply(self, config: GenerationConfig, room: int | None, prompt_tokens: int = 0) -> GenerationConfig:
        """A copy of the aligned model's settings, overridden by these, with at most `room` new tokens.

        Raises:
            UsageError: the settings of the aligned model ask for beam search, which does not emit token by token; or
                the prompt is as long as their `max_length`.
        """
        from transformers import GenerationConfig

        settings = GenerationConfig.from_dict(config.to_dict())
        settings.max_new_tokens = self.max_new_tokens or config.max_new_tokens or MAX_NEW_TOKENS
        if self.counts_the_prompt(config):
            settings.max_new_tokens = config.max_length - prompt_tokens
            if settings.max_new_tokens < 1:
                raise OptionError(
                    f"The prompt has {prompt_tokens} tokens, and the aligned model's settings end a text at max_length "
                    f"{config.max_length}. Give `max_new_tokens`."
                )
        if room is not None:
            settings.max_new_tokens = min(settings.max_new_tokens, room)
        settings.max_length = None
        for name, value in self._drawing(config).items():
            setattr(settings, name, value)
        if self.repetition_penalty is not None:
            settings.repetition_penalty = self.repetition_penalty
        if self.stop:
            settings.stop_strings = list(self.stop)
        if (settings.num_beams or 1) > 1:
            raise UsageError(
                f"The aligned model's settings ask for a search with {settings.num_beams} beams, which emits no token "
                "until its end. Use model.generate(...) of the Transformers engine, or set num_beams to 1."
            )
        return settings

    def _drawing(self, config: GenerationConfig) -> dict[str, Any]:
        options = {name: getattr(self, name) for name in _DRAWING if getattr(self, name) is not None}
        if self.temperature == 0 or not (options or config.do_sample):
            return {"do_sample": False, **dict.fromkeys(_DRAWING)}
        if not config.do_sample:
            # The aligned model's settings are greedy, so options that the user did not give mean plain sampling.
            options = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, **options}
        elif config.top_k is None:
            options = {"top_k": _TOP_K, **options}
        return {"do_sample": True, **options}


def end_tokens(config: GenerationConfig) -> list[int]:
    """The end-of-sequence tokens of some generation settings."""
    tokens = config.eos_token_id
    if tokens is None:
        return []
    return list(tokens) if isinstance(tokens, list | tuple) else [int(tokens)]


def temperature_of(config: GenerationConfig) -> float | None:
    """The temperature of some generation settings. None if they draw nothing."""
    return (config.temperature or 1.0) if config.do_sample else None


# The settings that kad follows, here or elsewhere; and those that change no text (how fast, what is returned), or only
# texts of beams and of encoder-decoders. Whatever else Transformers knows is refused where it is set.
FOLLOWED = frozenset({
    "max_length", "max_new_tokens", "min_length", "min_new_tokens", "max_time", "stop_strings", "do_sample",
    "num_beams", "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff",
    "repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "forced_eos_token_id",
    "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens", "sequence_bias",
    "pad_token_id", "bos_token_id", "eos_token_id",
})  # fmt: skip
_WITHOUT_EFFECT = frozenset({
    "early_stopping", "length_penalty", "num_beam_groups", "diversity_penalty", "decoder_start_token_id",
    "renormalize_logits", "remove_invalid_values", "use_cache", "cache_implementation", "cache_config",
    "max_cache_len", "prefill_chunk_size", "low_memory", "compile_config", "disable_compile",
    "continuous_batching_config", "use_mtp", "is_assistant", "num_assistant_tokens",
    "num_assistant_tokens_schedule", "assistant_confidence_threshold", "prompt_lookup_num_tokens",
    "max_matching_ngram_size", "assistant_early_exit", "assistant_lookbehind", "target_lookbehind",
    "assistant_ensemble_weight", "speculation_type", "output_attentions", "output_hidden_states",
    "output_scores", "output_logits", "return_dict_in_generate", "transformers_version",
})  # fmt: skip


def refuse_others(config: GenerationConfig, followed: frozenset[str] = FOLLOWED, who: str = "kad") -> None:
    """Refuse settings that are not followed, or out of range. What Transformers does not know has no effect there.

    Raises:
        UsageError: the aligned model's settings ask for something else.
    """
    from transformers import GenerationConfig

    known = {name for name in GenerationConfig().to_dict() if not name.startswith("_")} - followed - _WITHOUT_EFFECT
    others = sorted(name for name, value in config.to_dict().items() if name in known and not _is_off(value))
    if others:
        raise UsageError(
            f"The aligned model's settings ask for {', '.join(others)}, which {who} does not follow. Use "
            "model.generate(...) of the Transformers engine, or take it out of generation_config.json."
        )
    temperature = temperature_of(config)
    if temperature is not None and not COLDEST <= temperature <= HOTTEST:
        raise UsageError(
            f"The aligned model's settings have the temperature {temperature:g}, which must be from {COLDEST} to "
            f"{HOTTEST}. Give another one, or mend its generation_config.json."
        )


def _is_off(value: Any) -> bool:
    return not value or (value == 1 and value is not True)


def processors(config: GenerationConfig, prompt_tokens: int, device: Any = "cpu") -> LogitsProcessorList:
    """The settings as functions of log pi, in Transformers' order, which later ones depend on.

    Args:
        config: the settings, as `Sampling.apply` makes them.
        prompt_tokens: how long the prompt is.
        device: where log pi lies.

    Raises:
        UsageError: the aligned model's settings ask for something that is no function of log pi and the text.
    """
    import transformers as hf

    refuse_others(config)
    ends, place = end_tokens(config), {"device": device}
    penalty, decay = config.repetition_penalty or 1.0, config.exponential_decay_length_penalty
    last = prompt_tokens + (config.max_new_tokens or MAX_NEW_TOKENS)
    begin, fewest = config.begin_suppress_tokens, config.min_new_tokens
    table: list[tuple[Any, Callable[[], Any]]] = [
        (config.sequence_bias, lambda: hf.SequenceBiasLogitsProcessor(config.sequence_bias)),
        (penalty != 1.0, lambda: hf.RepetitionPenaltyLogitsProcessor(penalty)),
        (config.no_repeat_ngram_size, lambda: hf.NoRepeatNGramLogitsProcessor(config.no_repeat_ngram_size)),
        (config.bad_words_ids, lambda: hf.NoBadWordsLogitsProcessor(config.bad_words_ids, ends)),
        (config.min_length and ends, lambda: hf.MinLengthLogitsProcessor(config.min_length, ends, **place)),
        (fewest and ends, lambda: hf.MinNewTokensLengthLogitsProcessor(prompt_tokens, fewest, ends, **place)),
        (
            config.forced_eos_token_id,
            lambda: hf.ForcedEOSTokenLogitsProcessor(last, config.forced_eos_token_id, **place),
        ),
        (decay and ends, lambda: hf.ExponentialDecayLengthPenalty(decay, ends, prompt_tokens)),
        (config.suppress_tokens, lambda: hf.SuppressTokensLogitsProcessor(config.suppress_tokens, **place)),
        (begin, lambda: hf.SuppressTokensAtBeginLogitsProcessor(begin, prompt_tokens, **place)),
    ]
    warpers = _warpers(config, place) if config.do_sample else []
    return hf.LogitsProcessorList(make() for needed, make in (*table, *warpers) if needed)


def _warpers(config: GenerationConfig, place: dict[str, Any]) -> list[tuple[Any, Callable[[], Any]]]:
    import transformers as hf

    temperature = 1.0 if config.temperature is None else float(config.temperature)
    top_h, epsilon, eta = getattr(config, "top_h", None), config.epsilon_cutoff or 0.0, config.eta_cutoff or 0.0
    return [
        (temperature != 1.0, lambda: hf.TemperatureLogitsWarper(temperature)),
        (top_h is not None, lambda: hf.TopHLogitsWarper(top_h)),
        (config.top_k, lambda: hf.TopKLogitsWarper(config.top_k)),
        ((config.top_p or 1.0) < 1.0, lambda: hf.TopPLogitsWarper(config.top_p)),
        (config.min_p is not None, lambda: hf.MinPLogitsWarper(config.min_p)),
        ((config.typical_p or 1.0) < 1.0, lambda: hf.TypicalLogitsWarper(config.typical_p)),
        (0.0 < epsilon < 1.0, lambda: hf.EpsilonLogitsWarper(epsilon)),
        (0.0 < eta < 1.0, lambda: hf.EtaLogitsWarper(eta, **place)),
    ]
