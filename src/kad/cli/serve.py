"""`kad serve`: check a pair, choose its speculation, and hand over to vLLM."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kad.errors import UsageError, missing_extra
from kad.options import Option

if TYPE_CHECKING:
    from kad.config import KadConfig

CONTEXT_SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}
EXAMPLES = (
    "kad serve tiny --port 8000",
    "kad serve ./pair --tensor-parallel-size 2 --max-model-len 8192",
    "kad serve ./pair --no-speculate --dry-run",
)
# Enough to pay on a pair whose aligned model costs a tenth of the base; docs/vllm.md says how to choose.
DRAFT_TOKENS = 4
# vLLM's own limit on drafted tokens per request and step.
_MOST_DRAFT_TOKENS = 128


def command(
    context: typer.Context,
    pair: Annotated[
        str, typer.Argument(metavar="PAIR", help="A folder written by kad pack, a hub id, or tiny, the embedded one.")
    ],
    *,
    speculate: Annotated[bool, Option("Let the aligned model draft; exact either way.")] = True,
    draft_tokens: Annotated[
        int | None,
        Option("Tokens drafted per step.", "N", allowed=f"[1, {_MOST_DRAFT_TOKENS}]", shown=str(DRAFT_TOKENS)),
    ] = None,
    repeatable: Annotated[
        bool,
        Option("Let a request's seed repeat its sampled text. Drafts are then greedy, of which fewer are accepted."),
    ] = False,
    dry_run: Annotated[bool, Option("Print vLLM's command line instead of running it.")] = False,
) -> None:
    """Serve a pair with vLLM over the OpenAI API.

    The options listed here are kad's. Every other option goes to `vllm serve` as it is: --port, --tensor-parallel-size,
    --max-model-len, --api-key and so on; vllm serve --help lists them. Unless --speculative-config or --no-speculate is
    given, the aligned model drafts for the pair.

    Requests may carry a rule of their own: "vllm_xargs": {"rule": "dual:threshold=0.6"} in the request's body.
    """
    if not dry_run:
        _check_vllm()
    arguments = _command_line(pair, speculate, draft_tokens, repeatable, context.args)
    if dry_run:
        typer.echo(shlex.join(arguments))
        return
    sys.stdout.flush()
    os.execv(sys.executable, arguments)


def _command_line(
    pair: str, speculate: bool, draft_tokens: int | None, repeatable: bool, extra: Sequence[str]
) -> list[str]:
    from kad.sources import resolve_pair

    config = _checked(pair)
    arguments = [sys.executable, "-m", "kad.vllm.launch", "serve", resolve_pair(pair)]
    if _value_of(extra, "--served-model-name") is None:
        arguments += ["--served-model-name", pair]
    own_speculation = any(
        argument.startswith(("--speculative-config", "--speculative_config", "-sc")) for argument in extra
    )
    if own_speculation and draft_tokens is not None:
        raise UsageError(
            "--draft-tokens is part of kad's own speculation; put it into --speculative-config, or drop that."
        )
    if own_speculation and repeatable:
        raise UsageError(
            '--repeatable is part of kad\'s own speculation; put "draft_sample_method": "greedy" into '
            "--speculative-config, or drop that."
        )
    if not speculate and (own_speculation or draft_tokens is not None):
        raise UsageError("--no-speculate contradicts --draft-tokens and --speculative-config; choose one.")
    if speculate and not own_speculation:
        ranks = _value_of(extra, "--tensor-parallel-size", "-tp")
        draft = _speculation(config, draft_tokens or DRAFT_TOKENS, repeatable, ranks)
        arguments += ["--speculative-config", json.dumps(draft)]
    return [*arguments, *extra]


def _checked(pair: str) -> KadConfig:
    """The pair's configuration, after checking that its models speak the same tokens."""
    from transformers import AutoConfig

    from kad.pairs import check_vocabularies, read_config

    config = read_config(pair)
    sources = config.model_sources()
    sizes = {
        role: AutoConfig.from_pretrained(source.model, revision=source.revision).get_text_config().vocab_size
        for role, source in sources.items()
    }
    check_vocabularies(sizes, sources)
    return config


def _speculation(config: KadConfig, draft_tokens: int, repeatable: bool, ranks: str | None) -> dict[str, Any]:
    """vLLM's own speculation with the aligned model as the draft; its verification is exact for any draft.

    Verification draws from the request's seed. Sampled drafts do not: all requests share one generator there.
    """
    aligned = config.model_sources()["aligned"]
    draft: dict[str, Any] = {
        "method": "draft_model",
        "model": aligned.model,
        "num_speculative_tokens": draft_tokens,
        "draft_sample_method": "greedy" if repeatable else "probabilistic",
    }
    if aligned.revision is not None:
        draft["revision"] = aligned.revision
    if ranks is not None:
        draft["draft_tensor_parallel_size"] = int(ranks)
    return draft


def _check_vllm() -> None:
    if find_spec("vllm") is None:
        raise missing_extra("vllm", "vllm")
    plugins = os.environ.get("VLLM_PLUGINS")
    if plugins is not None and "kad" not in plugins.split(","):
        raise UsageError(f"VLLM_PLUGINS={plugins} keeps kad's plugin out of vLLM. Add kad to it, or unset it.")


def _value_of(arguments: Sequence[str], *names: str) -> str | None:
    """The value of an option among vLLM's arguments, as `--name value` or `--name=value`."""
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name.replace("_", "-") in names:
            following = arguments[position + 1] if position + 1 < len(arguments) else None
            return value if equals else following
    return None
