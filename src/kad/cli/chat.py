"""`kad chat`: a conversation with the composed model. Each line is a message, or a command such as /rule."""

from __future__ import annotations

import atexit
import difflib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from kad.cli import common, display, stdio
from kad.cli.flatten import Only
from kad.disk import write_atomically
from kad.errors import KadError, UsageError
from kad.text.drafting import DraftTokens
from kad.text.prompts import pieces
from kad.text.sampling import Sampling
from kad.words import counted

if TYPE_CHECKING:
    from types import FrameType

    from kad.engines.load import Loaded
    from kad.text.answer import Answer
    from kad.text.conversation import Conversation
    from kad.text.streaming import Stream

EXAMPLES = (
    "kad chat",
    "kad chat my-pair --system 'You answer in one sentence.'",
    "kad chat --base Qwen/Qwen3-14B-Base --aligned Qwen/Qwen3-1.7B --no-thinking -t 0.7",
    "kad chat --rule confidence_bet",
)


def command(
    pair_argument: common.PairArgument = None,
    *,
    asking: Annotated[common.PromptOptions, Only("system", "thinking")],
    draft_tokens: DraftTokens = None,
    models: common.ModelOptions,
    sampling: Sampling,
) -> None:
    """Talk with the composed model.

    Type a message or a command. /rule changes the rule, /color shows which model wrote the last answer, and /help lists
    all commands. Ctrl-C stops an answer. Ctrl-D, or Ctrl-C twice, leaves. If you pipe text in, every line is a message
    or a command.
    """
    models = models.of(pair_argument)
    with stdio.stderr().status("Loading the models ..."):
        model = models.load()
        from kad.text.conversation import Conversation

        settings = {**asking.template, "sampling": sampling, "num_draft_tokens": draft_tokens}
        talk = Chat(Conversation(model, origins=False, **settings))
    if sys.stdin.isatty():
        topic = models.topic()
        if topic is not None:
            stdio.message(f"{topic[0].upper()}{topic[1:]}\n")
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
    """Arrow keys, a history in a file, and pasted lines as one message, if this Python has readline."""
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
    atexit.register(_write_history, readline, file)


def _write_history(readline: Any, file: Path) -> None:
    with suppress(OSError):
        readline.write_history_file(file)


