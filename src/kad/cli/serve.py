"""`kad serve`: kad's own server for one person's machine, or vLLM's server with the pair's speculation."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kad.cli import stdio
from kad.cli.common import ModelOptions, PairArgument, warn_if_open
from kad.cli.flatten import Without
from kad.engines.load import ENGINES
from kad.engines.vllm import host as vllm
from kad.errors import UsageError
from kad.method.defaults import FIXED_DRAFT_TOKENS
from kad.options import Option, options_of
from kad.pair.sources import SERVER
from kad.server.listening import HOST, PORT, Listening, address_of, check_installed, listen

if TYPE_CHECKING:
    from kad.pair.config import KadConfig

# Command line arguments that are not ours go on to vLLM.
CONTEXT_SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}
EXAMPLES = (
    "kad serve tiny --port 8000",
    "kad serve ./pair --tensor-parallel-size 2 --max-model-len 8192",
    "kad serve ./pair --engine transformers --rule dual:threshold=0.6",
    "kad serve ./pair --teacher --port 8001",
    "kad serve ./pair --no-speculate --dry-run",
)
_DEFAULTS = ModelOptions()
# vLLM's own limit on drafted tokens per request and step.
_MOST_DRAFT_TOKENS = 128
# What a teacher needs of vLLM: any number of log-probabilities, those that a text was drawn with; and a request that
# says nothing of it draws from pi itself, not by the aligned model's own settings.
_TEACHER = {"--logprobs-mode": "processed_logprobs", "--max-logprobs": "-1", "--generation-config": "vllm"}
# A teacher is asked once when it starts, over HTTP at its port. These take it elsewhere.
_ELSEWHERE = ("--uds", "--headless", "--grpc", "--ssl-certfile")


@dataclass(frozen=True)
class Drafts:
    """Whether and how the aligned model drafts."""

    speculate: Annotated[bool, Option("Let the aligned model draft; exact either way.")] = True
    draft_tokens: Annotated[
        int | None,
        Option("Tokens drafted per step.", "N", allowed=f"[1, {_MOST_DRAFT_TOKENS}]", shown=str(FIXED_DRAFT_TOKENS)),
    ] = None
    repeatable: Annotated[
        bool,
        Option(
            "vllm: let a request's seed repeat its sampled text. Drafts are then greedy, of which fewer are accepted. "
            "The other engines always repeat it."
        ),
    ] = False


def command(
    context: typer.Context,
    pair_argument: PairArgument = None,
    *,
    engine: Annotated[
        str,
        Option(
            "What runs the models. vllm is for many requests at a time, the others for one person's machine.",
            allowed=tuple(dict.fromkeys(("auto", "vllm", *ENGINES))),
            parse=lambda text: text.replace("-", "_"),
            shown="vllm where it is installed, else by the models' files",
        ),
    ] = "auto",
    drafts: Drafts,
    teacher: Annotated[
        bool,
        Option(
            "vllm: for a trainer that distills the pair into one model. No drafts, log pi of every token of a text, "
            "checked at the start."
        ),
    ] = False,
    dry_run: Annotated[bool, Option("vllm: print its command line instead of running it.")] = False,
    listening: Listening,
    models: Annotated[ModelOptions, Without("engine")],
) -> None:
    """Serve a pair over the OpenAI API.

    Where vLLM is installed, it is the server. The options of "Models" do not apply to it, but --dtype and
    --trust-remote-code, and every option that is not listed here goes to `vllm serve` as it is: --tensor-parallel-size,
    --max-model-len and so on; vllm serve --help lists them. Unless --speculative-config or --no-speculate is given, the
    aligned model drafts for the pair.

    Without vLLM, or with another --engine, kad's own server answers one request at a time on this machine.

    Requests may carry a rule of their own: "vllm_xargs": {"rule": "dual:threshold=0.6"} in the request's body.
    """
    if (pair_argument or "").startswith("-"):  # an option that is not kad's, and no pair before it
        context.args.insert(0, str(pair_argument))
        pair_argument = None
    models = models.of(pair_argument)
    far = models.base is not None and SERVER.match(models.base) is not None
    if engine == "vllm" or (engine == "auto" and not far and (dry_run or vllm.is_installed())):
        _serve_with_vllm(drafts, teacher, dry_run, listening, models, context.args)
        return
    if teacher:
        raise UsageError(
            "--teacher needs vLLM's server, as trainers ask for the log-probabilities of many texts at a time. Install "
            'it with: pip install "kad-align[vllm]", and leave --engine out.'
        )
    if dry_run:
        raise UsageError("--dry-run shows vLLM's command line. Give --engine vllm with it.")
    if context.args:
        raise UsageError(f"Unknown option {context.args[0]}. Only vLLM takes options of its own.")
    _serve_here(replace(models, engine=engine), drafts.draft_tokens if drafts.speculate else 0, listening)


def _serve_here(models: ModelOptions, draft_tokens: int | None, options: Listening) -> None:
    """kad's own server, until Ctrl-C."""
    from kad.text import drafting

    models.check()
    drafting.check(draft_tokens)
    check_installed()
    listening = listen(options)
    with stdio.stderr().status("Loading the models ..."):
        model = models.load()
    name = models.name
    stdio.message(f"{name} is served at {address_of(listening)}/v1. Ctrl-C ends it.")
    warn_if_open(options)
    from kad.server.app import make_app
    from kad.server.connections import server_of

    app = make_app(model, name, options, draft_tokens=draft_tokens)
    server_of(app, options).run(sockets=[listening])


