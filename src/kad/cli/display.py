"""What a person or a program sees of an answer: text as it arrives, origins in colour, statistics, JSON."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich.table import Table

from kad.cli import origins, stdio
from kad.cli.prompts import context_length

if TYPE_CHECKING:
    from torch import Tensor

    from kad.cli.origins import Origins
    from kad.cli.running import Answer
    from kad.modeling import KadForCausalLM

_REMARKS = {
    "length": "stopped after {tokens} tokens; --max-new-tokens allows more",
    "context": "stopped: the models' context is full",
}


def write(piece: str) -> None:
    """Put a piece of text on standard output at once."""
    sys.stdout.write(piece)
    sys.stdout.flush()


def show(run: Callable[..., Answer], stream: bool) -> Answer:
    """Print the answer, as it arrives or when it is finished."""
    answer = run(write=write) if stream else run()
    write("\n" if stream else answer.text + "\n")
    return answer


def show_origins(model: KadForCausalLM, tokenizer: Any, prompt_ids: Tensor, run: Callable[..., Answer]) -> Answer:
    """Generate, then print the text in the colours of its origins, the legend on standard error."""
    with stdio.stderr().status("Generating ...", spinner="dots") as status:
        pieces: list[str] = []

        def follow(piece: str) -> None:
            pieces.append(piece)
            status.update(f"Generating ... {' '.join(''.join(pieces).split())[-50:]}")

        answer = run(write=follow)
    print_origins(model, tokenizer, prompt_ids, answer)
    return answer


def print_origins(model: KadForCausalLM, tokenizer: Any, prompt_ids: Tensor, answer: Answer) -> None:
    """The text in the colours of its origins under the rule in force, the legend on standard error."""
    found = origins_of(model, prompt_ids, answer)
    if found is not None:
        stdio.stdout().print(origins.render(tokenizer, answer.token_ids, found), soft_wrap=True)
        stdio.stderr().print(origins.legend(found), soft_wrap=True)


def origins_of(model: KadForCausalLM, prompt_ids: Tensor, answer: Answer) -> Origins | None:
    """The origins of an answer's tokens; None under product rules, and for an answer of no tokens."""
    if not answer.token_ids or not origins.has_origins(model):
        return None
    return origins.measure(model, prompt_ids, answer.token_ids)


def remark(answer: Answer) -> None:
    """Say on standard error why a text ended where it did, unless it simply was finished."""
    if answer.finish_reason in _REMARKS:
        stdio.message(f"[{_REMARKS[answer.finish_reason].format(tokens=len(answer.token_ids))}]")


def as_dict(
    model: KadForCausalLM, tokenizer: Any, answer: Answer, found: Origins | None, load_seconds: float
) -> dict[str, Any]:
    """The answer as JSON; `origin_shares` and `alpha` are null under product rules."""
    shares = alpha = None
    if found is not None:
        shares = {"base": _rounded(found.base), "aligned": _rounded([1.0 - share for share in found.base])}
        alpha = _rounded(found.alpha)
    return {
        "text": answer.text,
        "token_ids": answer.token_ids,
        "tokens": [decode_token(tokenizer, token) for token in answer.token_ids],
        "origin_shares": shares,
        "alpha": alpha,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.prompt_tokens,
        "tokens_per_second": answer.tokens_per_second,
        "timings": {"load": load_seconds, "first_token": answer.first_token, "generate": answer.seconds},
        "rule": str(model.rule),
        "deferral_temperature": model.composition.deferral_temperature,
        "models": {role: stdio.shown(part) for role, part in model.config.model_references().items()},
        "seed": answer.seed,
        **speculation(answer),
    }


def _rounded(values: list[float]) -> list[float]:
    """To the digits that float32 carries."""
    return [round(value, 6) for value in values]


def speculation(answer: Answer) -> dict[str, Any]:
    """Whether the aligned model drafted and why (not), and what came of it."""
    counted = answer.statistics
    used = {"used": counted is not None, "draft_tokens": answer.plan.draft_tokens, "reason": answer.plan.reason}
    if counted is None:
        return {"speculation": used}
    return {"drafted": counted.drafted, "accepted": counted.accepted, "speculation": used | counted.to_dict()}


def speed_up(model: KadForCausalLM, prompt_ids: Tensor, answer: Answer) -> dict[str, float]:
    """Plain decoding's speed, measured on a few steps, and how much faster this answer came; empty without drafts."""
    from kad.cli.running import plain_step_seconds

    step = None if answer.statistics is None else plain_step_seconds(model, prompt_ids, answer.token_ids)
    if step is None:
        return {}
    plain = answer.first_token + (len(answer.token_ids) - 1) * step
    return {"plain_tokens_per_second": len(answer.token_ids) / plain, "speed_up": plain / answer.seconds}


def decode_token(tokenizer: Any, token: int) -> str:
    """One token as text, special ones by name."""
    text: str = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    return text


def show_statistics(model: KadForCausalLM, prompt_ids: Tensor, answer: Answer) -> None:
    """The figures of one answer, as a small table on standard error."""
    rows = statistics_rows(model, answer)
    gain = speed_up(model, prompt_ids, answer)
    if gain:
        times, plain = f"{gain['speed_up']:.2f} times", f"{gain['plain_tokens_per_second']:.1f} tokens/s"
        rows.append(("speed-up", f"{times} plain decoding ({plain}, from a few steps timed now)"))
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", justify="right")
    table.add_column()
    for name, value in rows:
        table.add_row(name, value)
    stdio.stderr().print(table)


def statistics_rows(model: KadForCausalLM, answer: Answer) -> list[tuple[str, str]]:
    """Name and value of every figure."""
    context = context_length(model)
    total = answer.prompt_tokens + len(answer.token_ids)
    of_context = f", {total:,} of {context:,} positions" if context else ""
    rows = [
        ("rule", str(model.rule)),
        ("tokens", f"{len(answer.token_ids)} after a prompt of {answer.prompt_tokens}{of_context}"),
        (
            "speed",
            f"{answer.tokens_per_second:.1f} tokens/s: {answer.seconds:.2f} s, the first token after "
            f"{answer.first_token:.2f} s",
        ),
    ]
    if answer.seed is not None:
        rows.append(("seed", str(answer.seed)))
    if answer.statistics is None:
        return [*rows, ("speculation", f"off: {answer.plan.reason}")]
    return [*rows, *_speculation_rows(answer)]


def _speculation_rows(answer: Answer) -> list[tuple[str, str]]:
    counted = answer.statistics
    assert counted is not None
    rows = [("speculation", f"draft tokens {answer.plan.draft_tokens}: {answer.plan.reason}")]
    if counted.drafted:
        rows += [
            ("drafts", f"{counted.accepted} of {counted.drafted} accepted ({counted.acceptance_rate:.0%})"),
            ("windows", f"{counted.windows}, {counted.tokens_per_window:.2f} tokens for each base forward"),
            ("accepted", "  ".join(f"{length}:{count}" for length, count in sorted(counted.lengths.items()))),
        ]
    total = counted.seconds_total or 1.0
    parts = {"draft": counted.seconds_draft, "verify": counted.seconds_verify, "other": counted.seconds_other}
    return [*rows, ("time", ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in parts.items()))]
