"""`kad chat`: a conversation with the composed model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kad.cli import options, stdio
from kad.errors import KadError
from kad.text.drafting import DraftTokens
from kad.text.sampling import Sampling

if TYPE_CHECKING:
    from kad.cli.conversation import Chat

EXAMPLES = (
    "kad chat",
    "kad chat --pair my-pair --system 'You answer in one sentence.'",
    "kad chat --base Qwen/Qwen3-14B-Base --aligned Qwen/Qwen3-1.7B --no-thinking -t 0.7",
    "kad chat --rule confidence_bet",
)


def command(
    *,
    system: options.System = None,
    thinking: options.Thinking = None,
    draft_tokens: DraftTokens = None,
    models: options.ModelOptions,
    sampling: Sampling,
) -> None:
    """Talk with the composed model.

    Type a message or a command. /rule changes the rule, /color shows which model wrote the last answer, and /help lists
    all commands. Ctrl-C stops an answer. Ctrl-D, or Ctrl-C twice, leaves. If you pipe text in, every line is a message
    or a command.
    """
    with stdio.stderr().status("Loading the models ..."):
        model = models.load()
        from kad.cli.conversation import Chat
        from kad.text.conversation import Conversation

        talk = Chat(
            Conversation(
                model, system=system, thinking=thinking, sampling=sampling, num_draft_tokens=draft_tokens, origins=False
            )
        )
    if sys.stdin.isatty():
        _interactive(talk)
    else:
        for line in sys.stdin:
            if not talk.take(line):
                break


def _interactive(talk: Chat) -> None:
    stdio.message(f"{talk.describe()}\n/help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves.\n")
    for line in _lines():
        try:
            if not talk.take(line):
                break
        except KadError as error:
            stdio.message(f"{error}\n")


def _lines() -> Iterator[str]:
    """The typed lines, until Ctrl-D, or Ctrl-C twice in a row (a KeyboardInterrupt)."""
    _edit_lines()
    interrupted = False
    while True:
        try:
            line = input("› ")
        except EOFError:
            stdio.message("")
            return
        except KeyboardInterrupt:
            if interrupted:
                raise
            interrupted = True
            stdio.message("\nCtrl-C once more, or Ctrl-D, leaves.")
            continue
        interrupted = False
        yield line


def _edit_lines() -> None:
    """Arrow keys and history in `input`, where Python has them."""
    try:
        import readline  # noqa: F401  (its import changes input())
    except ImportError:
        return