def _serve_with_vllm(
    drafts: Drafts, teacher: bool, dry_run: bool, listening: Listening, models: ModelOptions, extra: Sequence[str]
) -> None:
    """Replace this process by vLLM's server."""
    if models.pair is None:
        raise UsageError("vLLM serves a pair: give a folder written by kad pack, a hub id, or tiny.")
    unknown = [name for name in ("cors", "max_requests") if getattr(listening, name)]
    for name in options_of(ModelOptions):
        if name not in ("pair", "dtype", "trust_remote_code") and getattr(models, name) != getattr(_DEFAULTS, name):
            unknown.append(name)
    if unknown:
        options = ", ".join("--" + name.replace("_", "-") for name in unknown)
        raise UsageError(
            f"vLLM's server does not take {options}. Write it into the pair with kad pack, or give another --engine."
        )
    models.check()
    plugins = os.environ.get("VLLM_PLUGINS")
    if not dry_run:
        vllm.check_installed()
        if plugins is not None and "kad" not in plugins.split(","):
            raise UsageError(f"VLLM_PLUGINS={plugins} keeps kad's plugin out of vLLM. Add kad to it, or unset it.")
    # The key goes through the environment: other users of the machine can read a command line.
    key = {"VLLM_API_KEY": listening.key} if listening.key else {}
    if not listening.key:
        listening = replace(listening, api_key=os.environ.get("VLLM_API_KEY"))
    warn_if_open(listening)
    port = PORT if teacher and listening.port is None else listening.port
    values = ("--host", listening.host or HOST), ("--port", port), ("--dtype", models.dtype)
    passed = [text for option, value in values if value is not None for text in (option, str(value))]
    passed += ["--trust-remote-code"] if models.trust_remote_code else []
    if teacher:
        drafts = _drafts_of_a_teacher(drafts, port, extra)
        passed += [text for name in _TEACHER if _value_of(extra, name) is None for text in (name, _TEACHER[name])]
    arguments = _command_line(models.pair, models.trust_remote_code, drafts, [*passed, *extra])
    if teacher:
        arguments.insert(arguments.index("serve"), "--teacher")
    if dry_run:
        stdio.write(shlex.join(arguments) + "\n")
        if key:
            stdio.note("vLLM gets the key through its environment, as VLLM_API_KEY.")
        return
    sys.stdout.flush()
    os.execve(sys.executable, arguments, {**os.environ, **key})