class Chat:
    """A conversation, driven by typed lines."""

    def __init__(self, conversation: Conversation) -> None:
        self.conversation = conversation
        self.last: Answer | None = None
        # The messages before each answer, so that it can be taken back.
        self._earlier: list[list[dict[str, str]]] = []

    @property
    def model(self) -> Loaded:
        """The composed model."""
        return self.conversation.model

    def describe(self) -> str:
        """The models and the rule, in one line."""
        parts = self.model.config.model_sources()
        return f"{stdio.name_of(parts['base'])} aligned by {stdio.name_of(parts['aligned'])}, {self.model.rule}"

    def take(self, line: str) -> bool:
        """A line that was typed: a message, or a command. False when it asks to leave.

        Raises:
            KadError: an unknown command, a bad rule, a conversation longer than the context; the state is as before.
        """
        line = line.strip()
        if not line:
            return True
        if not line.startswith("/"):
            self.say(line)
            return True
        name, _, argument = line[1:].partition(" ")
        if name in ("quit", "exit", "q"):
            return False
        _command(name)(self, argument.strip())
        return True

    def say(self, text: str) -> Answer:
        """Send a message and stream the answer to standard output. Ctrl-C ends the answer, not the conversation."""
        before = list(self.conversation.turns)
        answering = self.conversation.say(text)
        with stoppable(answering), display.whole_words() as write:
            for piece in answering:
                write(piece.text)
        answer = answering.answer
        stdio.write("\n\n")
        display.remark(answer)
        self.last = answer
        self._earlier.append(before)
        return answer

    # ------------------------------------------------------------------ commands

    def set_rule(self, rule: str) -> None:
        """/rule [RULE]     switch to this rule from the next answer on, or show the one in force"""
        if rule:
            self.model.rule = rule
        stdio.message(f"rule: {self.model.rule}\n")

    def set_system(self, text: str) -> None:
        """/system [TEXT]   set the system message (none: drop it) and start a new conversation"""
        self.conversation.system = text or None
        self.clear("")

    def set_temperature(self, text: str) -> None:
        """/temperature [T] draw at this temperature from the next answer on; 0 takes the most probable token"""
        if text:
            try:
                value = float(text)
            except ValueError:
                raise UsageError(f"/temperature takes a number, such as 0.7, but got {text!r}.") from None
            now = self.conversation.sampling
            greedy: dict[str, Any] = {"top_k": None, "top_p": None, "min_p": None} if value == 0 else {}
            self.conversation.sampling = replace(now, temperature=value, **greedy)
        temperature = self.conversation.sampling.temperature
        words = "the aligned model's" if temperature is None else f"{temperature:g}"
        stdio.message(f"temperature: {words}\n")

    def retry(self, _: str) -> None:
        """/retry           answer the last message again"""
        self.say(self._take_back())

    def undo(self, _: str) -> None:
        """/undo            take the last message and its answer back"""
        question = self._take_back()
        stdio.message(f"Taken back: {question.splitlines()[0][:60]}\n")

    def save(self, name: str) -> None:
        """/save FILE       write the conversation as JSON, as messages"""
        if not name:
            raise UsageError("/save needs the name of a file, such as talk.json.")
        try:
            text = json.dumps({"messages": self.conversation.messages}, indent=1, ensure_ascii=False) + "\n"
            write_atomically(Path(name), text)
        except OSError as error:
            raise UsageError(f"Cannot write {name}: {error.strerror}.") from error
        stdio.message(f"Wrote {counted(len(self.conversation.turns), 'message')} to {name}.\n")

    def _take_back(self) -> str:
        if not self._earlier:
            raise UsageError("There is no answer to take back.")
        before = self._earlier.pop()
        question = self.conversation.turns[len(before)]["content"]
        self.conversation.turns, self.last = before, None
        return question

    def clear(self, _: str) -> None:
        """/clear           start a new conversation"""
        self.conversation.clear()
        self.last, self._earlier = None, []
        stdio.message("A new conversation.\n")

    def show_statistics(self, _: str) -> None:
        """/stats           speed and speculation of the last answer"""
        display.show_statistics(self.model, self._last())

    def show_origins(self, _: str) -> None:
        """/color           the last answer, each token in the color of the model it came from (rule in force)"""
        from kad.text.scoring import score_tokens

        answer, composition = self._last(), self.model.composition
        display.require_origins(composition)
        if answer.token_ids:
            score = score_tokens(self.model, answer.prompt, answer.token_ids, composition)
            assert score.base_share is not None
            assert score.deferred_mass is not None
            texts = pieces(self.model.tokenizer, answer.token_ids)
            shares, masses = score.base_share.tolist(), score.deferred_mass.tolist()
            display.print_origins(list(zip(texts, shares, masses, strict=True)))

    def show_help(self, _: str) -> None:
        """/help            this list"""
        lines = [(command.__doc__ or "").strip() for command in _COMMANDS.values()]
        stdio.message("\n".join([*lines, "/quit            leave (also Ctrl-D)", ""]))

    def _last(self) -> Answer:
        if self.last is None:
            raise UsageError("There is no answer yet.")
        return self.last


_COMMANDS: dict[str, Callable[[Chat, str], None]] = {
    "rule": Chat.set_rule,
    "system": Chat.set_system,
    "temperature": Chat.set_temperature,
    "retry": Chat.retry,
    "undo": Chat.undo,
    "save": Chat.save,
    "clear": Chat.clear,
    "stats": Chat.show_statistics,
    "color": Chat.show_origins,
    "help": Chat.show_help,
}


def _command(name: str) -> Callable[[Chat, str], None]:
    if name in _COMMANDS:
        return _COMMANDS[name]
    close = difflib.get_close_matches(name, [*_COMMANDS, "quit"], n=1)
    hint = f"Did you mean /{close[0]}?" if close else "/help lists the commands."
    raise UsageError(f"Unknown command /{name}. {hint}")


@contextmanager
def stoppable(answering: Stream) -> Iterator[None]:
    """Within the block the first Ctrl-C only stops the answer; the second one is a KeyboardInterrupt."""

    def on_interrupt(signum: int, frame: FrameType | None) -> None:
        if answering.stopped:
            raise KeyboardInterrupt
        answering.stop()

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
