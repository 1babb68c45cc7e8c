"""`kad trace`: what the rule did at every position of an answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kad.cli import drafting, loading, options, sampling, stdio
from kad.cli.prompts import encode_chat, encode_text, read_prompt
from kad.errors import UsageError
from kad.options import Option

if TYPE_CHECKING:
    from torch import Tensor

    from kad.modeling import KadForCausalLM
    from kad.speculation import SpeculationStatistics
    from kad.tracing.schema import Trace

EXAMPLES = (
    'kad trace "Mia has 24 apples. She buys 13 more. Then she loses 9. How many are left?" -o trace.html',
    'kad trace "Tom has 61 coins. He spends 17. Then he gives away 8. How many coins are left?" --rule primal --all',
    'kad trace "Why is the sky blue?" --pair my-pair --text answer.txt -o trace.html',
    "kad trace trace.json -o trace.html",
)


def command(
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="[PROMPT]", help="The prompt, or a trace as .json to show again; - reads the prompt."),
    ] = None,
    *,
    file: options.PromptFile = None,
    text: Annotated[Path | None, Option("Score the answer in this file instead of generating one.", "FILE")] = None,
    out: Annotated[Path | None, Option("Write a page (.html) or the data (.json).", "FILE", "-o")] = None,
    every_position: Annotated[
        bool, Option("In the terminal, list every position, not only those where p is overruled.", name="--all")
    ] = False,
    system: options.System = None,
    raw: options.Raw = False,
    thinking: sampling.Thinking = None,
    draft_tokens: drafting.DraftTokens = None,
    as_json: options.Json = False,
    models: options.ModelOptions,
    max_new_tokens: sampling.MaxNewTokens = None,
    temperature: sampling.Temperature = None,
    top_k: sampling.TopK = None,
    top_p: sampling.TopP = None,
    min_p: sampling.MinP = None,
    repetition_penalty: sampling.RepetitionPenalty = None,
    stop: sampling.Stop = None,
    seed: options.Seed = None,
) -> None:
    """Record what the rule did at every position: who each token came from, and the distributions behind it.

    Without -o the trace is shown in the terminal. With -o trace.html it becomes one page that works offline; with
    -o trace.json data that `kad trace trace.json` shows again.
    """
    if out is not None and out.suffix.lower() not in (".html", ".json"):
        raise UsageError(f"A trace is written as .html or .json, not {out.name!r}.")
    stored = _stored(prompt)
    if stored is not None:
        _deliver(_read(stored), out, every_position, as_json)
        return
    question = read_prompt(prompt, file)
    settings = sampling.Sampling(
        max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, tuple(stop or ()), seed
    )
    drafting.parse(draft_tokens)
    if raw and (system is not None or thinking is not None):
        raise UsageError("--raw uses no chat template: --system and --thinking would do nothing.")
    answer = None if text is None else read_prompt(None, text)
    model = models.load()
    tokenizer = loading.load_tokenizer(model)
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages.append({"role": "user", "content": question})
    prompt_ids = encode_text(tokenizer, question) if raw else encode_chat(tokenizer, messages, thinking)
    if answer is not None:
        trace = _given(model, tokenizer, prompt_ids, answer)
    else:
        trace = _generated(model, tokenizer, prompt_ids, settings, drafting.plan(model, draft_tokens, settings))
    _deliver(trace, out, every_position, as_json)


def _given(model: KadForCausalLM, tokenizer: Any, prompt_ids: Tensor, answer: str) -> Trace:
    from kad.tracing.tracer import trace

    tokens = tokenizer(answer, add_special_tokens=False).input_ids
    return trace(model, tokenizer, prompt_ids[0].tolist(), tokens)


@dataclass(frozen=True)
class _LoggedPlan(drafting.Plan):
    """A plan whose speculation is written down token by token."""

    log: SpeculationStatistics = field(kw_only=True)

    def options(self, statistics: SpeculationStatistics) -> dict[str, Any]:
        return super().options(self.log)


def _generated(
    model: KadForCausalLM, tokenizer: Any, prompt_ids: Tensor, settings: sampling.Sampling, plan: drafting.Plan
) -> Trace:
    from kad.cli import running
    from kad.tracing.speculation_log import SpeculationLog
    from kad.tracing.tracer import trace

    log = SpeculationLog()
    answer = running.generate(
        model, tokenizer, prompt_ids, settings, _LoggedPlan(plan.draft_tokens, plan.reason, log=log)
    )
    config = settings.apply(model.generation_config, None)
    made: dict[str, Any] = {"source": "generated", "do_sample": bool(config.do_sample)}
    if config.do_sample:
        made |= {"temperature": config.temperature, "seed": answer.seed}
    made |= {"finish_reason": answer.finish_reason, "draft_tokens": plan.draft_tokens}
    events = log.events(len(answer.token_ids)) if log.windows else []
    return trace(model, tokenizer, prompt_ids[0].tolist(), answer.token_ids, events=events, generation=made)


def _stored(prompt: str | None) -> Path | None:
    """The trace file that the prompt names, if it names one."""
    if prompt is None or not prompt.endswith(".json") or "\n" in prompt:
        return None
    return Path(prompt) if Path(prompt).is_file() else None


def _read(path: Path) -> Trace:
    from kad.tracing.schema import Trace

    return Trace.from_json(path.read_text(encoding="utf-8"))


def _deliver(trace: Trace, out: Path | None, every_position: bool, as_json: bool) -> None:
    if out is not None:
        trace.save(out)
        stdio.message(f"Wrote {out}: {len(trace.positions)} tokens under {trace.rule_text}.")
    if as_json:
        stdio.print_json(trace.to_dict())
    elif out is None:
        from kad.tracing.terminal import render

        stdio.stdout().print(render(trace, every_position))
