"""kad in lm-evaluation-harness: `lm_eval run --model kad --model_args pair=... --tasks kad_gsm8k`.

`KadLM` is lm-eval's own `HFLM` around a composed model, so every lm-eval task runs on a pair, log-likelihoods
included: the composition is a language model. lm-eval finds it through the entry point group `lm_eval.models`, which
releases after 0.4.13 read. For older ones, and to have kad's tasks found without `--include_path`, `python -m
kad.evaluation.harness` is lm-eval's command with both in place.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from kad.engines.load import first_device, is_usable, load_models
from kad.engines.nested import assembled
from kad.engines.pair import Pair
from kad.engines.transformers.modeling import KadForCausalLM
from kad.engines.transformers.speculative import speculative as decode_speculatively
from kad.errors import UsageError
from kad.evaluation import host
from kad.evaluation.tasks.task import TASKS_FOLDER, chat_renderer
from kad.pair.folder import resolve
from kad.pair.parts import leaves_of, parts_of

HFLM = host.model_class()


class KadLM(HFLM):  # type: ignore[misc, valid-type]
    """A pair as an lm-eval model.

    Args:
        pair: a pair folder, hub id or "tiny"; or `base` and `aligned` (and `reference`) instead.
        rule: replaces the pair's rule.
        deferral_temperature: replaces the pair's.
        speculative: decode speculatively, one request at a time, with `num_draft_tokens` drafts a window.
        device, dtype, batch_size, ...: as for lm-eval's `hf`.

    Raises:
        UsageError: neither a pair nor base and aligned model. Else as `KadForCausalLM`.
    """

    def __init__(
        self,
        pair: str | None = None,
        base: str | None = None,
        aligned: str | None = None,
        reference: str | None = None,
        rule: str | None = None,
        deferral_temperature: float | None = None,
        speculative: bool = False,
        num_draft_tokens: int | str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        **kwargs: Any,
    ) -> None:
        config = resolve(
            pair, base=base, aligned=aligned, reference=reference, rule=rule, deferral_temperature=deferral_temperature
        )
        if device is not None and not is_usable(device):
            device = first_device()  # lm-eval's command names cuda where nothing is said
        options: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
        parts = parts_of(config)
        sources = leaves_of(parts)
        leaves = load_models(sources, dict.fromkeys(sources, "transformers"), device=device, **options)
        model = KadForCausalLM.of(Pair(config, assembled(parts, leaves)))
        if speculative:
            if str(kwargs.get("batch_size", 1)) != "1":
                raise UsageError("Speculative decoding takes one request at a time. Leave batch_size at 1.")
            model.generate = partial(  # type: ignore[method-assign]
                model.generate, custom_generate=decode_speculatively, num_draft_tokens=num_draft_tokens
            )
        super().__init__(pretrained=model, tokenizer=model.tokenizer, **kwargs)
        # lm-eval writes this into its results; a module would not be JSON.
        self.pretrained = model.config.name_or_path or f"{base} + {aligned}"
        self._render = chat_renderer(self.tokenizer) if self.tokenizer.chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The aligned model's chat template with thinking off, as published."""
        if self._render is not None and add_generation_prompt:
            return self._render(chat_history)
        return str(super().apply_chat_template(chat_history, add_generation_prompt))


def main(arguments: list[str] | None = None) -> None:
    """lm-eval's command line, with the model `kad` registered and kad's tasks included."""
    register()
    words = list(sys.argv[1:] if arguments is None else arguments)
    # `lm-eval --model ...` without a subcommand means `run`; only that one takes tasks to include.
    if (not words or words[0] == "run" or words[0].startswith("-")) and "--include_path" not in words:
        words += ["--include_path", str(TASKS_FOLDER)]
    sys.argv = ["lm-eval", *words]
    host.command()()


def register() -> None:
    """Make `--model kad` known to this process's lm-eval; harmless where the entry point has done so."""
    registry = host.model_registry()
    if "kad" not in registry:
        registry.register("kad", target="kad.evaluation.harness:KadLM")


if __name__ == "__main__":
    main()
