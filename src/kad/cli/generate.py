"""`kad generate`: text from a prompt."""

from __future__ import annotations

import time
from functools import partial
from typing import Annotated

import typer

from kad.cli import drafting, loading, options, sampling, stdio
from kad.cli.prompts import encode_chat, encode_text, read_prompt
from kad.errors import UsageError

EXAMPLES = (
    'kad generate "Mia has 24 apples. She buys 13 more. Then she loses 9. How many are left?"',
    'kad generate --color "Mia has 24 apples. She buys 13 more. Then she loses 9. How many are left?"',
    "kad generate --pair my-pair --rule primal:budget=0.9 --file question.txt --stats",
    "kad generate --base Qwen/Qwen3-14B-Base --aligned Qwen/Qwen3-1.7B --no-thinking -t 0.7 'Why is the sky blue?'",
    "echo 'Once upon a time' | kad generate --raw --json | jq .text",
)


def command(
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="The prompt; - or nothing reads standard input.")
    ] = None,
    *,
    file: options.PromptFile = None,
    system: options.System = None,
    raw: options.Raw = False,
    thinking: sampling.Thinking = None,
    color: Annotated[
        bool, typer.Option("--color", help="Show, once the text is finished, which model each token came from.")
    ] = False,
    stats: Annotated[
        bool,
        typer.Option("--stats", help="Show speed and speculation on standard error (with --json: add the speed-up)."),
    ] = False,
    draft_tokens: drafting.DraftTokens = None,
    stream: Annotated[bool, typer.Option("--stream/--no-stream", help="Show the text as it arrives.")] = True,
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
    """Generate text from a prompt with the composed model.

    The prompt goes through the aligned model's chat template (--raw: as it stands). How to draw tokens follows the
    aligned model's generation settings, unless you say otherwise.
    """
    text = read_prompt(prompt, file)
    drafting.parse(draft_tokens)
    settings = sampling.Sampling(
        max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, tuple(stop or ()), seed
    )
    if raw and (system is not None or thinking is not None):
        raise UsageError("--raw uses no chat template: --system and --thinking would do nothing.")
    if as_json and color:
        raise UsageError("Give --json or --color, not both; the JSON holds the origin shares.")
    started = time.perf_counter()
    model = models.load()
    tokenizer = loading.load_tokenizer(model)
    prompt_ids = encode_text(tokenizer, text) if raw else encode_chat(tokenizer, messages(system, text), thinking)
    loaded = time.perf_counter() - started

    from kad.cli import display, origins, running

    plan = drafting.plan(model, draft_tokens, settings)
    run = partial(running.generate, model, tokenizer, prompt_ids, settings, plan)
    if as_json:
        answer = run()
        found = display.as_dict(model, tokenizer, answer, display.origins_of(model, prompt_ids, answer), loaded)
        stdio.print_json(found | (display.speed_up(model, prompt_ids, answer) if stats else {}))
        return
    if color:
        origins.require(model)
        answer = display.show_origins(model, tokenizer, prompt_ids, run)
    else:
        answer = display.show(run, stream)
    display.remark(answer)
    if stats:
        display.show_statistics(model, prompt_ids, answer)


def messages(system: str | None, user: str) -> list[dict[str, str]]:
    """The conversation of one question."""
    first = [] if system is None else [{"role": "system", "content": system}]
    return [*first, {"role": "user", "content": user}]
