"""`kad chat`: a conversation with the composed model."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kad.cli import loading, options, stdio
from kad.errors import KadError
from kad.text.drafting import DraftTokens
from kad.text.sampling import Sampling

if TYPE_CHECKING:
    from kad.cli.conversation import Chat

EXAMPLES = (
    "kad chat",
    "kad chat my-pair --system 'You answer in one sentence.'",
    "kad chat --base Qwen/Qwen3-14B-Base --aligned Qwen/Qwen3-1.7B --no-thinking -t 0.7",
    "kad chat --rule confidence_bet",
)


def command(
    given: options.Pair = None,
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
    models = models.of(given)
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
        note = loading.topic(models, "")
        if note is not None:
            stdio.message(f"{note[0].upper()}{note[1:]}\n")
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
    """Arrow keys, a history that is kept, and pasted text of several lines as one message, where Python has them."""
    try:
        import readline
    except ImportError:
        return
    readline.parse_and_bind("set enable-bracketed-paste on")
    file = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "kad" / "history"
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
        readline.read_history_file(file)
    readline.set_history_length(1000)
    atexit.register(_keep_history, readline, file)


def _keep_history(readline: Any, file: Path) -> None:
    with suppress(OSError):
        readline.write_history_file(file)
