"""`kad`: lists the commands, imports the one that is called, and turns errors into exit codes, here and nowhere else.

A command is a module `kad/cli/<name>.py` with a function `command(...)` annotated for Typer. Two module constants are
optional: `EXAMPLES`, command lines that `--help` shows at its end, and `CONTEXT_SETTINGS` for Typer. Adding a command
is one such file and one line in `COMMANDS`.

Exit codes: 0 done; 2 wrong input, with one or two lines on standard error; 130 interrupted; 141 the program
that reads the output has ended.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from inspect import cleandoc
from typing import Annotated, Any

import typer
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from kad import __version__
from kad.cli import stdio
from kad.cli.stdio import WRONG_INPUT, write_anything
from kad.errors import KadError, OptionError, UsageError

_USE, _PAIRS, _MEASURE, _LOOK = "Generate", "Pairs and rules", "Measure", "Look inside"

# Command -> (panel, help line). Static, so that `kad --help` imports no command.
COMMANDS: Mapping[str, tuple[str, str]] = {
    "generate": (_USE, "Generate text from a prompt with the composed model."),
    "chat": (_USE, "Talk with the composed model."),
    "playground": (_USE, "Talk with a pair on a page, and see where each token comes from."),
    "serve": (_USE, "Serve a pair over the OpenAI API."),
    "demo": (_USE, "See alignment at work on the embedded tiny pair."),
    "pack": (_PAIRS, "Write a pair folder: which models, which rule."),
    "info": (_PAIRS, "Show a pair: models, sizes, vocabulary match, memory."),
    "rules": (_PAIRS, "List the rules and their parameters."),
    "eval": (_MEASURE, "Evaluate methods on tasks, with resumable runs."),
    "sweep": (_MEASURE, "Evaluate a rule over values of a parameter."),
    "tune": (_MEASURE, "Choose a rule's parameter on development data."),
    "reproduce": (_MEASURE, "Rerun the published experiments."),
    "report": (_MEASURE, "Compare runs of kad eval: table, Markdown, CSV, JSON, plots."),
    "score": (_LOOK, "Score a text: its perplexity under the composition and under each model."),
    "trace": (_LOOK, "Record what the rule did at every position."),
    "figures": (_LOOK, "Draw the paper's figures for a pair."),
    "analyze": (_LOOK, "Measure how close the rules come to the exact knapsack."),
}

_OPTIONS = {"num_draft_tokens": "--draft-tokens"}

INTERRUPTED = 130  # 128 + SIGINT
PIPE_CLOSED = 141  # 128 + SIGPIPE

# Typer has carried its own copy of Click since 0.26; both are found through what Typer exports.
_ClickError: type[Exception] = next(
    cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException" and issubclass(cls, Exception)
)

_EXAMPLES = (
    "kad demo",
    'kad generate --color "Mia has 24 apples. She buys 13 more. Then she loses 9. How many are left?"',
    "kad generate --base Qwen/Qwen3-14B-Base --aligned Qwen/Qwen3-1.7B 'Why is the sky blue?'",
    "kad rules",
)


class KadCommand(TyperCommand):
    """A command whose help page ends with examples."""

    examples: tuple[str, ...] = ()

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        # If an option is given twice, the parser would drop the first value without a word.
        names = [argument.partition("=")[0] for argument in args[: args.index("--") if "--" in args else None]]
        for option in self.params:
            takes_one = not getattr(option, "multiple", False) and not getattr(option, "is_flag", False)
            if takes_one and sum(name in option.opts for name in names if name.startswith("-")) > 1:
                raise UsageError(f"{option.opts[0]} is given twice; it takes one value.")
        return super().parse_args(ctx, list(args))

    def get_help_option(self, ctx: Any) -> Any:
        option = super().get_help_option(ctx)
        if option is not None:
            option.metavar = ""  # a flag; Typer would write <bool>
        return option

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        _print_examples(self.examples)


class KadGroup(TyperGroup):
    """The group of all commands: stubs for the help page, the real one when it is called, errors as exit codes."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name = args[0]
        if name in COMMANDS:
            return name, load_command(name), args[1:]
        if ctx.resilient_parsing:
            return None, None, args[1:]
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else f" Choose from: {', '.join(COMMANDS)}."
        raise UsageError(f"Unknown command {name!r}.{hint}")

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        _print_examples(_EXAMPLES)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # Typer would end with 1 here, as if the command had failed
            _drop_output()
            raise typer.Exit(PIPE_CLOSED) from None

    def main(self, *args: Any, **kwargs: Any) -> Any:
        standalone = kwargs.pop("standalone_mode", True)
        if len(args) < 2:
            kwargs["prog_name"] = kwargs.get("prog_name") or "kad"
        kwargs["standalone_mode"] = False
        run = partial(super().main, *args, **kwargs)
        if not standalone:
            return run()
        sys.exit(exit_code(run))