def _drafts_of_a_teacher(drafts: Drafts, port: int | None, extra: Sequence[str]) -> Drafts:
    """None; after a look whether something contradicts `--teacher`."""
    given = {argument.partition("=")[0].replace("_", "-"): argument for argument in extra if argument.startswith("-")}
    drafting = drafts.draft_tokens is not None or drafts.repeatable
    if drafting or given.keys() & {"--speculative-config", "-sc"}:
        raise UsageError(
            "--teacher reads texts and drafts none: drop --draft-tokens, --repeatable and --speculative-config."
        )
    for name in ("--logprobs-mode", "--max-logprobs"):
        value = _value_of(extra, name)
        if value not in (None, _TEACHER[name]):
            raise UsageError(f"--teacher serves with {name} {_TEACHER[name]}, but {name} is {value}. Drop one of them.")
    elsewhere = [name for name in _ELSEWHERE if name in given] + ["--port 0"] * (port == 0)
    if elsewhere:
        raise UsageError(f"--teacher asks its server over HTTP, at a port that is known. Drop {elsewhere[0]}.")
    return Drafts(speculate=False)


def _command_line(pair: str, trusted: bool, drafts: Drafts, extra: Sequence[str]) -> list[str]:
    from kad.pair.folder import resolve, vocabulary_in_files
    from kad.pair.parts import refuse_pairs
    from kad.pair.sources import resolve_pair

    config = resolve(pair, trust_remote_code=trusted)
    sources = config.model_sources()
    sources["base"].check_here("vLLM")
    refuse_pairs(sources)
    vocabulary_in_files(config.model_sources())
    arguments = [sys.executable, "-m", "kad.engines.vllm.launch", "serve", resolve_pair(pair)]
    if _value_of(extra, "--served-model-name") is None:
        arguments += ["--served-model-name", pair]
    names = ("--speculative-config", "--speculative_config", "-sc")
    own_speculation = any(argument.startswith(names) for argument in extra)
    if own_speculation and drafts.draft_tokens is not None:
        raise UsageError(
            "--draft-tokens is part of kad's own speculation; put it into --speculative-config, or drop that."
        )
    if own_speculation and drafts.repeatable:
        raise UsageError(
            '--repeatable is part of kad\'s own speculation; put "draft_sample_method": "greedy" into '
            "--speculative-config, or drop that."
        )
    if not drafts.speculate and (own_speculation or drafts.draft_tokens is not None):
        raise UsageError("--no-speculate contradicts --draft-tokens and --speculative-config; choose one.")
    if drafts.speculate and not own_speculation:
        ranks = _value_of(extra, "--tensor-parallel-size", "-tp")
        arguments += ["--speculative-config", json.dumps(_speculation(config, drafts, ranks))]
    return [*arguments, *extra]


def _speculation(config: KadConfig, drafts: Drafts, ranks: str | None) -> dict[str, Any]:
    """vLLM's own speculation with the aligned model as the draft; its verification is exact for any draft.

    Verification draws from the request's seed. Sampled drafts do not: all requests share one generator there.
    """
    aligned = config.model_sources()["aligned"]
    draft: dict[str, Any] = {
        "method": "draft_model",
        "model": aligned.model,
        "num_speculative_tokens": drafts.draft_tokens or FIXED_DRAFT_TOKENS,
        "draft_sample_method": "greedy" if drafts.repeatable else "probabilistic",
    }
    if aligned.revision is not None:
        draft["revision"] = aligned.revision
    if ranks is not None:
        draft["draft_tensor_parallel_size"] = int(ranks)
    return draft


def _value_of(arguments: Sequence[str], *names: str) -> str | None:
    """The value of an option among vLLM's arguments, as `--name value` or `--name=value`."""
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name.replace("_", "-") in names:
            following = arguments[position + 1] if position + 1 < len(arguments) else None
            return value if equals else following
    return None
