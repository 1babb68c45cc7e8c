"""`kad generate`: text from a prompt."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from kad.cli import common, display, stdio
from kad.errors import ServerError, UsageError
from kad.options import Option
from kad.text.drafting import DraftTokens
from kad.text.sampling import Sampling

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
    asking: common.PromptOptions,
    color: Annotated[bool, Option("Show, once the text is finished, which model each token came from.")] = False,
    stats: Annotated[
        bool,
        Option("Show speed and speculation on standard error (with --json: add the speed-up)."),
    ] = False,
    draft_tokens: DraftTokens = None,
    compile: Annotated[
        bool,
        Option("Compile the forward passes first, on CUDA as graphs. For models that Transformers runs."),
    ] = False,
    stream: Annotated[bool, Option("Show the text as it arrives.")] = True,
    as_json: common.Json = False,
    models: common.ModelOptions,
    sampling: Sampling,
) -> None:
    """Generate text from a prompt with the composed model.

    The prompt goes through the chat template of the aligned model, unless you give --raw. Tokens are drawn as the
    generation settings of the aligned model say, unless you give sampling options.
    """
    text = asking.read(prompt)
    if as_json and color:
        raise UsageError("Give --json or --color, not both; the JSON holds the origin shares.")
    started = time.perf_counter()
    models.say_topic(text)
    model = models.load()
    from kad.text.answering import stream as answer_to

    if color:
        display.require_origins(model.composition)
    answering = answer_to(
        model, text, **asking.template, raw=asking.raw, sampling=sampling, num_draft_tokens=draft_tokens,
        origins=as_json or color, compile=compile,
    )  # fmt: skip
    loaded = time.perf_counter() - started
    if as_json:
        try:
            answer = answering.finish()
        except ServerError:  # what has come is shown, and then why there is no more
            stdio.print_json(display.as_dict(model, answering.answer, loaded))
            raise
        gain = display.speed_up(model, answer) if stats else {}
        stdio.print_json(display.as_dict(model, answer, loaded) | gain)
        return
    answer = display.show_origins(answering) if color else display.show(answering, stream)
    display.remark(answer)
    if stats:
        display.show_statistics(model, answer)