def exit_code(run: Callable[[], Any]) -> int:
    """Call `run`; its errors become a message on standard error and an exit code."""
    try:
        code = run()
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except OptionError as error:
        return _wrong_input(re.sub("`([a-z_]+)`", _as_option, str(error)))
    except KadError as error:
        return _wrong_input(str(error))
    except _ClickError as error:
        return _wrong_input(getattr(error, "format_message", error.__str__)(), getattr(error, "ctx", None))
    except (KeyboardInterrupt, typer.Abort):
        sys.stderr.write("\n")
        return INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return PIPE_CLOSED
    except OSError as error:  # a full disk, a place that went away
        if error.strerror is None:
            raise
        return _wrong_input(f"{error.strerror}: {error.filename}" if error.filename else error.strerror)


def _as_option(name: re.Match[str]) -> str:
    """An option's name in Python as the command line spells it."""
    return _OPTIONS.get(name[1], "--" + name[1].replace("_", "-"))


def _drop_output() -> None:
    """Send standard output nowhere: Python flushes it again at exit, and that must not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _wrong_input(message: str, context: Any = None) -> int:
    stdio.stderr().print("error: ", style="bold red", end="")
    stdio.message(message, column=len("error: "))
    if context is not None:
        stdio.message(f"See: {context.command_path} --help")
    return WRONG_INPUT


def load_command(name: str) -> Any:
    """Import the module of a command and make its Click command. UsageError: this installation has no such module."""
    from kad.cli.flatten import flatten

    try:
        module = import_module(f"kad.cli.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"kad.cli.{name}":
            raise
        raise UsageError(f"kad {name} is not part of this installation (kad-align {__version__}).") from None
    single = typer.Typer(add_completion=False, rich_markup_mode="rich")
    single.command(
        name,
        cls=KadCommand,
        help=_unwrap(module.command.__doc__ or COMMANDS[name][1]),
        context_settings={"help_option_names": ["-h", "--help"], **getattr(module, "CONTEXT_SETTINGS", {})},
    )(flatten(module.command))
    command: Any = typer.main.get_command(single)
    command.examples = getattr(module, "EXAMPLES", ())
    return command


def _unwrap(docstring: str) -> str:
    """Paragraphs as one line each: the help page breaks lines where the terminal ends, not where the source does."""
    return "\n\n".join(re.sub(r"\n(?!\s)", " ", paragraph) for paragraph in cleandoc(docstring).split("\n\n"))


def _print_examples(examples: tuple[str, ...]) -> None:
    """One line for each example, never broken, so that it can be copied."""
    if not examples:
        return
    console = stdio.stdout()
    console.print(Text(" Examples", style="bold"))
    for example in examples:
        console.print(Text(f"   {example}", style="cyan"), soft_wrap=True)
    console.print()


def _stub() -> None:
    """A command on the help page; `KadGroup.resolve_command` replaces it by the real one."""


def _show_version(value: bool) -> None:
    if value:
        stdio.write(f"kad-align {__version__}\n")
        raise typer.Exit


app = typer.Typer(
    name="kad",
    cls=KadGroup,
    invoke_without_command=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _main(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


app.callback(
    help="Align a big language model at test time with a small aligned one, exactly.\n\n"
    "A big base model p and a small aligned model q* are composed token by token under a rule. The composition is a "
    "language model of its own: generate with it, chat with it, evaluate it, serve it."
)(_main)
for _name, (_panel, _summary) in COMMANDS.items():
    app.command(_name, help=_summary, rich_help_panel=_panel)(_stub)


def main() -> None:
    """The console script."""
    write_anything()
    app()


if __name__ == "__main__":
    main()
